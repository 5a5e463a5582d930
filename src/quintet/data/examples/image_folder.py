"""A folder or archive of pictures, `<part>/<class>/<picture>`: the paper's dog-against-fish set, or any like it."""

import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from quintet.common.errors import UserError
from quintet.data.examples.pictures import SUFFIXES, read_picture
from quintet.data.examples.source import SPLITS, Block, Content, ExampleSource

log = logging.getLogger(__name__)
BLOCK = 128  # pictures decoded and written at a time, so that memory stays bounded


@dataclass
class ImageFolder(ExampleSource):
    """Pictures as (3, image_size, image_size), pixels in [0, 1]; classes are the sorted folder names.

    train, val, test: which folder is which split; null = no such split. The dog-fish set comes as train and val, and
    the paper tests on the 300 + 300 of the latter: val=null, test=val.
    """

    image_size: int = 224
    train: str = "train"
    val: str | None = "val"
    test: str = "test"

    name: ClassVar[str] = "image folder"
    put: ClassVar[str] = "<part>/<class>/<picture> or its zip"

    def __post_init__(self) -> None:
        if self.image_size < 1:
            raise UserError(f"data.source.image_size={self.image_size}: give 1 or more pixels")
        given = [part for part in (self.train, self.val, self.test) if part is not None]
        if None in (self.train, self.test) or len(set(given)) < len(given):
            raise UserError(
                f"data.source.train={self.train}, val={self.val}, test={self.test}: name different folders for train"
                " and test, and a third or null for val"
            )

    def parts(self, cache_dir: str | Path) -> dict[str, Path]:
        """The folder of each split. Raises UserError naming the key of one that is not there."""
        root = self.find(cache_dir)
        inner = [path for path in root.iterdir() if path.is_dir()]
        # an archive may hold everything in one folder of its own
        root = next((path for path in (root, *sorted(inner)) if (path / self.train).is_dir()), root)
        wanted = {split: getattr(self, split) for split in SPLITS if getattr(self, split) is not None}
        found = sorted(path.name for path in root.iterdir() if path.is_dir())
        for split, folder in wanted.items():
            if folder not in found:
                raise UserError(f"data.source.{split}={folder}: {root} has the folders {', '.join(found) or 'none'}")
        return {split: root / folder for split, folder in wanted.items()}

    def pictures(self, cache_dir: str | Path) -> dict[str, list[Path]]:
        """The files of each split, sorted by class and name. Raises UserError for a part without any."""
        found = {}
        for split, folder in self.parts(cache_dir).items():
            files = [p for p in folder.glob("*/*") if p.suffix.lower() in SUFFIXES and not p.name.startswith(".")]
            if not files:
                raise UserError(f"{folder} has no <class>/<picture> with one of the endings {', '.join(SUFFIXES)}")
            found[split] = sorted(files, key=lambda path: (path.parent.name, path.name))
        return found

    def fingerprint(self, cache_dir: str | Path) -> list:
        files = [path for paths in self.pictures(cache_dir).values() for path in paths]
        stats = ((path, path.stat()) for path in files)
        return [[*path.parts[-3:], stat.st_size, stat.st_mtime_ns] for path, stat in stats]

    def read(self, cache_dir: str | Path) -> Content:
        pictures = self.pictures(cache_dir)
        classes = sorted({path.parent.name for path in pictures["train"]})
        for split, paths in pictures.items():
            for name in sorted({path.parent.name for path in paths} - set(classes)):
                raise UserError(f"{paths[0].parents[1]} has a class {name}, {self.train} only {', '.join(classes)}")
            log.info("decoding %d pictures of %s to %d pixels, once", len(paths), split, self.image_size)
        shape = (3, self.image_size, self.image_size)
        parts = {split: self._blocks(paths, classes) for split, paths in pictures.items()}
        return Content(shape, classes, parts, dtype="uint8", scale=1 / 255)

    def _blocks(self, paths: Sequence[Path], classes: Sequence[str]) -> Iterator[Block]:
        # Pillow decodes outside Python's lock
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for start in range(0, len(paths), BLOCK):
                block = paths[start : start + BLOCK]
                pixels = pool.map(lambda path: read_picture(path.read_bytes(), str(path), self.image_size), block)
                labels = np.array([classes.index(path.parent.name) for path in block])
                yield Block(np.stack(list(pixels)), labels, [f"{path.parent.name}/{path.name}" for path in block])
