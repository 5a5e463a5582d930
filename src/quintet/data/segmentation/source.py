"""What every segmentation data set returns: files that were looked at once, in one schema."""

import logging
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from quintet.common.errors import UserError
from quintet.data.archives import find_root, is_archive, unpack
from quintet.data.segmentation.labels import IGNORED, LabelMap, as_rgb, open_picture, read_labels
from quintet.data.segmentation.layout import Item, locate
from quintet.data.store import build_once, digest, write_rows

log = logging.getLogger(__name__)
SPLITS = ("train", "val", "test")
FORMAT = 2  # raise when the files below change


@dataclass
class SegmentationSource:
    """A data set of images and masks; a subclass knows its layout and nothing else: `items` and `label_map`.

    root: the unpacked folder, or its archive, which is unpacked into the cache.
    """

    root: str

    name: ClassVar[str] = "images and masks"  # in messages
    put: ClassVar[str] = "the folder"  # what belongs at root
    version: ClassVar[int] = 1  # raise when `items` or `label_map` give others for the same files
    year: ClassVar[str] = ""  # of the VOC devkit that is meant, if there are several

    def items(self, cache_dir: Path) -> dict[str, list[Item]]:
        """The files of each split. Raises UserError for what is missing."""
        raise NotImplementedError(f"{type(self).__name__} must say which files it has")

    def label_map(self, cache_dir: Path) -> LabelMap:
        """What the numbers in the masks mean."""
        raise NotImplementedError(f"{type(self).__name__} must say what its labels mean")

    def splits(self, cache_dir: str | Path) -> dict[str, Any]:
        """A `datasets.Dataset` for train, val and test with the columns image, mask (paths), name, height, width and
        the labeled classes in it.

        Images stay in their files and are decoded when they are asked for. All are decoded once before that, so that
        training does not end at a broken one; the result is kept for as long as no file changes.
        Sets `labels`. Raises UserError, one line, for the first file that is missing or wrong.
        """
        from datasets import Dataset

        cache_dir = Path(cache_dir)
        items, self.labels = self.items(cache_dir), self.label_map(cache_dir)
        for split in ("train", "test"):
            if not items.get(split):
                raise UserError(f"the {split} split of {self.name} is empty: see data.root={self.root}")
        files = {path: None for item in unique(items) for path in (item.image, item.mask) if path is not None}
        stats = [(str(path), (stat := path.stat()).st_size, stat.st_mtime_ns) for path in files]
        names = {split: [item.name for item in items[split]] for split in items}
        parts = (type(self).__name__, self.version, self.options(), sorted(self.labels.values.items()))
        target = cache_dir / "segmentation" / digest(FORMAT, *parts, names, stats)
        build_once(target, lambda folder: self._write(folder, items))
        return {split: Dataset.from_file(str(target / f"{split}.arrow")) for split in SPLITS}

    def options(self) -> dict[str, Any]:
        """All settings but `root`."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "root"}

    def find(self, cache_dir: Path, folder: str, *archives: str) -> Path:
        """The folder of that name at `root`, inside it, or in an archive in it that fits a pattern of `archives`.

        Raises UserError when it is nowhere.
        """
        missing = f"no {self.name} at data.root={self.root}: put {self.put} there, or try data=shapes_sample"
        root = find_root(self.root, cache_dir, missing)
        found = locate(root, folder, self.year)
        packed = [path for pattern in archives for path in sorted(root.glob(pattern)) if is_archive(path)]
        for archive in packed if found is None else []:
            found = found or locate(unpack(archive, cache_dir / "unpacked"), folder, self.year)
        if found is None:
            raise UserError(f"data.root={self.root} has no folder {folder}: put {self.put} there")
        return found

    def _write(self, folder: Path, items: dict[str, list[Item]]) -> None:
        from datasets import List, Value

        once = unique(items)
        log.info("%s: checking %d images and their masks, once", self.name, len(once))
        label_columns = dict(zip(once, _in_threads(once, self.labels), strict=True))
        features = {name: Value("string") for name in ("image", "mask", "name")}
        features |= {"height": Value("int32"), "width": Value("int32"), "classes": List(Value("uint8"))}
        for split in SPLITS:
            rows = (_row(item, label_columns[item]) for item in items.get(split, ()))
            write_rows(folder / f"{split}.arrow", features, rows)


def unique(items: dict[str, list[Item]]) -> list[Item]:
    """Every image once, in the order of the splits: val and test are the same list with most."""
    return list(dict.fromkeys(item for split in SPLITS for item in items.get(split, ())))


def _row(item: Item, label_columns: dict[str, Any]) -> dict[str, Any]:
    mask = None if item.mask is None else str(item.mask)
    return {"image": str(item.image), "mask": mask, "name": item.name, **label_columns}


def _in_threads(items: Iterable[Item], labels: LabelMap) -> Iterator[dict[str, Any]]:
    """Pillow decodes outside Python's lock. The first error ends it."""
    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        yield from pool.map(lambda item: check(item, labels), items)
    finally:
        pool.shutdown(cancel_futures=True)


def check(item: Item, labels: LabelMap) -> dict[str, Any]:
    """Height, width and the labeled classes.

    Raises UserError for a broken file, levels that are not colors, a label that is not a class, or sizes that differ.
    """
    picture = open_picture(item.image)
    if picture.mode in ("I", "F"):  # the others are colours, whatever they hold
        as_rgb(picture, item.image)
    width, height = picture.size
    if item.mask is None:
        return {"height": height, "width": width, "classes": []}
    labels_hw = read_labels(item.mask, labels)
    if labels_hw.shape != (height, width):
        rows, columns = labels_hw.shape
        raise UserError(
            f"mask {item.mask} is {columns} x {rows} pixels, its image {item.image} {width} x {height}: they must be"
            " of one size"
        )
    counts = np.bincount(labels_hw.reshape(-1), minlength=IGNORED)
    return {"height": height, "width": width, "classes": np.flatnonzero(counts[:IGNORED]).tolist()}
