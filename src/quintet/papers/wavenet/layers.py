"""Causal convolutions, the gated residual block and the dilated stack (WaveNet, sections 2.1, 2.3 and 2.4).

Letters in names give the dimensions: b batch, r residual channels, g filter and gate channels (2 x gate_channels),
z gate channels, s skip channels, c conditioning channels, k blocks, t time in samples.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class FrontConvolution(nn.Module):
    """The first causal convolution, whose input is one-hot classes (section 2.1), as one table look-up per tap.

    Before the window there is silence, class Q // 2; an all-zero one-hot vector would be no class at all.
    """

    def __init__(self, num_classes: int, channels: int, kernel_size: int):
        super().__init__()
        self.kernel_size, self.silence = kernel_size, num_classes // 2
        # One row per (tap, class). A one-hot selects one row per tap, so this scale gives outputs of unit variance.
        self.weight = nn.Parameter(torch.randn(kernel_size, num_classes, channels) / math.sqrt(kernel_size))

    def forward(self, classes_bt: Tensor) -> Tensor:
        """Classes (B, T) int64 -> (B, R, T)."""
        padded = F.pad(classes_bt, (self.kernel_size - 1, 0), value=self.silence)
        length = classes_bt.size(1)
        x_btr = F.embedding(padded[:, :length], self.weight[0])
        for tap in range(1, self.kernel_size):
            x_btr = x_btr + F.embedding(padded[:, tap : tap + length], self.weight[tap])
        return x_btr.transpose(1, 2)


def gated_activation(a_bgt: Tensor) -> Tensor:
    """z = tanh(filter) * sigmoid(gate), equation 2; filter and gate are the two halves of dimension 1."""
    filter_bzt, gate_bzt = a_bgt.chunk(2, dim=1)
    return torch.tanh(filter_bzt) * torch.sigmoid(gate_bzt)


class ResidualBlock(nn.Module):
    """One dilated layer: equations 2 and 3, then the 1x1 convolution back to the residual channels (section 2.4).

        z = tanh(W_f * x + V_f h) * sigmoid(W_g * x + V_g h)

    `filter_gate` holds W_f and W_g, `condition` V_f and V_g of local conditioning. Global conditioning comes as a bias
    (see `GlobalConditioning`). The last block of a stack has no residual convolution, since nothing would read it.
    """

    def __init__(
        self, residual: int, gate: int, kernel_size: int, dilation: int, condition: int, *, last: bool, scale: bool
    ):
        super().__init__()
        self.dilation, self.reach = dilation, (kernel_size - 1) * dilation
        self.filter_gate = nn.Conv1d(residual, 2 * gate, kernel_size, dilation=dilation)
        self.condition = nn.Conv1d(condition, 2 * gate, 1, bias=False) if condition else None
        self.residual = None if last else nn.Conv1d(gate, residual, 1)
        self.scale = math.sqrt(0.5) if scale else 1.0

    def forward(
        self, x_brt: Tensor, length: int, bias_bg: Tensor | None, condition_bct: Tensor | None
    ) -> tuple[Tensor | None, Tensor]:
        """The last `length` steps of the next block's input (None for the last block) and of z (B, Z, length)."""
        a_bgt = self.filter_gate(causal_window(x_brt, length, self.reach))
        if bias_bg is not None:
            a_bgt = a_bgt + bias_bg[..., None]
        if self.condition is not None:
            assert condition_bct is not None
            a_bgt = a_bgt + self.condition(condition_bct[..., -length:])
        z_bzt = gated_activation(a_bgt)
        if self.residual is None:
            return None, z_bzt
        x_brt = x_brt[..., -length:] + self.residual(z_bzt)
        return (x_brt if self.scale == 1.0 else x_brt * self.scale), z_bzt


def causal_window(x_brt: Tensor, length: int, reach: int) -> Tensor:
    """The last `length + reach` steps of x, filled with zeros on the left where x is shorter."""
    missing = length + reach - x_brt.size(-1)
    return F.pad(x_brt, (missing, 0)) if missing > 0 else x_brt[..., -missing:]


class DilatedStack(nn.Module):
    """`stacks` times dilations 1, 2, 4, ... 2^(layers_per_stack-1), and the sum of the skip connections.

    The skip 1x1 convolutions of all blocks are one 1x1 convolution over the concatenated z: the same function, computed
    as one large product.
    """

    def __init__(
        self,
        *,
        layers_per_stack: int,
        stacks: int,
        kernel_size: int,
        residual: int,
        gate: int,
        skip: int,
        condition: int = 0,
        scale: bool = False,
    ):
        super().__init__()
        self.blocks: Any  # a ModuleList of ResidualBlocks, whose type torch does not keep
        self.dilations = [2**layer for _ in range(stacks) for layer in range(layers_per_stack)]
        self.kernel_size, final = kernel_size, len(self.dilations) - 1
        self.blocks = nn.ModuleList(
            ResidualBlock(residual, gate, kernel_size, d, condition, last=i == final, scale=scale)
            for i, d in enumerate(self.dilations)
        )
        self.skip = nn.Conv1d(gate * len(self.dilations), skip, 1)

    @property
    def reach(self) -> int:
        """Number of past steps that one output depends on: (kernel_size - 1) * sum of dilations."""
        return (self.kernel_size - 1) * sum(self.dilations)

    @property
    def condition_reach(self) -> int:
        """The same for the conditioning input, which the first block reads without a delay."""
        return self.reach - (self.kernel_size - 1) * self.dilations[0]

    def forward(
        self,
        x_brt: Tensor,
        biases_bkg: Tensor | None = None,
        condition_bct: Tensor | None = None,
        last: int | None = None,
        inputs: list[Tensor] | None = None,
    ) -> Tensor:
        """Skip sum (B, S, last); each block computes only the steps that the `last` outputs depend on.

        The input of every block is appended to `inputs`: fast generation fills its queues from it.
        """
        total = x_brt.size(-1)
        last, reach, z_list = last or total, self.reach, []
        for i, block in enumerate(self.blocks):
            if inputs is not None:
                inputs.append(x_brt)
            reach -= block.reach
            bias_bg = None if biases_bkg is None else biases_bkg[:, i]
            x_brt, z_bzt = block(x_brt, min(total, last + reach), bias_bg, condition_bct)
            z_list.append(z_bzt[..., -last:])
        return self.skip(torch.cat(z_list, dim=1))
