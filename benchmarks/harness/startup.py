"""How long until the first training step? Imports, building, data and first step, each in cold processes.

    python -m benchmarks.harness.startup experiment=wavenet/sample --publish wavenet_startup

Also what a user waits for without training: `train.py --help` and a refused configuration. Medians over the rounds; the
data set is prepared (decoded, cached) once before, its own time is a row of its own.
"""

import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.common import (
    REPOSITORY,
    build_data,
    build_module,
    compose_training,
    data_name,
    one_line_errors,
    parser,
    report,
)
from quintet.common.errors import UserError

PARTS = ("config", "imports", "data", "build", "first step")
NOTES = {
    "config": "interpreter, Hydra, composing and checking",
    "imports": "torch, Lightning, the model's module",
    "data": "opening the prepared data and splitting",
    "build": "network, trainer, callbacks, loggers",
    "first step": "trainer start to the end of step 1",
    "total": "process start to the end of step 1",
    "data, first time": "decoding and caching included; once",
    "train.py --help": "goal: below 1.5 s",
    "refused configuration": "a misspelt key; goal: below 3 s",
}


def child(overrides: list[str], started: float) -> dict:
    """Seconds of each part in this process, whose parent noted `started` (time.time()) just before starting it."""
    marks = [started]
    with tempfile.TemporaryDirectory() as folder:
        cfg = compose_training(overrides, Path(folder))
        marks.append(time.time())
        from hydra.utils import get_class
        from lightning.pytorch import Callback

        from quintet.harness.run.fit import build_trainer

        get_class(cfg.model._target_), get_class(cfg.data._target_)
        marks.append(time.time())
        datamodule = build_data(cfg)
        marks.append(time.time())
        cfg.trainer.update(max_steps=1, max_epochs=-1, limit_val_batches=0, num_sanity_val_steps=0)
        cfg.callbacks.update(media=None, best=None)
        module, trainer = build_module(cfg, datamodule), build_trainer(cfg, Path(folder))
        marks.append(time.time())
        ends = []

        class Clock(Callback):
            def on_train_batch_end(self, *arguments) -> None:
                ends.append(time.time())

        trainer.callbacks.append(Clock())
        trainer.fit(module, datamodule=datamodule)
        marks.append(ends[0])
        spent = [after - before for before, after in itertools.pairwise(marks)]
        return dict(zip(PARTS, spent, strict=True)) | {"total": marks[-1] - marks[0], "data name": data_name(cfg)}


def cold(overrides: list[str]) -> dict:
    """`child` in a fresh interpreter."""
    script = [sys.executable, "-m", "benchmarks.harness.startup", f"--child={time.time()!r}", *overrides]
    done = subprocess.run(script, cwd=REPOSITORY, capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no output"]
        raise UserError(f"the run failed: {lines[-1].removeprefix('error: ')}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def wall(*arguments: str, expect: int) -> float:
    """Seconds of one `train.py <arguments>` that must end with exit code `expect`."""
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "train.py", *arguments], cwd=REPOSITORY, capture_output=True, text=True)
    if done.returncode != expect:
        raise UserError(f"train.py {' '.join(arguments)} ended with {done.returncode}, expected {expect}")
    return time.perf_counter() - start


def measure(overrides: list[str], rounds: int) -> tuple[list[dict], str]:
    """Result rows and the data's name."""
    with tempfile.TemporaryDirectory() as cache:
        first = cold([*overrides, f"paths.cache_dir={cache}"])
        timed = [cold([*overrides, f"paths.cache_dir={cache}"]) for _ in range(rounds)]
    values = {part: [run[part] for run in timed] for part in (*PARTS, "total")}
    values["data, first time"] = [first["data"]]
    values["train.py --help"] = [wall("--help", expect=0) for _ in range(rounds)]
    values["refused configuration"] = [wall(*overrides, "data.bach_size=8", expect=1) for _ in range(rounds)]
    rows = []
    for name, seconds in values.items():
        note = f"{NOTES[name]}; median of {len(seconds)}" if len(seconds) > 1 else NOTES[name]
        rows.append({"metric": name, "value": statistics.median(seconds), "unit": "s", "note": note})
    return rows, first["data name"]


def main() -> None:
    """Command line."""
    options = parser(__doc__.split("\n")[0], "wavenet_startup")
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--child", type=float, help="internal: time.time() at which the parent started this process")
    args = options.parse_args()
    os.environ.setdefault("QUINTET_RUN_ID", "benchmark")
    start = time.perf_counter()
    with one_line_errors():
        if args.child:
            print(json.dumps(child(args.overrides, args.child)))
            return
        rows, data = measure(args.overrides, args.rounds)
    report(
        args.publish,
        rows,
        title="Start-up to the first training step",
        protocol="a cold process each, medians; the file system cache is warm",
        data=data,
        subset=args.subset,
        seconds=time.perf_counter() - start,
    )


if __name__ == "__main__":
    main()
