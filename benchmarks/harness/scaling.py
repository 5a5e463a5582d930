"""Two CPU processes over gloo against one: batches a second of the sample experiments under DDP.

    python -m benchmarks.harness.scaling [--rounds 3] [--publish harness_ddp_scaling]

Each process has the experiment's batch and one thread, so that two do twice the work: an efficiency of 1 is a batch in
the same time. `two alone` is two trainings of one process each that know nothing of one another: what this machine's
cores, caches and memory leave of the 1 without any communication.
"""

import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor

from benchmarks.common import one_line_errors, parser, report, row
from benchmarks.harness import training
from benchmarks.harness.samples import overrides_of

EXPERIMENTS = ("wavenet/sample", "deeplab/sample", "show_and_tell/sample")
TWO = ["trainer=ddp_cpu", "trainer.devices=2"]


def measured(experiment: str, args, folder: str) -> list[dict]:
    """Rows of one experiment."""
    spent: dict[str, list[float]] = {"one": [], "two alone": [], "ddp": []}
    plain = overrides_of(experiment, folder)
    ranks = [*(o for o in plain if o != "trainer=cpu"), *TWO]
    for _ in range(args.rounds):
        spent["one"].append(_ms(plain, args))
        with ThreadPoolExecutor(2) as pool:
            spent["two alone"] += [statistics.mean(pool.map(lambda _: _ms(plain, args), range(2)))]
        spent["ddp"].append(_ms(ranks, args))
    ms = {name: statistics.median(times) for name, times in spent.items()}
    rows = [row(f"{experiment}: a batch, {name}", value, "ms") for name, value in ms.items()]
    return [
        *rows,
        row(
            f"{experiment}: efficiency of 2 processes", ms["one"] / ms["ddp"], "", "1: twice the work in the same time"
        ),
        row(
            f"{experiment}: of that, beside two alone",
            ms["two alone"] / ms["ddp"],
            "",
            "1: communication costs nothing",
        ),
    ]


def _ms(overrides: list[str], args) -> float:
    asked = args.__class__(**vars(args) | {"overrides": overrides})
    return training.in_process("lightning", asked)["ms"]


def main() -> None:
    """Command line."""
    options = parser(__doc__.split("\n")[0], "harness_ddp_scaling")
    options.add_argument("--steps", type=int, default=40)
    options.add_argument("--warmup", type=int, default=8)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--only", nargs="+", default=list(EXPERIMENTS), choices=EXPERIMENTS)
    args = options.parse_args()
    began, rows = time.perf_counter(), []
    with one_line_errors(), tempfile.TemporaryDirectory() as folder:
        for experiment in args.only:
            rows += measured(experiment, args, folder)
    report(
        args.publish,
        rows,
        title="DDP scaling: two CPU processes over gloo",
        protocol=f"the batch of the experiment in each process, one thread each, {args.steps - args.warmup} timed"
        f" batches, {args.rounds} rounds in turn, medians",
        data="synthetic samples",
        subset=False,
        seconds=time.perf_counter() - began,
    )


if __name__ == "__main__":
    main()
