"""Any strided convolutional network at a finer output stride with the same weights (Chen et al. 2017, section 3.1).

A layer whose inputs are s pixels apart in the strided network, and r = min(s, output stride) apart in the dense one,
has its kernel and its padding spread by s / r, and its stride becomes what is left of it until the output stride is
reached. The dense responses at every (s / r)-th position are then those of the strided network, up to the borders:
zero padding stays outside the grid. Padding that mirrors or repeats pixels, and pooling with ceil_mode, keep that for
positions whose field of view ends before the last row and column only.
"""

from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.utils import _pair

from quintet.common.errors import UserError

PROBE = 2**15 + 1  # pixels a side, on the meta device, where nothing is computed: ratios of sizes are strides
KERNELS = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)


class BorderedMaxPool(nn.MaxPool2d):
    """Max pooling with any padding: torch's own allows at most half of the kernel without its dilation."""

    def __init__(self, pool: nn.MaxPool2d) -> None:
        super().__init__(pool.kernel_size, pool.stride, pool.padding, pool.dilation, ceil_mode=pool.ceil_mode)

    def forward(self, x_bchw: torch.Tensor) -> torch.Tensor:
        rows, columns = _pair(self.padding)
        bordered = F.pad(x_bchw, (columns, columns, rows, rows), value=float("-inf"))
        return F.max_pool2d(bordered, self.kernel_size, self.stride, 0, self.dilation, self.ceil_mode)


@dataclass(frozen=True)
class Rates:
    """Pixels between neighbors of its input and of its output in the network as it is."""

    before: int
    after: int


def to_output_stride(network: nn.Module, output_stride: int, key: str = "output_stride") -> nn.Module:
    """Change `network` in place and return it; images (B, C, H, W) in, one feature map out.

    key: what to call the setting. Errors: UserError for a stride that the network cannot have: above its own, not a
    divisor of the strides in it, behind an average pooling that would need dilation, or made outside of its layers.
    """
    if output_stride < 1:
        raise UserError(f"{key}={output_stride}: give 1 or more")
    found, own = strides(network)
    if output_stride > own:
        raise UserError(f"{key}={output_stride}: the network's own is {own}, give that or less")
    for name, rates in found.items():
        _spread(network, name, rates, output_stride, key)
    reached = strides(network)[1]
    if reached != output_stride:
        raise UserError(f"{key}={output_stride}: {reached} is reached; what strides in this network is not a layer")
    return network


def strides(network: nn.Module) -> tuple[dict[str, Rates], int]:
    """Every convolution and pooling of `network` with its rates, and the output stride of the whole."""
    ghost = deepcopy(network).to("meta", torch.float32).eval()
    found: dict[str, Rates] = {}
    for name, layer in ghost.named_modules():
        if isinstance(layer, KERNELS):
            layer.register_forward_hook(lambda layer, inputs, output, name=name: _note(found, name, inputs[0], output))
    return found, _rate(_respond(ghost))


def out_channels(network: nn.Module) -> int:
    """Channels of the feature map."""
    return _respond(deepcopy(network).to("meta", torch.float32).eval()).shape[1]


def _respond(ghost: nn.Module) -> torch.Tensor:
    channels = next((layer.in_channels for layer in ghost.modules() if isinstance(layer, nn.Conv2d)), 3)
    try:
        return ghost(torch.empty(1, channels, PROBE, PROBE, device="meta"))
    except RuntimeError as error:  # branches of different sizes, a classifier of a fixed size at the end
        raise UserError(f"the network does not take images of any size: {str(error).splitlines()[0]}") from error


def _note(found: dict[str, Rates], name: str, before: torch.Tensor, after: torch.Tensor) -> None:
    rates = Rates(_rate(before), _rate(after))
    if found.setdefault(name, rates) != rates:
        raise UserError(f"layer {name} is used at strides {found[name].before} and {rates.before}")


def _rate(features: torch.Tensor) -> int:
    return round(PROBE / features.shape[-1])


def _spread(network: nn.Module, name: str, rates: Rates, output_stride: int, key: str) -> None:
    """Give one layer its place in the dense network."""
    layer: Any = network.get_submodule(name)
    before, after = min(rates.before, output_stride), min(rates.after, output_stride)
    own = _square(layer.stride, name)
    if own == 1 and before == rates.before:
        return
    if own == 1 and _square_kernel_of_one(layer):  # also inside squeeze-and-excitation, on one position
        return
    if rates.before % before or rates.after % after or after % before:
        raise UserError(f"{key}={output_stride} does not fit layer {name}, from stride {rates.before} to {rates.after}")
    factor = rates.before // before
    layer.stride = _pair(after // before)
    if factor > 1:
        _dilate(layer, name, factor, key)
        if isinstance(layer, nn.MaxPool2d) and max(_pair(layer.padding)) > 0:
            network.set_submodule(name, BorderedMaxPool(layer))


def _square(stride: int | tuple[int, ...], name: str) -> int:
    rows, columns = _pair(stride)
    if rows != columns:
        raise UserError(f"layer {name} has the stride {rows} x {columns}: only square ones can be replaced")
    return rows


def _square_kernel_of_one(layer: nn.Module) -> bool:
    return _pair(layer.kernel_size) == (1, 1)


def _dilate(layer: Any, name: str, factor: int, key: str) -> None:
    if isinstance(layer, nn.AvgPool2d):
        raise UserError(f"{key} would need holes in the average pooling {name}, which torch does not have")
    layer.dilation = tuple(factor * d for d in _pair(layer.dilation))
    if layer.padding == "same":
        spare = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
        if any(total % (2 * factor) for total in spare):
            raise UserError(f"layer {name} pads an even kernel on one side: give it an odd one")
        padding = tuple(total // 2 for total in spare)
    elif layer.padding == "valid":
        return
    else:
        layer.padding = padding = tuple(factor * p for p in _pair(layer.padding))
    if isinstance(layer, nn.Conv2d):  # what other padding modes than zeros read
        layer._reversed_padding_repeated_twice = [p for p in reversed(padding) for _ in range(2)]
