"""What every model here shares: plain values into checkpoints, one line when data or weights are another's."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from quintet.common.errors import UserError


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Load plain values and tensors (weights_only); UserError when the file is missing, cut off or not plain.

    Also for what Lightning would act on: a function to build the module with, files to delete.
    """
    if not path.is_file():
        raise UserError(f"no checkpoint at '{path}'")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(
            f"'{path}' is no readable checkpoint ({type(error).__name__}): cut off, or not plain values"
        ) from error
    if not isinstance(checkpoint, dict):
        raise UserError(f"'{path}' is no checkpoint: it holds {type(checkpoint).__name__}")
    for key in ("hyper_parameters", "hparams", "module_arguments"):
        if "_instantiator" in (checkpoint.get(key) or {}):
            raise UserError(f"'{path}' wants to be built by {checkpoint[key]['_instantiator']}: refused")
    for kept in kept_paths(checkpoint):
        for name in kept["paths"]:  # Lightning deletes local files only below its folder, but sees no `..`
            if "://" in name or ".." in Path(name).parts:
                raise UserError(f"'{path}' keeps count of {name}, which Lightning may delete: refused")
    return checkpoint


def kept_paths(checkpoint: dict[str, Any]) -> list[dict[str, Any]]:
    """Of each ModelCheckpoint: its state, its folder, and the files that it may replace."""
    states = (checkpoint.get("callbacks") or {}).values()
    found = []
    for state in states:
        if isinstance(state, dict) and "best_model_path" in state:
            paths = [state.get(key) for key in ("best_model_path", "kth_best_model_path", "last_model_path")]
            paths += state.get("best_k_models") or {}
            found.append({"state": state, "dirpath": str(state.get("dirpath")), "paths": [str(p) for p in paths if p]})
    return found


def to_builtin(value: Any) -> Any:
    """Dataclasses, mappings, sequences and numpy scalars as dicts, lists and Python values (weights_only loadable)."""
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if hasattr(value, "items"):
        return {str(key): to_builtin(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [to_builtin(item) for item in value]
    if isinstance(value, Tensor) or hasattr(value, "item"):
        return value.item()
    return value


def check_data_info(known: dict, given: dict) -> None:
    """What a model was sized for must be what the data has (classes, speakers in order, rates), else UserError."""
    given = to_builtin(given)
    for name, value in to_builtin(known).items():
        if given.get(name) != value:
            raise UserError(
                f"data has {name}={_few(given.get(name))}, the model was built for {name}={_few(value)}: "
                "use the data it was trained on"
            )


def _few(value: Any) -> str:
    text = str(value)
    return text if len(text) < 80 else f"{text[:77]}... ({len(value)} entries)"


def check_weights(module: nn.Module, checkpoint: dict) -> None:
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


def weights_digest(module: nn.Module) -> str:
    """Of all parameters and buffers, the fixed ones too."""
    found = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
