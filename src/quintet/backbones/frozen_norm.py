"""Batch norm with fixed statistics and fixed affine parameters."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class FrozenBatchNorm(nn.Module):
    """Batch norm whose statistics and affine parameters are buffers: neither train() nor an optimizer changes them.

    torchvision.ops.misc.FrozenBatchNorm2d is not used: it multiplies by a float32 scale, so that under autocast to
    bfloat16 its output is float32 (twice the memory), and it takes two element-wise passes instead of one kernel.
    """

    running_mean: Tensor
    running_var: Tensor
    weight: Tensor
    bias: Tensor

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        self.eps = norm.eps
        assert norm.running_mean is not None and norm.running_var is not None
        ones = torch.ones_like(norm.running_mean)
        self.register_buffer("weight", ones if norm.weight is None else norm.weight.detach().clone())
        self.register_buffer("bias", 0 * ones if norm.bias is None else norm.bias.detach().clone())
        self.register_buffer("running_mean", norm.running_mean.clone())
        self.register_buffer("running_var", norm.running_var.clone())

    def forward(self, x_bchw: Tensor) -> Tensor:
        statistics = self.running_mean, self.running_var
        return F.batch_norm(x_bchw, *statistics, self.weight, self.bias, training=False, eps=self.eps)


def freeze_batch_norm(module: nn.Module) -> None:
    """Replace every BatchNorm2d inside `module` by a frozen one, in place."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, FrozenBatchNorm(child))
        else:
            freeze_batch_norm(child)
