"""Features of a pretrained network in place of images: computed once, kept as a memory-mapped array."""

import logging
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from quintet.backbones.pooled import AUXILIARY, head_of, native_size, normalisation, random_network, resized
from quintet.backbones.pretrained import load_weights, read_weights, weights_key
from quintet.common.errors import UserError
from quintet.data.examples.dataset import to_images
from quintet.data.examples.source import SPLITS, ExampleSource
from quintet.data.examples.store import ArrowInputs
from quintet.data.store import build_once, digest

log = logging.getLogger(__name__)
FORMAT = 1  # raise when the computed features change
NAMES = ("mobilenet_v2", "inception_v3", *(f"resnet{n}" for n in (18, 34, 50, 101, 152)))
KEY = "data.features.weights"


class Backbone(nn.Module):
    """Images (B, 3, H, W) in [0, 1] -> features (B, F); resizing and normalisation are inside, so that gradients
    reach the pixels. Stays in eval mode: its batch norm is never updated.
    """

    mean: Tensor  # (3, 1, 1)
    std: Tensor  # (3, 1, 1)

    def __init__(self, body: nn.Module, image_size: int, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.body, self.image_size = body, image_size
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)
        self.requires_grad_(False).eval()
        # almost twice as fast on CPU; torch's stubs of Module.to lack memory_format
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def train(self, mode: bool = True) -> "Backbone":
        return super().train(False)

    def forward(self, images_bchw: Tensor) -> Tensor:
        return self.body((resized(images_bchw, self.image_size) - self.mean) / self.std)


@dataclass
class FrozenBackbone:
    """A torchvision network without its last layer.

    weights: a file with torchvision's keys, the name of torchvision's weights (IMAGENET1K_V1, downloaded), or null
    for random ones. image_size: null = what the network was trained at, 224, Inception 299.
    """

    name: str = "mobilenet_v2"
    weights: str | None = None
    image_size: int | None = None
    batch_size: int = 50

    def __post_init__(self) -> None:
        if self.name not in NAMES:
            raise UserError(f"data.features.name={self.name}: choose {', '.join(NAMES)}")
        for key in ("image_size", "batch_size"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise UserError(f"data.features.{key}={value}: give 1 or more")
        if self.weights is None:  # said at every start, computed or not
            warnings.warn("data.features.weights=null: the features are those of a random network")

    @property
    def size(self) -> int:
        """Pixels a side that the network sees."""
        return self.image_size or native_size(self.name)

    def network(self) -> Backbone:
        """The frozen network. Errors: UserError for weights that are missing, broken or of another network."""
        state = read_weights(self.name, self.weights, KEY)
        # the second classifier is used in training only, and some files leave it out
        auxiliary = tuple(AUXILIARY.get(self.name, ()))
        body = random_network(self.name, aux=state is None or any(key.startswith(auxiliary) for key in state))
        if state is not None:
            load_weights(body, state, f"{KEY}={self.weights} is no {self.name} of torchvision")
        head = head_of(self.name)
        assert head is not None, "head_of knows all NAMES"
        setattr(body, head, nn.Identity())
        return Backbone(body, self.size, *normalisation(self.name, self.weights))

    def _weights_key(self) -> str:
        return weights_key(self.name, self.weights, KEY)

    def build(self, source: ExampleSource, images: Mapping[str, ArrowInputs], cache_dir: Path) -> Path:
        """The folder with `<split>.npy` (N, F) float32, computed at the first use; other processes wait meanwhile.

        source: after its `splits`, with pictures. images: its stored inputs.
        """
        if len(source.input_shape) != 3 or source.input_shape[0] not in (1, 3):
            raise UserError(f"data.features needs images: {source.name} has the shape {source.input_shape}, set null")
        key = digest(FORMAT, self.name, self._weights_key(), self.size, source.content)
        return build_once(cache_dir / "features" / f"{self.name}-{key}", lambda f: self._write(f, source, images))

    @torch.inference_mode()
    def _write(self, folder: Path, source: ExampleSource, images: Mapping[str, ArrowInputs]) -> None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        network = self.network().to(device)
        for split in SPLITS:
            count = len(images[split])
            log.info("computing %s features of %d %s images on %s, once", self.name, count, split, device)
            out = None
            for start in range(0, count, self.batch_size):
                rows = np.arange(start, min(start + self.batch_size, count))
                pixels = to_images(images[split].gather(rows), source.input_shape, source.scale)
                features = network(pixels.to(device)).cpu().numpy()
                if out is None:
                    shape = (count, features.shape[1])
                    out = np.lib.format.open_memmap(folder / f"{split}.npy", "w+", np.float32, shape)
                out[rows] = features
            if out is None:
                np.save(folder / f"{split}.npy", np.zeros((0, 0), np.float32))
