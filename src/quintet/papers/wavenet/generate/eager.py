"""The back-end in plain PyTorch: any device, any batch size, the reference for the other two."""

from typing import Any

import torch
from torch import Tensor

from quintet.papers.wavenet.generate.plan import Plan
from quintet.papers.wavenet.generate.queues import QueuedStack


class EagerBackend:
    """Queues in torch tensors, one Python step per sample."""

    def __init__(self, plan: Plan):
        self.classes_bt, network = plan.classes_bt, plan.network
        self.stack = QueuedStack(network.stack, plan.block_inputs)
        self.front_jqr = network.front.weight
        layers: list[Any] = [network.head[1], network.head[3]]
        self.head = [(layer.bias, layer.weight[..., 0].t()) for layer in layers]

    def run(self, start, stop, bias_btkg: Tensor, uniforms_bn: Tensor, temperature: float, keep_logits: bool):
        """See `Backend.run`."""
        biases_tkbg, kept = bias_btkg.permute(1, 2, 0, 3), []
        recent = self.front_jqr.size(0) - 1
        for n in range(stop - start):
            classes_bj = self.classes_bt[:, start + n - recent : start + n + 1]
            logits_bq = self.logits(classes_bj, biases_tkbg[min(n, len(biases_tkbg) - 1)])
            self.classes_bt[:, start + n + 1] = draw(logits_bq, uniforms_bn[:, n], temperature)
            if keep_logits:
                kept.append(logits_bq)
        return torch.stack(kept, dim=1) if keep_logits else None

    def logits(self, classes_bj: Tensor, bias_kbg: Tensor) -> Tensor:
        """One step: the classes under the front convolution's taps -> logits (B, Q)."""
        x_br = sum(weight[classes_bj[:, j]] for j, weight in enumerate(self.front_jqr))
        hidden_bs = torch.relu(self.stack.step(x_br, bias_kbg))
        for i, (bias, weight) in enumerate(self.head):
            hidden_bs = torch.addmm(bias, torch.relu(hidden_bs) if i else hidden_bs, weight)
        return hidden_bs


def draw(logits_bq: Tensor, uniforms_b: Tensor, temperature: float) -> Tensor:
    """Classes (B,): the inverse cumulative distribution at one uniform number a stream; argmax for temperature 0."""
    if temperature == 0:
        return logits_bq.argmax(1)
    cumulative_bq = torch.softmax(logits_bq.double() / temperature, dim=1).cumsum(1)
    below_b = (cumulative_bq <= uniforms_b[:, None] * cumulative_bq[:, -1:]).sum(1)
    return below_b.clamp_(max=logits_bq.size(1) - 1)
