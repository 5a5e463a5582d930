"""Store the resolved configuration as plain values in every checkpoint, so that it loads with weights_only=True."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class Provenance(Callback):
    """Stores the run's configuration in the checkpoint, so that `eval.py ckpt=FILE` needs nothing else."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config

    def on_save_checkpoint(self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Adds `quintet_config`."""
        checkpoint["quintet_config"] = self.config
