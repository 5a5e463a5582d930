"""Random state in checkpoints, and validation that leaves it alone: what exact resuming needs."""

from __future__ import annotations

import random
from typing import Any, cast

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import distributed


def capture() -> dict[str, Any]:
    """State of Python's, NumPy's, torch's and CUDA's generators as plain values and tensors."""
    kind, keys, position, has_gauss, cached = cast(tuple, np.random.get_state())
    state: dict[str, Any] = {
        "python": list(random.getstate()[1]),
        "python_gauss": random.getstate()[2],
        "numpy": [kind, torch.from_numpy(keys.astype(np.int64)), int(position), int(has_gauss), float(cached)],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def restore(state: dict[str, Any]) -> None:
    """Put back what `capture` returned."""
    random.setstate((3, tuple(state["python"]), state["python_gauss"]))
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"].cpu())
    if "cuda" in state and torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([s.cpu() for s in state["cuda"]])


class RandomState(Callback):
    """Saves every rank's generators in the checkpoint, restores them at train start, shields them from validation.

    Ranks start with one seed, so that they build the same network; from the start of training each draws torch's random
    numbers, such as dropout's, from a seed of its own. With another number of ranks than saved, rank 0 continues its
    own numbers and the others start new ones.
    """

    def __init__(self) -> None:
        self._resumed: dict[str, Any] | None = None
        self._before_validation: dict[str, Any] | None = None

    def on_save_checkpoint(self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Validation may be running: what training continues from is the state before it."""
        own = self._before_validation or capture()
        checkpoint["random_state"] = own
        if trainer.world_size > 1:
            states = [own] * trainer.world_size
            distributed.all_gather_object(states, own)
            checkpoint["random_state"], checkpoint["random_states"] = states[0], states

    def on_load_checkpoint(self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep the state until building and the sanity check have drawn their numbers."""
        states = checkpoint.get("random_states", [])
        if len(states) == trainer.world_size:
            self._resumed = states[trainer.global_rank]
        elif trainer.is_global_zero:
            self._resumed = checkpoint.get("random_state")

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Continue where the checkpoint stood."""
        if self._resumed is not None:
            restore(self._resumed)
            self._resumed = None
        elif not trainer.is_global_zero:
            torch.manual_seed(torch.initial_seed() + trainer.global_rank)

    def on_validation_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Remember the state; validation may sample."""
        self._before_validation = capture()

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Training draws the same numbers whether or not validation ran."""
        if self._before_validation is not None:
            restore(self._before_validation)
            self._before_validation = None
