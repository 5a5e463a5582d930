"""The image encoder: a torchvision network's pooled features (section 3, "Convolutional Neural Network").

Legend: I images, F features.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from quintet.backbones.frozen_norm import freeze_batch_norm
from quintet.backbones.pooled import (
    HEADS,
    feature_width,
    head_of,
    native_size,
    normalisation,
    random_network,
    resized,
    without_auxiliary,
)
from quintet.backbones.pretrained import load_weights, no_such_network, read_weights, weights_key
from quintet.common.errors import UserError

KEY = "model.encoder"


@dataclass(frozen=True)
class EncoderConfig:
    """Everything under `model.encoder`.

    name: of a torchvision network: googlenet (the paper's), inception_v3 (im2txt's), resnet*, mobilenet_v2 ...
    weights: the name of torchvision's weights, a local file, or null: random, the same ones every time.
    image_size: pixels a side that the network sees, null = what its weights were trained on; other images are resized.
    frozen_bn: statistics and affine parameters of batch norm never change, also while the rest is fine-tuned.
    """

    name: str = "googlenet"
    weights: str | None = None
    image_size: int | None = None
    frozen_bn: bool = True

    def __post_init__(self) -> None:
        if head_of(str(self.name)) is None:
            raise UserError(f"{KEY}.name={self.name}: give a torchvision network of {', '.join(HEADS)}")
        if self.image_size is not None and self.image_size < 32:
            raise UserError(f"{KEY}.image_size={self.image_size}: give 32 or more, or null")

    @property
    def size(self) -> int:
        """Pixels a side that the network sees."""
        return self.image_size or native_size(self.name)

    def cache_key(self) -> list:
        """What the frozen encoder's features depend on besides the images."""
        return [self.name, weights_key(self.name, self.weights, f"{KEY}.weights"), self.size]


class Encoder(nn.Module):
    """Images (I, 3, H, W), RGB in [0, 1] at any size -> features (I, F).

    Starts frozen, stage 1 of section 4.3.1: no gradients, not in the optimizer, and in eval mode even after
    `train()`, which Lightning calls. `thaw` is stage 2; the buffer `trained` remembers
    it in checkpoints: features that were cached before it are no longer this encoder's.
    Errors: UserError for weights that are missing, broken or of another network.
    """

    mean: Tensor
    std: Tensor
    trained: Tensor

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.body, self.width = _body(config)
        if config.frozen_bn:
            freeze_batch_norm(self.body)
        mean, std = normalisation(config.name, config.weights)
        # persistent, so that a checkpoint contains the normalization of its weights
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1))
        self.register_buffer("trained", torch.tensor(False))
        # almost twice as fast on CPU
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's stubs
        self.freeze()

    @property
    def frozen(self) -> bool:
        return not self._trainable

    def freeze(self) -> None:
        """No gradients; stays in eval mode."""
        self._trainable = False
        self.requires_grad_(False).eval()

    def thaw(self) -> None:
        """Gradients, and the mode of the surrounding module; frozen batch norm stays frozen."""
        self._trainable = True
        self.trained.fill_(True)
        self.requires_grad_(True)

    def train(self, mode: bool = True) -> "Encoder":
        return super().train(mode and self._trainable)

    def forward(self, images_ichw: Tensor) -> Tensor:
        return self.body((resized(images_ichw, self.config.size) - self.mean) / self.std)


def _body(config: EncoderConfig) -> tuple[nn.Module, int]:
    """The network without its last layers, and F. The weights may have a classifier of other classes, or none."""
    try:
        network = random_network(config.name)
    except ValueError as error:
        raise no_such_network(config.name, KEY) from error
    head, width = head_of(config.name), feature_width(network, config.name)
    assert head is not None  # EncoderConfig has checked it
    setattr(network, head, nn.Identity())
    state = read_weights(config.name, config.weights, f"{KEY}.weights")
    if state is not None:
        kept = {key: value for key, value in network.state_dict().items() if key.endswith("num_batches_tracked")}
        kept |= {k: v for k, v in without_auxiliary(state, config.name).items() if not k.startswith(f"{head}.")}
        load_weights(network, kept, f"{KEY}.weights={config.weights} is no {config.name} of torchvision")
    return network, width
