"""Are two runs the same to the bit? Checkpoints and metrics.csv, but for what names a folder or measures time."""

import csv
from collections.abc import Iterator
from pathlib import Path

CLOCKS = ("train/examples_per_s",)


def last_checkpoint(run: Path, name: str = "last.ckpt") -> dict:
    """A checkpoint's content, without what names the run's own folder."""
    from quintet.common.checkpoints import load_checkpoint

    content = load_checkpoint(run / "checkpoints" / name)
    content.pop("quintet_config", None)
    for state in content.get("callbacks", {}).values():
        if isinstance(state, dict):
            for key in [key for key in state if "path" in key or "best_k_models" in key]:
                state.pop(key)
            state.pop("current_score", None)  # what Lightning does not restore: the next validation sets it
    return content


def differences(one: Path, other: Path) -> Iterator[str]:
    """Where two runs are not the same to the bit; nothing if they are."""
    for name in ("last.ckpt", "best.ckpt"):
        if (one / "checkpoints" / name).exists() or (other / "checkpoints" / name).exists():
            a, b = last_checkpoint(one, name), last_checkpoint(other, name)
            for part in (a, b):
                part.pop("loops", None)  # Lightning counts restarts there
            yield from unlike(a, b, name)
    a, b = rows(one), rows(other)
    if a != b:
        places = [i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y]
        where = a[places[0]] if places else "the end"
        yield f"metrics.csv: {len(a)} rows and {len(b)}, first unlike at {where}"


def unlike(a, b, where: str) -> Iterator[str]:
    """Dotted paths of what differs in two nests of plain values and tensors."""
    import torch

    if type(a) is not type(b):
        yield f"{where}: {type(a).__name__} and {type(b).__name__}"
    elif isinstance(a, dict):
        for key in dict.fromkeys([*a, *b]):
            if key not in a or key not in b:
                yield f"{where}.{key}: only in one"
            else:
                yield from unlike(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list | tuple):
        if len(a) != len(b):
            yield f"{where}: {len(a)} and {len(b)} long"
        for index, pair in enumerate(zip(a, b, strict=False)):
            yield from unlike(*pair, f"{where}.{index}")
    elif isinstance(a, torch.Tensor):
        if a.dtype != b.dtype or not torch.equal(a, b):
            yield where
    elif a != b and not (a != a and b != b):
        yield f"{where}: {a} and {b}"


def rows(run: Path) -> list[dict[str, str]]:
    """metrics.csv without clocks and empty cells."""
    with (run / "metrics.csv").open(newline="") as file:
        return [{k: v for k, v in line.items() if v and k not in CLOCKS} for line in csv.DictReader(file)]
