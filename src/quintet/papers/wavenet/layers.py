"""Causal convolutions, the gated residual block and the dilated stack (WaveNet, sections 2.1, 2.3, 2.4).

Legend: b batch, q classes, r residual, g gate, s skip channels, c conditioning channels, t time in samples.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class FrontConvolution(nn.Module):
    """Causal convolution over one-hot classes, as a table look-up per tap (section 2.1).

    What lies before the window is silence, class Q // 2: an all-zero one-hot is no valid input.
    """

    def __init__(self, num_classes: int, channels: int, kernel_size: int):
        super().__init__()
        self.kernel_size, self.silence = kernel_size, num_classes // 2
        # One row per (tap, class); unit variance at the output, since a one-hot selects one row per tap.
        self.weight = nn.Parameter(torch.randn(kernel_size, num_classes, channels) / math.sqrt(kernel_size))

    def forward(self, classes_bt: Tensor) -> Tensor:
        """classes (B, T) int64 -> (B, R, T)."""
        padded = F.pad(classes_bt, (self.kernel_size - 1, 0), value=self.silence)
        length = classes_bt.size(1)
        x_btr = sum(F.embedding(padded[:, tap : tap + length], w) for tap, w in enumerate(self.weight))
        return x_btr.transpose(1, 2)


class ResidualBlock(nn.Module):
    """z = tanh(Wf*x + Vf h) * sigmoid(Wg*x + Vg h), equations 2 and 3, and the 1x1 back to the residual.

    Filter and gate are one convolution. The last block of a stack has no residual 1x1: nothing would read it.
    """

    def __init__(self, residual, gate, kernel_size, dilation, condition, *, last: bool, scale: bool):
        super().__init__()
        self.dilation, self.reach = dilation, (kernel_size - 1) * dilation
        self.filter_gate = nn.Conv1d(residual, 2 * gate, kernel_size, dilation=dilation)
        self.condition = nn.Conv1d(condition, 2 * gate, 1, bias=False) if condition else None
        self.residual = None if last else nn.Conv1d(gate, residual, 1)
        self.scale = math.sqrt(0.5) if scale else 1.0

    def forward(self, x_btr: Tensor, length: int, bias_b1g: Tensor | None, condition_btc: Tensor | None):
        """The last `length` steps of (next residual or None, z), channels last."""
        a_btg = dilated(self.filter_gate, x_btr, length)
        if bias_b1g is not None:
            a_btg = a_btg + bias_b1g
        if self.condition is not None:
            a_btg = a_btg + pointwise(self.condition, condition_btc[:, -length:])
        filter_btg, gate_btg = a_btg.chunk(2, dim=-1)
        z_btg = torch.tanh(filter_btg) * torch.sigmoid(gate_btg)
        if self.residual is None:
            return None, z_btg
        x_btr = x_btr[:, -length:] + pointwise(self.residual, z_btg)
        return (x_btr if self.scale == 1.0 else x_btr * self.scale), z_btg


def pointwise(conv: nn.Conv1d, x_btc: Tensor) -> Tensor:
    """A 1x1 convolution as the matrix product it is, channels last."""
    return F.linear(x_btc, conv.weight[..., 0], conv.bias)


def dilated(conv: nn.Conv1d, x_btc: Tensor, length: int) -> Tensor:
    """The last `length` outputs of a causal dilated convolution, channels last: one product over the stacked taps.

    On a CPU conv1d's backward is slow when dilated; this was faster in one trial on a loaded machine, no benchmark yet.
    """
    taps, step = conv.kernel_size[0], conv.dilation[0]
    missing = length + (taps - 1) * step - x_btc.size(1)
    x_btc = F.pad(x_btc, (0, 0, missing, 0)) if missing > 0 else x_btc[:, -missing:]
    stacked = torch.cat([x_btc[:, tap * step : tap * step + length] for tap in range(taps)], dim=-1)
    return F.linear(stacked, conv.weight.transpose(1, 2).flatten(1), conv.bias)


class DilatedStack(nn.Module):
    """`stacks` times dilations 1, 2, 4, ... 2^(layers_per_stack-1), and the sum of the skip connections.

    The skip 1x1s of all blocks are ONE 1x1 over the concatenated z (the same function, one large product).
    """

    def __init__(self, *, layers_per_stack, stacks, kernel_size, residual, gate, skip, condition=0, scale=False):
        super().__init__()
        self.dilations = [2**layer for _ in range(stacks) for layer in range(layers_per_stack)]
        self.kernel_size, final = kernel_size, len(self.dilations) - 1
        self.blocks = nn.ModuleList(
            ResidualBlock(residual, gate, kernel_size, d, condition, last=i == final, scale=scale)
            for i, d in enumerate(self.dilations)
        )
        self.skip = nn.Conv1d(gate * len(self.dilations), skip, 1)

    @property
    def reach(self) -> int:
        """How many steps before the present the stack looks back: (k - 1) * sum of dilations."""
        return sum(block.reach for block in self.blocks)

    @property
    def condition_reach(self) -> int:
        """The same for its conditioning input, which the first block reads without a delay."""
        return self.reach - self.blocks[0].reach

    def forward(
        self,
        x_brt: Tensor,
        biases_bkg: Tensor | None = None,
        condition_bct: Tensor | None = None,
        last: int | None = None,
        inputs: list[Tensor] | None = None,
    ) -> Tensor:
        """Skip sum (B, S, last); each block computes only the steps that the `last` outputs depend on.

        `inputs` collects the input of every block, from which fast generation fills its queues.
        """
        total = x_brt.size(-1)
        last, reach, z_list = last or total, self.reach, []
        x_btr = x_brt.transpose(1, 2)
        condition_btc = None if condition_bct is None else condition_bct.transpose(1, 2)
        for i, block in enumerate(self.blocks):
            if inputs is not None:
                inputs.append(x_btr.transpose(1, 2))
            reach -= block.reach
            bias_b1g = None if biases_bkg is None else biases_bkg[:, i, None, :]
            x_btr, z_btg = block(x_btr, min(total, last + reach), bias_b1g, condition_btc)
            z_list.append(z_btg[:, -last:])
        return pointwise(self.skip, torch.cat(z_list, dim=-1)).transpose(1, 2)
