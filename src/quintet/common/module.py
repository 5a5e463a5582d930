"""The base class of the papers' LightningModules: what a checkpoint of an earlier version needs to load."""

from __future__ import annotations

import re
from io import BytesIO
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from lightning.pytorch import LightningModule

from quintet.common.checkpoints import check_weights, load_checkpoint


class PaperModule(LightningModule):
    """A paper's model with its losses and metrics, sized by `data_info`.

    A subclass declares `batch_type`, the batch that it expects, and takes `data_info`: a mapping of what it needs to
    know of the data (number of classes, speakers, vocabulary, sample rate). Both decide which data it can be paired
    with. `example_losses(batch)` gives the loss of each example, (B,).
    """

    batch_type: ClassVar[type]
    # (pattern, replacement) for names of tensors in checkpoints written before they were renamed, applied in order
    renamed_tensors: ClassVar[tuple[tuple[str, str], ...]] = ()

    ensemble: ClassVar[str | None] = None  # dotted name of the class that makes one model of several of these

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: str | Path, *args: Any, **kwargs: Any) -> Self:  # type: ignore[override]
        """As Lightning's; also for checkpoints whose constructor argument `data_info` was still called `facts`."""
        source: Any = checkpoint_path
        stored = torch.load(checkpoint_path, map_location="cpu", weights_only=True, mmap=True)
        arguments = stored.get(cls.CHECKPOINT_HYPER_PARAMS_KEY) or {}
        if "facts" in arguments:
            arguments["data_info"] = arguments.pop("facts")
            source = BytesIO()
            torch.save(stored, source)
            source.seek(0)
        return super().load_from_checkpoint(source, *args, **kwargs)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Give tensors their present names; UserError with one line when the checkpoint is of another network."""
        checkpoint["state_dict"] = self.renamed(checkpoint["state_dict"])
        check_weights(self, checkpoint)

    def start_from(self, path: str | Path) -> dict[str, Any]:
        """Take the weights of a checkpoint of the same network, else UserError; returns the checkpoint."""
        checkpoint = load_checkpoint(Path(path))
        PaperModule.on_load_checkpoint(self, checkpoint)
        self.load_state_dict(checkpoint["state_dict"])
        return checkpoint

    @classmethod
    def renamed(cls, state: dict[str, Any]) -> dict[str, Any]:
        """`state` with every tensor under its present name."""
        names = {name: name for name in state}
        for pattern, replacement in cls.renamed_tensors:
            names = {old: re.sub(pattern, replacement, new) for old, new in names.items()}
        return {names[old]: tensor for old, tensor in state.items()}
