"""Faster CPU implementations with the same results up to rounding, chosen by `model.network.cpu_kernels`.

The definitions are `heads.ASPP` and `nn.Conv2d`; tests/papers/deeplab/test_cpu_kernels.py compares both.
Legend: B images, C classes or channels, F channels of the features, H x W or h x w positions, t taps, d the rate.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight

from quintet.papers.deeplab.heads import ASPP


def use_cpu_kernels(network: nn.Module) -> None:
    """Replace the layers inside that have a faster implementation, in place; parameters and their names stay."""
    for name, layer in list(network.named_modules()):
        if type(layer) is ASPP and not any(branch.fully_connected for branch in layer.branch_list()):
            network.set_submodule(name, FusedASPP(layer))
        elif isinstance(layer, nn.Conv2d) and name:
            network.set_submodule(name, AtrousDepthwise.of(layer))


Offset = tuple[int, int]  # rows down and columns to the right at which a tap reads


class FusedASPP(ASPP):
    """ASPP in the ResNet form with the parameters of `aspp`: the branches' sum as one product."""

    def __init__(self, aspp: ASPP) -> None:
        super().__init__(aspp.branch_list())

    def forward(self, x_bfhw: Tensor) -> Tensor:
        return fused_sum(x_bfhw, [branch.classifier for branch in self.branch_list()])


def fused_sum(features_bfhw: Tensor, layers: Sequence[nn.Conv2d]) -> Tensor:
    """Sum (B, C, h, w) of convolutions of stride 1 that keep the size h x w, each with a bias.

    Each tap of a kernel is a 1 x 1 convolution whose output is shifted. One 1 x 1 convolution computes all taps and
    reads the features once; their outputs are then shifted and added. Taps of several kernels at the same place (the
    center) are added beforehand, and taps that only reach outside of a small map are left out.
    """
    height, width = features_bfhw.shape[-2:]
    weights: dict[Offset, list[Tensor]] = {}
    for layer in layers:
        for (down, right), weight_cf in _taps(layer):
            if abs(down) < height and abs(right) < width:
                weights.setdefault((down, right), []).append(weight_cf)
    bias_c = torch.stack([layer.bias for layer in layers if layer.bias is not None]).sum(0)
    if not weights:  # a kernel of even size has no tap on the position itself
        return bias_c[:, None, None].expand(len(features_bfhw), -1, height, width)
    weight_tcf11 = torch.cat([torch.stack(shared).sum(0) for shared in weights.values()])[..., None, None]
    products = F.conv2d(features_bfhw, weight_tcf11)
    # float32, because in half precision each of the many additions would be rounded
    parts_bhwtc = products.permute(0, 2, 3, 1).to(torch.promote_types(products.dtype, torch.float32))
    total_bhwc = bias_c
    for (down, right), part_bhwc in zip(weights, parts_bhwtc.unflatten(3, (len(weights), -1)).unbind(3), strict=True):
        total_bhwc = total_bhwc + F.pad(part_bhwc, (0, 0, -right, right, -down, down))  # negative padding crops
    return total_bhwc.permute(0, 3, 1, 2).to(products.dtype)


def _taps(layer: nn.Conv2d) -> Iterator[tuple[Offset, Tensor]]:
    """The offset of each tap of a layer and its weights (C, F)."""
    rows, columns = layer.kernel_size
    assert isinstance(layer.padding, tuple)
    for i in range(rows):
        for j in range(columns):
            down, right = i * layer.dilation[0] - layer.padding[0], j * layer.dilation[1] - layer.padding[1]
            yield (down, right), layer.weight[:, :, i, j]


class AtrousDepthwise(nn.Conv2d):
    """A depthwise convolution with the parameters of `layer` and a faster gradient on the CPU.

    torch's backward pass of such a layer is by far the slowest part of training MobileNetV2 at output stride 8. Here
    the gradient of the input is a forward convolution with the mirrored kernel, and that of the kernel is computed on
    de-interlaced maps (the paper's second implementation, section 3.1): d x d maps of every d-th pixel, on which the
    convolution has rate 1. In eval mode it is torch's convolution, which also has forward-mode and second derivatives.
    """

    def __init__(self, layer: Any) -> None:
        """layer: an nn.Conv2d."""
        super().__init__(layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding,
                         layer.dilation, layer.groups, bias=False, device="meta")  # fmt: skip
        self.weight = layer.weight
        self.train(layer.training)

    @classmethod
    def of(cls, layer: nn.Module) -> nn.Module:
        """`layer`, replaced if it is depthwise, has the same rate above 1 in both directions and preserves the size."""
        if not isinstance(layer, nn.Conv2d) or isinstance(layer, cls) or layer.groups == 1:
            return layer
        rate, (rows, columns) = layer.dilation[0], layer.kernel_size
        fits = (
            layer.in_channels == layer.out_channels == layer.groups
            and layer.bias is None
            and layer.padding_mode == "zeros"
            and layer.stride == (1, 1)
            and layer.dilation == (rate, rate) != (1, 1)
            and rows % 2 == columns % 2 == 1
            and layer.padding == (rate * (rows // 2), rate * (columns // 2))
        )
        return cls(layer) if fits else layer

    def forward(self, x_bchw: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x_bchw)
        weight: Tensor = self.weight
        if torch.is_autocast_enabled("cpu"):
            dtype = torch.get_autocast_dtype("cpu")
            x_bchw, weight = x_bchw.to(dtype), weight.to(dtype)
        return _Depthwise.apply(x_bchw, weight, self.dilation[0])


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_bchw: Tensor, weight_c1kk: Tensor, rate: int) -> Tensor:
        ctx.save_for_backward(x_bchw, weight_c1kk)
        ctx.rate = rate
        return _convolve(x_bchw, weight_c1kk, rate)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient_bchw: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x_bchw, weight_c1kk = ctx.saved_tensors
        in_x = in_weight = None
        if ctx.needs_input_grad[0]:
            in_x = _convolve(gradient_bchw, weight_c1kk.flip(2, 3), ctx.rate)
        if ctx.needs_input_grad[1]:
            in_weight = conv2d_weight(
                deinterlaced(x_bchw, ctx.rate), weight_c1kk.shape, deinterlaced(gradient_bchw, ctx.rate),
                padding=_half(weight_c1kk), groups=len(weight_c1kk),
            )  # fmt: skip
        return in_x, in_weight, None


def _half(weight_c1kk: Tensor) -> list[int]:
    return [side // 2 for side in weight_c1kk.shape[2:]]


def _convolve(x_bchw: Tensor, weight_c1kk: Tensor, rate: int) -> Tensor:
    padding = [rate * half for half in _half(weight_c1kk)]
    return F.conv2d(x_bchw, weight_c1kk, None, 1, padding, rate, len(weight_c1kk))


def deinterlaced(x_bchw: Tensor, rate: int) -> Tensor:
    """(B d^2, C, H / d, W / d), rounded up: every d-th pixel, from each of the d x d first ones; padded with zeros."""
    images, channels, rows, columns = x_bchw.shape
    padded = F.pad(x_bchw, (0, -columns % rate, 0, -rows % rate))
    split = padded.view(images, channels, -(-rows // rate), rate, -(-columns // rate), rate).permute(0, 3, 5, 1, 2, 4)
    return split.flatten(0, 2)
