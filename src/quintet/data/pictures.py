"""A user's own pictures: files and folders of them, upright as a viewer shows them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quintet.common.errors import UserError
from quintet.data.examples.pictures import SUFFIXES, to_rgb
from quintet.data.segmentation.labels import open_picture


def find_pictures(inputs: Sequence[str]) -> dict[str, Path]:
    """By the name of what is written. Raises UserError for what is not there, or no picture at all."""
    found: list[tuple[str, Path]] = []
    for given in inputs:
        path = Path(given).expanduser()
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
            found += [("_".join(p.relative_to(path).parts), p) for p in inside if p.is_file()]
        elif path.is_file():
            found.append((path.name, path))
        else:
            raise UserError(f"protocol.inputs={given}: there is no such image or folder")
    if not found:
        raise UserError(
            f"protocol.inputs={', '.join(inputs)}: no picture with one of the endings {', '.join(SUFFIXES)}"
        )
    stems = [Path(name).stem for name, _ in found]
    names = [s if stems.count(s) == 1 else name.replace(".", "_") for s, (name, _) in zip(stems, found, strict=True)]
    if len(set(names)) < len(names):
        raise UserError(f"protocol.inputs: two pictures would both be written as {max(names, key=names.count)}.png")
    return dict(zip(names, (path for _, path in found), strict=True))


def read_upright(path: Path) -> NDArray[np.uint8]:
    """(H, W, 3) RGB, rotated according to its EXIF data. Raises UserError naming a broken file."""
    from PIL import ImageOps

    return np.array(to_rgb(ImageOps.exif_transpose(open_picture(path))))
