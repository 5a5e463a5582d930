"""The command lines end to end on the sample data: a run, its directory, resuming, evaluating, and every refusal."""

import csv
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from commands import REPOSITORY, TINY

from quintet.common.checkpoints import load_checkpoint
from quintet.harness.resume.checkpoint import newest_checkpoint

STEPS = 9


@pytest.fixture(scope="module")
def whole(house):
    """The uninterrupted run that the others are compared with; two epochs and a bit."""
    return house.train(
        *TINY, f"trainer.max_steps={STEPS}", "trainer.limit_train_batches=4", "callbacks=quiet", run_id="whole"
    )


def weights(run_dir, name="last.ckpt"):
    return load_checkpoint(run_dir / "checkpoints" / name)["state_dict"]


def assert_same_weights(one, other):
    a, b = weights(one), weights(other)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[k], b[k]) for k in a), [k for k in a if not torch.equal(a[k], b[k])]


def test_run_directory(whole):
    for name in ("config.yaml", "environment.json", "metrics.csv", "console.log"):
        assert (whole / name).stat().st_size > 0
    data_info = json.loads((whole / "environment.json").read_text())
    assert {"commit", "dirty", "hardware", "versions", "command"} <= data_info.keys()
    with (whole / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert any(row.get("val/bits") for row in rows)


def test_checkpoint_is_plain_and_self_contained(whole):
    stored = torch.load(whole / "checkpoints" / "best.ckpt", weights_only=True)
    assert stored["quintet_config"]["model"]["_target_"].endswith("WaveNetModule")
    from quintet.papers.wavenet.module import WaveNetModule

    module = WaveNetModule.load_from_checkpoint(whole / "checkpoints" / "best.ckpt", map_location="cpu")
    assert module.receptive_field > 1
    assert not any("_orig_mod" in key for key in stored["state_dict"])


@pytest.mark.parametrize("stop", [pytest.param(1, marks=pytest.mark.slow), 4, pytest.param(6, marks=pytest.mark.slow)])
def test_resume_is_exact(house, whole, stop):
    """Stopped after the first step, at the end of an epoch, and mid-epoch."""
    part = house.train(*TINY, f"trainer.max_steps={stop}", "trainer.limit_train_batches=4", run_id=f"stop{stop}")
    done = house.run("train.py", f"resume={part}", f"trainer.max_steps={STEPS}")
    assert done.returncode == 0, done.stderr[-3000:]
    assert load_checkpoint(part / "checkpoints" / "last.ckpt")["global_step"] == STEPS
    assert_same_weights(part, whole)
    with (part / "metrics.csv").open() as file:  # one file with the rows before and after
        steps = [int(row["step"]) for row in csv.DictReader(file)]
    assert steps == sorted(steps) == [3, 7]  # an epoch has four batches
    assert not list(part.glob("metrics.part*"))


@pytest.mark.slow
def test_resume_after_a_kill_is_exact(house, whole):
    """SIGKILL at some moment, then resume from whatever complete checkpoint there is."""
    run, _ = ended_by(house, signal.SIGKILL, "killed", STEPS)
    done = house.run("train.py", f"resume={run}")
    assert done.returncode == 0, done.stderr[-3000:]
    assert_same_weights(run, whole)


@pytest.mark.slow
def test_kill_without_a_number_is_told_to_the_shell(house):
    run, code = ended_by(house, signal.SIGTERM, "terminated", 10**6)
    assert code == 128 + signal.SIGTERM and newest_checkpoint(run / "checkpoints")


def ended_by(house, number, run_id, steps):
    """The directory of a run that got this signal after its second checkpoint, and its exit code."""
    command = [sys.executable, "train.py", *TINY, f"trainer.max_steps={steps}", "trainer.limit_train_batches=4"]
    command += ["callbacks.last.every_n_steps=1", "name=test", f"run_id={run_id}", *house.paths]
    process = subprocess.Popen(
        command,
        cwd=REPOSITORY,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    run = house.folder / "logs" / "test" / run_id
    deadline = time.monotonic() + 120
    while not (run / "checkpoints" / "last.ckpt.previous").exists() and time.monotonic() < deadline:
        assert process.poll() is None or (run / "checkpoints" / "last.ckpt").exists()
        time.sleep(0.02)
    process.send_signal(number)
    return run, process.wait(60)


def test_eval_writes_a_result(house, whole):
    done = house.run("eval.py", f"run={whole}", "data.batch_size=2")
    assert done.returncode == 0, done.stderr[-3000:]
    record = json.loads((whole / "eval" / "test" / "result.json").read_text())
    values = {row["metric"]: row["value"] for row in record["rows"]}
    assert 0 < values["test/bits"] < 10
    assert "test/bits" in done.stdout
    again = house.run("eval.py", f"ckpt={whole / 'checkpoints' / 'best.ckpt'}")
    assert again.returncode == 0, again.stderr[-3000:]


def refused(done, *words):
    """One line on stderr, exit code not 0, no traceback."""
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "Traceback" not in done.stderr, done.stderr[-2000:]
    for word in words:
        assert word in lines[0], lines[0]


def test_missing_data_set(house, tmp_path):
    refused(house.run("train.py", "model=wavenet", "data=vctk", f"data.root={tmp_path}/none"), "vctk_sample")


def test_batch_larger_than_the_data(house):
    refused(house.run("train.py", *TINY, "data.batch_size=100000"), "data.batch_size=100000")


def test_misspelt_key_is_one_line(house):
    refused(house.run("train.py", "data.bach_size=8"), "data.bach_size", "batch_size", "command line")


def test_debug_shows_the_traceback(house):
    done = house.run("train.py", "data.bach_size=8", "debug=true")
    assert done.returncode != 0 and "Traceback" in done.stderr


def test_eval_of_nothing(house, tmp_path):
    refused(house.run("eval.py", f"run={tmp_path}"), "no run directory")
    refused(house.run("eval.py", "protocol=test"), "run=")


def test_eval_unknown_speaker_lists_the_known(house, whole):
    done = house.run("eval.py", f"run={whole}", "protocol=generate", "protocol.speaker=p999", "protocol.seconds=0.05")
    refused(done, "p999", "p2")


def test_checkpoint_of_another_model(house, whole, tmp_path):
    stored = torch.load(whole / "checkpoints" / "best.ckpt", weights_only=True)
    stored["quintet_config"]["model"]["_target_"] = "quintet.papers.other.module.OtherModule"
    torch.save(stored, tmp_path / "other.ckpt")
    refused(house.run("eval.py", f"run={whole}", f"ckpt={tmp_path / 'other.ckpt'}"), "OtherModule", "WaveNetModule")


def test_cut_off_checkpoint(house, whole, tmp_path):
    (tmp_path / "cut.ckpt").write_bytes((whole / "checkpoints" / "best.ckpt").read_bytes()[:3000])
    refused(house.run("eval.py", f"run={whole}", f"ckpt={tmp_path / 'cut.ckpt'}"), "no readable checkpoint")


def test_help_lists_the_groups(house):
    done = house.run("train.py", "--help")
    assert done.returncode == 0
    for group in ("model", "data", "trainer", "callbacks", "logger", "protocol", "launcher", "experiment/wavenet"):
        assert f"{group}:" in done.stdout


def test_two_cpu_processes(house):
    run = house.train(*[t for t in TINY if t != "trainer=cpu"], "trainer=ddp_cpu", "trainer.max_steps=2", run_id="ddp")
    assert load_checkpoint(run / "checkpoints" / "last.ckpt")["global_step"] == 2


@pytest.mark.slow
def test_compiled_checkpoint_has_plain_names(house):
    run = house.train(*TINY, "compile=true", "trainer.max_steps=1", "trainer.limit_val_batches=0", run_id="compiled")
    assert not any("_orig_mod" in key for key in weights(run))


@pytest.mark.slow
def test_wandb_offline_and_tensorboard(house):
    run = house.train(
        *[t for t in TINY if t != "callbacks=quiet"],
        "logger=wandb",
        "logger.wandb.mode=offline",
        "+logger.tensorboard._target_=lightning.pytorch.loggers.TensorBoardLogger",
        "+logger.tensorboard.save_dir=${run_dir}",
        "+logger.tensorboard.version=tb",
        "trainer.max_steps=1",
        "callbacks.summary=null",
        "model.media_seconds=0.05",
        "trainer.limit_val_batches=1",
        run_id="loggers",
    )
    offline = list((run / "wandb").glob("offline-run-*"))
    assert offline and list(offline[0].rglob("*.png")) and list(offline[0].rglob("*.wav"))
    assert list(run.glob("**/tb/events.out.tfevents*"))
    assert list((run / "media").rglob("*.png")) and list((run / "media").rglob("*.wav"))
