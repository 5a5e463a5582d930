"""MNIST (LeCun et al. 1998) and whatever shares its four idx files: `{train,t10k}-{images-idx3,labels-idx1}-ubyte`."""

import gzip
import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from quintet.common.errors import UserError
from quintet.data.examples.source import Block, Content, Example, ExampleSource
from quintet.data.pairs.source import content_key
from quintet.data.preview import Preview

IMAGES, LABELS = 0x803, 0x801  # the magic numbers: unsigned bytes in three dimensions, in one
FOLDERS = (".", "MNIST/raw", "mnist", "raw")
BLOCK = 10_000  # images written at a time


@dataclass
class Mnist(ExampleSource):
    """60,000 training images of which the first `val_size` are the validation part, and 10,000 test images.

    The authors hold out the first 5,000 as well, so that n = 55,000. Files may be .gz or unpacked. Images are
    (1, H, W), pixels in [0, 1].
    """

    val_size: int = 5000

    name: ClassVar[str] = "MNIST"
    put: ClassVar[str] = "train-images-idx3-ubyte.gz and its three like (https://ossci-datasets.s3.amazonaws.com/mnist)"

    def files(self, cache_dir: str | Path) -> dict[str, tuple[Path, Path]]:
        """(images, labels) of the parts train and t10k. Raises UserError naming the first that is missing."""
        root = self.find(cache_dir)
        pairs = {part: (f"{part}-images-idx3-ubyte", f"{part}-labels-idx1-ubyte") for part in ("train", "t10k")}
        return {part: (_file(root, images), _file(root, labels)) for part, (images, labels) in pairs.items()}

    def fingerprint(self, cache_dir: str | Path) -> list:
        return [content_key(path) for pair in self.files(cache_dir).values() for path in pair]

    def read(self, cache_dir: str | Path) -> Content:
        files = self.files(cache_dir)
        train, test = (read_pair(*files[part]) for part in ("train", "t10k"))
        count = len(train[1])
        if not 0 <= self.val_size < count:
            raise UserError(f"data.source.val_size={self.val_size}: give 0 to {count - 1} of the {count} images")
        if train[0].shape[1:] != test[0].shape[1:]:
            shapes = [" x ".join(map(str, images.shape[1:])) for images in (train[0], test[0])]
            raise UserError(f"{files['train'][0]} has images of {shapes[0]}, {files['t10k'][0]} of {shapes[1]}")
        parts = {
            "train": _blocks(*train, "train", self.val_size, count),
            "val": _blocks(*train, "train", 0, self.val_size),
            "test": _blocks(*test, "test", 0, len(test[1])),
        }
        digits = [str(digit) for digit in range(10)]
        return Content((1, *train[0].shape[1:]), digits, parts, dtype="uint8", scale=1 / 255)

    def preview(self, example: Example) -> Preview:
        return Preview(example.label, image=example.inputs[0], label=example.label)


def _file(root: Path, name: str) -> Path:
    """The file, .gz or not, in `root` or where torchvision keeps it; also as `train-images.idx3-ubyte`."""
    for folder in FOLDERS:
        for spelling in (name, name.replace("-idx", ".idx")):
            for path in (root / folder / f"{spelling}.gz", root / folder / spelling):
                if path.is_file():
                    return path
    raise UserError(f"{root / name}.gz is missing: put the four idx files of MNIST there, or set data.root=<folder>")


def _blocks(images: NDArray, labels: NDArray, name: str, start: int, stop: int) -> Iterator[Block]:
    """Images start..stop, named by their position in the official file."""
    for first in range(start, stop, BLOCK):
        here = slice(first, min(first + BLOCK, stop))
        yield Block(images[here, None], labels[here], [f"{name}/{i:05d}" for i in range(here.start, here.stop)])


def read_pair(images_path: Path, labels_path: Path) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """(n, H, W) pixels and (n,) labels. Raises UserError when the files do not fit or a label is not a digit."""
    images, labels = read_idx(images_path, IMAGES), read_idx(labels_path, LABELS)
    if len(images) != len(labels):
        raise UserError(
            f"{images_path} has {len(images)} images, {labels_path} {len(labels)} labels: they are not of one set,"
            " download both again"
        )
    if len(labels) and labels.max() > 9:
        row = int((labels > 9).argmax())
        raise UserError(f"{labels_path}: label {labels[row]} at row {row} is not a digit 0..9; download it again")
    return images, labels


def read_idx(path: Path, magic: int) -> NDArray[np.uint8]:
    """One idx file of unsigned bytes: a magic number whose last byte is the number of dimensions, sizes, bytes.

    Raises UserError naming a file that is truncated, of another kind, or not as long as its header claims.
    """
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (EOFError, OSError, zlib.error) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"cannot unpack {path}: {reason}; download it again") from error
    dimensions = magic & 0xFF
    header: Any = np.frombuffer(data[: 4 * (dimensions + 1)], ">u4") if len(data) >= 4 * (dimensions + 1) else [None]
    if header[0] != magic:
        kind = "images" if magic == IMAGES else "labels"
        raise UserError(f"{path} is not an idx file of {kind}: it does not start with {magic:#010x}; download it again")
    shape = [int(size) for size in header[1:]]
    pixels = len(data) - 4 * (dimensions + 1)
    if pixels != math.prod(shape):
        raise UserError(
            f"{path} holds {pixels} bytes after its header, which promises {' x '.join(map(str, shape))}"
            f" = {math.prod(shape)}; download it again"
        )
    return np.frombuffer(data, np.uint8, offset=4 * (dimensions + 1)).reshape(shape)
