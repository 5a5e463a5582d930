"""The harness's benchmarks on the smallest sample: rows that mean something, and honest arithmetic."""

import argparse
from pathlib import Path

import pytest

from benchmarks import everything
from benchmarks.harness import checkpoints, loaders, overhead, samples, scaling

pytestmark = pytest.mark.slow


def test_a_checkpoint_holds_the_optimiser_too(tmp_path):
    overrides = samples.overrides_of("influence/sample", str(tmp_path))
    rows = {r["metric"]: r for r in checkpoints.measured("m", overrides, 2, tmp_path)}
    parameters = int(rows["m: size"]["note"].split()[0])
    assert rows["m: size"]["value"] * 1e6 > 3 * 4 * parameters  # weights and Adam's two moments
    assert rows["m: write"]["value"] > 0 and rows["m: read"]["value"] > 0


def test_loaders_are_timed_over_the_ends_of_epochs(tmp_path):
    rows = loaders.measured("influence/sample", 30, str(tmp_path))
    assert [r["metric"] for r in rows] == ["influence/sample: 0 workers", "influence/sample: 2 workers"]
    assert all(r["value"] > 0 for r in rows)


def test_the_cost_of_the_harness_is_a_difference(monkeypatch):
    ms = {"lightning": 12.0, "bare": 10.0}
    monkeypatch.setattr(
        overhead.training, "in_process", lambda variant, args: {"ms": ms[variant], "peak_mb": 1, "loss": 2, "data": "d"}
    )
    rows = {
        r["metric"].removeprefix("wavenet/sample: "): r["value"] for r in overhead.measured("wavenet/sample", 9, 1, "")
    }
    assert rows["cost of the harness"] == 2 and rows["speed, lightning / bare"] == pytest.approx(10 / 12)


def test_efficiency_is_of_the_same_work_in_each_process(monkeypatch):
    seen = []

    def timed(variant, args):
        two = "trainer.devices=2" in args.overrides
        seen.append(two)
        return {"ms": 20.0 if two else 10.0}

    monkeypatch.setattr(scaling.training, "in_process", timed)
    args = argparse.Namespace(rounds=1, steps=9, warmup=1)
    rows = {
        r["metric"].removeprefix("wavenet/sample: "): r["value"] for r in scaling.measured("wavenet/sample", args, "")
    }
    assert seen == [False, False, False, True]
    assert rows["efficiency of 2 processes"] == 0.5 and rows["a batch, ddp"] == 20


def test_every_script_of_make_bench_is_there():
    folder = Path(everything.__file__).parent
    scripts = [script.replace(".", "/") for script, *_ in everything.SCRIPTS.values()]
    assert all((folder / f"{script}.py").is_file() for script in scripts)
