"""Where an official archive keeps its folders and what its list files name."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from quintet.common.errors import UserError

DEPTH = 3  # VOCdevkit/VOC2012/JPEGImages


class Item(NamedTuple):
    """One image of a split and its mask; None where the labels are not public."""

    image: Path
    mask: Path | None
    name: str


def locate(root: Path, name: str, prefer: str = "", file: bool = False) -> Path | None:
    """The folder (or file) `name` at most three levels below root, the highest first.

    Among equals one with `prefer` above it.
    """
    exists = Path.is_file if file else Path.is_dir
    level = [root]
    for _ in range(DEPTH + 1):
        found = [folder / name for folder in level if exists(folder / name)]
        if found:
            return next((folder for folder in found if prefer and prefer in str(folder.relative_to(root))), found[0])
        level = [
            Path(e.path) for folder in level for e in sorted(os.scandir(folder), key=lambda e: e.name) if e.is_dir()
        ]
    return None


def read_list(path: Path, key: str) -> list[str]:
    """Names of the images: lines like `2007_000032`, or `/JPEGImages/2007_000032.jpg /SegmentationClassAug/...png`.

    Raises UserError naming `key` and the lists that there are.
    """
    if not path.is_file():
        there = sorted(p.stem for p in path.parent.glob("*.txt"))
        raise UserError(f"{key}={path.stem}: {path.parent} has the lists {', '.join(there) or 'none'}")
    lines = (line.split() for line in path.read_text(encoding="utf-8", errors="replace").splitlines())
    names = [Path(words[0]).stem if "/" in words[0] else words[0] for words in lines if words]
    if not names:
        raise UserError(f"the list {path} is empty")
    return list(dict.fromkeys(names))


def pair(names: Iterable[str], where: Path, images: Path, masks: Path, image_suffix: str, mask_suffix: str,
         may_lack_masks: bool = False) -> list[Item]:  # fmt: skip
    """The files of `names`, which the file `where` lists. Raises UserError for those that are missing."""
    names = list(names)
    missing(where, names, images, image_suffix, "image")
    have = _listing(masks)
    if may_lack_masks and not any(name + mask_suffix in have for name in names):
        return [Item(images / (name + image_suffix), None, name) for name in names]
    missing(where, names, masks, mask_suffix, "mask")
    return [Item(images / (name + image_suffix), masks / (name + mask_suffix), name) for name in names]


def missing(where: Path, names: list[str], folder: Path, suffix: str, kind: str) -> None:
    """Raises UserError with the first name that has no file, and how many there are."""
    have = _listing(folder)
    lost = [name for name in names if name + suffix not in have]
    if lost:
        raise UserError(
            f"{where} names {lost[0]}, but {kind} {folder / (lost[0] + suffix)} is missing"
            f" ({len(lost)} of {len(names)} are): unpack the archive again, or take them out of the list"
        )


def _listing(folder: Path) -> set[str]:
    """One look at the folder instead of one for each of ten thousand files."""
    return {entry.name for entry in os.scandir(folder)} if folder.is_dir() else set()
