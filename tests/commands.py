"""train.py and eval.py run as a user runs them, and the overrides that make a run tiny."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]

# `make test` runs a process a core: more threads only fight.
os.environ.setdefault("OMP_NUM_THREADS", "1")

TINY = [
    "experiment=wavenet/sample",
    "callbacks=quiet",
    "trainer=cpu",
    "model.network.stacks=1",
    "model.network.layers_per_stack=4",
    "model.network.residual_channels=8",
    "model.network.gate_channels=8",
    "model.network.skip_channels=8",
    "model.network.head_channels=8",
    "data.batch_size=4",
    "data.chunk_samples=800",
    "trainer.enable_progress_bar=false",
]


class House:
    """Runs train.py and eval.py with their logs and caches in a temporary folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.paths = [f"paths.log_dir={folder}/logs", f"paths.cache_dir={folder}/cache"]

    def run(self, script: str, *arguments: str, timeout: int = 240, env: dict | None = None):
        """The finished process with stdout and stderr as text."""
        extra = self.paths if script == "train.py" and not any(a.startswith("resume=") for a in arguments) else []
        return subprocess.run(
            [sys.executable, script, *arguments, *extra],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            timeout=timeout,
            env=os.environ | {"OMP_NUM_THREADS": "1"} | (env or {}),
        )

    def train(self, *arguments: str, run_id: str = "run", **kwargs):
        """A training run that must succeed; returns its directory."""
        done = self.run("train.py", *arguments, f"run_id={run_id}", "name=test", **kwargs)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        return self.folder / "logs" / "test" / run_id
