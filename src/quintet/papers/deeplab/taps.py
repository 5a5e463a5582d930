"""The sum of several atrous convolutions of one input as one product: ASPP's branches in the ResNet form (section 3.2).

Each tap of a kernel is a 1 x 1 convolution whose output lies shifted. One 1 x 1 convolution makes all of them and reads
the features once instead of once a tap; then they are shifted and added. What four kernels have at the same place (the
centre) is added before, and what lies outside of a small map is left out. Same numbers up to rounding.
Legend: F channels of the features, C classes, t taps.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Offset = tuple[int, int]  # rows down and columns to the right that a tap looks away


def summed(features_bfhw: Tensor, layers: Sequence[nn.Conv2d]) -> Tensor:
    """Sum (B, C, h, w) of convolutions of stride 1 that keep the size h x w, each with a bias."""
    height, width = features_bfhw.shape[-2:]
    found: dict[Offset, list[Tensor]] = {}
    for layer in layers:
        for (down, right), weight_cf in _taps(layer):
            if abs(down) < height and abs(right) < width:
                found.setdefault((down, right), []).append(weight_cf)
    bias_c = sum(layer.bias for layer in layers)
    if not found:  # a kernel of even size has no tap on the position itself
        return bias_c[:, None, None].expand(len(features_bfhw), -1, height, width)
    weight = torch.cat([sum(weights) for weights in found.values()])[..., None, None]
    made = F.conv2d(features_bfhw, weight)
    # in float32, or the sum of many would be rounded at each
    parts_bhwtc = made.permute(0, 2, 3, 1).to(torch.promote_types(made.dtype, torch.float32))
    total_bhwc = bias_c
    for (down, right), part_bhwc in zip(found, parts_bhwtc.unflatten(3, (len(found), -1)).unbind(3), strict=True):
        total_bhwc = total_bhwc + F.pad(part_bhwc, (0, 0, -right, right, -down, down))  # negative cuts
    return total_bhwc.permute(0, 3, 1, 2).to(made.dtype)


def _taps(layer: nn.Conv2d) -> Iterator[tuple[Offset, Tensor]]:
    """Where each tap of a layer looks, and its weights (C, F)."""
    rows, columns = layer.kernel_size
    for i in range(rows):
        for j in range(columns):
            down, right = i * layer.dilation[0] - layer.padding[0], j * layer.dilation[1] - layer.padding[1]
            yield (down, right), layer.weight[:, :, i, j]
