"""The 1,797 handwritten digits that come with scikit-learn, in MNIST's idx files: `data=digits_sample`, no download.

They are the test part of the UCI set "Optical recognition of handwritten digits" (Alpaydin & Kaynak 1998).
"""

import gzip
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from quintet.common.errors import UserError
from quintet.data.examples.mnist import IMAGES, LABELS, Mnist
from quintet.data.store import build_once, digest

VERSION = 1  # raise when other files are written
SIDE, COUNT = 8, 1797


def write_digits(folder: Path, image_size: int, num_test: int) -> None:
    """`folder/train-images-idx3-ubyte.gz` and its three like; the last `num_test` digits are the test part."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels_nhw = np.stack([_resized(ink_hw * (255 / 16), image_size) for ink_hw in digits.images])
    split = COUNT - num_test
    for part, rows in (("train", slice(0, split)), ("t10k", slice(split, COUNT))):
        _write_idx(folder / f"{part}-images-idx3-ubyte.gz", IMAGES, pixels_nhw[rows])
        _write_idx(folder / f"{part}-labels-idx1-ubyte.gz", LABELS, digits.target[rows].astype(np.uint8))


def _resized(ink_hw: np.ndarray, size: int) -> np.ndarray:
    from PIL import Image

    picture = Image.fromarray(ink_hw.round().astype(np.uint8))
    return np.asarray(picture if size == SIDE else picture.resize((size, size), Image.Resampling.BILINEAR))


def _write_idx(path: Path, magic: int, array: np.ndarray) -> None:
    header = np.array([magic, *array.shape], ">u4").tobytes()
    # without a date inside, the same digits are the same bytes
    path.write_bytes(gzip.compress(header + array.tobytes(), mtime=0))


@dataclass
class SampleDigits(Mnist):
    """Writes the files under `root` on first use, then reads them as the official ones.

    image_size: 8 as they are, or larger for networks that need it.
    """

    val_size: int = 200
    num_test: int = 400
    image_size: int = SIDE

    name: ClassVar[str] = "the digits sample"

    def find(self, cache_dir: str | Path) -> Path:
        if not SIDE <= self.image_size <= 64:
            raise UserError(f"data.source.image_size={self.image_size}: give {SIDE} to 64 pixels")
        if not 1 <= self.num_test < COUNT:
            raise UserError(f"data.source.num_test={self.num_test}: give 1 to {COUNT - 1} of the {COUNT} digits")
        sizes = (self.image_size, self.num_test)
        return build_once(Path(self.root) / digest(VERSION, *sizes), lambda folder: write_digits(folder, *sizes))
