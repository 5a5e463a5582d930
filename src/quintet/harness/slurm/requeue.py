"""When SLURM ends a job, save at a step boundary that all ranks agree on, and stop.

Lightning's own handler saves inside the signal handler: ranks that are not at the same place then wait for each other
for ever. Here the ranks compare notes after every batch, save together, and rank 0 asks SLURM for the requeue.
"""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from quintet.harness.resume.checkpoint import LastCheckpoint, validation_follows, within_epoch
from quintet.harness.slurm.signals import ENDING, EXIT_CODE, NOTHING, WARNED, Signals


class SaveAndRequeue(Checkpoint):
    """Hands the run over to its next start; `saver` writes the checkpoint that the next start continues from.

    A boundary is the end of a batch after which the optimiser has stepped, or of the validation that follows it (which
    would be lost otherwise), or of an epoch. A Checkpoint, because Lightning calls those after all other callbacks.
    """

    def __init__(self, signals: Signals, saver: LastCheckpoint) -> None:
        self.signals, self.saver = signals, saver
        self._step, self._noted, self._whole, self._leaving = 0, NOTHING, False, False

    def setup(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        """One owner: Lightning's handler of SIGTERM broadcasts from within, where the other ranks do not listen."""
        trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]  # no option

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """From here on there is something to save."""
        self._step, self.signals.training = trainer.global_step, True

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """Save if any rank received a signal and the state is complete; this batch's metrics are logged after it."""
        stepped, self._step = trainer.global_step != self._step, trainer.global_step
        self._whole = stepped or trainer.accumulate_grad_batches == 1
        if self._whole and not is_over(trainer) and not validation_follows(trainer):
            self._leaving = self._told(trainer)

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Save after a validation within an epoch."""
        if within_epoch(trainer) and self._whole and not is_over(trainer):
            self._leaving = self._told(trainer)

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        """Leave before the next batch changes anything."""
        if self._leaving:
            self._leave(trainer)

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        """The boundary after the last batch and its validation."""
        complete = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        last = trainer.max_epochs is not None and 0 < trainer.max_epochs <= trainer.current_epoch + 1
        if complete and not last and not is_over(trainer) and self._told(trainer):
            self._leave(trainer)

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        """The last checkpoint is written."""
        self.signals.training = False

    def _told(self, trainer: Trainer) -> bool:
        """Whether any rank received a signal; if so, the checkpoint is written."""
        noted = torch.tensor(self.signals.noted, device=trainer.strategy.root_device)
        self._noted = int(trainer.strategy.reduce(noted, reduce_op="max"))
        if self._noted != NOTHING and self.saver.saved_step != trainer.global_step:
            self.saver.save(trainer)
        return self._noted != NOTHING

    def _leave(self, trainer: Trainer) -> None:
        """Requeue, unless SLURM is ending the job and so decides itself, and end this process."""
        self.saver.publish(trainer)
        if trainer.is_global_zero and self._noted == WARNED and self.signals.noted != ENDING:
            self.signals.requeue()
        rank_zero_info(f"saved {self.saver.path} at step {trainer.global_step} for the job's next start")
        mark_preempted()
        trainer.strategy.barrier("requeued")  # a rank that leaves earlier may have srun kill the one that requeues
        raise SystemExit(EXIT_CODE)


def is_over(trainer: Trainer) -> bool:
    """Whether this was the last batch of all: the run ends by itself sooner than it could be started again."""
    return trainer.should_stop or 0 < trainer.max_steps <= trainer.global_step


def mark_preempted() -> None:
    """Tell W&B, when it is on, that this run is not a crashed one and comes back."""
    import sys

    if "wandb" in sys.modules and sys.modules["wandb"].run is not None:
        sys.modules["wandb"].run.mark_preempting()
