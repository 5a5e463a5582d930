"""Is the episode loader ever the bottleneck? Seconds to make a batch beside seconds to train on it.

    python -m benchmarks.rare_events.episodes model=rare_events data=omniglot data.root=... [--publish NAME]

In this process, with no workers, warm: batches of the configured size for 5-way 30, 5-way 60 and 20-way 120 images.
Training is bounded from below by one forward and backward pass of the network over the same images, without memory.
"""

import statistics
import tempfile
import time
from pathlib import Path

from benchmarks.common import build_data, compose_training, data_name, one_line_errors, parser, report, row

SETTINGS = ((5, 30), (5, 60), (20, 120))  # (width, length)


def batch_seconds(datamodule, batches: int) -> float:
    """Mean seconds to make one training batch, after a first one."""
    loader = iter(datamodule.train_dataloader())
    next(loader)
    start = time.perf_counter()
    for _ in range(batches):
        next(loader)
    return (time.perf_counter() - start) / batches


def network_seconds(module, batch, repeats: int = 3) -> float:
    """Median seconds of a forward and backward pass of the network over all images of a batch."""
    import torch

    images = batch.images.flatten(0, 1).to(module.device)
    spent = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        module.zero_grad(set_to_none=True)
        module.embed(images).square().mean().backward()
        if images.is_cuda:
            torch.cuda.synchronize()
        spent.append(time.perf_counter() - start)
    return statistics.median(spent[1:])


def measure(cfg, batches: int) -> list[dict]:
    """Result rows for every setting whose classes the data has."""
    from quintet.harness.config.build import build

    rows = []
    for width, length in SETTINGS:
        cfg.data.width, cfg.data.length = width, length
        cfg.data.shots = [1]
        cfg.data.episodes_per_epoch = max(cfg.data.episodes_per_epoch, (batches + 1) * cfg.data.batch_size)
        datamodule = build_data(cfg)
        loading = batch_seconds(datamodule, batches)
        module = build(cfg.model, data_info=datamodule.data_info)
        training = network_seconds(module, next(iter(datamodule.train_dataloader())))
        name = f"{width}-way, {length} images"
        rows += [
            row(f"{name}: loader", cfg.data.batch_size / loading, "episodes/s", f"{1e3 * loading:.3g} ms a batch"),
            row(f"{name}: network", cfg.data.batch_size / training, "episodes/s", "forward and backward alone"),
            row(f"{name}: share of loading", loading / training, "", "seconds of loading per second of network"),
        ]
    return rows


def main() -> None:
    """Command line."""
    options = parser(__doc__.split("\n")[0], "rare_events_episodes")
    options.add_argument("--batches", type=int, default=100)
    args = options.parse_args()
    start = time.perf_counter()
    with one_line_errors(), tempfile.TemporaryDirectory() as folder:
        cfg = compose_training(args.overrides, Path(folder))
        rows = measure(cfg, args.batches)
    report(
        args.publish,
        rows,
        title="Throughput of the episode loader",
        protocol=f"mean of {args.batches} warm batches, no workers; network: median of 3",
        data=data_name(cfg),
        subset=args.subset,
        seconds=time.perf_counter() - start,
    )


if __name__ == "__main__":
    main()
