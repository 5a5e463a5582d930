"""The step that metrics are logged at, right after resuming from the end of an epoch."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

KEY = "logged_steps_at_epoch_end"


class LoggedSteps(Callback):
    """Keeps Lightning's count of batches that stepped, which it logs by, across a checkpoint of an epoch's end.

    Lightning counts the last batch again when a run that is limited by steps continues from there.
    """

    def __init__(self) -> None:
        self._epoch_ended, self._resumed = False, None

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Checkpoints written from here to the next batch are those of an epoch's end."""
        self._epoch_ended = self._resumed is None  # continuing, Lightning calls this again before the first batch

    def on_save_checkpoint(self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Adds the count."""
        if self._resumed is not None:
            checkpoint[KEY] = self._resumed
        elif self._epoch_ended:
            checkpoint[KEY] = trainer.fit_loop.epoch_loop._batches_that_stepped

    def on_load_checkpoint(self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep it until Lightning has counted."""
        self._resumed = checkpoint.get(KEY)

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Put it back."""
        if self._resumed is not None:
            trainer.fit_loop.epoch_loop._batches_that_stepped = self._resumed
        self._epoch_ended, self._resumed = False, None
