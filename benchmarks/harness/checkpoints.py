"""How long a checkpoint takes and how large it is: sample experiments and networks of the papers' own size.

    python -m benchmarks.harness.checkpoints [--repeats 5] [--publish harness_checkpoints]

Written as in training: optimiser and loop states too, to a temporary file that is flushed to the disk and renamed.
Read back as `resume=` does. The networks of the papers' size have random weights: sizes do not depend on them.
"""

import statistics
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.common import build_data, build_module, compose_training, one_line_errors, parser, report, row
from benchmarks.harness.samples import SAMPLES, overrides_of

LARGE = {  # name: the sample whose data it takes, and what makes the network the paper's
    "WaveNet, 30 layers, residual 64": (
        "wavenet/sample",
        ["model.network.stacks=3", "model.network.layers_per_stack=10", "model.network.residual_channels=64",
         "model.network.gate_channels=64", "model.network.skip_channels=256", "model.network.head_channels=256"],
    ),
    "DeepLab, ResNet-101, ASPP": (
        "deeplab/sample", ["model.backbone.name=resnet101", "model.network.head=aspp_l"],
    ),
    "Show and Tell, Inception-v3, LSTM 512": (
        "show_and_tell/sample",
        ["model.encoder.name=inception_v3", "model.encoder.image_size=299", "model.network.embedding=512",
         "model.network.hidden=512"],
    ),
}  # fmt: skip


def measured(name: str, overrides: list[str], repeats: int, folder: Path) -> list[dict]:
    """Size, and medians of writing and reading."""
    from quintet.common.checkpoints import load_checkpoint
    from quintet.harness.run.fit import build_trainer

    cfg = compose_training(overrides, folder)
    cfg.trainer.update(max_epochs=1, limit_train_batches=1, limit_val_batches=0, num_sanity_val_steps=0)
    cfg.callbacks = {}
    datamodule = build_data(cfg)
    module = build_module(cfg, datamodule)
    trainer = build_trainer(cfg, folder)
    trainer.fit(module, datamodule=datamodule)  # one step: the optimiser has its state
    path, writes, reads = folder / "checkpoint.ckpt", [], []
    for _ in range(repeats):
        began = time.perf_counter()
        trainer.save_checkpoint(path)
        written = time.perf_counter()
        load_checkpoint(path)
        writes.append(1000 * (written - began))
        reads.append(1000 * (time.perf_counter() - written))
    numbers = sum(p.numel() for p in module.parameters())
    return [
        row(f"{name}: size", path.stat().st_size / 1e6, "MB", f"{numbers:,} parameters"),
        row(f"{name}: write", statistics.median(writes), "ms", f"{min(writes):.0f} to {max(writes):.0f}"),
        row(f"{name}: read", statistics.median(reads), "ms", f"{min(reads):.0f} to {max(reads):.0f}"),
    ]


def main() -> None:
    """Command line."""
    options = parser(__doc__.split("\n")[0], "harness_checkpoints")
    options.add_argument("--repeats", type=int, default=5)
    options.add_argument("--small", action="store_true", help="the sample experiments alone")
    args = options.parse_args()
    began, rows = time.perf_counter(), []
    cases = {name: (name, []) for name in SAMPLES} | ({} if args.small else LARGE)
    with one_line_errors(), tempfile.TemporaryDirectory() as folder:
        for name, (experiment, more) in cases.items():
            torch.manual_seed(0)
            rows += measured(name, [*overrides_of(experiment, folder), *more], args.repeats, Path(folder))
    report(
        args.publish,
        rows,
        title="Checkpoints: size, writing, reading",
        protocol=f"median of {args.repeats}; flushed to the disk and renamed, as in training; read as resume= does",
        data="synthetic samples",
        subset=False,
        seconds=time.perf_counter() - began,
    )


if __name__ == "__main__":
    main()
