"""Examples per second and a console line after each validation."""

from __future__ import annotations

import logging
import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

log = logging.getLogger(__name__)


def batch_size_of(batch: Any) -> int:
    """Length of the first tensor found in a batch."""
    if isinstance(batch, torch.Tensor):
        return batch.shape[0]
    parts = batch.values() if isinstance(batch, dict) else batch
    return next(batch_size_of(p) for p in parts if p is not None)


class Throughput(Callback):
    """Logs `train/examples_per_s` over all ranks every `trainer.log_every_n_steps`, validation time left out."""

    def __init__(self) -> None:
        self._examples, self._seconds, self._started = 0, 0.0, 0.0

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Start the clock at the first batch of a window."""
        self._started = self._started or time.perf_counter()

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, out: Any, batch: Any, idx: int) -> None:
        """Count, and report when Lightning logs."""
        self._examples += batch_size_of(batch)
        every = trainer.log_every_n_steps  # type: ignore[attr-defined]  # set by a connector of Lightning's
        if (trainer.global_step + 1) % max(every, 1) == 0:
            seconds = self._seconds + time.perf_counter() - self._started
            module.log("train/examples_per_s", self._examples * trainer.world_size / max(seconds, 1e-9))
            self._examples, self._seconds, self._started = 0, 0.0, 0.0

    def on_validation_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Stop the clock."""
        if self._started:
            self._seconds += time.perf_counter() - self._started
            self._started = 0.0


class ConsoleLine(Callback):
    """One line a validation in the console log: epoch, step, the validation metrics."""

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Print the overall numbers; per-class and per-speaker ones stand in metrics.csv.

        Not at the epoch's end: callbacks hear of that before the module has logged, and would print the values before.
        """
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        values = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val/") and v.numel() == 1}
        shown = "  ".join(f"{k} {v:.4f}" for k, v in list(values.items())[:6])
        log.info("epoch %d  step %d  %s", trainer.current_epoch, trainer.global_step, shown)
