"""Omniglot (Lake et al. 2015): `images_background.zip` and `images_evaluation.zip`, or the folders inside them."""

import io
import re
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from quintet.common.errors import UserError

PARTS = ("background", "evaluation")
SIDE = 105  # pixels of an official image
MEMBER = re.compile(r"(?:^|/)images_(?:background|evaluation)/([^/]+)/([^/]+)/([^/]+)\.png$")


class Character(NamedTuple):
    """One class: the images that different people drew of one character."""

    alphabet: str
    name: str
    images: tuple[str, ...]  # names in the part, sorted, so that position d is drawer d

    def __str__(self) -> str:
        return f"{self.alphabet}/{self.name}"


class Part(NamedTuple):
    """The opened half of the data set: its classes, and how to read one image's bytes."""

    where: str
    characters: list[Character]
    read: Callable[[str], bytes]


@dataclass
class Omniglot:
    """root: the folder that holds the two official zips or their unpacked folders; or the authors' repository."""

    root: str

    name = "Omniglot"
    sample_config = "glyphs_sample"  # the config that needs no download

    def folder(self) -> Path:
        """The folders of the two parts."""
        return Path(self.root).expanduser()

    def path(self, part: str) -> Path:
        """The folder or zip of `background` or `evaluation`. Raises UserError when neither is there."""
        root = self.folder()
        for folder in (root, root / "python"):
            for path in (folder / f"images_{part}.zip", folder / f"images_{part}"):
                if path.exists():
                    return path
        raise UserError(
            f"no {self.name} at {self.root}: put images_{part}.zip (https://github.com/brendenlake/omniglot) there, "
            f"or set data.root=<path>, or try data={self.sample_config}"
        )

    def fingerprint(self) -> list:
        """What the cache key holds of the source: for each part its path, size and time of change."""
        paths = [self.path(part) for part in PARTS]
        return [[str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns] for path in paths]

    @contextmanager
    def open(self, part: str) -> Iterator[Part]:
        """The classes of a part, sorted by alphabet and character. Raises UserError for a broken or empty part."""
        path = self.path(part)
        if path.is_dir():
            # the folder's own name is the first level of every name, as it is inside the zip
            names = [str(file.relative_to(path.parent)) for file in path.rglob("*.png")]
            yield Part(str(path), group(names, str(path)), lambda name: (path.parent / name).read_bytes())
            return
        try:
            bundle = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, OSError) as error:
            raise UserError(f"cannot open {path}: {error} (is it truncated?); download it again") from error
        with bundle:
            yield Part(str(path), group(bundle.namelist(), str(path)), bundle.read)


def group(names: Sequence[str], where: str) -> list[Character]:
    """Image names -> classes; all must have as many images, so that a class is a row of one array."""
    found = defaultdict(list)
    for name in sorted(names):
        if match := MEMBER.search(name.replace("\\", "/")):
            found[match.group(1), match.group(2)].append(name)
    if not found:
        raise UserError(f"{where} holds no <alphabet>/<character>/<image>.png: is it the official Omniglot file?")
    characters = [Character(*key, tuple(images)) for key, images in sorted(found.items())]
    usual = max(len(character.images) for character in characters)
    for character in characters:
        if len(character.images) != usual:
            raise UserError(
                f"{where}: {character} has {len(character.images)} images, others {usual}: unpack or download again"
            )
    return characters


def read_ink(part: Part, name: str, size: int) -> NDArray[np.uint8]:
    """One drawing as ink (size, size) uint8, 255 = ink on 0 = paper, bilinear from 105 x 105 with area support.

    Raises UserError that names the file for one that is no 105 x 105 picture.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        picture = Image.open(io.BytesIO(part.read(name)))
        picture.load()
    except (UnidentifiedImageError, zipfile.BadZipFile, zlib.error, OSError, SyntaxError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"corrupt image {name} in {part.where}: {reason}; download it again") from error
    if picture.size != (SIDE, SIDE):
        raise UserError(f"{name} in {part.where} is {picture.width} x {picture.height}: Omniglot's are {SIDE} x {SIDE}")
    grey = picture.convert("L")
    if size != SIDE:
        grey = grey.resize((size, size), Image.Resampling.BILINEAR)
    return 255 - np.asarray(grey)
