"""Your own images: a table with the columns image and caption, and a folder."""

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from quintet.common.errors import UserError
from quintet.data.captions.division import drawn
from quintet.data.captions.layout import read_lines
from quintet.data.captions.source import SPLITS, Caption, CaptionSource, Parts, Picture

ALIASES = {"dev": "val", "valid": "val", "validation": "val"}


@dataclass
class CaptionCSV(CaptionSource):
    """One caption a row; an image may have several rows.

    captions: the file below root, its first row names the columns. images: the folder below root that the paths in
    image_column start from. split_column: contains train, val or test; null: images are drawn by `division_seed`,
    `val_fraction` and `test_fraction` of them. Rows that cannot be used are named, or skipped: on_error.
    """

    captions: str = "captions.csv"
    images: str = "images"
    image_column: str = "image"
    caption_column: str = "caption"
    split_column: str | None = None
    val_fraction: float = 0.1
    test_fraction: float = 0.1
    division_seed: int = 0
    delimiter: str = ","

    name: ClassVar[str] = "captions table"
    put: ClassVar[str] = "captions.csv and the folder of images"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (min(self.val_fraction, self.test_fraction) >= 0 and self.val_fraction + self.test_fraction < 1):
            raise UserError(
                f"data.source.val_fraction={self.val_fraction}, test_fraction={self.test_fraction}: give 0 or more,"
                " together less than 1"
            )
        if len(self.delimiter) != 1:
            raise UserError(f"data.source.delimiter={self.delimiter!r}: give one character")

    def read(self, cache_dir: Path) -> Parts:
        place = self.place(cache_dir)
        path = place.need((self.captions,))
        folder = path.parent / self.images
        pictures: dict[str, Picture] = {}
        split_of: dict[str, str] = {}
        problems = []
        for number, row in self._rows(path):
            where = f"{path}, row {number}"
            if problem := self._wrong(row, split_of):
                problems.append(f"{where}: {problem}")
                continue
            image = row[self.image_column].strip()
            if self.split_column:
                split_of[image] = _split(row[self.split_column])
            picture = pictures.setdefault(image, Picture(image, folder / image, []))
            picture.captions.append(Caption(row[self.caption_column].strip(), where))
        parts = self._divided([*pictures.values()], split_of)
        parts.problems = problems
        return parts

    def _rows(self, path: Path) -> Iterator[tuple[int, Mapping]]:
        """(number in the file, the column names being row 1; cells by column)."""
        rows = csv.DictReader((f"{line}\n" for line in read_lines(path)), delimiter=self.delimiter, strict=True)
        for key in ("image_column", "caption_column", "split_column"):
            column = getattr(self, key)
            if column is not None and column not in (rows.fieldnames or ()):
                named = ", ".join(rows.fieldnames or ())
                raise UserError(f"data.source.{key}={column}: {path} has the columns {named or 'none'}")
        number = 1
        try:
            for number, row in enumerate(rows, 2):
                yield number, row
        except csv.Error as error:
            raise UserError(f"{path}, row {number + 1}: {error}") from error

    def _wrong(self, row: Mapping, split_of: Mapping[str, str]) -> str | None:
        if None in row:
            return f"more cells than columns: put a caption with {self.delimiter!r} in it in quotes"
        for column in (self.image_column, self.caption_column, self.split_column):
            if column is not None and not (row[column] or "").strip():
                return f"no {column}"
        if not self.split_column:
            return None
        image, split = row[self.image_column].strip(), _split(row[self.split_column])
        if split not in SPLITS:
            return f"{self.split_column} {split!r} is none of {', '.join(SPLITS)}"
        if split_of.get(image, split) != split:
            return f"{image} is in {split_of[image]} above: an image belongs to one split"
        return None

    def _divided(self, pictures: list[Picture], split_of: Mapping[str, str]) -> Parts:
        if self.split_column:
            return Parts({s: [picture for picture in pictures if split_of[picture.name] == s] for s in SPLITS})
        val, test = (round(share * len(pictures)) for share in (self.val_fraction, self.test_fraction))
        return drawn(pictures, val, test, self.division_seed, "data.source.val_fraction, test_fraction")


def _split(cell: str) -> str:
    word = cell.strip().lower()
    return ALIASES.get(word, word)
