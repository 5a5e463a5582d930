"""Trainings that are killed and resumed, and two processes against one: the benchmark scripts, in short."""

import json
import os
import subprocess
import sys

import pytest
from commands import REPOSITORY

pytestmark = pytest.mark.slow


def run(script, *arguments):
    """The lines of JSON that it prints; it must say that all is well."""
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.harness.{script}", *arguments],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=1500, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def test_killed_trainings_end_as_the_others():
    """All five papers, two of them with data workers, twice each; the benchmark kills them 20 times."""
    found = run("kill", "--kills=2", "--seed=1")
    assert len(found) == 6
    assert all(case["kills"] == 2 and case["differences"] == [] for case in found)
    assert sum(case["while_saving"] for case in found) > 0


def test_two_processes_train_and_measure_as_one():
    """The memory, and BLEU and CIDEr with two stages; uneven last batches; resumed on more and on fewer."""
    found = run("ranks", "--cases=rare_events,captioning")
    assert len(found) == 6


def test_a_difference_is_found(tmp_path):
    import torch

    from benchmarks.harness import same_runs

    for name, weight in (("one", 1.0), ("two", 1.0 + 1e-7)):
        (tmp_path / name / "checkpoints").mkdir(parents=True)
        content = {"state_dict": {"w": torch.tensor([weight])}, "optimizer_states": [{"m": torch.zeros(2)}]}
        torch.save(content | {"quintet_config": {"run_dir": name}}, tmp_path / name / "checkpoints" / "last.ckpt")
        (tmp_path / name / "metrics.csv").write_text(f"step,val/loss\n0,{weight}\n")
    found = list(same_runs.differences(tmp_path / "one", tmp_path / "two"))
    assert found[0] == "last.ckpt.state_dict.w" and "metrics.csv" in found[1] and len(found) == 2
    assert list(same_runs.differences(tmp_path / "one", tmp_path / "one")) == []
