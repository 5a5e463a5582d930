"""Examples out of a memory-mapped array, a whole batch at a time."""

from collections.abc import Sequence
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from quintet.data.batches import ExampleBatch


class Inputs(Protocol):
    """Stored inputs of which rows are gathered: quintet.data.examples.store."""

    def __len__(self) -> int: ...

    def gather(self, rows: NDArray[np.int64]) -> NDArray: ...


class ExampleDataset(Dataset):
    """Example i of a split is row `rows[i]` of the stored inputs, of class `labels[i]`.

    shape: of one example's inputs. scale: what stored integers are multiplied with.
    """

    def __init__(self, inputs: Inputs, rows: NDArray[np.int64], labels: NDArray[np.int64], shape: Sequence[int],
                 scale: float = 1.0) -> None:  # fmt: skip
        self.inputs, self.rows, self.labels, self.shape, self.scale = inputs, rows, labels, tuple(shape), scale

    def __getstate__(self) -> dict:
        # a spawned worker maps the file again; the split in memory is not copied to it
        return {name: value for name, value in self.__dict__.items() if name != "whole"}

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def whole(self) -> ExampleBatch:
        """The split in memory, kept: full-batch training takes it again in every step."""
        return self._gather(np.arange(len(self)))

    def __getitem__(self, index: int) -> ExampleBatch:
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[int] | NDArray[np.integer]) -> ExampleBatch:
        """A batch in one go: one gather for all its inputs; `whole` itself where that is what is asked for."""
        index_b = np.asarray(indices, np.int64)
        if len(index_b) == len(self) and (index_b[1:] > index_b[:-1]).all():
            return self.whole
        return self._gather(index_b)

    def _gather(self, index_b: NDArray[np.int64]) -> ExampleBatch:
        inputs = torch.from_numpy(self.inputs.gather(self.rows[index_b])).float()
        inputs = inputs.mul_(self.scale) if self.scale != 1 else inputs
        return ExampleBatch(
            inputs.view(len(index_b), *self.shape),
            torch.from_numpy(self.labels[index_b]),
            torch.from_numpy(index_b),
        )


def to_images(stored: NDArray, shape: Sequence[int], scale: float) -> torch.Tensor:
    """Stored pictures (B, C * H * W) -> (B, 3, H, W) float32 in [0, 1]; grey ones three times."""
    images_bchw = torch.from_numpy(stored).float().mul_(scale).view(-1, *shape)
    return images_bchw.expand(-1, 3, -1, -1) if shape[0] == 1 else images_bchw


def as_is(batch: ExampleBatch) -> ExampleBatch:
    """The collate function: the dataset returns whole batches."""
    return batch
