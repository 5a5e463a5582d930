"""A data order that is a function of (seed, epoch), and a DataModule that resumes in the middle of it."""

from collections.abc import Iterator, Sized
from typing import Any

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader, Sampler

from quintet.errors import UserError


class EpochSampler(Sampler[list[int]]):
    """Batches of indices; the permutation depends on (seed, epoch) only, never on how often it was read.

    Several ranks: indices are dealt out in turn and the permutation wraps round by at most `world_size - 1` items
    (or loses the odd ones when `drop_last`), so that every rank takes the same number of batches.
    Errors: UserError for an empty split, or a batch larger than it.
    """

    def __init__(self, num_items: int, batch_size: int, seed: int = 0, shuffle: bool = True, drop_last: bool = False,
                 rank: int = 0, world_size: int = 1) -> None:  # fmt: skip
        if batch_size < 1:
            raise UserError(f"data.batch_size={batch_size}: give 1 or more")
        if num_items < 1:
            raise UserError("the split is empty: give more data, or a larger data.val_fraction / data.test_fraction")
        if shuffle and batch_size * world_size > num_items:
            raise UserError(
                f"data.batch_size={batch_size} on {world_size} device(s) is larger than the {num_items} training"
                f" chunks: lower data.batch_size or data.chunk_samples"
            )
        self.num_items, self.batch_size, self.seed = num_items, batch_size, seed
        self.shuffle, self.drop_last = shuffle, drop_last
        self.rank, self.world_size = rank, world_size
        self.epoch, self.start_batch, self.epoch_shift = 0, 0, 0

    @property
    def sampler(self) -> "EpochSampler":
        """Lightning calls `dataloader.batch_sampler.sampler.set_epoch`: let that reach this object."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Move to an epoch; the part to be skipped (`start_batch`) belongs to one epoch only."""
        epoch -= self.epoch_shift
        if epoch != self.epoch:
            self.epoch, self.start_batch = epoch, 0

    def resume(self, epoch: int, batch: int, epoch_shift: int = 0) -> None:
        """Continue at batch `batch` of data epoch `epoch`; Lightning counts that epoch as `epoch + epoch_shift`."""
        self.epoch, self.start_batch, self.epoch_shift = epoch, batch, epoch_shift

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
        items = self._items()
        for batch in range(self.start_batch, len(self)):
            yield items[batch * self.batch_size : (batch + 1) * self.batch_size]

    def __len__(self) -> int:
        """All batches of an epoch on this rank, the skipped ones included: Lightning counts from `batch_idx`."""
        per_rank, odd = divmod(self.num_items, self.world_size)
        if self.drop_last:
            return per_rank // self.batch_size
        return -(-(per_rank + (odd > 0)) // self.batch_size)


class ResumableLoader(DataLoader):
    """A DataLoader whose position the DataModule keeps: the two methods tell Lightning that it does resume."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to do: `ResumableDataModule.load_state_dict` ran before this loader was made."""


class ResumableDataModule(pl.LightningDataModule):
    """Stores (epoch, batch) in the checkpoint; a resumed run sees exactly the remaining batches, in the same order.

    Needs `Trainer(use_distributed_sampler=False)`. Subclasses build their training loader with `resumable_loader`.
    """

    def __init__(self) -> None:
        super().__init__()
        self._position = {"epoch": 0, "batch": 0, "epoch_shift": 0}

    def resumable_loader(self, dataset: Sized, batch_size: int, seed: int, **kwargs: Any) -> DataLoader:
        """The shuffled training loader of this rank, standing where the checkpoint left it."""
        trainer = self.trainer
        rank, world = (trainer.global_rank, trainer.world_size) if trainer is not None else (0, 1)
        sampler = EpochSampler(len(dataset), batch_size, seed, rank=rank, world_size=world)
        # with worker processes Lightning has the first indices drawn BEFORE it calls set_epoch
        sampler.resume(**self._position)
        return ResumableLoader(dataset, batch_sampler=sampler, **kwargs)

    def state_dict(self) -> dict[str, int]:
        """Where the next batch is: data epoch, batch in it, and by how much Lightning's epoch count runs ahead."""
        if self.trainer is None:
            return dict(self._position)
        fit = self.trainer.fit_loop
        epochs, shift = fit.epoch_progress.current, self._position["epoch_shift"]
        # `processed`: at on_train_batch_end `completed` is still one behind
        batch = fit.epoch_loop.batch_progress.current.processed
        if epochs.ready == 0:
            return dict(self._position)
        epoch = epochs.ready - 1
        ended_early = batch < self.trainer.num_training_batches and epochs.processed > epoch
        if ended_early and fit._iteration_based_training():
            # max_steps ended the epoch; on resume Lightning calls it the next epoch but keeps counting its batches
            return {"epoch": epoch - shift, "batch": batch, "epoch_shift": shift + 1}
        if ended_early or batch >= self.trainer.num_training_batches:
            return {"epoch": epoch + 1 - shift, "batch": 0, "epoch_shift": shift}
        return {"epoch": epoch - shift, "batch": batch, "epoch_shift": shift}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self._position = {key: int(state_dict.get(key, 0)) for key in ("epoch", "batch", "epoch_shift")}
