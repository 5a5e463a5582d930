"""Whether data workers' memory grows with epochs: their proportional and unshared size after the second and last.

python -m benchmarks.harness.loader_memory [--epochs 12] [--publish harness_loader_memory]
Audio, segmentation and captions samples, and both streamed from parquet shards; worker processes persist.
"""

import multiprocessing
import os
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.common import RESULTS, one_line_errors, parser
from quintet.harness.results import write_result

WORKERS = 2
SMALL = ["data.resize_size=64", "data.crop_size=56"]  # pixels: what is measured is not the speed
CASES = {
    "audio": ["model=wavenet", "data=vctk_sample", "data.context=1000"],
    "segmentation": ["model=deeplab", "data=shapes_sample"],
    "captions": ["model=show_and_tell", "data=captions_sample", *SMALL],
}


def sizes() -> tuple[float, float]:
    """Mean (proportional, unshared) megabytes of the workers: PSS and USS, as Linux counts them."""
    both = []
    for worker in multiprocessing.active_children():
        lines = (line.split() for line in Path(f"/proc/{worker.pid}/smaps_rollup").read_text().splitlines()[1:])
        kib = {line[0].rstrip(":"): int(line[1]) for line in lines}
        both.append((kib["Pss"] / 1024, (kib["Private_Clean"] + kib["Private_Dirty"]) / 1024))
    assert len(both) == WORKERS, f"{len(both)} workers"
    return tuple(sum(column) / WORKERS for column in zip(*both, strict=True))


def measure(loader, epochs: int) -> list[tuple[float, float]]:
    """Sizes after every epoch; asked while the workers still live."""
    found = []
    for _ in range(epochs):
        for _batch in loader:
            pass
        found.append(sizes())
    return found


def persistent(loader) -> torch.utils.data.DataLoader:
    """The same batches with workers that outlive an epoch: what they gather, they keep."""
    return torch.utils.data.DataLoader(loader.dataset, batch_sampler=loader.batch_sampler, num_workers=WORKERS,
                                       collate_fn=loader.collate_fn, persistent_workers=True)  # fmt: skip


def case(overrides: list[str], folder: Path, epochs: int) -> list[tuple[float, float]]:
    from benchmarks.common import build_data, compose_training

    cfg = compose_training([*overrides, f"data.num_workers={WORKERS}", f"paths.cache_dir={folder}/cache"], folder)
    return measure(persistent(build_data(cfg).train_dataloader()), epochs)


def write_shards(folder: Path, overrides: list[str]) -> None:
    """The sample recordings, or pictures, as parquet shards."""
    import datasets

    from benchmarks.common import build_data, compose_training

    cfg = compose_training([*overrides, f"paths.cache_dir={folder}/cache"], folder)
    data, value = build_data(cfg), datasets.Value
    file = {"bytes": value("binary"), "path": value("string")}
    if "model=wavenet" in overrides:
        rows = [{"audio": {"bytes": r.path.read_bytes(), "path": None}} for r in data._recordings]
        features = {"audio": file}
    else:
        table = data.table("train")
        rows = [{"image": {"bytes": row["data"] or Path(row["path"]).read_bytes(), "path": None},
                 "caption": data.references("train", [i])[0]} for i, row in enumerate(table.images)]  # fmt: skip
        features = {"image": file, "caption": datasets.List(value("string"))}
    (folder / "shards").mkdir()
    made = datasets.Dataset.from_list(rows, features=datasets.Features(features))
    for number in range(3):
        path = folder / "shards" / f"train-{number:05d}-of-00003.parquet"
        made.shard(3, number).to_parquet(str(path), batch_size=8)


def main() -> None:
    options = parser(__doc__.splitlines()[0], "harness_loader_memory")
    options.add_argument("--epochs", type=int, default=12)
    args = options.parse_args()
    begin, rows = time.perf_counter(), []
    os.environ["HF_HUB_OFFLINE"] = "1"
    streamed = {
        "audio, streamed": [*CASES["audio"][::2], "data=hub", "data.streaming=true", "data.sample_rate=16000"],
        "captions, streamed": ["model=show_and_tell", "data=hub_captions", "data.streaming=true", "data.min_count=1",
                               "data.source.names={train: train, val: null, test: null}", *SMALL],
    }  # fmt: skip
    for name, overrides in (CASES | streamed).items():
        with tempfile.TemporaryDirectory() as folder:
            if name in streamed:
                write_shards(Path(folder), CASES[name.split(",")[0]])
                overrides = [*overrides, f"data.root={folder}/shards"]
            found = case(overrides, Path(folder), args.epochs)
        for kind, label in enumerate(("proportional", "unshared")):
            second, last = found[1][kind], found[-1][kind]
            row = {"metric": f"{name}: {label} size of a worker after epoch {args.epochs}", "value": round(last, 1),
                   "unit": "MiB", "note": f"after epoch 2: {second:.1f} MiB, so {last - second:+.1f}"}  # fmt: skip
            print(row["metric"], row["value"], row["note"], flush=True)
            rows.append(row)
    if args.publish:
        write_result(RESULTS / f"{args.publish}.json", title="Memory of data workers over epochs", rows=rows,
                     protocol=f"PSS and USS of /proc/PID/smaps_rollup, mean of {WORKERS} persistent workers",
                     data="samples", subset=False, seconds=time.perf_counter() - begin)  # fmt: skip


if __name__ == "__main__":
    with one_line_errors():
        main()
