"""All drawings as one uint8 array a part, memory-mapped; the background part with its rotations."""

import json
import logging
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from quintet.data.episodes.omniglot import PARTS, Omniglot, read_ink
from quintet.data.store import build_once, digest

log = logging.getLogger(__name__)
FORMAT = 1  # raise when the files below change
ROTATIONS = 4


class Stored(NamedTuple):
    """The file of a part, and the class of each of its rows; row `r * C + c` is class c turned by r quarter turns."""

    path: Path  # (C * rotations, D, S, S) uint8 .npy
    names: list[str]  # of the C classes, "alphabet/character"
    alphabets: list[str]  # of the C classes


def write_store(folder: Path, source: Omniglot, image_size: int) -> None:
    """Decode both parts into `folder/<part>.npy`; `folder/meta.json` names the classes."""
    meta = {}
    for part in PARTS:
        with source.open(part) as opened:
            log.info("decoding %d classes of %s to %d pixels, once", len(opened.characters), part, image_size)
            images_cdhw = np.stack(
                [np.stack([read_ink(opened, name, image_size) for name in c.images]) for c in opened.characters]
            )
        if part == "background":
            # a turned character is another class (the paper, after Santoro et al. 2016)
            images_cdhw = np.concatenate([np.rot90(images_cdhw, turns, axes=(2, 3)) for turns in range(ROTATIONS)])
        np.save(folder / f"{part}.npy", images_cdhw)
        meta[part] = {
            "names": [str(c) for c in opened.characters],
            "alphabets": [c.alphabet for c in opened.characters],
        }
    (folder / "meta.json").write_text(json.dumps(meta), encoding="utf-8")


def open_store(source: Omniglot, image_size: int, cache_dir: Path) -> dict[str, Stored]:
    """The parts of exactly these files at this size, decoded on first use; other processes wait meanwhile."""
    folder = cache_dir / "episodes" / digest(FORMAT, source.fingerprint(), image_size)
    build_once(folder, lambda target: write_store(target, source, image_size))
    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    return {part: Stored(folder / f"{part}.npy", **meta[part]) for part in PARTS}


def map_images(path: Path) -> NDArray[np.uint8]:
    """The array of a part, read from disk as it is touched."""
    return np.load(path, mmap_mode="r")
