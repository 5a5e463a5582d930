"""Pictures and masks as arrays: the class of each number, or each color, in a mask file."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from quintet.common.errors import UserError
from quintet.data.examples.pictures import to_rgb
from quintet.data.segmentation.matlab import read_mat

IGNORED = 255  # not scored: VOC's borders between objects, Cityscapes' void, padding


def voc_colours(count: int = 256) -> NDArray[np.uint8]:
    """(count, 3): VOC's colour of every number, by the devkit's rule; 0 is black, 255 the cream of its borders."""
    colours = np.zeros((count, 3), np.uint8)
    numbers = np.arange(count)
    for bit in range(8):  # bits 0, 1, 2 of the number are the highest of red, green, blue, and so on downwards
        for channel in range(3):
            colours[:, channel] |= ((numbers >> (3 * bit + channel) & 1) << (7 - bit)).astype(np.uint8)
    return colours


def colour_picture(labels_hw: NDArray) -> NDArray[np.uint8]:
    """Classes (H, W) as a picture (H, W, 3) in VOC's colours."""
    return voc_colours()[labels_hw]


def index_picture(labels_hw: NDArray[np.uint8]) -> Any:
    """A PIL picture whose pixels are the classes, with VOC's colours as its palette: what VOC's masks are."""
    from PIL import Image

    picture = Image.fromarray(labels_hw).convert("P")
    picture.putpalette(voc_colours().tobytes())
    return picture


@dataclass(frozen=True)
class LabelMap:
    """How the numbers in mask files become classes.

    values: number in a file -> class 0..C-1, or 255; every other number is an error.
    colours: number -> its colour, for masks that were saved as colour pictures; None where no colours are known. Where
    all of them are greys, grey levels are colours too: 0 and 255 of a black and white mask are two classes.
    """

    classes: Sequence[str]
    values: Mapping[int, int]
    colours: Mapping[int, Sequence[int]] | None = None

    @property
    def all_grey(self) -> bool:
        """Whether the colours are grey levels."""
        return bool(self.colours) and all(len(set(colour)) == 1 for colour in (self.colours or {}).values())


def plain_map(classes: Sequence[str], colours: Mapping[int, Sequence[int]] | None = None) -> LabelMap:
    """The numbers in the files are the classes, and 255."""
    return LabelMap(classes, {number: number for number in (*range(len(classes)), IGNORED)}, colours)


def open_picture(path: Path | str, kind: str = "image", data: bytes | None = None) -> Any:
    """A loaded PIL picture, of `data` if that is given. Raises UserError naming a file that is not a complete image."""
    from PIL import Image, UnidentifiedImageError

    try:
        picture = Image.open(path if data is None else io.BytesIO(data))
        picture.load()
    except FileNotFoundError as error:
        raise UserError(f"{kind} {path} is missing: it was there when the data set was read") from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"corrupt {kind} {path}: {reason}; replace it, or take it out of the list") from error
    return picture


def read_rgb(path: Path) -> NDArray[np.uint8]:
    """(H, W, 3): grey, CMYK, 16-bit and transparent pictures become RGB, see `to_rgb`. UserError: see there."""
    return np.array(as_rgb(open_picture(path), path))


def as_rgb(picture: Any, path: Path | str) -> Any:
    """An open picture in RGB. Raises UserError for one whose numbers are not colors."""
    try:
        return to_rgb(picture)
    except ValueError as error:
        raise UserError(f"image {path}: {error}") from error


