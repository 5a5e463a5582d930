"""Scale, crop and mirror an image and its mask together, section 4.1: a function of (seed, epoch, index) alone."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

# Legend: B images, 3 colours, H height, W width.
View = tuple[Tensor, Tensor]  # image (3, H, W) and classes (H, W), both uint8


@dataclass(frozen=True)
class Augmentation:
    """A random one of `scales` (none: as it is), a random window of at most `crop` x `crop`, mirrored every other time.

    Where the scaled image is smaller than the window all of it is kept; the batch pads.
    """

    crop: int
    scales: Sequence[float] | None
    mirror: bool
    seed: int

    def __call__(self, view: View, epoch: int, index: int) -> View:
        random = np.random.default_rng((self.seed, epoch, index))
        if self.scales:
            view = rescaled(view, self.scales[int(random.integers(len(self.scales)))])
        height, width = view[1].shape
        rows, columns = min(height, self.crop), min(width, self.crop)
        top, left = random.integers(height - rows + 1), random.integers(width - columns + 1)
        view = tuple(F.crop(plane, int(top), int(left), rows, columns) for plane in view)
        if self.mirror and random.random() < 0.5:
            view = tuple(F.horizontal_flip(plane) for plane in view)
        return view


def rescaled(view: View, scale: float) -> View:
    """Bilinear image, nearest labels.

    v2's own Mask takes the pixel to the left of and above the nearest, which moves labels against the image.
    """
    image_chw, labels_hw = view
    if scale == 1:
        return view
    size = [max(1, round(side * scale)) for side in labels_hw.shape]
    image_chw = F.resize(image_chw, size, InterpolationMode.BILINEAR, antialias=False)
    return image_chw, F.resize(labels_hw[None], size, InterpolationMode.NEAREST_EXACT)[0]


def to_view(image_hwc: NDArray[np.uint8], labels_hw: NDArray[np.uint8]) -> View:
    return torch.from_numpy(image_hwc).permute(2, 0, 1), torch.from_numpy(labels_hw)


def padded(views: Sequence[View], height: int, width: int, colour: Sequence[float],
           ignored: int) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """images (B, 3, H, W) float32 in [0, 1], labels (B, H, W) int64 and sizes (B, 2), content top left."""
    canvas = torch.tensor(colour, dtype=torch.float32).view(1, 3, 1, 1)
    images_bchw = canvas.expand(len(views), 3, height, width).clone()
    labels_bhw = torch.full((len(views), height, width), ignored, dtype=torch.int64)
    for i, (image_chw, labels_hw) in enumerate(views):
        rows, columns = labels_hw.shape
        torch.div(image_chw, 255, out=images_bchw[i, :, :rows, :columns])
        labels_bhw[i, :rows, :columns] = labels_hw
    return images_bchw, labels_bhw, torch.tensor([view[1].shape for view in views], dtype=torch.int64).view(-1, 2)
