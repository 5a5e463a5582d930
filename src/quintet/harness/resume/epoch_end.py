"""Resuming from the end of an epoch: the next one begins, as if nothing had been in between."""

from __future__ import annotations

from lightning.pytorch import Callback, LightningModule, Trainer


class EpochEnd(Callback):
    """A run that resumes from a checkpoint written in `on_train_epoch_end` begins the next epoch with its first batch.

    Lightning goes through the end of the old epoch once more instead: it calls `on_train_epoch_end` again, counts the
    last batch twice among the steps that metrics are logged at, and where no validation followed the last batch, it
    takes the first batch of the next epoch for one more of the old, which shifts every validation after it.
    """

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Mark the old epoch as completed before Lightning looks."""
        fit, epoch = trainer.fit_loop, trainer.fit_loop.epoch_loop
        if not (fit.restarted_on_epoch_end and epoch.batch_progress.is_last_batch):
            return
        for progress in (fit.epoch_progress.total, fit.epoch_progress.current):
            # a _ProcessedTracker, though Lightning annotates its base class
            progress.completed = progress.processed  # type: ignore[attr-defined]
        fit.reset_restart_stage()
        epoch.reset_restart_stage()
        epoch.restarting = epoch.val_loop.restarting = False
