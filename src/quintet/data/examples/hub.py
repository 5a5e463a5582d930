"""Labeled images or tables that `datasets.load_dataset` reads: a Hub id such as ylecun/mnist, or a local folder."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from quintet.common.errors import UserError
from quintet.data.examples.pictures import read_picture
from quintet.data.examples.source import SPLITS, Block, Content, ExampleSource
from quintet.data.hub import load_split

BLOCK = 256  # rows read and written at a time


@dataclass
class HubExamples(ExampleSource):
    """root: the Hub id, or a folder of parquet, csv or json files. subset: its configuration name.

    image_column: the pictures, cut to image_size (grey=true: one channel); null: a table of the numbers in
    feature_columns, null = all columns but the label. names: which of its splits is ours; val: null = none.
    """

    subset: str | None = None
    names: Mapping[str, str | None] = field(default_factory=lambda: {"train": "train", "val": None, "test": "test"})
    image_column: str | None = "image"
    feature_columns: Sequence[str] | None = None
    label_column: str = "label"
    image_size: int = 224
    grey: bool = False

    name: ClassVar[str] = "Hub data set"
    put: ClassVar[str] = "a Hub id, or a folder of parquet or csv files,"

    def __post_init__(self) -> None:
        if set(self.names) - set(SPLITS) or not self.names.get("train") or not self.names.get("test"):
            raise UserError(f"data.source.names={dict(self.names)}: name a split for train, for test and perhaps val")
        if self.image_size < 1:
            raise UserError(f"data.source.image_size={self.image_size}: give 1 or more pixels")

    def load(self, cache_dir: str | Path) -> dict[str, Any]:
        """Load the chosen splits. Raises UserError if a split or a column is missing."""
        missing = f"no {self.name} at data.root={self.root}: put {self.put} there"
        columns = {key: getattr(self, key) for key in ("image_column", "label_column", "feature_columns")}
        return {
            ours: load_split(self.root, self.subset, theirs, columns, cache_dir, missing)
            for ours, theirs in self.names.items()
            if theirs
        }

    def fingerprint(self, cache_dir: str | Path) -> list:
        return [[split, dataset._fingerprint] for split, dataset in self.load(cache_dir).items()]

    def read(self, cache_dir: str | Path) -> Content:
        loaded = self.load(cache_dir)
        classes = self._classes(loaded["train"])
        if self.image_column:
            shape = (1 if self.grey else 3, self.image_size, self.image_size)
            parts = {split: self._pictures(dataset, split, classes) for split, dataset in loaded.items()}
            return Content(shape, classes, parts, dtype="uint8", scale=1 / 255)
        columns = [c for c in self.feature_columns or loaded["train"].column_names if c != self.label_column]
        parts = {split: self._table(dataset, split, classes, columns) for split, dataset in loaded.items()}
        return Content((len(columns),), classes, parts, feature_names=columns)

    def _classes(self, train: Any) -> list[str]:
        named = getattr(train.features[self.label_column], "names", None)
        return named or [str(label) for label in sorted(set(train[self.label_column]) - {None})]

    def _labels(self, batch: Mapping[str, list], dataset: Any, split: str, classes: list[str]) -> np.ndarray:
        """Classes 0..C-1. Raises UserError for an example without one, or one that training has not."""
        feature = dataset.features[self.label_column]
        given = [feature.int2str(v) if v in range(len(classes)) else v for v in batch[self.label_column]] \
            if hasattr(feature, "names") else [str(v) for v in batch[self.label_column]]  # fmt: skip
        for label in given:
            if label not in classes:
                raise UserError(
                    f"data.source.label_column={self.label_column}: split {split} has {label!r}, not one of"
                    f" {', '.join(classes)}"
                )
        return np.array([classes.index(label) for label in given])

    def _pictures(self, dataset: Any, split: str, classes: list[str]) -> Iterator[Block]:
        from datasets import Image

        mode, first = "L" if self.grey else "RGB", 0
        for batch in dataset.cast_column(self.image_column, Image(decode=False)).iter(batch_size=BLOCK):
            cells = batch[self.image_column]
            names = [f"{split}/{first + i:06d}" for i in range(len(cells))]
            pixels = [
                read_picture(cell["bytes"] or Path(cell["path"]).read_bytes(), name, self.image_size, mode)
                for cell, name in zip(cells, names, strict=True)
            ]
            yield Block(np.stack(pixels), self._labels(batch, dataset, split, classes), names)
            first += len(cells)

    def _table(self, dataset: Any, split: str, classes: list[str], columns: Sequence[str]) -> Iterator[Block]:
        first = 0
        for batch in dataset.iter(batch_size=BLOCK):
            inputs = np.stack([self._numbers(batch[column], column, split) for column in columns], axis=1)
            names = [f"{split}/{first + i:06d}" for i in range(len(inputs))]
            yield Block(inputs, self._labels(batch, dataset, split, classes), names)
            first += len(inputs)

    def _numbers(self, values: list, column: str, split: str) -> np.ndarray:
        wrong = next((v for v in values if not isinstance(v, int | float) or v != v), None)
        if wrong is not None or None in values:
            raise UserError(
                f"column {column} of split {split} has {wrong!r}, not a number: see data.source.feature_columns"
            )
        return np.array(values, np.float32)