def read_labels(path: Path, labels: LabelMap) -> NDArray[np.uint8]:
    """(H, W) classes and 255 of one mask: index or palette PNG, color image, or .mat.

    Raises UserError naming the file, and the smallest number or first color that is not a class.
    """
    values_hw = read_mat(path) if path.suffix == ".mat" else _read_values(path, labels)
    if values_hw.dtype.kind == "f" and np.isnan(values_hw).any():
        raise UserError(f"mask {path} contains NaN: give whole numbers, {IGNORED} for what is not scored")
    small = values_hw.dtype == np.uint8  # counting is four times as fast as sorting
    used = np.flatnonzero(np.bincount(values_hw.reshape(-1), minlength=256)) if small else np.unique(values_hw)
    wrong = [number for number in used.tolist() if number not in labels.values]
    if wrong:
        row, column = np.argwhere(values_hw == wrong[0])[0]
        raise UserError(
            f"mask {path}: label {wrong[0]} at row {row}, column {column} is not a class; legal are"
            f" {ranges(labels.values)} ({len(labels.classes)} classes, {IGNORED} = ignored)"
        )
    class_of = np.zeros(max(labels.values) + 1, np.uint8)
    class_of[list(labels.values)] = list(labels.values.values())
    return class_of[values_hw if small else values_hw.astype(np.int64)]  # all of them whole numbers by now


def _read_values(path: Path, labels: LabelMap) -> NDArray:
    picture = open_picture(path, "mask")
    if picture.format == "JPEG":
        raise UserError(f"mask {path} is a JPEG, which blurs the numbers of the classes: save it as PNG again")
    if picture.mode == "P":
        return _from_palette(picture, labels)
    if picture.mode in ("L", "LA") and not labels.all_grey:
        return np.asarray(picture.getchannel("L"))
    if picture.mode == "1" or picture.mode.startswith("I"):
        return np.asarray(picture).astype(np.uint8 if picture.mode == "1" else np.int64)
    if picture.mode == "F":
        return np.asarray(picture)
    return _from_colours(np.asarray(picture.convert("RGB")), labels, path)


def _from_palette(picture: Any, labels: LabelMap) -> NDArray:
    """The indices; but the colours' numbers where another program has put the colours in an order of its own."""
    index_hw = np.asarray(picture)
    if labels.colours is None:
        return index_hw
    used = np.flatnonzero(picture.histogram())
    stored = np.array(picture.getpalette("RGB"), np.uint8).reshape(-1, 3)
    number = {tuple(colour): number for number, colour in labels.colours.items()}
    # a file may end its palette before the last index
    found = [number.get(tuple(stored[i].tolist())) if i < len(stored) else None for i in used]
    if None in found or found == used.tolist():
        return index_hw
    renumber = np.zeros(256, np.uint8)
    renumber[used] = cast(list[int], found)
    return renumber[index_hw]


def _from_colours(rgb_hwc: NDArray, labels: LabelMap, path: Path) -> NDArray:
    """Numbers of the known colours; else grey levels, where all of it is grey, are taken for numbers."""
    codes_hw = rgb_hwc.astype(np.int64) @ (65536, 256, 1)
    unknown = codes_hw[:1, :1]
    if labels.colours is not None:
        numbers, colours = np.array(list(labels.colours)), np.array(list(labels.colours.values()), np.int64)
        order = np.argsort(colours @ (65536, 256, 1))
        known = (colours @ (65536, 256, 1))[order]
        place_hw = np.searchsorted(known, codes_hw).clip(max=len(known) - 1)
        unknown = codes_hw[known[place_hw] != codes_hw]
        if not unknown.size:
            return numbers[order][place_hw]
    if (rgb_hwc == rgb_hwc[..., :1]).all():
        return rgb_hwc[..., 0]
    code = int(unknown.flat[0])
    colour = (code >> 16, code >> 8 & 255, code & 255)
    if labels.colours is None:
        advice = "give the colour of every class in data.source.colours, or save the numbers of the classes"
    else:
        advice = f"its color {colour} is none of the {len(labels.classes)} classes'; save the numbers of the classes"
    raise UserError(f"mask {path} is a color image: {advice} in a PNG with one channel")


def ranges(numbers: Mapping[int, int]) -> str:
    """`0-20, 255`."""
    ordered = sorted(numbers)
    starts = [n for i, n in enumerate(ordered) if i == 0 or ordered[i - 1] != n - 1]
    stops = [n for i, n in enumerate(ordered) if i + 1 == len(ordered) or ordered[i + 1] != n + 1]
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in zip(starts, stops, strict=True))
