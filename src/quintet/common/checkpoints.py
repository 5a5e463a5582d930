"""What every model here shares: plain values into checkpoints, one line when data or weights are another's."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from quintet.common.errors import UserError
from quintet.harness.resume.checkpoint import load_checkpoint


def plain(value: object) -> object:
    """Dataclasses, mappings, sequences and numpy scalars as dicts, lists and Python values (weights_only loadable)."""
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if hasattr(value, "items"):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(item) for item in value]
    if isinstance(value, Tensor) or hasattr(value, "item"):
        return value.item()
    return value


def check_facts(known: dict, given: dict) -> None:
    """What a model was sized for must be what the data has (classes, speakers in order, rates), else UserError."""
    given = plain(given)
    for name, value in plain(known).items():
        if given.get(name) != value:
            raise UserError(
                f"data has {name}={_few(given.get(name))}, the model was built for {name}={_few(value)}: "
                "use the data it was trained on"
            )


def _few(value: object) -> str:
    text = str(value)
    return text if len(text) < 80 else f"{text[:77]}... ({len(value)} entries)"


def refuse_other_weights(module: nn.Module, checkpoint: dict) -> None:
    """UserError with one line rather than a page of tensor names when a checkpoint is of another network."""
    ours, theirs = module.state_dict(), checkpoint["state_dict"]
    odd = [k for k in theirs if k not in ours or ours[k].shape != theirs[k].shape] + [
        k for k in ours if k not in theirs
    ]
    if odd:
        raise UserError(
            f"The checkpoint is not of this {type(module).__name__.removesuffix('Module')}: {len(odd)} tensors differ, "
            f"first {odd[0]!r}; use the run's own config, or a checkpoint of this one"
        )


def start_from(module: nn.Module, path: str | Path) -> dict:
    """Give `module` the weights of a checkpoint of the same network, else UserError; returns the checkpoint."""
    checkpoint = load_checkpoint(Path(path))
    refuse_other_weights(module, checkpoint)
    module.load_state_dict(checkpoint["state_dict"])
    return checkpoint


def weights_digest(module: nn.Module) -> str:
    """Of all parameters and buffers, the fixed ones too."""
    found = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
