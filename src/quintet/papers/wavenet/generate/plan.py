"""What every back-end needs before the first sample: the inputs of every block so far, and the conditioning.

Shapes: b batch, t time, k blocks of the stack, g 2 * gate channels, r residual, c conditioning channels.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from quintet.papers.wavenet.conditioning import ContextStack
from quintet.papers.wavenet.generate.queues import QueuedStack
from quintet.papers.wavenet.network import WaveNet

SPAN = 2000  # samples per call of a back-end: keeps Ctrl-C responsive and the memory for conditioning small


class Plan:
    """The classes (silence, prompt, space for the samples), the inputs of every block so far, and the biases.

    Input time t gives sample t + 1. The first input time is `start`, that of the last class of the prompt.
    """

    def __init__(self, network: WaveNet, classes_bt: Tensor, start: int, block_inputs: list[Tensor]):
        self.network, self.classes_bt, self.start, self.block_inputs = network, classes_bt, start, block_inputs
        self.device, stack = classes_bt.device, network.stack
        self.constant_bkg = torch.stack([block.filter_gate.bias for block in stack.blocks])[None]
        self.local_bct: Tensor | None = None
        self.context: ContextStream | None = None
        self.project_kgc: Tensor | None = None
        if stack.blocks[0].condition is not None:
            self.project_kgc = torch.stack([block.condition.weight[..., 0] for block in stack.blocks])

    def spans(self) -> Iterator[tuple[int, int]]:
        """Ranges [start, stop) of input times; none crosses a border between two pooled blocks of the context stack."""
        end, step = self.classes_bt.size(1) - 1, self.context.pool if self.context is not None else SPAN
        start = self.start
        while start < end:
            stop = min(end, start + SPAN, (start // step + 1) * step)
            yield start, stop
            start = stop

    def bias(self, start: int, stop: int) -> Tensor:
        """What is added to the convolution before the gates, at input times [start, stop): (B, T or 1, K, G)."""
        parts: list[Tensor] = [] if self.local_bct is None else [self.local_bct[..., start:stop]]
        if self.context is not None:
            parts.append(self.context.at(start, self.classes_bt)[..., None].expand(-1, -1, stop - start))
        if not parts:
            return self.constant_bkg[:, None]
        assert self.project_kgc is not None, "there are parts only if the blocks are conditioned"
        return torch.einsum("bct,kgc->btkg", torch.cat(parts, dim=1), self.project_kgc) + self.constant_bkg[:, None]


def make_plan(network, num_samples, batch_size, speaker_b, tags_bn, local_bft, prompt_bt) -> Plan:
    """The plan after one parallel forward over silence and prompt, which gives the inputs of every block."""
    device = next(network.parameters()).device
    hop = network.hop_length if network.upsampling is not None else 1
    silence = -(-(network.receptive_field + 1) // hop) * hop
    prompt_bt = torch.empty(batch_size, 0, dtype=torch.int64) if prompt_bt is None else prompt_bt
    classes_bt = F.pad(prompt_bt.to(device), (silence, num_samples), value=network.num_classes // 2)
    start = silence + prompt_bt.size(1) - 1
    inputs: list[Tensor] = []
    if local_bft is not None:
        local_bft = F.pad(local_bft.to(device), (silence // hop, 0))
    speaker_b, tags_bn = (None if h is None else h.to(device) for h in (speaker_b, tags_bn))
    network.skips(classes_bt[:, :start], speaker_b, tags_bn, local_bft, last=1, inputs=inputs)
    plan = Plan(network, classes_bt, start, inputs)
    biases_bkg = network.global_conditioning(speaker_b, tags_bn)
    if biases_bkg is not None:
        plan.constant_bkg = plan.constant_bkg + biases_bkg
    plan.constant_bkg = plan.constant_bkg.expand(batch_size, -1, -1)
    if network.upsampling is not None:
        plan.local_bct = network.upsampled(local_bft, classes_bt.size(1) - 1)
    if network.context is not None:
        plan.context = ContextStream(network.context, classes_bt[:, :start])
    return plan


class ContextStream:
    """The context stack, advanced by one pooled block at a time."""

    def __init__(self, context: ContextStack, classes_bt: Tensor):
        self.context, self.pool = context, context.pool
        self.done = classes_bt.size(1) // self.pool
        inputs: list[Tensor] = []
        skips_bc1 = context.stack(context.pooled(classes_bt[:, : self.done * self.pool]), last=1, inputs=inputs)
        self.output_bc = torch.relu(skips_bc1[..., 0])
        self.stack = QueuedStack(context.stack, inputs)
        self.bias_kbg = torch.stack([block.filter_gate.bias for block in context.stack.blocks])[:, None]

    def at(self, time: int, classes_bt: Tensor) -> Tensor:
        """The context (B, channels) for the pooled block that contains input time `time`."""
        while self.done < time // self.pool:
            block = classes_bt[:, self.done * self.pool : (self.done + 1) * self.pool]
            x_br = self.context.pooled(block)[..., 0]
            self.output_bc = torch.relu(self.stack.step(x_br, self.bias_kbg))
            self.done += 1
        return self.output_bc
