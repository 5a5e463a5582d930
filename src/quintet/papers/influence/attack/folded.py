"""A frozen network that does the same with less work, for thousands of passes forward and back to its pixels."""

from typing import Any

import torch
from torch import Tensor, nn

from quintet.data.examples.features import Backbone


class _Relu6(torch.autograd.Function):
    """min(max(x, 0), 6) in place. The slope is 1 where the OUTPUT is inside (0, 6), so that no input is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = x.clamp_(0, 6)
        ctx.mark_dirty(x)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        return torch.ops.aten.hardtanh_backward(slope, ctx.saved_tensors[0], 0.0, 6.0)


class Relu6(nn.Module):
    """nn.ReLU6(inplace=True) without the copy of its input that autograd makes of it."""

    def forward(self, x: Tensor) -> Tensor:
        return _Relu6.apply(x)


def fold(backbone: Backbone) -> Backbone:
    """A new backbone with batch norms folded into the convolutions before them; equal up to rounding (about 1e-6).

    Of MobileNetV2 a pass forward and back takes 0.55 of the time, measured on one CPU core.
    """
    from torch.fx.experimental.optimization import fuse

    body = fuse(backbone.body.eval())  # of a copy
    for module in list(body.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.ReLU6) and child.inplace:
                setattr(module, name, Relu6())
    mean, std = (getattr(backbone, name).flatten().tolist() for name in ("mean", "std"))
    return Backbone(body, backbone.image_size, mean, std).to(backbone.mean.device)
