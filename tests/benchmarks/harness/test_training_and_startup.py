"""The training and start-up benchmarks: the same steps in both variants, honest arithmetic, one-line failures."""

import argparse
import subprocess
import sys
import time

import pytest
from commands import REPOSITORY, TINY

from benchmarks import common
from benchmarks.harness import startup, training
from quintet.common.errors import UserError

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def overrides(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    return [*TINY, f"paths.cache_dir={folder}/cache", f"paths.log_dir={folder}/logs"]


SMALL = {  # an experiment and what keeps it a matter of seconds
    "influence/sample": ["model.optimizer.name=adam", "model.optimizer.lr=0.01", "data.batch_size=200"],
    "rare_events/sample": ["data.episodes_per_epoch=32", "data.val_episodes=4"],
    "show_and_tell/sample": ["data.batch_size=20", "data.num_workers=0"],
    "deeplab/sample": [
        "model.optimizer.total_steps=1000",
        "data.batch_size=2",
        "data.crop_size=65",
        "data.num_workers=0",
    ],
}


@pytest.mark.parametrize("experiment", SMALL)
def test_every_papers_bare_step_is_its_training_step(experiment, overrides):
    folders = [o for o in overrides if o.startswith("paths.")]
    chosen = [
        f"experiment={experiment}",
        "trainer=cpu",
        "trainer.enable_progress_bar=false",
        *SMALL[experiment],
        *folders,
    ]
    losses = {v: training.child(v, chosen, 3, warmup=1)["loss"] for v in ("bare", "lightning")}
    assert losses["bare"] == pytest.approx(losses["lightning"], rel=1e-6)


def test_both_variants_take_the_same_steps_across_an_epochs_end(overrides):
    """Equal last losses: same weights, batches, clipping and schedule; the first epoch must have ended by then."""
    folder = next(o.split("=")[1] for o in overrides if o.startswith("paths.log_dir"))
    cfg = common.compose_training(overrides, common.Path(folder))
    datamodule = common.build_data(cfg)
    common.build_module(cfg, datamodule)
    steps = len(datamodule.train_dataloader()) + 2
    losses = {v: training.child(v, overrides, steps, warmup=1)["loss"] for v in ("bare", "lightning")}
    assert losses["bare"] == losses["lightning"]


def test_rates_count_the_steps_after_the_warm_up(overrides, monkeypatch):
    ends = [10.0, 11.0, 11.5, 12.0, 12.5]
    monkeypatch.setattr(training, "train_bare", lambda cfg, steps, run_dir: (ends, 3.0))
    found = training.child("bare", overrides, steps=5, warmup=2)
    assert found["ms"] == pytest.approx(1500 / 3)  # three batches in 1.5 s
    assert found["peak_mb"] > 50 and found["loss"] == 3.0


def test_the_ratio_is_of_medians_and_the_order_alternates(monkeypatch):
    order, spent = [], {"lightning": iter([110.0, 500.0, 100.0]), "bare": iter([99.0, 20.0, 200.0])}

    def measured(variant, args):
        order.append(variant)
        return {"ms": next(spent[variant]), "peak_mb": 7.0, "loss": 2.0, "data": "d"}

    monkeypatch.setattr(training, "in_process", measured)
    rows, data = training.compare(argparse.Namespace(rounds=3))
    values = {row["metric"]: row["value"] for row in rows}
    assert values["speed, lightning / bare"] == pytest.approx(0.9) and data == "d"
    assert order == ["lightning", "bare", "bare", "lightning", "lightning", "bare"]
    assert values["difference of the last losses"] == 0


def test_startup_parts_add_up_to_the_total(overrides):
    found = startup.child(overrides, started=time.time() - 2.0)
    parts = [found[part] for part in startup.PARTS]
    assert min(parts) >= 0 and sum(parts) == pytest.approx(found["total"]) and found["config"] > 2.0


def test_a_misspelt_key_is_one_line():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.harness.training", *TINY, "data.bach_size=4", "--rounds=1"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    [line] = done.stderr.strip().splitlines()
    assert "data.bach_size" in line and "batch_size" in line


def test_a_run_that_fails_says_so(monkeypatch):
    failed = subprocess.CompletedProcess([], 1, "", "noise\nerror: no data\n")
    monkeypatch.setattr(startup.subprocess, "run", lambda *args, **kwargs: failed)
    with pytest.raises(UserError, match="the run failed: no data"):
        startup.cold([])
