"""Finished parts of a long computation on disk, so that a second call continues where the first one stopped."""

import json
import os
from pathlib import Path
from typing import Any

import torch

from quintet.data.store import digest
from quintet.papers.influence.risk.risk import ranks


class KeptResults:
    """A folder of `cache_dir` named by a digest of everything that the results depend on; null keeps nothing.

    Files are written under a temporary name and renamed, so that a kill leaves complete files only. Distributed ranks
    share the folder. `settings`: what to write into settings.json, for information.
    """

    def __init__(self, cache_dir: Path | None, depends_on: list[Any], settings: dict[str, Any] | None = None) -> None:
        self.folder: Path | None = None
        if cache_dir is None:
            return
        self.folder = Path(cache_dir) / digest(*depends_on)
        self.folder.mkdir(parents=True, exist_ok=True)
        if settings is not None and ranks()[0] == 0:
            (self.folder / "settings.json").write_text(json.dumps(settings, indent=1))

    def load(self, name: str) -> dict[str, Any] | None:
        """What was saved under that name; None if nothing was."""
        if self.folder is None or not (self.folder / f"{name}.pt").is_file():
            return None
        return torch.load(self.folder / f"{name}.pt", map_location="cpu", weights_only=True)

    def save(self, name: str, content: dict[str, Any]) -> None:
        """Write a dictionary of tensors, numbers and strings."""
        if self.folder is None:
            return
        temporary = self.folder / f"{name}.{os.getpid()}.tmp"
        torch.save(content, temporary)
        temporary.replace(self.folder / f"{name}.pt")
