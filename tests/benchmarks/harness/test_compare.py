"""Two folders of result files side by side: what counts as worse, and what cannot be compared."""

import subprocess
import sys

import pytest
from commands import REPOSITORY

from quintet.harness.results import write_result


def folder(path, **values):
    rows = [{"metric": m, "value": value, "unit": unit} for m, (value, unit) in values.items()]
    write_result(path / "harness_x.json", title="x", rows=rows, protocol="p", data="d", subset=False, seconds=1)
    return str(path)


@pytest.fixture
def compare(monkeypatch):
    def run(*arguments):
        command = [sys.executable, "-m", "benchmarks.compare", *arguments]
        return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)

    return run


def test_slower_and_larger_are_worse_and_scores_are_not_compared(compare, tmp_path):
    before = folder(tmp_path / "a", step=(10.0, "ms"), rate=(100.0, "images/s"), size=(5.0, "MB"), miou=(0.5, ""))
    after = folder(tmp_path / "b", step=(20.0, "ms"), rate=(300.0, "images/s"), size=(5.2, "MB"), miou=(0.1, ""))
    done = compare(before, after)
    lines = done.stdout.splitlines()
    assert done.returncode == 1 and lines[-1] == "3 rows compared, 1 worse by more than 10%"
    assert lines[0].split()[:3] == ["worse", "0.50", "x"] and "step: 10 -> 20" in lines[0]
    assert lines[1].split()[:2] == ["0.96", "x"] and lines[2].split()[:3] == ["better", "3.00", "x"]


def test_what_only_one_commit_measured_is_named(compare, tmp_path):
    before, after = folder(tmp_path / "a", old=(1.0, "s")), folder(tmp_path / "b", new=(1.0, "s"))
    done = compare(before, after)
    assert done.returncode == 0 and "only in one of them: harness_x / old" in done.stdout
    assert "only in one of them: harness_x / new" in done.stdout


def test_an_empty_folder_is_one_line(compare, tmp_path):
    done = compare(str(tmp_path), str(tmp_path))
    assert done.returncode == 1 and "no result files" in done.stderr and "Traceback" not in done.stderr
