"""Decode, augment and stack: whole batches, made in the worker that is asked for them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from quintet.data.batches import SegmentationBatch
from quintet.data.segmentation.augment import Augmentation, View, padded, to_view
from quintet.data.segmentation.labels import IGNORED, LabelMap, read_labels, read_rgb


def grid_size(side: int) -> int:
    """The next 8k + 1: sizes at which aligned corners and strides of 2, 4 and 8 agree."""
    return side + -(side - 1) % 8


class SegmentationDataset(Dataset):
    """Image i of a split is row `rows[i]` of `files`; index `epoch * len + i` is its view of that epoch.

    augment: None shows images whole, as they are evaluated. canvas: (height, width) of every batch; None: the largest
    of the batch, rounded up to 8k + 1.
    """

    def __init__(self, files: Any, rows: NDArray[np.int64], labels: LabelMap, pad_colour: Sequence[float],
                 canvas: tuple[int, int] | None, augment: Augmentation | None = None) -> None:  # fmt: skip
        self.files, self.rows, self.labels, self.pad_colour = files, rows, labels, tuple(pad_colour)
        self.canvas, self.augment = canvas, augment

    def __len__(self) -> int:
        return len(self.rows)

    def name(self, index: int) -> str:
        return self.files[int(self.rows[index])]["name"]

    def raw(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None, str]:
        """Image (H, W, 3), classes (H, W) or None where they are not public, name."""
        row = self.files[int(self.rows[index])]
        labels = None if row["mask"] is None else read_labels(Path(row["mask"]), self.labels)
        return read_rgb(Path(row["image"])), labels, row["name"]

    def view(self, index: int) -> View:
        epoch, index = divmod(index, len(self))
        image, labels, _ = self.raw(index)
        view = to_view(image, np.full(image.shape[:2], IGNORED, np.uint8) if labels is None else labels)
        return view if self.augment is None else self.augment(view, epoch, index)

    def __getitem__(self, index: int) -> SegmentationBatch:
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[int]) -> SegmentationBatch:
        views = [self.view(index) for index in indices]
        height, width = self.canvas or (grid_size(max(v[1].shape[side] for v in views)) for side in (0, 1))
        index_b = torch.tensor([index % len(self) for index in indices], dtype=torch.int64)
        return SegmentationBatch(*padded(views, height, width, self.pad_colour, IGNORED), index_b)


def as_is(batch: SegmentationBatch) -> SegmentationBatch:
    """The collate function: the dataset returns whole batches."""
    return batch
