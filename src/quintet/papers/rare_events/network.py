"""The convolutional network of the Omniglot experiments (section 4.1 and the authors' released code)."""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from quintet.common.errors import UserError


@dataclass(frozen=True)
class ConvNetConfig:
    """Everything under `model.network`; see ConvNet.

    channels: of each stage. hidden: widths of the linear layers before the embedding, whose width is `width`.
    dropout: probability of dropping. init_std: of the weights' truncated normal distribution, and value of the biases.
    """

    channels: tuple[int, ...] = (64, 128)
    hidden: tuple[int, ...] = ()
    width: int = 256
    dropout: float = 0.7
    init_std: float = 0.1

    def __post_init__(self) -> None:
        if not self.channels or min((*self.channels, *self.hidden, self.width)) < 1:
            raise UserError(
                f"model.network has channels={self.channels}, hidden={self.hidden}, width={self.width}: all must be at"
                " least 1, and channels not empty"
            )
        if not 0 <= self.dropout < 1:
            raise UserError(
                f"model.network.dropout={self.dropout} must be at least 0 and below 1 (the probability of dropping)"
            )
        if not self.init_std > 0:
            raise UserError(f"model.network.init_std={self.init_std} must be above 0")


class ConvNet(nn.Module):
    """Images (B, 1, S, S) -> embeddings (B, width): stages of [3x3 conv, ReLU] x 2 and 2x2 pooling, then linear layers.

    The embedding has dropout, but neither ReLU nor normalization. The paper's text describes `hidden=(256,)`, a second
    linear layer with dropout between the two; the released code, which produced its table, has none.
    """

    def __init__(self, config: ConvNetConfig, image_size: int) -> None:
        super().__init__()
        side = image_size // 2 ** len(config.channels)
        if side < 1:
            raise UserError(
                f"data.image_size={image_size} is too small for {len(config.channels)} poolings by two: give at least"
                f" {2 ** len(config.channels)}"
            )
        self.config, self.image_size = config, image_size
        stages: list[nn.Module] = []
        for in_channels, channels in pairwise((1, *config.channels)):
            stages += [nn.Conv2d(in_channels, channels, 3, padding=1), nn.ReLU()]
            stages += [nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        self.convolutions = nn.Sequential(*stages)
        widths = (config.channels[-1] * side * side, *config.hidden, config.width)
        linear: list[nn.Module] = []
        for index, (in_width, width) in enumerate(pairwise(widths)):
            linear += [nn.Linear(in_width, width)]
            linear += [nn.ReLU(), nn.Dropout(config.dropout)] if index < len(config.hidden) else []
        self.embedding = nn.Sequential(*linear, nn.Dropout(config.dropout))
        self.apply(self._initialize)

    def _initialize(self, layer: nn.Module) -> None:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            std = self.config.init_std
            assert layer.bias is not None
            nn.init.trunc_normal_(layer.weight, std=std, a=-2 * std, b=2 * std)
            nn.init.constant_(layer.bias, std)

    def forward(self, images_bchw: Tensor) -> Tensor:
        if images_bchw.shape[-1] != self.image_size:
            raise UserError(
                f"the images are {images_bchw.shape[-1]} pixels wide, the network was built for {self.image_size}: "
                "set data.image_size"
            )
        features = self.convolutions(images_bchw.to(memory_format=torch.channels_last))
        return self.embedding(features.flatten(1))
