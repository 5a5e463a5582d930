"""A DeepLab that has learned a little of the shapes sample, and eval.py on it in this process."""

import json
from pathlib import Path

from omegaconf import OmegaConf

from quintet.app import cli, compose
from quintet.app.fit import fit
from quintet.protocols.second_run import load_run

SMALL = ["experiment=deeplab_sample", "model.backbone.output_stride=16", "trainer.check_val_every_n_epoch=20",
         "model.mean_over=[circle,square]", "data.source.num_train=8", "data.source.num_val=4", "data.crop_size=65",
         "trainer=cpu", "trainer.enable_progress_bar=false", "callbacks=quiet", "run_id=x"]  # fmt: skip


def train(folder: Path, name: str = "shapes", *more: str) -> Path:
    """The run directory."""
    overrides = [*SMALL, f"paths.cache_dir={folder}/cache", f"run_dir={folder}/{name}/x", *more]
    cfg = compose.compose_checked("train", overrides)
    OmegaConf.resolve(cfg)
    fit(cfg)
    return folder / name / "x"


def evaluated(monkeypatch, run: Path, protocol: str, *arguments: str) -> dict[str, float]:
    """Numbers by name, the protocol's own name left out."""
    quiet = ["trainer=cpu", "trainer.enable_progress_bar=false"]
    monkeypatch.setattr("sys.argv", ["eval.py", f"run={run}", f"protocol={protocol}", *quiet, *arguments])
    assert cli.eval_main() == 0
    rows = json.loads((run / "eval" / protocol / "result.json").read_text())["rows"]
    return {row["metric"].removeprefix(f"{protocol}/"): row["value"] for row in rows}


def loaded(run: Path):
    """Module and data module."""
    return load_run(str(run), None, "cpu")
