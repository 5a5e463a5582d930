"""What an influence computation has finished, on disk: solutions of blocks of queries and chunks of training scores."""

import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quintet.common.checkpoints import weights_digest
from quintet.data.store import digest
from quintet.papers.influence.risk.examples import Examples
from quintet.papers.influence.risk.risk import EmpiricalRisk, ranks
from quintet.papers.influence.solvers.interface import Solution, Solver

FORMAT = 1  # raise when the meaning of the files changes


class ScoreStore:
    """A folder of `cache_dir` for exactly these weights, examples, parameters and settings; null keeps nothing.

    Files are written aside and renamed, so that a kill leaves whole ones only. Distributed ranks share the folder.
    """

    def __init__(self, cache_dir: Path | None, risk: EmpiricalRisk, queries: Examples, solver: Solver) -> None:
        self.folder: Path | None = None
        if cache_dir is None:
            return
        parts = {"solver": type(solver).__name__, **asdict(solver)}
        key = digest(FORMAT, weights_digest(risk.module), risk.selection.names, risk.batch_size,
                     risk.train.fingerprint(), queries.fingerprint(), parts)  # fmt: skip
        self.folder = Path(cache_dir) / key
        self.folder.mkdir(parents=True, exist_ok=True)
        if ranks()[0] == 0:
            (self.folder / "settings.json").write_text(json.dumps(parts | {"params": risk.selection.names}, indent=1))

    def number(self, name: str, compute: Callable[[], float]) -> float:
        """A number, computed at the first time."""
        found = self._load(f"{name}.pt")
        if found is None:
            found = {"value": compute()}
            self._save(f"{name}.pt", found)
        return found["value"]

    def load_solution(self, block: int) -> Solution | None:
        found = self._load(f"solution_{block:05d}.pt")
        return None if found is None else Solution(**found)

    def save_solution(self, block: int, solution: Solution) -> None:
        if ranks()[0] == 0:
            self._save(f"solution_{block:05d}.pt", vars(solution))

    def load_chunk(self, place: slice) -> tuple[Tensor, Tensor] | None:
        """Scores (Q, B) and losses (B,) of the training examples at `place`."""
        found = self._load(f"scores_{place.start:09d}.pt")
        return None if found is None else (found["scores"], found["losses"])

    def save_chunk(self, place: slice, scores: Tensor, losses: Tensor) -> None:
        self._save(f"scores_{place.start:09d}.pt", {"scores": scores, "losses": losses})

    def _load(self, name: str) -> dict[str, Any] | None:
        if self.folder is None or not (self.folder / name).is_file():
            return None
        return torch.load(self.folder / name, map_location="cpu", weights_only=True)

    def _save(self, name: str, content: dict[str, Any]) -> None:
        if self.folder is None:
            return
        aside = self.folder / f"{name}.{os.getpid()}.tmp"
        torch.save(content, aside)
        aside.replace(self.folder / name)
