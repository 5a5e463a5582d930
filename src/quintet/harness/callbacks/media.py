"""Pictures and sound that a model makes of itself, into the run directory and to every logger."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger

from quintet.harness.resume import random_state

log = logging.getLogger(__name__)


class Media(Callback):
    """Calls `module.make_media(datamodule, folder)` at the end of training and every `every_n_epochs` (0: never).

    Rank 0 only. The files lie under `<dirpath>/step_<n>` and go to W&B and TensorBoard as images and audio.
    """

    def __init__(self, dirpath: str, every_n_epochs: int = 0, at_end: bool = True) -> None:
        self.dirpath, self.every_n_epochs, self.at_end = Path(dirpath), every_n_epochs, at_end

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Make media when the epoch is due."""
        due = self.every_n_epochs and (trainer.current_epoch + 1) % self.every_n_epochs == 0
        if due and not trainer.sanity_checking:
            self._make(trainer, module)

    def on_fit_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Make media with the final weights (the averaged ones where EMA is on)."""
        if self.at_end and not trainer.fast_dev_run:  # type: ignore[attr-defined]  # set by a connector of Lightning's
            self._make(trainer, module)

    def _make(self, trainer: Trainer, module: Any) -> None:
        if not trainer.is_global_zero or not hasattr(module, "make_media"):
            return
        folder = self.dirpath / f"step_{trainer.global_step:07d}"
        folder.mkdir(parents=True, exist_ok=True)
        before, training = random_state.capture(), module.training
        module.eval()
        files = module.make_media(trainer.datamodule, folder)  # type: ignore[attr-defined]  # set by a connector of Lightning's
        module.train(training)
        random_state.restore(before)
        for logger in trainer.loggers:
            send(logger, files, trainer.global_step)


def send(logger: object, files: list[Path], step: int) -> None:
    """Log .png and .wav files through a W&B or TensorBoard logger; other loggers have no media."""
    pictures = [f for f in files if f.suffix == ".png"]
    sounds = [f for f in files if f.suffix == ".wav"]
    if isinstance(logger, WandbLogger):
        for file in pictures:
            logger.log_image(f"media/{file.stem}", [str(file)], step=step)
        for file in sounds:
            logger.log_audio(f"media/{file.stem}", [str(file)], step=step)
    elif isinstance(logger, TensorBoardLogger):
        _to_tensorboard(logger, pictures, sounds, step)


def _to_tensorboard(logger: TensorBoardLogger, pictures: list[Path], sounds: list[Path], step: int) -> None:
    import matplotlib.image
    import soundfile

    for file in pictures:
        logger.experiment.add_image(f"media/{file.stem}", matplotlib.image.imread(file), step, dataformats="HWC")
    for file in sounds:
        samples, rate = soundfile.read(file, dtype="float32")
        logger.experiment.add_audio(f"media/{file.stem}", samples[None], step, sample_rate=rate)
