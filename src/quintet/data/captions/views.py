"""An image as the network gets it, im2txt's resize, crop, flip and colours: a function of (seed, epoch, index)."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from quintet.common.errors import UserError

BRIGHTNESS, SATURATION, HUE, CONTRAST = 32 / 255, (0.5, 1.5), 0.032, (0.5, 1.5)  # im2txt's ranges


@dataclass(frozen=True)
class Views:
    """Resized to resize_size x resize_size pixels, of which a window of crop_size x crop_size is shown.

    keep_aspect: the shorter side becomes resize_size and nothing is squashed; im2txt squashes. In training the window
    is anywhere, mirrored every other time (`mirror`), its colours changed (`colour_jitter`); in evaluation it is the
    middle one.
    """

    resize_size: int = 346
    crop_size: int = 299
    keep_aspect: bool = False
    mirror: bool = True
    colour_jitter: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if self.crop_size < 1:
            raise UserError(f"data.crop_size={self.crop_size}: give 1 or more pixels")
        if self.resize_size < self.crop_size:
            raise UserError(
                f"data.resize_size={self.resize_size} is smaller than data.crop_size={self.crop_size}: the window is"
                " cut out of the resized image"
            )

    def key(self) -> list:
        """What the evaluated view depends on."""
        return [self.resize_size, self.crop_size, self.keep_aspect]

    def evaluated(self, image_chw: Tensor) -> Tensor:
        """uint8 of any size -> (3, crop_size, crop_size) float32 in [0, 1]."""
        return _to_float(F.center_crop(self._resized(image_chw), [self.crop_size, self.crop_size]))

    def augmented(self, image_chw: Tensor, epoch: int, index: int) -> Tensor:
        """As `evaluated`, of a random window of the image."""
        random = np.random.default_rng((self.seed, epoch, index))
        image_chw = self._resized(image_chw)
        top, left = (int(random.integers(side - self.crop_size + 1)) for side in image_chw.shape[1:])
        image_chw = F.crop(image_chw, top, left, self.crop_size, self.crop_size)
        if self.mirror and random.random() < 0.5:
            image_chw = F.horizontal_flip(image_chw)
        image_chw = _to_float(image_chw)
        return jittered(image_chw, random) if self.colour_jitter else image_chw

    def _resized(self, image_chw: Tensor) -> Tensor:
        size = [self.resize_size] if self.keep_aspect else [self.resize_size, self.resize_size]
        return F.resize(image_chw, size, antialias=True)


def jittered(image_chw: Tensor, random: np.random.Generator) -> Tensor:
    """Brightness, saturation, hue and contrast, or contrast before saturation and hue: im2txt uses both orders."""
    brightness, hue = random.uniform(-BRIGHTNESS, BRIGHTNESS), random.uniform(-HUE, HUE)
    saturation, contrast = random.uniform(*SATURATION), random.uniform(*CONTRAST)
    steps = [
        lambda x: F.adjust_saturation(x, saturation),
        lambda x: F.adjust_hue(x, hue),
    ]
    steps.insert(2 * int(random.integers(2)), lambda x: F.adjust_contrast(x, contrast))
    image_chw = (image_chw + brightness).clamp(0, 1)  # im2txt adds; torchvision's adjust_brightness multiplies
    for step in steps:
        image_chw = step(image_chw)
    return image_chw.clamp(0, 1)


def _to_float(image_chw: Tensor) -> Tensor:
    return image_chw.to(torch.float32).div_(255)
