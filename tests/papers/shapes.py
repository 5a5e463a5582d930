"""A DeepLab that tells the sample's shapes apart, more or less, and eval.py on it in this process."""

import json
from pathlib import Path

import torch
from omegaconf import OmegaConf

from quintet.harness import cli
from quintet.harness.config import compose
from quintet.harness.run.fit import fit
from quintet.harness.run.second_run import load_run
from quintet.papers.deeplab.multi_scale import coarse_labels

SMALL = ["experiment=deeplab/sample", "model.backbone.name=squeezenet1_1", "model.network.head=none",
         "model.mean_over=[circle,square]", "data.source.num_train=6", "data.source.num_val=4", "data.crop_size=33",
         "trainer=cpu", "trainer.enable_progress_bar=false", "trainer.max_steps=1", "trainer.limit_val_batches=0",
         "callbacks=quiet", "run_id=x"]  # fmt: skip


def train(folder: Path, name: str = "shapes", *more: str) -> Path:
    """The run directory."""
    overrides = [*SMALL, f"paths.cache_dir={folder}/cache", f"run_dir={folder}/{name}/x", *more]
    cfg = compose.compose_checked("train", overrides)
    OmegaConf.resolve(cfg)
    fit(cfg)
    run = folder / name / "x"
    learn(run)
    return run


def learn(run: Path, strength: float = 8.0) -> None:
    """Put the least-squares classifier of the random backbone's features of the held-out images into the checkpoint."""
    module, data = load_run(str(run), None, "cpu")
    batch = data.example_batch("test", range(data.num_examples("test")))
    with torch.no_grad():
        features = module.network.backbone(batch.images).permute(0, 2, 3, 1).flatten(0, 2)
    labels = coarse_labels(batch.labels, module(batch.images).shape[-2:]).flatten()
    kept = labels != 255
    x = torch.cat([features, torch.ones(len(features), 1)], 1)[kept].double()
    y = torch.nn.functional.one_hot(labels[kept], 4).double()
    solved = torch.linalg.solve(x.T @ x + 1e-3 * x.square().mean() * torch.eye(x.shape[1]), x.T @ y).float()
    path = run / "checkpoints" / "last.ckpt"
    state = torch.load(path, weights_only=True)
    state["state_dict"]["network.head.classifier.weight"] = strength * solved[:-1].T[..., None, None].contiguous()
    state["state_dict"]["network.head.classifier.bias"] = strength * solved[-1]
    torch.save(state, path)


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
