"""How fast the loaders are: training batches a second with no worker and with two, beside the training step.

python -m benchmarks.harness.loaders [--batches 60] [--publish harness_loaders]
"""

import itertools
import tempfile
import time

from benchmarks.common import build_data, build_module, compose_training, one_line_errors, parser, report, row
from benchmarks.harness.samples import SAMPLES, overrides_of

WORKERS = (0, 2)


def measured(experiment: str, batches: int, folder: str) -> list[dict]:
    """Batches a second over as many epochs as that takes, the first ones, in which workers start, left out."""
    from pathlib import Path

    rows = []
    cfg = compose_training(overrides_of(experiment, folder), Path(folder))
    for workers in WORKERS:
        if "num_workers" in cfg.data:
            cfg.data.num_workers = workers
        elif workers:
            continue
        datamodule = build_data(cfg)
        build_module(cfg, datamodule)
        epochs = itertools.count()
        datamodule.position = lambda epochs=epochs: (next(epochs), 0)
        loader = datamodule.train_dataloader()
        stream = itertools.chain.from_iterable(itertools.repeat(loader))
        warm = max(2, 4 * workers)
        for _ in itertools.islice(stream, warm):
            began = time.perf_counter()
        for _ in itertools.islice(stream, batches):
            ended = time.perf_counter()
        rate = batches / (ended - began)
        rows.append(row(f"{experiment}: {workers} workers", rate, "batches/s", f"batch {cfg.data.get('batch_size')}"))
    return rows


def main() -> None:
    """Command line."""
    options = parser(__doc__.split("\n")[0], "harness_loaders")
    options.add_argument("--batches", type=int, default=60)
    options.add_argument("--only", nargs="+", default=list(SAMPLES), choices=list(SAMPLES))
    args = options.parse_args()
    began, rows = time.perf_counter(), []
    with one_line_errors(), tempfile.TemporaryDirectory() as folder:
        for experiment in args.only:
            rows += measured(experiment, args.batches, folder)
    report(
        args.publish,
        rows,
        title="Loader throughput",
        protocol=f"{args.batches} training batches after the first ones, the starts of later epochs included",
        data="synthetic samples",
        subset=False,
        seconds=time.perf_counter() - began,
    )


if __name__ == "__main__":
    main()
