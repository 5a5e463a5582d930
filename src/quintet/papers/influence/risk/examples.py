"""Sets of examples, of a data module's split or of one batch, read in batches."""

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quintet.common.errors import UserError

RESIDENT_BYTES = 4 << 30  # examples that together need less stay in memory between two sweeps


class Examples:
    """`source` gives `num_examples(split)` and `example_batch(split, indices)`, as every data module here does.

    indices: positions in the split, null for all of it. Errors: UserError for one that the split does not have.
    """

    def __init__(
        self, source: Any, split: str, indices: Sequence[int] | NDArray[np.int64] | None = None, name: str = "queries"
    ) -> None:
        total = source.num_examples(split)
        self.source, self.split = source, split
        self.indices = np.arange(total) if indices is None else np.asarray(indices, np.int64)
        outside = self.indices[(self.indices < 0) | (self.indices >= total)]
        if len(outside):
            raise UserError(f"{name} has index {outside[0]}: the {split} split has {total} examples, counted from 0")
        if not len(self.indices):
            raise UserError(f"{name} is empty: give at least one index of the {split} split (0 to {total - 1})")
        self._resident: dict[tuple, list[Any]] = {}

    @classmethod
    def of_batch(cls, batch: Any) -> "Examples":
        """The examples of one batch, in its order."""
        return cls(_OneBatch(expand_images(batch)), "batch")

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, rows: slice | Tensor | Sequence[int], dtype: torch.dtype, device: torch.device | str = "cpu") -> Any:
        """The examples at these positions as one batch; floating-point parts come as `dtype`."""
        return cast(expand_images(self.source.example_batch(self.split, self.indices[rows].tolist())), dtype, device)

    def batches(self, size: int, dtype: torch.dtype, device: torch.device | str = "cpu",
                rank: int = 0, world: int = 1, keep: bool = True) -> Iterator[tuple[slice, Any]]:  # fmt: skip
        """(positions, batch) of this rank's share, every world-th batch; kept in memory for the next sweep if small."""
        places = [slice(a, min(a + size, len(self))) for a in range(0, len(self), size)][rank::world]
        key = (size, dtype, str(device), rank, world)
        if key in self._resident:
            yield from zip(places, self._resident[key], strict=True)
            return
        kept, total = [], 0
        for place in places:
            batch = self.read(place, dtype, device)
            total += size_of(batch)
            if keep and total <= RESIDENT_BYTES:
                kept.append(batch)
            yield place, batch
        if keep and len(kept) == len(places):
            self._resident = {key: kept}

    def fingerprint(self) -> str:
        """A digest of which examples these are: their positions, and the content of the first and the last."""
        digest = hashlib.sha256(f"{self.split} {len(self)}".encode())
        digest.update(self.indices.tobytes())
        for row in (0, len(self) - 1):
            for part in tensors(self.read(slice(row, row + 1), torch.float64)):
                digest.update(part.cpu().numpy().tobytes())
        return digest.hexdigest()[:16]


class _OneBatch:
    """A batch as a source of its own rows."""

    def __init__(self, batch: Any) -> None:
        self.batch = batch

    def num_examples(self, split: str) -> int:
        return len(tensors(self.batch)[0])

    def example_batch(self, split: str, indices: Sequence[int]) -> Any:
        return rows_of(self.batch, indices)


def expand_images(batch: Any) -> Any:
    """A batch in which captions that share an image have a copy each, so that every tensor has a row an example."""
    return batch.expand_images() if hasattr(batch, "expand_images") else batch


def tensors(batch: Any) -> list[Tensor]:
    """The tensors of a batch in order; parts that are None are left out."""
    return [part for part in batch if part is not None]


def rows_of(batch: Any, rows: Any) -> Any:
    """The batch of the given rows of another."""
    return type(batch)(*(None if part is None else part[rows] for part in batch))


def cast(batch: Any, dtype: torch.dtype, device: torch.device | str) -> Any:
    """A batch on `device`, its floating-point parts as `dtype`."""
    return type(batch)(
        *(
            None if part is None else part.to(device, dtype if part.is_floating_point() else part.dtype)
            for part in batch
        )
    )


def size_of(batch: Any) -> int:
    """Bytes of a batch's tensors."""
    return sum(part.numel() * part.element_size() for part in tensors(batch))
