"""eval.py in several processes, started by torchrun: for protocols that share one sweep over the training set."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from quintet.common.errors import UserError


def world_size() -> int:
    """How many processes torchrun has started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", 1)) if "TORCHELASTIC_RUN_ID" in os.environ else 1


def rank() -> int:
    """This one's number."""
    return int(os.environ.get("RANK", 0)) if world_size() > 1 else 0


@contextmanager
def process_group(protocol: Any, name: str) -> Iterator[None]:
    """A torch.distributed group around a protocol with `parallel = True`; any other protocol must run in one process.

    Otherwise their metrics would be counted once per process.
    """
    if world_size() == 1:
        yield
        return
    if not getattr(protocol, "parallel", False):
        raise UserError(f"protocol={name} runs in one process: start eval.py without torchrun")
    import torch
    from torch import distributed

    distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield
    finally:
        distributed.destroy_process_group()


def trainer_settings() -> dict[str, Any]:
    """What a Trainer needs to mind its own process only, though torchrun started several."""
    if world_size() == 1:
        return {}
    import torch
    from lightning.pytorch.plugins.environments import LightningEnvironment

    device = {"devices": [int(os.environ["LOCAL_RANK"])]} if torch.cuda.is_available() else {}
    return device | {"plugins": [LightningEnvironment()]}
