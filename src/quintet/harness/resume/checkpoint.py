"""Checkpoints that survive: written aside and renamed, plain values only, the one before kept until then."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.trainer.states import TrainerFn

from quintet.common.checkpoints import kept_paths, load_checkpoint
from quintet.common.errors import UserError


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write to a temporary file, flush to disk, rename: a kill or a full disk never leaves half a checkpoint."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | os.PathLike, storage_options: Any = None) -> None:
        """Save `checkpoint` at `path`; the file that stood there stays as `<name>.previous` until the next save."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(target.name + ".partial")
        try:
            with partial.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
        except (OSError, RuntimeError) as error:  # torch's zip writer turns a full disk into RuntimeError
            partial.unlink(missing_ok=True)
            kept = f"the checkpoint before it is intact at {target}" if target.exists() else "none was there before"
            reason = error.strerror if isinstance(error, OSError) else str(error).splitlines()[0]
            raise UserError(
                f"could not write checkpoint {target}: {reason}; {kept}; free space and use resume="
            ) from error
        _keep_previous(target)
        partial.replace(target)

    def load_checkpoint(self, path: str | os.PathLike, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """As `load_checkpoint` below, for the trainer; what ModelCheckpoint kept in mind follows a moved run."""
        checkpoint = load_checkpoint(Path(path))
        _follow(checkpoint, Path(path).resolve().parent)
        return checkpoint


def _keep_previous(target: Path) -> None:
    """Hard-link the old file aside, so that a complete checkpoint exists at every moment."""
    if not target.exists():
        return
    link = target.with_name(target.name + ".link")
    link.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # file systems without hard links: the rename alone is still atomic
        os.link(target, link)
        link.replace(target.with_name(target.name + ".previous"))


def _follow(checkpoint: dict[str, Any], folder: Path) -> None:
    """The paths of ModelCheckpoint where its folder is now, which Lightning would take for another callback's."""
    written = Path(str((checkpoint.get("quintet_config") or {}).get("run_dir"))) / "checkpoints"
    for kept in kept_paths(checkpoint):
        if Path(kept["dirpath"]) == written != folder:
            state = kept["state"]
            state["dirpath"] = str(folder)
            for key in ("best_model_path", "kth_best_model_path", "last_model_path"):
                state[key] = str(folder / Path(state[key]).name) if state.get(key) else ""
            best = (state.get("best_k_models") or {}).items()
            state["best_k_models"] = {str(folder / Path(name).name): score for name, score in best}


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest `last.ckpt` in `folder` that loads completely, else the best; broken ones are skipped with a warning.

    best.ckpt may be newer, but it does not record its own score: a run that continues from it takes the next validation
    for the best so far.
    """
    last = sorted(folder.glob("last.ckpt*"), key=lambda p: p.stat().st_mtime, reverse=True)
    for path in [*last, *folder.glob("best.ckpt")]:
        if path.suffix == ".partial":
            continue
        try:
            load_checkpoint(path)
        except UserError as error:
            print(f"warning: {error}; falling back to the one before")
            continue
        return path
    return None


def validation_follows(trainer: Trainer) -> bool:
    """Whether Lightning validates after this batch, by its own rule; to be asked in on_train_batch_end.

    A run that resumes from a checkpoint written there passes over that validation.
    """
    fetcher = trainer.fit_loop._data_fetcher
    assert fetcher is not None, "the fit loop sets it before the first batch"
    return trainer.fit_loop.epoch_loop._should_check_val_fx(fetcher)


def within_epoch(trainer: Trainer) -> bool:
    """True if the validation that now ends ran within a training epoch, with more batches of the epoch to come."""
    training = trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
    return training and not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch


class LastCheckpoint(Checkpoint):
    """`last.ckpt` every `every_n_steps` optimiser steps, when training stops, and at each epoch's end.

    Where a validation is due it is written after it, for a run that continues from there does not validate again.
    Lightning logs a batch's metrics after its checkpoint is written. So that no kill can come between the two, the file
    waits as `next.ckpt` until they are logged.
    """

    def __init__(self, dirpath: str, every_n_steps: int = 500) -> None:
        self.path, self.waiting = Path(dirpath) / "last.ckpt", Path(dirpath) / "next.ckpt"
        self.every_n_steps = every_n_steps
        self.saved_step, self._first_step = -1, 0

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """A resumed run counts from its present step; what a killed run left unpublished is written again."""
        self._first_step = trainer.global_step
        if trainer.is_global_zero:
            self.waiting.unlink(missing_ok=True)

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *args: Any) -> None:
        """Save at a step boundary; Lightning counts a batch as completed only after this hook and allows for it."""
        if self._due(trainer) and not validation_follows(trainer):
            self.save(trainer)

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Save after a validation within an epoch; metrics are logged and the best checkpoint is chosen."""
        if within_epoch(trainer) and self._due(trainer):
            self.save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Save after a complete epoch; one that was stopped half-way was saved at its last batch."""
        complete = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        if complete and not trainer.sanity_checking:
            self.save(trainer)

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        """The batch before is logged, and validated if it had to be."""
        self.publish(trainer)

    def teardown(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        """All is logged and drawn, in `on_train_end` too, which a run that has nothing left to do does not come to."""
        self.publish(trainer)

    def on_exception(self, trainer: Trainer, *args: Any) -> None:
        """Nothing more will be logged."""
        self.publish(trainer)

    def _due(self, trainer: Trainer) -> bool:
        """Whether this step is to be saved: one of every n, or the last."""
        # crossed rather than hit: a module that steps by itself may take many steps a batch
        due = trainer.global_step // self.every_n_steps > max(self.saved_step, self._first_step) // self.every_n_steps
        ends = trainer.should_stop or 0 < trainer.max_steps <= trainer.global_step
        return trainer.global_step != self.saved_step and (due or ends)

    def save(self, trainer: Trainer) -> None:
        """Write the checkpoint now, for `publish` to give it its name; every rank must call."""
        if trainer.fast_dev_run:  # type: ignore[attr-defined]  # set by a connector of Lightning's
            return
        trainer.save_checkpoint(self.waiting, weights_only=False)  # optimiser and loops too
        self.saved_step = trainer.global_step

    def publish(self, trainer: Trainer) -> None:
        """What waits becomes `last.ckpt`; that one stays as `last.ckpt.previous`."""
        if trainer.is_global_zero and self.waiting.exists():
            _keep_previous(self.path)
            self.waiting.replace(self.path)
