"""train.py and eval.py run as a user runs them, and the overrides that make a run tiny."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
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
        self.zygote: subprocess.Popen | None = None
        self.paths = [f"paths.log_dir={folder}/logs", f"paths.cache_dir={folder}/cache"]

    def run(self, script: str, *arguments: str, timeout: int = 240, env: dict | None = None):
        """The finished process with stdout and stderr as text."""
        extra = self.paths if script == "train.py" and not any(a.startswith("resume=") for a in arguments) else []
        command = [script, *arguments, *extra]
        if env is None:
            return self._by_fork(command, timeout)
        env = os.environ | {"OMP_NUM_THREADS": "1"} | env
        command = [sys.executable, *command]
        return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=timeout, env=env)

    def _by_fork(self, command: list[str], timeout: int) -> subprocess.CompletedProcess:
        """The command in a fork of a process that has its imports behind it (zygote.py)."""
        if self.zygote is None or self.zygote.poll() is not None:
            self.zygote = subprocess.Popen(
                [sys.executable, REPOSITORY / "tests" / "zygote.py"],
                cwd=REPOSITORY,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            )
            assert self.zygote.stdout.readline() == "ready\n"
        streams = {name: self.folder / f"{os.getpid()}.{name}" for name in ("stdout", "stderr")}
        for path in streams.values():
            path.write_text("")
        request = {"script": command[0], "arguments": command[1:], "folder": str(REPOSITORY)}
        self.zygote.stdin.write(json.dumps(request | {k: str(v) for k, v in streams.items()}) + "\n")
        self.zygote.stdin.flush()
        pid = int(self.zygote.stdout.readline())
        guard = threading.Timer(timeout, os.kill, (pid, signal.SIGKILL))
        guard.start()
        code = int(self.zygote.stdout.readline())
        guard.cancel()
        printed = {name: path.read_text() for name, path in streams.items()}
        assert code != -signal.SIGKILL, f"{command} did not end in {timeout} s: {printed}"
        return subprocess.CompletedProcess(command, code, **printed)

    def train(self, *arguments: str, run_id: str = "run", **kwargs):
        """A training run that must succeed; returns its directory."""
        done = self.run("train.py", *arguments, f"run_id={run_id}", "name=test", **kwargs)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        return self.folder / "logs" / "test" / run_id
