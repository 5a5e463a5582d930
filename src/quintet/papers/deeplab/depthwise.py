"""Depthwise convolutions with holes; their gradient on a CPU is by the paper's second implementation (section 3.1).

torch's own backward pass of such a layer is by far the slowest part of training MobileNetV2 at output stride 8. The
same numbers come faster: the gradient in the input is a forward convolution with the mirrored kernel, and that in the
kernel is taken on de-interlaced maps, d x d maps of every d-th pixel, on which the convolution has no holes.
Legend: B images, C channels, H x W pixels, d the rate.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class AtrousDepthwise(nn.Conv2d):
    """A Conv2d with the same parameters and outputs; `of` says which layers it can stand for."""

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__(layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding,
                         layer.dilation, layer.groups, bias=False, device="meta")  # fmt: skip
        self.weight = layer.weight
        self.train(layer.training)

    @classmethod
    def of(cls, layer: nn.Module) -> nn.Module:
        """`layer`, replaced where it is depthwise, has holes at one rate both ways, and keeps the size of its input."""
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
        # in eval mode, where influence functions ask for other derivatives, and on a GPU torch's own is the right one
        if not (self.training and torch.is_grad_enabled() and x_bchw.device.type == "cpu"):
            return super().forward(x_bchw)
        weight = self.weight
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
    def backward(ctx: Any, slope_bchw: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x_bchw, weight_c1kk = ctx.saved_tensors
        in_x = in_weight = None
        if ctx.needs_input_grad[0]:
            in_x = _convolve(slope_bchw, weight_c1kk.flip(2, 3), ctx.rate)
        if ctx.needs_input_grad[1]:
            in_weight = nn.grad.conv2d_weight(
                deinterlaced(x_bchw, ctx.rate), weight_c1kk.shape, deinterlaced(slope_bchw, ctx.rate),
                padding=_half(weight_c1kk), groups=len(weight_c1kk),
            )  # fmt: skip
        return in_x, in_weight, None


def _half(weight_c1kk: Tensor) -> list[int]:
    return [side // 2 for side in weight_c1kk.shape[2:]]


def _convolve(x_bchw: Tensor, weight_c1kk: Tensor, rate: int) -> Tensor:
    padding = [rate * half for half in _half(weight_c1kk)]
    return F.conv2d(x_bchw, weight_c1kk, None, 1, padding, rate, len(weight_c1kk))


def deinterlaced(x_bchw: Tensor, rate: int) -> Tensor:
    """(B d^2, C, H / d, W / d), rounded up: every d-th pixel, from each of the d x d first ones; zeros at the ends."""
    images, channels, rows, columns = x_bchw.shape
    padded = F.pad(x_bchw, (0, -columns % rate, 0, -rows % rate))
    apart = padded.view(images, channels, -(-rows // rate), rate, -(-columns // rate), rate).permute(0, 3, 5, 1, 2, 4)
    return apart.flatten(0, 2)
