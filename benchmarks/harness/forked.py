"""train.py in forked copies of this process, which has imported what takes seconds: a start costs tenths.

Each copy is a process group of its own, as a job is: a kill takes its data workers along. It tells how far it is
through shared memory, so that the parent can kill it at a step without asking the file system.
"""

import contextlib
import importlib
import mmap
import os
import runpy
import signal
import struct
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from benchmarks.common import REPOSITORY
from quintet.common.errors import UserError

PACKAGES = "torch", "torchvision", "lightning.pytorch", "torchmetrics", "datasets", "scipy.sparse", "hydra"
ROOMS = {
    "papers": ("wavenet", "rare_events", "influence", "deeplab", "show_and_tell"),
    "data": ("audio", "episodes", "examples", "segmentation", "captions", "samples"),
}
NOTES = struct.Struct("=qqd")  # steps taken, the step that this start began at, when the last step ended
LIMIT_S = 900


def warm_up() -> None:
    """Import what train.py would, and start nothing."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    names = ["quintet", *PACKAGES, "quintet.harness.cli", "quintet.harness.run.fit"]
    for room, parts in ROOMS.items():
        for part in parts:
            folder = REPOSITORY / "src" / "quintet" / room / part
            wanted = folder.glob("*.py") if room == "data" else folder.rglob("module.py")
            modules = [file.relative_to(REPOSITORY / "src").with_suffix("") for file in sorted(wanted)]
            names += [".".join(module.parts) for module in modules if module.name != "__init__"]
    for name in names:
        importlib.import_module(name)


class Life:
    """One start of train.py with these overrides; `prepare` is called in it before anything else.

    It is started in `self.pid`; `steps`, `began_at` and `last_step_s` tell how far it is.
    """

    def __init__(self, overrides: list[str], log: Path, prepare: Callable[[], None] = lambda: None) -> None:
        self._notes = mmap.mmap(-1, NOTES.size)
        self._notes[:] = NOTES.pack(-1, -1, 0.0)
        self.log, self.started = log, time.monotonic()
        self.pid = os.fork()
        with contextlib.suppress(OSError):  # both do it, so that neither has to wait for the other
            os.setpgid(self.pid, self.pid)
        if self.pid == 0:
            self._live(overrides, prepare)

    def _live(self, overrides: list[str], prepare: Callable[[], None]) -> None:
        code = 1
        try:
            log = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 1)
            os.dup2(log, 2)
            os.chdir(REPOSITORY)
            sys.argv = ["train.py", *overrides]
            self._take_notes()
            prepare()
            runpy.run_path("train.py", run_name="__main__")
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def _take_notes(self) -> None:
        """A callback in the run that this process makes."""
        from lightning.pytorch import Callback

        from quintet.harness.run import fit

        notes, build_trainer = self._notes, fit.build_trainer

        class Notes(Callback):
            def on_train_start(self, trainer, module) -> None:
                notes[:] = NOTES.pack(trainer.global_step, trainer.global_step, time.monotonic())

            def on_train_batch_start(self, trainer, module, batch, batch_idx) -> None:
                _, began, _ = NOTES.unpack(notes[:])
                notes[:] = NOTES.pack(trainer.global_step, began, time.monotonic())

        def with_notes(*args):
            trainer = build_trainer(*args)
            trainer.callbacks.insert(0, Notes())
            return trainer

        fit.build_trainer = with_notes

    @property
    def steps(self) -> int:
        """Optimiser steps taken in all, those before this start included; -1 before training."""
        return NOTES.unpack(self._notes[:])[0]

    @property
    def began_at(self) -> int:
        """The step at which this start began to train; -1 before training."""
        return NOTES.unpack(self._notes[:])[1]

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self.code is None

    code: int | None = None

    def poll(self) -> int | None:
        """Exit code, minus the signal's number if one ended it; None while it runs."""
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if pid else None
        return self.code

    def wait(self, until: Callable[[], bool] = lambda: False) -> bool:
        """Wait for its end, or until something holds; whether that came first. UserError when it takes too long."""
        while self.poll() is None:
            if until():
                return True
            if time.monotonic() - self.started > LIMIT_S:
                self.kill()
                raise UserError(f"train.py was still running after {LIMIT_S} s: see {self.log}")
            time.sleep(0.004)
        return False

    def kill(self) -> None:
        """SIGKILL to it and what it has started."""
        if self.poll() is None:
            os.killpg(self.pid, signal.SIGKILL)
            self.code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def finish(self) -> None:
        """Wait for a good end. UserError with the last words otherwise."""
        self.wait()
        if self.code != 0:
            words = self.log.read_text(errors="replace").strip().splitlines() or ["no output"]
            raise UserError(f"train.py ended with {self.code}: {' | '.join(words[-12:])}")
