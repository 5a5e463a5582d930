"""Streamed data in a trainer; as a process, one of two ranks: `python stream_run.py ROOT FOLDER` prints what it saw."""

import os
import sys
from pathlib import Path

import torch

import quintet  # noqa: F401  before Lightning: see quintet.common.compat

# isort: split
import lightning.pytorch as pl

from quintet.data.audio.datamodule import AudioDataModule
from quintet.data.audio.hub import Hub
from quintet.data.captions.datamodule import CaptionDataModule
from quintet.data.captions.hub import HubCaptions

RATE, CHUNK = 8000, 400


def audio(root, cache, **options) -> AudioDataModule:
    source = Hub(str(root), speaker_column="speaker")
    small = {"val_fraction": 0.0, "test_fraction": 0.0, "context": 50, "batch_size": 3, "streaming": True}
    return AudioDataModule(source, RATE, CHUNK, cache_dir=str(cache), **small | options)


def captions(root, cache, **options) -> CaptionDataModule:
    source = HubCaptions(str(root), names={"train": "train", "val": None, "test": None})
    small = {"resize_size": 10, "crop_size": 8, "min_count": 1, "batch_size": 4, "streaming": True}
    return CaptionDataModule(source, str(cache), **small | options)


class Noter(pl.LightningModule):
    """Trains nothing to speak of and notes its batches."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.seen = torch.nn.Linear(1, 1), []

    def training_step(self, batch, batch_idx):
        """What identifies a window is its samples, a caption its index and view."""
        if hasattr(batch, "audio"):
            self.seen.append([abs(hash(tuple(window.tolist()))) for window in batch.audio])
        else:
            self.seen.append([*batch.index.tolist(), float(batch.images.double().sum())])
        return self.layer(torch.zeros(1, 1)).mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def run(data, folder: Path, resume: Path | None = None, save: Path | None = None, **limits) -> list[list]:
    """What each step saw."""
    world, module = int(os.environ.get("WORLD_SIZE", "1")), Noter()
    trainer = pl.Trainer(
        **limits, accelerator="cpu", devices=1, num_nodes=world, strategy="ddp" if world > 1 else "auto", logger=False,
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False, limit_val_batches=0,
        enable_checkpointing=False, default_root_dir=folder,
    )  # fmt: skip
    trainer.fit(module, data, ckpt_path=resume, weights_only=True if resume else None)
    if save:
        trainer.save_checkpoint(save)
    return module.seen


if __name__ == "__main__":
    root, folder = sys.argv[1], Path(sys.argv[2])
    for batch in run(audio(root, folder / "cache", num_workers=2, streams=2), folder, max_epochs=1):
        print("seen", *batch)
