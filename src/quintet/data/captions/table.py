"""One split of a captioned data set as it is stored: images, their captions as text and as token numbers."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quintet.common.errors import UserError
from quintet.data.examples.pictures import to_rgb
from quintet.data.segmentation.labels import as_rgb, open_picture
from quintet.data.shards import ParquetShards


class CaptionTable:
    """Memory-mapped: I images, N captions, those of an image side by side; a worker is sent the path alone.

    Tokens are numbers of `words.json`, which all splits share: no vocabulary yet.
    """

    def __init__(self, folder: Path, split: str) -> None:
        self.folder, self.split = folder, split
        arrays = np.load(folder / f"{split}.npz")
        self.first_i, self.starts_n = arrays["first"], arrays["starts"]  # (I + 1,) captions, (N + 1,) tokens
        self.tokens = np.load(folder / f"{split}.npy", mmap_mode="r")

    def __reduce__(self) -> tuple:
        return CaptionTable, (self.folder, self.split)

    @cached_property
    def images(self) -> Any:
        """Rows with name, path or data, and the hash of the file."""
        return self._rows("images")

    @cached_property
    def texts(self) -> Any:
        return self._rows("texts")

    def _rows(self, kind: str) -> Any:
        from datasets import Dataset

        return Dataset.from_file(str(self.folder / f"{self.split}-{kind}.arrow"))

    @property
    def num_images(self) -> int:
        return len(self.first_i) - 1

    def __len__(self) -> int:
        """Captions."""
        return len(self.starts_n) - 1

    def image_of(self, captions: Sequence[int] | NDArray) -> NDArray[np.int64]:
        """The image of each caption."""
        return np.searchsorted(self.first_i, np.asarray(captions), side="right") - 1

    def captions_of(self, image: int) -> range:
        return range(int(self.first_i[image]), int(self.first_i[image + 1]))

    def caption(self, row: int) -> NDArray[np.int32]:
        """Token numbers of a caption."""
        return self.tokens[self.starts_n[row] : self.starts_n[row + 1]]

    def names(self) -> list[str]:
        return self.images["name"][:]

    def hashes(self) -> list[str]:
        return self.images["hash"][:]

    def picture(self, image: int) -> Tensor:
        """RGB (3, H, W) uint8 as it is in the file; grey, CMYK and transparent ones converted, see `to_rgb`.

        Raises UserError for a file that has gone or broken since the data set was read.
        """
        row = self.images[int(image)]
        opened = open_picture(row["path"] or row["name"], data=row["data"])
        return torch.from_numpy(np.array(to_rgb(opened))).permute(2, 0, 1)


class ShardTable(CaptionTable):
    """A split whose images stay in their parquet shards. rows_i: the row of each image there, increasing."""

    def __init__(self, folder: Path, split: str, shards: ParquetShards, column: str) -> None:
        super().__init__(folder, split)
        self.shards, self.column = shards, column
        self.rows_i = np.load(folder / f"{split}-rows.npy", mmap_mode="r")

    def __reduce__(self) -> tuple:
        return ShardTable, (self.folder, self.split, self.shards, self.column)

    def hashes(self) -> list[str]:
        """Of shard and row: the images have not been looked at."""
        return [f"{self.shards.key}:{row}" for row in self.rows_i]

    def picture(self, image: int) -> Tensor:
        row = int(self.rows_i[image])
        cell = self.shards.row(row)[self.column]
        data = cell.get("bytes") if isinstance(cell, dict) else cell
        where = self.shards.where(row)
        if not isinstance(data, bytes):
            raise UserError(f"{where}: column {self.column} holds no bytes of an image file")
        return torch.from_numpy(np.array(as_rgb(open_picture(where, data=data), where))).permute(2, 0, 1)
