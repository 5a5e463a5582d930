"""The base class of all DataModules: the contract with models and protocols, and exact resuming within an epoch."""

from collections.abc import Sequence, Sized
from typing import Any, ClassVar, cast

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader, Dataset

from quintet.data.order import EpochSampler, EvalSampler
from quintet.data.preview import Preview


class ResumableLoader(DataLoader):
    """A DataLoader with the two methods by which Lightning recognizes a loader that can resume within an epoch.

    Its position is kept by the DataModule, whose `load_state_dict` runs before this loader is made.
    """

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to restore here."""


class ResumableDataModule(pl.LightningDataModule):
    """A DataModule whose resumed run gets exactly the remaining batches, in the same order.

    To add a data set for an existing task, write only a source (see `source.py` in the task's folder) and a file
    conf/data/<name>.yaml. To add a task, derive from this class and provide:

    - `batch_type`: the class of its batches in quintet/data/batches.py. A model with another one is refused.
    - `prepare_data()`, `setup(stage)`: as in Lightning; every file in a cache is built by data/store.py:build_once.
    - `data_info`: a mapping of plain values that size the model (class names, vocabulary, sample rate, ...). It is
      stored in checkpoints and compared when a run is evaluated, so it must not depend on paths.
    - `train_dataloader()`: a `resumable_loader`, or a `ResumableLoader` over another sampler from data/order.py with
      `position=self.position`. Its order must depend on (seed, epoch) only, and random augmentation of an example on
      (seed, epoch, index) only: see ViewSampler.
    - `val_dataloader()`, `test_dataloader()`: an `eval_loader`.
    - `num_examples`, `example_batch`, `preview`: required by the protocols that look at single examples.

    The position is derived from Lightning's count of all training batches, which every checkpoint restores. Lightning's
    own epoch number is not used: after resuming at the end of an epoch, or where max_steps ended a run, it is too high.
    The Trainer must have `use_distributed_sampler=False`.
    """

    batch_type: ClassVar[type]

    def __init__(self) -> None:
        super().__init__()
        self._batches_per_epoch, self._batches_done = 0, 0

    @property
    def data_info(self) -> dict[str, Any]:
        """Plain values that size the model, available after setup()."""
        raise NotImplementedError(f"{type(self).__name__} does not define data_info")

    def resumable_loader(self, dataset: Sized, batch_size: int, seed: int, **kwargs: Any) -> DataLoader:
        """Return the shuffled training loader of this rank, which continues where the checkpoint was written."""
        rank, world = self.rank_and_world()
        sampler = EpochSampler(len(dataset), batch_size, seed, rank=rank, world_size=world, position=self.position)
        # A generator of its own: making an iterator draws a number, which must not change the training's random state.
        kwargs.setdefault("generator", torch.Generator().manual_seed(seed))
        return ResumableLoader(cast(Dataset, dataset), batch_sampler=sampler, **kwargs)

    def eval_loader(self, dataset: Sized, batch_size: int, key: str = "data.eval_batch_size",
                    **kwargs: Any) -> DataLoader:  # fmt: skip
        """Return a loader over this rank's part of a split, each example once; metrics must sum over the ranks.

        key: the configuration key of `batch_size`, for error messages.
        """
        sampler = EvalSampler(len(dataset), batch_size, *self.rank_and_world(), key)
        return DataLoader(cast(Dataset, dataset), batch_sampler=sampler, **kwargs)

    def rank_and_world(self) -> tuple[int, int]:
        """Return (rank, number of ranks) of the trainer, (0, 1) without a trainer."""
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    def num_examples(self, split: str) -> int:
        """Number of examples of a split, available after setup(). Raises UserError for a split that does not exist."""
        raise NotImplementedError(f"{type(self).__name__} does not implement num_examples")

    def example_batch(self, split: str, indices: Sequence[int]) -> Any:
        """Return these examples, in this order, as one batch of `batch_type`.

        An example must be the same at every call and must not depend on the other examples of the batch: influence
        functions ask for single training examples.
        """
        raise NotImplementedError(f"{type(self).__name__} does not implement example_batch")

    def preview(self, split: str, index: int) -> Preview:
        """Return one example in a form to be shown to a user: image, sound, text or table row."""
        raise NotImplementedError(f"{type(self).__name__} does not implement preview")

    def position(self) -> tuple[int, int]:
        """Return (epoch, batch within it) of the next training batch."""
        if self.trainer is None:
            return 0, 0
        # The count of the checkpoint is used until Lightning restores its own: a model that asks for the number of
        # training steps has the loader made before that.
        done = max(self._processed(), self._batches_done)
        batches = self.trainer.num_training_batches
        # With worker processes the first indices are drawn before Lightning has counted the batches of an epoch.
        batches = batches if isinstance(batches, int) and batches > 0 else self._batches_per_epoch
        return divmod(done, batches) if batches else (0, 0)

    def _processed(self) -> int:
        """Training batches so far. Within on_train_batch_end Lightning's `completed` does not count the current one."""
        return 0 if self.trainer is None else cast(Any, self.trainer.fit_loop.epoch_loop.batch_progress.total).processed

    def state_dict(self) -> dict[str, int]:
        """Batches per epoch and batches done, which `position` needs before Lightning has restored its own counts."""
        batches = self.trainer.num_training_batches if self.trainer is not None else self._batches_per_epoch
        batches = batches if isinstance(batches, int) else self._batches_per_epoch
        return {"batches_per_epoch": batches, "batches_done": self._processed()}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self._batches_per_epoch = int(state_dict["batches_per_epoch"])
        self._batches_done = int(state_dict.get("batches_done", 0))
