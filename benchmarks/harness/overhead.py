"""What does the harness cost, paper by paper? `benchmarks/harness/training.py` on the five sample experiments.

    python -m benchmarks.harness.overhead [--rounds 5] [--publish harness_overhead]

A batch of influence/sample is a hundredth of a millisecond of arithmetic: its row is the harness's fixed cost a step.
"""

import argparse
import tempfile
import time

from benchmarks.common import one_line_errors, parser, report, row
from benchmarks.harness import training
from benchmarks.harness.samples import SAMPLES, overrides_of

STEPS = {"influence/sample": 400}  # so short that forty would be noise


def measured(experiment: str, steps: int, rounds: int, folder: str) -> list[dict]:
    """The rows of one paper, each with its experiment before it."""
    steps = STEPS.get(experiment, steps)
    asked = argparse.Namespace(
        rounds=rounds, steps=steps, warmup=max(5, steps // 10), overrides=overrides_of(experiment, folder)
    )
    rows, _ = training.compare(asked)
    spent = {one["metric"].rpartition(", ")[2]: one["value"] for one in rows if one["metric"].startswith("training")}
    cost = row("cost of the harness", spent["lightning"] - spent["bare"], "ms a batch")
    kept = [*rows[:2], cost, *rows[2:]]
    return [one | {"metric": f"{experiment}: {one['metric']}"} for one in kept]


def main() -> None:
    """Command line."""
    options = parser(__doc__.split("\n")[0], "harness_overhead")
    options.add_argument("--steps", type=int, default=40)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--only", nargs="+", default=list(SAMPLES), choices=list(SAMPLES))
    args = options.parse_args()
    began, rows = time.perf_counter(), []
    with one_line_errors(), tempfile.TemporaryDirectory() as folder:
        for experiment in args.only:
            print(experiment)
            rows += measured(experiment, args.steps, args.rounds, folder)
    report(
        args.publish,
        rows,
        title="The harness against a bare PyTorch loop, five papers",
        protocol=f"{args.rounds} rounds, a fresh process each, variants in turn, medians; one thread; the run's own"
        " callbacks and CSV logger, no validation",
        data="synthetic samples",
        subset=False,
        seconds=time.perf_counter() - began,
    )


if __name__ == "__main__":
    main()
