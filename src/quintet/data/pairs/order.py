"""Batches of sentences of like length, in an order that is a function of (seed, epoch)."""

from collections.abc import Callable, Sequence

import torch

from quintet.data.resumable import EpochSampler


class LengthSampler(EpochSampler):
    """An EpochSampler whose batches hold items of like length: less padding, the same guarantees on resuming.

    The shuffled items are cut into windows of `window` batches, each window is sorted by length, and the batches are
    shuffled again; only an incomplete batch stays last. `window=1` keeps the plain order.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int = 0, window: int = 50, rank: int = 0,
                 world_size: int = 1, position: Callable[[], tuple[int, int]] | None = None) -> None:  # fmt: skip
        super().__init__(len(lengths), batch_size, seed, rank=rank, world_size=world_size, position=position)
        self.lengths_n = torch.as_tensor(lengths)
        self.window = window

    def _items(self) -> list[int]:
        """This rank's items in order; a batch of all ranks together is `batch_size * world_size` neighbours."""
        # a hash of numbers: that of a text would be another one in the process that resumes
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
