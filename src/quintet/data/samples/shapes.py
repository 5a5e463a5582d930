"""Circles, squares and triangles on textured ground in the VOC layout: `data=shapes_sample`, no download."""

import colorsys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from quintet.common.errors import UserError
from quintet.data.segmentation.labels import IGNORED, index_picture
from quintet.data.segmentation.layout import Item
from quintet.data.segmentation.voc import VOC
from quintet.data.store import build_once, digest

VERSION = 1  # raise when other files are written
HEIGHT, WIDTH = 97, 129
CLASSES = ["background", "circle", "square", "triangle"]
# Hues of a class, overlapping at their ends: colour tells most of the shapes apart, the outline the rest.
HUES = {1: (0.95, 1.2), 2: (0.15, 0.5), 3: (0.45, 0.8)}


def write_shapes(folder: Path, num_train: int, num_val: int) -> None:
    """`folder/VOCdevkit/VOC2012/{JPEGImages,SegmentationClass,ImageSets/Segmentation}`."""
    from PIL import Image

    year = folder / "VOCdevkit" / "VOC2012"
    for part in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (year / part).mkdir(parents=True)
    names = [f"2012_{number:06d}" for number in range(num_train + num_val)]
    for number, name in enumerate(names):
        image_hwc, labels_hw = render(number)
        Image.fromarray(image_hwc).save(year / "JPEGImages" / f"{name}.jpg", quality=90)
        index_picture(labels_hw).save(year / "SegmentationClass" / f"{name}.png")
    for part, listed in (("train", names[:num_train]), ("val", names[num_train:])):
        (year / "ImageSets" / "Segmentation" / f"{part}.txt").write_text("\n".join(listed) + "\n", encoding="ascii")


def render(number: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Image (H, W, 3) and classes (H, W), which are 255 along the outlines as VOC's are."""
    random = np.random.default_rng((VERSION, number))
    image_hwc, labels_hw = ground(random), np.zeros((HEIGHT, WIDTH), np.uint8)
    first = number % 3  # every class is in every third image at least
    for k in range(2 + number % 2):
        kind = 1 + (first + k) % 3
        radius = random.uniform(14, 26)
        middle = random.uniform((radius, radius), (HEIGHT - radius, WIDTH - radius))
        inside_hw, edge_hw = outline(kind, middle, radius, random.uniform(-0.4, 0.4))
        colour = 255 * np.array(colorsys.hsv_to_rgb(random.uniform(*HUES[kind]) % 1, 0.8, random.uniform(0.6, 1)))
        image_hwc[inside_hw] = colour + random.normal(0, 14, (int(inside_hw.sum()), 1))
        labels_hw[inside_hw] = kind
        labels_hw[edge_hw] = IGNORED
    return image_hwc.clip(0, 255).astype(np.uint8), labels_hw


def ground(random: np.random.Generator) -> NDArray[np.float64]:
    """Greyish waves and grain (H, W, 3)."""
    y_hw, x_hw = np.mgrid[:HEIGHT, :WIDTH]
    angle, period = random.uniform(0, np.pi), random.uniform(6, 20)
    waves_hw = np.sin(2 * np.pi * (y_hw * np.sin(angle) + x_hw * np.cos(angle)) / period)
    tint = random.uniform(80, 170) + random.uniform(-15, 15, 3)
    return tint + 20 * waves_hw[..., None] + random.normal(0, 10, (HEIGHT, WIDTH, 1))


def outline(kind: int, middle: NDArray, radius: float, turn: float) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Inside of the shape, and the band two pixels wide around its edge; both (H, W)."""
    y_hw, x_hw = np.mgrid[:HEIGHT, :WIDTH] - np.array(middle)[:, None, None]
    if kind == 1:
        distance_hw = np.hypot(y_hw, x_hw) - radius
    else:  # the largest distance from a side's line, for a regular polygon whose sides are `apothem` off the middle
        corners, apothem = (4, 0.85 * radius) if kind == 2 else (3, 0.75 * radius)  # of about a circle's area
        angles = turn + 2 * np.pi * np.arange(corners) / corners
        distance_hw = np.max([y_hw * np.sin(a) + x_hw * np.cos(a) for a in angles], axis=0) - apothem
    return distance_hw < 0, np.abs(distance_hw) < 1


@dataclass
class SampleShapes(VOC):
    """Writes the files under `root` on first use, then reads them as VOC's."""

    num_train: int = 28
    num_val: int = 12

    name: ClassVar[str] = "the shapes sample"
    classes: ClassVar[list[str]] = CLASSES

    def items(self, cache_dir: Path) -> dict[str, list[Item]]:
        for key in ("num_train", "num_val"):
            if not 1 <= getattr(self, key) <= 100_000:
                raise UserError(f"data.source.{key}={getattr(self, key)}: give 1 to 100000")
        sizes = (self.num_train, self.num_val)
        written = build_once(Path(self.root) / digest(VERSION, *sizes), lambda folder: write_shapes(folder, *sizes))
        options = {key: value for key, value in self.options().items() if not key.startswith("num_")}
        return VOC(str(written), **options).items(cache_dir)
