"""A data order that is a function of (seed, epoch), and a DataModule that resumes in the middle of it."""

from collections.abc import Callable, Iterator, Sequence, Sized
from typing import Any

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader, Sampler

from quintet.common.errors import UserError
from quintet.data.preview import Preview


class EpochSampler(Sampler[list[int]]):
    """Batches of indices; the permutation depends on (seed, epoch) only, never on how often it was read.

    Several ranks: indices are dealt out in turn and the permutation wraps round by at most `world_size - 1` items
    (or loses the odd ones when `drop_last`), so that every rank takes the same number of batches.
    `position()` is asked once at the start of each pass and says which epoch and which batch of it come next; without
    it the passes are epoch `self.epoch` from its start.
    Errors: UserError for an empty split, or a batch larger than it.
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
        self.position = position or (lambda: (self.epoch, 0))
        self.epoch = 0

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
    """Batches of `epoch * num_items + i`, so that the index alone tells the dataset which view is meant."""

    def _items(self) -> list[int]:
        return [self.epoch * self.num_items + item for item in super()._items()]


class EvalSampler(Sampler[list[int]]):
    """Every item once, in order: rank r takes its share of consecutive ones.

    All ranks have the same number of batches, as collective calls in a forward pass need it, and no item is repeated
    for that: the sizes of batches differ by one at most. A batch is larger than `batch_size` only where there are
    fewer items than batches otherwise. Of fewer items than ranks every rank takes all, which leaves means as they are.
    key: of batch_size, for messages. Errors: UserError for an empty split, or an empty batch.
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


class ResumableLoader(DataLoader):
    """A DataLoader whose position the DataModule keeps: the two methods tell Lightning that it does resume."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to do: `ResumableDataModule.load_state_dict` ran before this loader was made."""


class ResumableDataModule(pl.LightningDataModule):
    """A resumed run sees exactly the remaining batches, in the same order, wherever it was stopped.

    The position is derived from Lightning's count of all batches processed so far, which every checkpoint restores.
    Lightning's own epoch number will not do: after resuming from an epoch's end, or from where max_steps ended one,
    it runs ahead. Needs `Trainer(use_distributed_sampler=False)` and a training loader from `resumable_loader`.
    """

    def __init__(self) -> None:
        super().__init__()
        self._batches_per_epoch, self._batches_done = 0, 0

    def resumable_loader(self, dataset: Sized, batch_size: int, seed: int, **kwargs: Any) -> DataLoader:
        """The shuffled training loader of this rank, standing where the checkpoint left it."""
        rank, world = self.rank_and_world()
        sampler = EpochSampler(len(dataset), batch_size, seed, rank=rank, world_size=world, position=self.position)
        # its own generator: making an iterator draws a number, which must not come from the training's random state
        kwargs.setdefault("generator", torch.Generator().manual_seed(seed))
        return ResumableLoader(dataset, batch_sampler=sampler, **kwargs)

    def eval_loader(self, dataset: Sized, batch_size: int, key: str = "data.eval_batch_size",
                    **kwargs: Any) -> DataLoader:  # fmt: skip
        """This rank's share of a split that is measured: metrics have to gather."""
        sampler = EvalSampler(len(dataset), batch_size, *self.rank_and_world(), key)
        return DataLoader(dataset, batch_sampler=sampler, **kwargs)

    def rank_and_world(self) -> tuple[int, int]:
        """Of the run that asks; one process without a trainer."""
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    def num_examples(self, split: str) -> int:
        """How many examples a split has, after setup(); UserError for a split that there is not."""
        raise NotImplementedError(f"{type(self).__name__} does not say how many examples a split has")

    def example_batch(self, split: str, indices: Sequence[int]) -> Any:
        """Exactly these examples in this order as one batch.

        Each is independent of the others in the batch, and the same at every call: what influence functions need to
        ask for one training example.
        """
        raise NotImplementedError(f"{type(self).__name__} cannot pick examples by their index")

    def preview(self, split: str, index: int) -> Preview:
        """The example for a person's eyes."""
        raise NotImplementedError(f"{type(self).__name__} cannot show an example")

    def position(self) -> tuple[int, int]:
        """(epoch, batch in it) of the next training batch."""
        if self.trainer is None:
            return 0, 0
        # the checkpoint's own count: a model that asks how long the run is has the loader made before Lightning's
        done = max(self._processed(), self._batches_done)
        batches = self.trainer.num_training_batches
        # with worker processes the first indices are drawn before Lightning has counted the batches of an epoch
        batches = batches if isinstance(batches, int) and batches > 0 else self._batches_per_epoch
        return divmod(done, batches) if batches else (0, 0)

    def _processed(self) -> int:
        """Batches so far; inside on_train_batch_end `completed` would still be one behind."""
        return 0 if self.trainer is None else self.trainer.fit_loop.epoch_loop.batch_progress.total.processed

    def state_dict(self) -> dict[str, int]:
        """Batches of an epoch and batches done, for `position` before Lightning knows them again."""
        batches = self.trainer.num_training_batches if self.trainer is not None else self._batches_per_epoch
        batches = batches if isinstance(batches, int) else self._batches_per_epoch
        return {"batches_per_epoch": batches, "batches_done": self._processed()}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self._batches_per_epoch = int(state_dict["batches_per_epoch"])
        self._batches_done = int(state_dict.get("batches_done", 0))
