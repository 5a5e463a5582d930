"""Images with captions that `datasets.load_dataset` reads: a Hub id, or a local folder of parquet files."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, cast

from quintet.common.errors import UserError
from quintet.data.captions.source import SPLITS, Caption, CaptionSource, Parts, Picture
from quintet.data.captions.table import CaptionTable, ShardTable
from quintet.data.hub import load_split
from quintet.data.shards import ParquetShards, find_shards


class Cell(NamedTuple):
    """One image of a loaded split."""

    split: str  # as the data set calls it
    row: int


@dataclass
class HubCaptions(CaptionSource):
    """root: the Hub id, or a folder. subset: its configuration. names: which of its splits is ours, null = none.

    caption_columns: columns with a text or a list of texts. split_column: for a data set with one split `all_in`, the
    column with each row's split (`names` then maps to the values of this column). id_column: names of the images; rows
    with the same name are captions of one image; null: each row is an image, and images are numbered.
    streaming: leave the images in their parquet shards, see data.streaming; they are not checked in advance.
    """

    subset: str | None = None
    names: Mapping[str, str | None] = field(
        default_factory=lambda: {"train": "train", "val": "validation", "test": "test"}
    )
    image_column: str = "image"
    caption_columns: Sequence[str] = ("caption",)
    id_column: str | None = None
    split_column: str | None = None
    all_in: str = "train"
    streaming: bool = False

    name: ClassVar[str] = "Hub data set"
    put: ClassVar[str] = "a Hub id, or a folder of parquet files,"

    def __post_init__(self) -> None:
        super().__post_init__()
        if set(self.names) - set(SPLITS) or not any(self.names.values()):
            raise UserError(f"data.source.names={dict(self.names)}: name a split for {', '.join(SPLITS)}, or null")
        if not self.caption_columns:
            raise UserError("data.source.caption_columns=[]: name one or more")

    def read(self, cache_dir: Path) -> Parts:
        wanted = {self.all_in} if self.split_column else {name for name in self.names.values() if name}
        self._loaded = {name: self._load(name, cache_dir) for name in sorted(wanted)}
        found: dict[str, dict[str, Picture]] = {split: {} for split in SPLITS if self.names.get(split)}
        for split, pictures in found.items():
            name = self.all_in if self.split_column else cast(str, self.names[split])
            self._read_split(split, name, pictures)
        missing = {split: f"data.source.names has none for {split}" for split in SPLITS if split not in found}
        return Parts({split: [*pictures.values()] for split, pictures in found.items()}, missing)

    def splits(self, cache_dir: str | Path) -> dict[str, CaptionTable]:
        """As `CaptionSource.splits`; of a streamed data set the tables find the images in the shards."""
        tables = super().splits(cache_dir)
        if not self.streaming:
            return tables
        names = {split: self.all_in if self.split_column else cast(str, self.names[split]) for split in tables}
        shards = {split: self._loaded[name] for split, name in names.items()}
        return {
            split: ShardTable(table.folder, split, shards[split], self.image_column) for split, table in tables.items()
        }

    def shard_row(self, image: Cell) -> int | None:
        return image.row if self.streaming else None

    def load(self, image: Cell) -> bytes:
        cell = self._loaded[image.split][image.row][self.image_column]
        if cell is None or not (cell["bytes"] or cell["path"]):
            raise FileNotFoundError
        return cell["bytes"] or Path(cell["path"]).read_bytes()

    def identity(self, image: Cell) -> list:
        loaded = self._loaded[image.split]
        return [loaded.key if self.streaming else loaded._fingerprint, *image]

    def _read_split(self, split: str, name: str, pictures: dict[str, Picture]) -> None:
        number = 0
        columns = [*self.caption_columns, *(c for c in (self.id_column, self.split_column) if c)]
        for batch in self._texts_of(name, columns):
            for i in range(len(batch[columns[0]])):
                row, number = number, number + 1
                if self.split_column and str(batch[self.split_column][i]) != self.names[split]:
                    continue
                title = str(batch[self.id_column][i]) if self.id_column else f"{split}/{row:06d}"
                picture = pictures.setdefault(title, Picture(title, Cell(name, row), []))
                texts = [text for column in self.caption_columns for text in _texts(batch[column][i])]
                where = f"{self.root}, split {name}, row {row}"
                picture.captions.extend(Caption(text, where) for text in texts)

    def _texts_of(self, name: str, columns: list[str]) -> Iterator[Mapping[str, list]]:
        if self.streaming:
            texts = ParquetShards(self._loaded[name].files, columns)
            yield {column: texts.column(column) for column in columns}
        else:
            yield from self._loaded[name].select_columns(columns).iter(batch_size=1000)

    def _load(self, name: str, cache_dir: Path) -> Any:
        if self.streaming:
            return ParquetShards(find_shards(self.root, self.subset, name, cache_dir), [self.image_column])
        from datasets import Image

        columns = {"image_column": self.image_column, "caption_columns": self.caption_columns,
                   "id_column": self.id_column, "split_column": self.split_column}  # fmt: skip
        missing = f"no {self.name} at data.root={self.root}: put {self.put} there"
        loaded = load_split(self.root, self.subset, name, columns, cache_dir, missing)
        return loaded.cast_column(self.image_column, Image(decode=False))


def _texts(cell: Any) -> list[str]:
    return [] if cell is None else [cell] if isinstance(cell, str) else [str(text) for text in cell]
