"""Do two processes train as one does? The same global batch on two CPU ranks and on one, epoch for epoch.

    python -m benchmarks.harness.ranks --publish harness_ranks_exactness

For each case: one process at batch 2B; two at batch B, DDP over gloo; two up to a kill in the middle and one from
there; one up to the middle and two from there. Compared row by row in metrics.csv: the losses of every step and the
metrics of every validation. Ranks add float32 numbers in another order: equal means within `TOLERANCE`, relative for
losses.
"""

import json
import math
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.common import one_line_errors, parser, report, row
from benchmarks.harness.forked import Life, warm_up
from benchmarks.harness.kill import CAPTIONS, COMMON, DEEPLAB, INFLUENCE, RARE, WAVENET
from benchmarks.harness.same_runs import rows
from quintet.common.errors import UserError

TOLERANCE = 1e-4  # a pixel between two equal scores may also change sides


@dataclass(frozen=True)
class Case:
    """A training to compare: batch of all ranks together, where it is stopped in the middle, what else it needs."""

    title: str
    overrides: list[str]
    batch: int
    middle: int  # optimiser steps
    key: str = "data.batch_size"


# an epoch's last batch is smaller (but even: two ranks share it), validation and test splits are odd
CASES = {
    "wavenet": Case("WaveNet", [*WAVENET, "trainer.val_check_interval=1.0"], 4, 7),
    "rare_events": Case(
        "rare events, life-long memory", [*RARE, "model.network.dropout=0", "data.val_episodes=5"], 2, 75),
    "influence": Case("logistic regression with Adam", [*INFLUENCE, "data.max_train=1190"], 64, 13),
    "deeplab": Case(
        "DeepLab, frozen batch norm",
        [*DEEPLAB, "model.network.dropout=0", "data.source.num_train=26", "data.source.num_val=7",
         "data.eval_batch_size=2", "model.backbone.frozen_bn=true", "model.optimizer.lr=1e-5"],
        4, 5),
    "captioning": Case(
        "Show and Tell, frozen batch norm, average of weights",
        [*CAPTIONS, "model.network.dropout=0", "model.encoder.frozen_bn=true", "data.source.num_val=7",
         "data.eval_batch_size=2", "+callbacks.ema={_target_: quintet.harness.callbacks.ema.Ema, decay: 0.9}",
         "callbacks.two_stage.epochs=1"],
        4, 13),
}  # fmt: skip


def runs(case: Case, folder: Path) -> dict[str, list[dict[str, str]]]:
    """metrics.csv of the four trainings, tested at their end."""
    paths = [f"paths.log_dir={folder}/logs", f"paths.cache_dir={folder}/cache", "name=ranks"]
    common = [o for o in COMMON if not o.startswith("trainer=")] + case.overrides + paths
    one = ["trainer=cpu", *common, f"{case.key}={case.batch}"]
    two = ["trainer=ddp_cpu", *common, "trainer.strategy=ddp_fork", f"{case.key}={case.batch // 2}"]
    whole, log = folder / "logs" / "ranks", folder / "output.log"
    sizes = {"one": case.batch, "two": case.batch // 2}
    for name, command in (("one", one), ("two", two)):
        Life([*command, f"run_id={name}"], log).finish()
        life = Life([*command, f"run_id={name}_first"], log)
        if not life.wait(lambda life=life: life.steps >= case.middle):
            life.finish()
            raise UserError(f"{case.title}: the training ended before step {case.middle}: stop it earlier")
        life.kill()
    for first, then in (("one", "two"), ("two", "one")):
        strategy = {"one": ["trainer.devices=1", "trainer.strategy=auto"],
                    "two": ["trainer.devices=2", "trainer.strategy=ddp_fork"]}[then]  # fmt: skip
        again = [f"resume={whole}/{first}_first", f"{case.key}={sizes[then]}", *strategy]
        Life(again, log).finish()
    return {name: rows(whole / name) for name in ("one", "two", "one_first", "two_first")}


def unlike(one: list[dict[str, str]], other: list[dict[str, str]]) -> tuple[float, float, list[str]]:
    """Largest relative difference of losses, largest difference of other metrics, and what is missing."""
    losses, metrics, missing = 0.0, 0.0, []
    if len(one) != len(other):
        missing.append(f"{len(one)} rows and {len(other)}")
    for a, b in zip(one, other, strict=False):
        if a.keys() != b.keys() or a["step"] != b["step"]:
            missing.append(f"step {a['step']}: {sorted(a.keys() ^ b.keys())}")
            continue
        for name in a.keys() - {"step", "epoch"}:
            x, y = float(a[name]), float(b[name])
            gap = 0.0 if math.isnan(x) and math.isnan(y) else abs(x - y)
            if is_loss(name):
                losses = max(losses, gap / max(abs(x), 1e-3))
            else:
                metrics = max(metrics, gap)
    return losses, metrics, missing


def is_loss(name: str) -> bool:
    """A mean of real numbers; the others are counts of right answers and words."""
    return any(word in name for word in ("loss", "bits", "nats", "perplexity", "norm"))


def compare(case: Case, folder: Path) -> Iterator[dict]:
    """Rows of one case."""
    found = runs(case, folder)
    titles = {"two": "2 processes", "two_first": "2, then 1", "one_first": "1, then 2"}
    for name, title in titles.items():
        losses, metrics, missing = unlike(found["one"], found[name])
        if missing:
            raise UserError(f"{case.title}, {title}: {missing[0]}")
        note = f"{len(found[name])} rows; other metrics differ by {metrics:.1e} at most"
        yield row(f"{case.title}: {title}", losses, "relative difference of losses", note) | {"metrics": metrics}


def main() -> None:
    """Command line."""
    options = parser(__doc__.split("\n")[0], "harness_ranks_exactness")
    options.add_argument("--cases", default=",".join(CASES), help=f"of {', '.join(CASES)}")
    options.add_argument("--keep", type=Path, help="folder for the runs, kept; default: a temporary one")
    args = options.parse_args()
    start, made, failed = time.monotonic(), [], False
    with one_line_errors():
        unknown = [name for name in args.cases.split(",") if name not in CASES]
        if unknown:
            raise UserError(f"--cases={unknown[0]}: choose from {', '.join(CASES)}")
        warm_up()
        for name in args.cases.split(","):
            with tempfile.TemporaryDirectory() as temporary:
                folder = args.keep / name if args.keep else Path(temporary)
                folder.mkdir(parents=True, exist_ok=True)
                for found in compare(CASES[name], folder):
                    print(json.dumps({"case": name} | found), flush=True)
                    failed |= found["value"] > TOLERANCE or found.pop("metrics") > TOLERANCE
                    made.append(found)
    report(
        args.publish,
        made,
        title="One process and two at the same global batch",
        protocol="DDP over gloo on a CPU; every row of metrics.csv",
        data="synthetic samples",
        subset=False,
        seconds=time.monotonic() - start,
    )
    sys.exit(int(failed))


if __name__ == "__main__":
    main()
