"""A dilated stack that advances one time step per call, in PyTorch, on any device.

Shapes: b batch, k blocks, j past taps, r residual, g 2 * gate channels, z gate channels, s skip channels.
"""

import torch
from torch import Tensor

from quintet.papers.wavenet.layers import DilatedStack, gated_activation


class QueuedStack:
    """Ring buffers of the last (kernel_size - 1) * dilation inputs of every block.

    A step reads all buffers with one gather and one batched product, computes the blocks in order and writes with one
    index_copy. Time is a tensor on the device, so that a CUDA graph can replay the same step.
    """

    def __init__(self, stack: DilatedStack, inputs: list[Tensor]):
        self.taps = stack.kernel_size - 1
        batch, channels, time = inputs[0].shape
        device, weights = inputs[0].device, [block.filter_gate.weight for block in stack.blocks]
        self.past_kjg = torch.stack([w[..., :-1].permute(2, 1, 0).reshape(-1, w.size(0)) for w in weights])
        self.now_rg = [w[..., -1].t().contiguous() for w in weights]
        self.residual = [
            (b.residual.bias, b.residual.weight[..., 0].t()) for b in stack.blocks if b.residual is not None
        ]
        self.scale = stack.blocks[0].scale
        assert stack.skip.bias is not None
        self.skip = stack.skip.bias, stack.skip.weight[..., 0].t()
        lengths = torch.tensor([max(block.reach, 1) for block in stack.blocks], device=device)
        self.lengths, self.bases = lengths, lengths.cumsum(0) - lengths
        delays = [[(self.taps - tap) * block.dilation for tap in range(self.taps)] for block in stack.blocks]
        self.delays = torch.tensor(delays, dtype=torch.int64, device=device)
        self.time = torch.tensor(time, device=device)
        self.queue = torch.zeros(int(lengths.sum()), batch, channels, device=device)
        for x_brt, base, length in zip(inputs, self.bases.tolist(), lengths.tolist(), strict=True):
            slots = base + torch.arange(time - length, time, device=device) % length
            self.queue[slots] = x_brt[..., -length:].permute(2, 0, 1)

    def step(self, x_br: Tensor, bias_kbg: Tensor) -> Tensor:
        """The input and biases of one time step -> the sum of skips (B, S)."""
        a_kbg = bias_kbg
        if self.taps:
            slots_kj = self.bases[:, None] + (self.time - self.delays) % self.lengths[:, None]
            past_kjbr = self.queue[slots_kj]
            a_kbg = a_kbg + torch.bmm(past_kjbr.permute(0, 2, 1, 3).flatten(2), self.past_kjg)
        inputs, z_list = [], []
        for k, now_rg in enumerate(self.now_rg):
            inputs.append(x_br)
            z_list.append(gated_activation(torch.addmm(a_kbg[k], x_br, now_rg)))
            if k < len(self.residual):
                bias_r, weight_zr = self.residual[k]
                x_br = x_br + torch.addmm(bias_r, z_list[-1], weight_zr)
                x_br = x_br if self.scale == 1.0 else x_br * self.scale
        self.queue.index_copy_(0, self.bases + self.time % self.lengths, torch.stack(inputs))
        self.time += 1
        return torch.addmm(self.skip[0], torch.cat(z_list, dim=1), self.skip[1])
