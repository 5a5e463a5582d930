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
    """Equations 2 and 3, z = tanh(Wf*x + Vf h) * sigmoid(Wg*x + Vg h), and the residual connection (section 2.4).

    Filter and gate are one convolution of twice the channels; so are Vf and Vg. The last block of a stack has no
    residual 1x1: nothing would read it.
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
        self, x_brt: Tensor, length: int, bias_bg1: Tensor | None, condition_bct: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The last `length` steps of (the next block's input, z), (B, R, length) and (B, G, length)."""
        a_bgt = self.filter_gate(_last_steps(x_brt, length + self.reach))
        if bias_bg1 is not None:
            a_bgt = a_bgt + bias_bg1
        if self.condition is not None:
            assert condition_bct is not None
            a_bgt = a_bgt + self.condition(condition_bct[..., -length:])
        filter_bgt, gate_bgt = a_bgt.chunk(2, dim=1)
        z_bgt = torch.tanh(filter_bgt) * torch.sigmoid(gate_bgt)
        if self.residual is None:
            return x_brt, z_bgt
        x_brt = x_brt[..., -length:] + self.residual(z_bgt)
        return (x_brt if self.scale == 1.0 else x_brt * self.scale), z_bgt


def _last_steps(x_brt: Tensor, length: int) -> Tensor:
    """The last `length` steps; steps before the first one are zero."""
    missing = length - x_brt.size(-1)
    return F.pad(x_brt, (missing, 0)) if missing > 0 else x_brt[..., -length:]


class DilatedStack(nn.Module):
    """`stacks` times dilations 1, 2, 4, ... 2^(layers_per_stack-1), and the sum of the skip connections.

    The skip 1x1s of all blocks are one 1x1 over the concatenated z: the same function as one large product.
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
        for i, block in enumerate(self.blocks):
            if inputs is not None:
                inputs.append(x_brt)
            reach -= block.reach
            bias_bg1 = None if biases_bkg is None else biases_bkg[:, i, :, None]
            x_brt, z_bgt = block(x_brt, min(total, last + reach), bias_bg1, condition_bct)
            z_list.append(z_bgt[..., -last:])
        return self.skip(torch.cat(z_list, dim=1))
