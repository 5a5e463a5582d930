"""The benchmark scripts, which are no package: their folder goes on the path, as `python benchmarks/x.py` has it."""

import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
sys.path.insert(0, str(REPOSITORY / "benchmarks"))

import _common  # noqa: E402
import checkpoints  # noqa: E402
import episodes  # noqa: E402
import everything  # noqa: E402
import gpu  # noqa: E402
import gpu_deeplab  # noqa: E402
import loaders  # noqa: E402
import markov_baselines  # noqa: E402
import overhead  # noqa: E402
import pixel_baseline  # noqa: E402
import samples  # noqa: E402
import scaling  # noqa: E402
import startup  # noqa: E402
import training  # noqa: E402

__all__ = [
    "REPOSITORY",
    "TINY",
    "_common",
    "checkpoints",
    "episodes",
    "everything",
    "gpu",
    "gpu_deeplab",
    "loaders",
    "markov_baselines",
    "overhead",
    "pixel_baseline",
    "samples",
    "scaling",
    "startup",
    "training",
]

TINY = [
    "experiment=wavenet/sample",
    "callbacks=quiet",
    "model.network.stacks=1",
    "model.network.layers_per_stack=4",
    "model.network.residual_channels=8",
    "model.network.gate_channels=8",
    "model.network.skip_channels=8",
    "model.network.head_channels=8",
    "data.batch_size=4",
    "data.chunk_samples=800",
    "trainer.enable_progress_bar=false",
]
