"""The paper's classifiers: a linear model, and the small tanh convolutional network of section 4.2.

Legend: B examples, C image channels, H x W pixels, F features.
"""

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from quintet.common.errors import UserError

KINDS = ("linear", "all_cnn", "rbf")
PART, PART_DOUBLE = 250, 32  # images that the convolutions see at a time in training, in float32 and float64


@dataclass(frozen=True)
class ClassifierConfig:
    """Everything under `model.network`; `gamma`, `pixels` and `jitter` are rbf's."""

    kind: str = "linear"
    bias: bool = False
    channels: tuple[int, ...] = (8, 8, 8, 8, 8)
    strides: tuple[int, ...] = (1, 2, 1, 2, 1)
    kernel_size: int = 3
    gamma: float = 1.0  # k(x, z) = exp(-gamma |x - z|^2)
    pixels: bool = False  # training inputs are k / 255: kept as bytes, a quarter of the size
    jitter: float = 0.0  # added to the kernel matrix's diagonal: two equal training inputs make it singular

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UserError(f"model.network.kind={self.kind!r} is unknown: use one of {', '.join(KINDS)}")
        if len(self.channels) != len(self.strides) or not self.channels or min(*self.channels, *self.strides) < 1:
            raise UserError("model.network.channels and .strides must be as many numbers of 1 or more as one another")
        if self.kernel_size < 1 or self.kernel_size % 2 == 0:
            raise UserError(f"model.network.kernel_size={self.kernel_size} must be odd")
        if not self.gamma > 0 or self.jitter < 0:
            raise UserError("model.network.gamma must be above 0 and .jitter 0 or more")


class Linear(nn.Module):
    """Inputs of any shape, flattened, times a matrix: (B, *shape) -> (B, outputs). Starts at zero, as it is convex."""

    def __init__(self, num_inputs: int, outputs: int, bias: bool, dtype: torch.dtype) -> None:
        super().__init__()
        self.top = zero_linear(num_inputs, outputs, bias, dtype)

    def features(self, inputs: Tensor) -> Tensor:
        """What `top` is linear in, (B, F)."""
        return inputs.flatten(1)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.top(self.features(inputs))


class AllCnn(nn.Module):
    """Images (B, C, H, W) -> logits: convolutions without pooling, the mean over all pixels, a linear layer.

    All-CNN-C (Springenberg et al. 2014) made small: a tanh follows each convolution, so that the loss has second
    derivatives everywhere; the last one is 1 x 1 and has as many maps as there are classes. With the default widths
    and 28 x 28 gray pixels it has the paper's 2,616 parameters. Biases always.
    """

    def __init__(
        self, config: ClassifierConfig, image_shape: tuple[int, ...], outputs: int, dtype: torch.dtype
    ) -> None:
        super().__init__()
        if len(image_shape) != 3:
            raise UserError(
                f"model.network.kind=all_cnn needs images (C, H, W), the data has {list(image_shape)}:"
                " set data.flatten=false, or use model=logistic_regression"
            )
        widths, layers = (image_shape[0], *config.channels), []
        for (inside, outside), stride in zip(pairwise(widths), config.strides, strict=True):
            size = config.kernel_size
            layers += [nn.Conv2d(inside, outside, size, stride, padding=size // 2, dtype=dtype), nn.Tanh()]
        layers += [nn.Conv2d(config.channels[-1], outputs, 1, dtype=dtype), nn.Tanh()]
        self.convolutions = nn.Sequential(*layers)
        self.top = nn.Linear(outputs, outputs, dtype=dtype)
        self.apply(_initialize)

    def features(self, images_bchw: Tensor) -> Tensor:
        """What `top` is linear in, (B, outputs)."""
        # L-BFGS trains on all images at once: parts whose maps stay in the cache need less than half the time
        size = PART_DOUBLE if images_bchw.dtype == torch.float64 else PART
        parts = images_bchw.split(size) if self.training else [images_bchw]
        return torch.cat([self.convolutions(part).mean((-2, -1)) for part in parts])

    def forward(self, images_bchw: Tensor) -> Tensor:
        return self.top(self.features(images_bchw))


def zero_linear(num_inputs: int, outputs: int, bias: bool, dtype: torch.dtype) -> nn.Linear:
    """A linear layer of zeros."""
    layer = nn.Linear(num_inputs, outputs, bias, dtype=dtype)
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def _initialize(layer: nn.Module) -> None:
    """As the authors' code: a normal distribution cut at two standard deviations of 1 / sqrt(fan in), biases zero."""
    if isinstance(layer, nn.Conv2d | nn.Linear):
        std = 1 / math.sqrt(layer.weight[0].numel())
        nn.init.trunc_normal_(layer.weight, std=std, a=-2 * std, b=2 * std)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
