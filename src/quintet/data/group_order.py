"""The order of data that are read from shards: row groups in random order, a few of them shuffled into each other."""

from collections.abc import Callable, Iterator
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from quintet.common.errors import UserError
from quintet.data.resumable import EpochSampler


class GroupSampler(EpochSampler):
    """Batches of indices, which depend on (seed, epoch, ranks, streams) only, never on workers or earlier passes.

    ends: where each row group's items end. All groups are put in random order; rank r takes the r-th part of that row
    of items and reads it at `streams` places side by side, one batch from each in turn, so that a worker reads groups
    that no other reads (`streams` must be a multiple of their number). In a stream `window` groups at a time are
    shuffled. Every item comes once an epoch; with R ranks at most R - 1 come twice, so that all have as many batches.
    views: indices are `epoch * num_items + item`, as in ViewSampler.
    """

    def __init__(self, ends: NDArray[np.int64], batch_size: int, seed: int = 0, streams: int = 4, window: int = 4,
                 views: bool = False, rank: int = 0, world_size: int = 1,
                 position: Callable[[], tuple[int, int]] | None = None) -> None:  # fmt: skip
        super().__init__(int(ends[-1]) if len(ends) else 0, batch_size, seed, rank=rank, world_size=world_size,
                         position=position)  # fmt: skip
        if streams < 1 or window < 1:
            raise UserError(f"data.streams={streams}, data.shuffle_groups={window}: give 1 or more")
        self.streams, self.window, self.views = streams, window, views
        self.starts = np.concatenate([[0], ends[:-1]]).astype(np.int64)
        self.sizes = np.asarray(ends, np.int64) - self.starts

    def _lengths(self) -> list[int]:
        """Items of each of this rank's streams; they differ by one at most, the longer ones first."""
        items, longer = divmod(-(-self.num_items // self.world_size), self.streams)
        return [items + (stream < longer) for stream in range(self.streams)]

    def __len__(self) -> int:
        return sum(-(-length // self.batch_size) for length in self._lengths())

    def __iter__(self) -> Iterator[list[int]]:
        self.epoch, first = self.position()
        order = np.random.default_rng((self.seed, self.epoch)).permutation(len(self.sizes))
        begin = self.rank * -(-self.num_items // self.world_size)
        streams = []
        for number, length in enumerate(self._lengths()):
            seen = len(range(number, first, self.streams)) * self.batch_size  # items of its batches before `first`
            streams.append(self._stream(order, begin, length, min(seen, length)))
            begin += length
        shift = self.epoch * self.num_items if self.views else 0
        for batch in range(first, len(self)):
            # the longer streams come first, so that this holds in the last, incomplete round too
            yield [shift + item for item in islice(streams[batch % self.streams], self.batch_size)]

    def _stream(self, order: NDArray, begin: int, length: int, skip: int) -> Iterator[int]:
        """`length` items from place `begin` of the row of groups on, the first `skip` left out."""
        pieces = self._pieces(order, begin, length)
        for number in range(0, len(pieces), self.window):
            window = pieces[number : number + self.window]
            total = sum(count for _, count in window)
            if skip >= total:
                skip -= total
                continue
            items = np.concatenate([np.arange(item, item + count) for item, count in window])
            shuffled = np.random.default_rng((self.seed, self.epoch, begin, number)).permutation(items)
            yield from shuffled[skip:].tolist()
            skip = 0

    def _pieces(self, order: NDArray, begin: int, length: int) -> list[tuple[int, int]]:
        """(first item, number of items) of the whole and cut groups there; after the last group comes the first."""
        ends = np.cumsum(self.sizes[order])
        pieces = []
        while length > 0:
            begin %= self.num_items
            place = int(np.searchsorted(ends, begin, side="right"))
            group = order[place]
            inside = begin - int(ends[place] - self.sizes[group])
            count = min(int(self.sizes[group]) - inside, length)
            pieces.append((int(self.starts[group]) + inside, count))
            begin, length = begin + count, length - count
        return pieces


def check_workers(num_workers: int, streams: int) -> None:
    """UserError where a stream would be read by several workers."""
    if num_workers and streams % num_workers:
        raise UserError(
            f"data.num_workers={num_workers} does not divide data.streams={streams}: workers would read the same rows"
        )


def group_ends(rows: NDArray[np.int64], items: NDArray[np.int64] | None, row_ends: NDArray[np.int64]) -> NDArray:
    """Where each row group's items end. rows: the row of each record, not decreasing; items: how many each has."""
    assert (np.diff(rows) >= 0).all(), "items must be in the order of the rows"
    counts = np.ones(len(rows), np.int64) if items is None else items
    ends = np.concatenate([[0], np.cumsum(counts)])
    return ends[np.searchsorted(rows, row_ends, side="left")]
