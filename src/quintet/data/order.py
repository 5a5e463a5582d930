"""Samplers of batches of indices, whose order is a function of (seed, epoch): what exact resuming needs."""

from collections.abc import Callable, Iterator, Sequence
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Sampler

from quintet.common.errors import UserError


class EpochSampler(Sampler[list[int]]):
    """Batches of indices; the permutation depends on (seed, epoch) only, never on the number of earlier passes.

    With several ranks, rank r takes items r, r + world_size, ... of the permutation. So that all ranks have the same
    number of batches, up to `world_size - 1` items come twice (or, with `drop_last`, are left out).
    `position()` is called once at the start of each pass and returns (epoch, first batch); without it every pass is the
    whole of epoch `self.epoch`. Raises UserError for an empty split and for a batch that is larger than the split.
    """

    def __init__(self, num_items: int, batch_size: int, seed: int = 0, shuffle: bool = True, drop_last: bool = False,
                 rank: int = 0, world_size: int = 1,
                 position: Callable[[], tuple[int, int]] | None = None) -> None:  # fmt: skip
        if batch_size < 1:
            raise UserError(f"data.batch_size={batch_size}: give 1 or more")
        if num_items < 1:
            raise UserError("the split is empty: give more data, or a larger data.val_fraction / data.test_fraction")
        if shuffle and batch_size * world_size > num_items:
            raise UserError(
                f"data.batch_size={batch_size} on {world_size} device(s) is larger than the {num_items} training"
                " examples: lower data.batch_size, or give more data"
            )
        self.num_items, self.batch_size, self.seed = num_items, batch_size, seed
        self.shuffle, self.drop_last = shuffle, drop_last
        self.rank, self.world_size = rank, world_size
        self.epoch = 0
        self.position = position or (lambda: (self.epoch, 0))

    def _items(self) -> list[int]:
        if self.shuffle:
            generator = torch.Generator().manual_seed(hash((self.seed, self.epoch)) % 2**63)
            order = torch.randperm(self.num_items, generator=generator)
        else:
            order = torch.arange(self.num_items)
        if self.drop_last:
            order = order[: self.num_items // self.world_size * self.world_size]
        else:
            order = torch.cat([order, order[: -self.num_items % self.world_size]])
        return order[self.rank :: self.world_size].tolist()

    def __iter__(self) -> Iterator[list[int]]:
        self.epoch, start_batch = self.position()
        items = self._items()
        for batch in range(start_batch, len(self)):
            yield items[batch * self.batch_size : (batch + 1) * self.batch_size]

    def __len__(self) -> int:
        """All batches of an epoch on this rank, the skipped ones included: Lightning counts from `batch_idx`."""
        per_rank, odd = divmod(self.num_items, self.world_size)
        if self.drop_last:
            return per_rank // self.batch_size
        return -(-(per_rank + (odd > 0)) // self.batch_size)


class ViewSampler(EpochSampler):
    """Batches of `epoch * num_items + i`, so that the index alone determines the example's random augmentation."""

    def _items(self) -> list[int]:
        return [self.epoch * self.num_items + item for item in super()._items()]


class EvalSampler(Sampler[list[int]]):
    """Every item once, in order; rank r takes the r-th block of consecutive items.

    All ranks have the same number of batches, because a forward pass may contain collective calls. No item is repeated
    for that: the sizes of batches differ by at most one, and a batch exceeds `batch_size` only if some rank would have
    no item for its last batch. With fewer items than ranks every rank takes all items, which does not change means.
    key: the configuration key of batch_size, for messages. Raises UserError for an empty split or batch_size < 1.
    """

    def __init__(self, num_items: int, batch_size: int, rank: int = 0, world_size: int = 1,
                 key: str = "data.eval_batch_size") -> None:  # fmt: skip
        if batch_size < 1:
            raise UserError(f"{key}={batch_size}: give 1 or more")
        if num_items < 1:
            raise UserError("the split is empty: give more data, or a larger data.val_fraction / data.test_fraction")
        self.num_items = num_items
        self.rank, self.world_size = (rank, world_size) if num_items >= world_size else (0, 1)
        wanted = -(-num_items // (batch_size * self.world_size))
        self.num_batches = min(wanted, num_items // self.world_size)  # a rank's; none of them empty

    def __iter__(self) -> Iterator[list[int]]:
        chunks = self.num_batches * self.world_size
        for chunk in range(self.rank * self.num_batches, (self.rank + 1) * self.num_batches):
            yield list(range(chunk * self.num_items // chunks, (chunk + 1) * self.num_items // chunks))

    def __len__(self) -> int:
        return self.num_batches


class LengthSampler(EpochSampler):
    """An EpochSampler whose batches contain items of similar length, to save padding.

    The shuffled items are cut into windows of `window` batches, each window is sorted by length, and the batches are
    shuffled again; only an incomplete batch stays last. `window=1` keeps the plain order.
    """

    def __init__(self, lengths: Sequence[int] | NDArray[np.int64], batch_size: int, seed: int = 0, window: int = 50,
                 rank: int = 0, world_size: int = 1,
                 position: Callable[[], tuple[int, int]] | None = None) -> None:  # fmt: skip
        super().__init__(len(lengths), batch_size, seed, rank=rank, world_size=world_size, position=position)
        self.lengths_n = torch.as_tensor(lengths)
        self.window = window

    def _items(self) -> list[int]:
        """This rank's items in order; a batch of all ranks together is `batch_size * world_size` neighbours."""
        # hash only numbers: the hash of a string differs between processes
        generator = torch.Generator().manual_seed(hash((self.seed, self.epoch, 1)) % 2**63)
        order = torch.randperm(self.num_items, generator=generator)
        order = torch.cat([order, order[: -self.num_items % self.world_size]])
        if self.window > 1:
            order = self._by_length(order, generator)
        return order[self.rank :: self.world_size].tolist()

    def _by_length(self, order: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        step = self.batch_size * self.world_size
        windows = order.split(step * self.window)
        batches = [b for w in windows for b in w[self.lengths_n[w].argsort(stable=True)].split(step)]
        whole = [batch for batch in batches if len(batch) == step]
        shuffled = torch.randperm(len(whole), generator=generator).tolist()
        return torch.cat([whole[i] for i in shuffled] + [batch for batch in batches if len(batch) < step])


class CaptionSampler(ViewSampler, LengthSampler):
    """Batches of captions of similar length; the indices are `epoch * num_items + i`, see ViewSampler."""


class GroupSampler(EpochSampler):
    """Batches of indices, which depend on (seed, epoch, ranks, streams) only, never on workers or earlier passes.

    ends: (G,) index after the last item of each row group. All groups are put in random order; rank r takes the r-th
    part of this sequence of items and splits it into `streams` parts, from which batches are taken in turn. Each worker
    then reads groups that no other worker reads (`streams` must be a multiple of the number of workers). Within a
    stream, the items of `window` groups at a time are shuffled. Every item comes once per epoch; with R ranks at most
    R - 1 items come twice, so that all ranks have the same number of batches.
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
            # the longer streams come first, so this is right in the last, incomplete round too
            yield [shift + item for item in islice(streams[batch % self.streams], self.batch_size)]

    def _stream(self, order: NDArray, begin: int, length: int, skip: int) -> Iterator[int]:
        """`length` items from position `begin` of the shuffled groups, without the first `skip`."""
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
        """(first item, number of items) of the groups in this range; the first group follows the last one."""
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
    """Raises UserError if several workers would read the same stream."""
    if num_workers and streams % num_workers:
        raise UserError(
            f"data.num_workers={num_workers} does not divide data.streams={streams}: workers would read the same rows"
        )


def group_ends(rows: NDArray[np.int64], items: NDArray[np.int64] | None, row_ends: NDArray[np.int64]) -> NDArray:
    """(G,) end of each row group in items. rows: row of each record, ascending; items: number of items of each."""
    assert (np.diff(rows) >= 0).all(), "items must be in the order of the rows"
    counts = np.ones(len(rows), np.int64) if items is None else items
    ends = np.concatenate([[0], np.cumsum(counts)])
    return ends[np.searchsorted(rows, row_ends, side="left")]
