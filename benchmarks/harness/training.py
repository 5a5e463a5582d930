"""What does the harness cost? A batch's time in the Lightning run against a bare PyTorch loop, and peak memory.

    python -m benchmarks.harness.training experiment=wavenet/sample --publish wavenet_training

Both train the same network with the same optimiser on the same data module's batches, each in its own process, in turn
(lightning, bare, bare, lightning ...); medians over the rounds. The Lightning run has the configuration's callbacks and
loggers; its validation and media are left out. Batches are counted, not optimiser steps: the rare-events model takes
one an image of the episode.
"""

import itertools
import json
import resource
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
    row,
)
from benchmarks.harness.bare_steps import bare_step
from quintet.common.errors import UserError


def train_bare(cfg, steps: int, run_dir: Path) -> tuple[list[float], float]:
    """Times at which each step of a plain loop ended, and the last loss."""
    datamodule, module = _seeded_pair(cfg)
    device = _device(cfg)
    if (cfg.callbacks.get("two_stage") or {}).get("epochs") == 0:
        module.start_joint_training()
    module.to(device).train()
    clip = getattr(module, "gradient_clip", None) or cfg.trainer.gradient_clip_val
    step = bare_step(module, *_optimizer(module), clip)
    ends, epochs = [], itertools.count()
    datamodule.position = lambda: (next(epochs), 0)  # what Lightning's counters are to the harness
    loader = datamodule.train_dataloader()
    for batch in itertools.islice(itertools.chain.from_iterable(itertools.repeat(loader)), steps):
        batch = type(batch)(*(part if part is None else part.to(device) for part in batch))
        loss = step(batch)
        _note(ends, device)
    return ends, loss.item()


def _optimizer(module):
    made = module.configure_optimizers()
    return made["optimizer"], made["lr_scheduler"]["scheduler"]


def train_lightning(cfg, steps: int, run_dir: Path) -> tuple[list[float], float]:
    """Times at which each step of the house's own training run ended, and the last loss."""
    from lightning.pytorch import Callback

    from quintet.harness.run.fit import build_trainer

    ends, losses, device = [], [], _device(cfg)

    class Clock(Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
            _note(ends, device)
            losses.append((outputs["loss"] if isinstance(outputs, dict) else outputs).detach())
            trainer.should_stop = len(ends) >= steps

    cfg.trainer.update(max_steps=-1, max_epochs=-1, max_time=None, limit_val_batches=0, num_sanity_val_steps=0)
    cfg.callbacks.update(media=None, best=None)  # nothing is validated, and pictures are not training
    datamodule, module = _seeded_pair(cfg)
    trainer = build_trainer(cfg, run_dir)
    trainer.callbacks.append(Clock())
    trainer.fit(module, datamodule=datamodule)
    return ends, losses[-1].item()


def _seeded_pair(cfg):
    import torch

    torch.manual_seed(cfg.seed)
    datamodule = build_data(cfg)
    return datamodule, build_module(cfg, datamodule)


def _device(cfg) -> str:
    import torch

    return "cuda" if torch.cuda.is_available() and cfg.trainer.accelerator != "cpu" else "cpu"


def _note(ends: list[float], device: str) -> None:
    if device == "cuda":
        import torch

        torch.cuda.synchronize()
    ends.append(time.perf_counter())


def child(variant: str, overrides: list[str], steps: int, warmup: int) -> dict:
    """One measurement in this process: ms a batch after the warm-up, peak memory in MB, last loss."""
    with tempfile.TemporaryDirectory() as folder:
        cfg = compose_training(overrides, Path(folder))
        if cfg.trainer.accumulate_grad_batches != 1 or cfg.trainer.precision not in ("32-true", 32):
            raise UserError("this benchmark compares plain steps: set trainer.precision=32-true, no accumulation")
        train = {"bare": train_bare, "lightning": train_lightning}[variant]
        ends, loss = train(cfg, steps, Path(folder))
        spent = 1000 * (ends[-1] - ends[warmup - 1]) / (len(ends) - warmup)
        return {"ms": spent, "peak_mb": peak_memory_mb(_device(cfg)), "loss": loss, "data": data_name(cfg)}


def peak_memory_mb(device: str) -> float:
    """High-water mark of this process: resident set on the CPU, allocated tensors on the GPU."""
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated() / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def in_process(variant: str, args) -> dict:
    """Run `child` in a fresh interpreter and read its last line."""
    command = [sys.executable, "-m", "benchmarks.harness.training", f"--child={variant}", f"--steps={args.steps}"]
    command += [f"--warmup={args.warmup}", *args.overrides]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no output"]
        raise UserError(f"the {variant} run failed: {lines[-1].removeprefix('error: ')}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def compare(args) -> tuple[list[dict], str]:
    """Interleaved rounds; result rows and the data's name."""
    measured = {"lightning": [], "bare": []}
    for turn in range(args.rounds):
        for variant in ("lightning", "bare") if turn % 2 == 0 else ("bare", "lightning"):
            measured[variant].append(in_process(variant, args))
            print(f"round {turn + 1} {variant}: {measured[variant][-1]['ms']:.1f} ms a batch", flush=True)
    rows, medians = [], {}
    for variant, results in measured.items():
        spent = [result["ms"] for result in results]
        medians[variant] = statistics.median(spent)
        note = f"median of {len(spent)}, {min(spent):.1f} to {max(spent):.1f}"
        rows.append(row(f"training, {variant}", medians[variant], "ms a batch", note))
    ratio = medians["bare"] / medians["lightning"]
    rows.append(row("speed, lightning / bare", ratio, "", "goal: at least 0.95"))
    for variant, results in measured.items():
        peak = statistics.median(result["peak_mb"] for result in results)
        rows.append(row(f"peak memory, {variant}", peak, "MB", "whole process on a CPU, tensors on a GPU"))
    gap = max(abs(a["loss"] - b["loss"]) for a, b in zip(*measured.values(), strict=True))
    rows.append(row("difference of the last losses", gap, "nats", "0: both did the same steps on the same batches"))
    return rows, measured["bare"][0]["data"]


def main() -> None:
    """Command line."""
    options = parser(__doc__.split("\n")[0], "wavenet_training")
    options.add_argument("--steps", type=int, default=40)
    options.add_argument("--warmup", type=int, default=5, help="first steps that are not timed")
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--child", choices=("bare", "lightning"), help="internal: measure one in this process")
    args = options.parse_args()
    start = time.perf_counter()
    with one_line_errors():
        if not 1 <= args.warmup < args.steps:
            raise UserError(f"--warmup={args.warmup} must be at least 1 and below --steps={args.steps}")
        if args.child:
            print(json.dumps(child(args.child, args.overrides, args.steps, args.warmup)))
            return
        rows, data = compare(args)
    report(
        args.publish,
        rows,
        title="Training speed: the harness against a bare PyTorch loop",
        protocol=f"{args.steps - args.warmup} timed batches, a fresh process each, variants in turn, medians",
        data=data,
        subset=args.subset,
        seconds=time.perf_counter() - start,
    )


if __name__ == "__main__":
    main()
