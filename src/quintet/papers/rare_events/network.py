"""The convolutional network of the Omniglot experiments (section 4.1 and the authors' released code)."""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from quintet.common.errors import UserError


@dataclass(frozen=True)
class ConvNetConfig:
    """Everything under `model.network`: two convolutions a stage, each stage ends in 2 x 2 max pooling."""

    channels: tuple[int, ...] = (64, 128)
    hidden: tuple[int, ...] = ()
    width: int = 256
    dropout: float = 0.7
    init_std: float = 0.1

    def __post_init__(self) -> None:
        if not self.channels or min((*self.channels, *self.hidden, self.width)) < 1:
            raise UserError("model.network.channels, .hidden and .width must be 1 or more, channels not empty")
        if not 0 <= self.dropout < 1:
            raise UserError(f"model.network.dropout={self.dropout} must be at least 0 and below 1 (dropped, not kept)")
        if not self.init_std > 0:
            raise UserError(f"model.network.init_std={self.init_std} must be above 0")


class ConvNet(nn.Module):
    """Images (B, 1, S, S) -> embeddings (B, width): [3x3 conv, ReLU] x 2 and pooling a stage, then linear layers.

    The embedding itself has no ReLU and no normalisation, only dropout. The paper's text has `hidden=(256,)`, a second
    linear layer with dropout between the two; the released code, which gave its table, has none.
    """

    def __init__(self, config: ConvNetConfig, image_size: int) -> None:
        super().__init__()
        side = image_size // 2 ** len(config.channels)
        if side < 1:
            raise UserError(f"data.image_size={image_size} is too small for {len(config.channels)} poolings by two")
        self.config, self.image_size = config, image_size
        stages: list[nn.Module] = []
        for inside, outside in zip((1, *config.channels), config.channels, strict=False):
            stages += [nn.Conv2d(inside, outside, 3, padding=1), nn.ReLU()]
            stages += [nn.Conv2d(outside, outside, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        self.convolutions = nn.Sequential(*stages)
        widths = (config.channels[-1] * side * side, *config.hidden, config.width)
        linear: list[nn.Module] = []
        for index, (inside, outside) in enumerate(pairwise(widths)):
            linear += [nn.Linear(inside, outside)]
            linear += [nn.ReLU(), nn.Dropout(config.dropout)] if index < len(config.hidden) else []
        self.embedding = nn.Sequential(*linear, nn.Dropout(config.dropout))
        self.apply(self._initialise)

    def _initialise(self, layer: nn.Module) -> None:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            std = self.config.init_std
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
