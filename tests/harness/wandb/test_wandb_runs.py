"""Runs that report to W&B: what arrives, resuming, crashing, being put back by a sweep, offline and `wandb sync`."""

import csv
import importlib
import os

import pytest
from commands import TINY
from wandb_client import KEY

from quintet.common.errors import UserError
from quintet.harness.callbacks.wandb_run import WandbRun

DIGITS = [
    *("experiment=influence/sample", "callbacks=quiet", "trainer=cpu", "trainer.enable_progress_bar=false"),
    *("model.optimizer.name=adam", "data.batch_size=300", "trainer.log_every_n_steps=1"),
]


def column(run_dir, metric):
    """Of metrics.csv, in its order."""
    with (run_dir / "metrics.csv").open() as file:
        return [float(row[metric]) for row in csv.DictReader(file) if row.get(metric)]


def assert_keeps_the_secret(run_dir, *texts):
    for text in texts:
        assert KEY not in text
    files = [path for path in run_dir.rglob("*") if path.is_file()]
    assert {"config.yaml", "environment.json", "console.log", "last.ckpt"} <= {path.name for path in files}
    assert [path for path in files if KEY.encode() in path.read_bytes()] == []


@pytest.mark.slow
def test_online_run_and_its_continuation(client):
    """Metrics and media arrive, the key is written nowhere, `resume=` goes on with the same W&B run."""
    media = ["callbacks=default", "callbacks.summary=null", "model.media_seconds=0.05", "model.media_count=1"]
    limits = ["trainer.max_steps=2", "trainer.limit_train_batches=2", "trainer.limit_val_batches=1"]
    done = client.train(*TINY, *media, *limits, "trainer.log_every_n_steps=1", "run_id=online")
    folder, run = client.directory("online"), client.server.runs["online"]
    assert (run.state, run.exit_code, run.project, run.display_name) == ("finished", 0, "quintet", "test/online")
    for metric in ("train/loss", "val/loss"):
        assert run.values(metric) == column(folder, metric) != []
    assert run.config["model"]["network"]["skip_channels"] == run.config["data"]["batch_size"] * 2 == 8
    assert "data_info" not in run.config and "anonymous" not in done.stderr
    made = sorted(path.read_bytes() for path in (folder / "media").rglob("*.*"))
    assert made and sorted(data for name, data in run.files.items() if name.startswith("media/")) == made
    assert_keeps_the_secret(folder, done.stdout, done.stderr)

    client.train(f"resume={folder}", "trainer.max_steps=4")
    assert (run.starts, run.state) == (2, "finished")
    assert [name for name in client.server.runs if name.startswith("online")] == ["online"]
    assert run.values("train/loss") == column(folder, "train/loss")
    assert run.values("_step") == list(range(len(run.history)))
    assert run.values("trainer/global_step") == sorted(run.values("trainer/global_step"))
    assert_keeps_the_secret(folder)


@pytest.mark.slow
def test_a_crashed_run_that_its_sweep_puts_back(client):
    """Marked failed; the agent that W&B hands it to again goes on at the last checkpoint, in the same directory."""
    agent = {"WANDB_SWEEP_ID": "some-sweep", "WANDB_RUN_ID": "trial", "QUINTET_RUN_ID": "shared", "SLURM_JOB_ID": "7"}
    limits = ["trainer.max_steps=8", "callbacks.last.every_n_steps=1"]
    done = client.train(*DIGITS, *limits, env=agent | {"FAIL_AT": "0:5"}, code=1)
    run, folder = client.server.runs["trial"], client.directory("trial")
    assert "rank 0 fails here" in done.stderr
    assert (run.state, run.exit_code, run.sweep) == ("failed", 1, "some-sweep")
    assert len(run.values("train/loss")) < 8

    before = column(folder, "step")
    done = client.train(*DIGITS, *limits, env=agent)
    assert f"Restored all states from the checkpoint at {folder}" in done.stdout
    assert (run.state, run.exit_code, run.starts) == ("finished", 0, 2)
    assert column(folder, "step")[: len(before)] == before
    assert sorted(set(run.values("trainer/global_step"))) == list(range(9))


@pytest.mark.slow
def test_a_rank_that_fails(client):
    client.train(*DIGITS, "trainer=ddp_cpu", "trainer.max_steps=8", "run_id=ranks", env={"FAIL_AT": "1:2"}, code=None)
    run = client.server.runs["ranks"]
    assert (run.state, run.exit_code) == ("failed", 1)


@pytest.mark.slow
def test_offline_and_sync(client):
    """Two offline parts of one run, of two forked processes, become one run of the server's."""
    forked = ["trainer=ddp_cpu", "trainer.strategy=ddp_fork"]
    client.train(*DIGITS, *forked, "trainer.max_steps=3", "run_id=away", env={"WANDB_MODE": "offline"})
    folder = client.directory("away")
    first = column(folder, "train/loss")
    client.train(f"resume={folder}", "trainer.max_steps=6", "logger.wandb.mode=offline")
    assert "away" not in client.server.runs
    parts = sorted((folder / "wandb").glob("offline-run-*"))
    assert len(parts) == 2
    client.wandb("sync", *map(str, parts))
    run = client.server.runs["away"]
    assert (run.state, run.exit_code) == ("finished", 0)
    arrived, here = run.values("train/loss"), column(folder, "train/loss")
    assert arrived[: len(first)] == first
    assert arrived[len(first) :] == here[len(first) - len(arrived) :] != []


def test_no_key_is_one_line(tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    run = WandbRun(project="quintet", name="none", id="none", save_dir=str(tmp_path))
    with pytest.raises(UserError, match=r"No API key.*`wandb login`, or logger\.wandb\.mode=offline"):
        run.experiment  # noqa: B018
    importlib.import_module("wandb").teardown()  # it keeps what it has found in the environment
