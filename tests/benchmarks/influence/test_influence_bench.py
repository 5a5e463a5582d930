"""The influence benchmark: accuracies by SciPy, who is compared with whom, every row of a tiny problem."""

import contextlib
import io
import logging
import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy import stats

from benchmarks.influence import accuracy as influence_accuracy
from benchmarks.influence import loo as influence_loo
from benchmarks.influence import ours as influence_ours
from benchmarks.influence import peers as influence_peers
from benchmarks.influence import speed as bench
from benchmarks.influence.accuracy import Accuracy
from benchmarks.influence.cases import CASES, Candidate
from benchmarks.influence.problem import Problem, fit_linear, linear_exact

pytestmark = pytest.mark.slow

SCRIPTS = {"benchmarks.influence.ours": influence_ours.main, "benchmarks.influence.loo": influence_loo.main}


def in_process(command, run=subprocess.run, **options):
    """subprocess.run, of our own scripts without a new interpreter."""
    if command[2] not in SCRIPTS:
        return run(command, **options)
    said, argv = io.StringIO(), sys.argv
    sys.argv = command[2:]
    try:
        with contextlib.redirect_stdout(said):
            SCRIPTS[command[2]]()
    finally:
        sys.argv = argv
        logging.disable(logging.NOTSET)
    return subprocess.CompletedProcess(command, 0, said.getvalue(), "")


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A bench whose cache has a linear problem of 60 examples, fitted, and its exact scores."""
    torch.manual_seed(0)
    x, y = torch.rand(60, 6, dtype=torch.float64), torch.arange(60) % 10
    weight = fit_linear(x, y, 10, l2=0.01)
    problem = Problem([["linear", 6, 10, False]], [weight], 0.01, 0.0, x, y, x[:4] + 0.1, y[:4])
    problem.save(tmp_path / "linear.npz")
    np.save(tmp_path / "linear_exact.npy", linear_exact(problem))
    monkeypatch.setattr(bench.subprocess, "run", in_process)
    monkeypatch.setattr(influence_peers.gc, "collect", int)  # seconds, with all that pytest has loaded
    return bench.Bench(tmp_path, tmp_path, peers=None, limit=60, refits=0.01)


def test_every_row_of_a_case(tiny):
    rows = {entry["metric"]: entry for entry in tiny.run("linear_100", only="cg (float")}
    ours = rows["quintet cg (float64)"]
    assert ours["unit"] == "s" and ours["value"] > 0
    assert "r 1.00000" in ours["note"] and "peak" in ours["note"] and "with retraining r 0.9" in ours["note"]
    assert "skipped" in rows["pydvl cg (float32, solve_simultaneously=true)"]["value"]
    assert not any("over ours" in metric for metric in rows)  # nobody to compare with


def test_retraining_beside_scikit_learn(tiny):
    rows = {entry["metric"]: entry for entry in tiny.run("leave_one_out")}
    assert {"quintet, 30 removals", "scikit-learn lbfgs, 2 refits, extrapolated"} <= {
        metric.replace("30 refits", "2 refits") for metric in rows
    }
    for solver in ("lbfgs", "newton-cg"):
        assert rows[f"scikit-learn {solver}, largest difference from ours"]["value"] < 1e-4
    assert len(np.load(tiny.removals())) == 30


def test_accuracy_is_what_scipy_says():
    random = np.random.default_rng(0)
    exact, scores, true = random.normal(size=(3, 50)), random.normal(size=(2, 50)), random.normal(size=(3, 8))
    removed = random.choice(50, 8, replace=False)
    found = influence_accuracy.accuracy(scores.astype(np.float32), exact, (removed, true))
    pairs = list(zip(scores, exact[:2], strict=True))
    assert found.pearson == pytest.approx(np.mean([stats.pearsonr(a, b)[0] for a, b in pairs]), abs=1e-6)
    assert found.spearman == pytest.approx(np.mean([stats.spearmanr(a, b)[0] for a, b in pairs]), abs=1e-6)
    assert found.worst == pytest.approx(min(stats.pearsonr(a, b)[0] for a, b in pairs), abs=1e-6)
    loo = [stats.pearsonr(a[removed], b)[0] for a, b in zip(scores, true[:2], strict=True)]
    assert found.retrained == pytest.approx(np.mean(loo), abs=1e-6)
    assert influence_accuracy.accuracy(exact, exact, None).error == 0


def test_a_peer_is_compared_with_ours_at_no_less_correlation():
    def one(package, method, seconds, pearson):
        report = {"seconds": {"all": 99.0}, "cpu_seconds": seconds, "peak_mb": 1.0, "before_mb": 1.0}
        return Candidate(package, method), report, Accuracy(pearson, 1, 1, 0, np.nan, np.nan)

    done = [one("quintet", "lissa", 1.0, 0.9), one("quintet", "cg", 2.0, 0.99998), one("pydvl", "cg", 30.0, 1.0),
            one("dattri", "lissa", 8.0, 0.8), (Candidate("captum", "arnoldi"), {"failed": "slow"}, None)]  # fmt: skip
    rows = {entry["metric"]: entry for entry in influence_accuracy.table(done)}
    assert rows["time over ours: pydvl cg (float32)"]["value"] == 15
    assert rows["time over ours: dattri lissa (float32)"]["value"] == 8
    assert rows["time over ours: least of all peers"]["value"] == 8
    assert rows["captum arnoldi (float32)"]["value"] == "slow"


def test_a_slow_or_broken_candidate_becomes_a_row(tmp_path):
    setting, python = bench.Bench(tmp_path, tmp_path, None, limit=1), [sys.executable, "-S", "-c"]
    report = setting.finished(tmp_path / "a.npy", [*python, "while True: 1"], limit=1)
    assert report["failed"] == "not finished within 1 s of CPU"
    report = setting.finished(tmp_path / "b.npy", [*python, "raise ValueError('no such thing')"])
    assert report["failed"] == "failed: ValueError: no such thing" and "scores" not in report


def test_candidates_have_names_of_their_own():
    for case in CASES.values():
        names = [bench.digest(candidate.name) for candidate in case.candidates]
        assert len(set(names)) == len(names)
