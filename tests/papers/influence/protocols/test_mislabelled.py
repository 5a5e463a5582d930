"""`mislabelled` on made-up e-mails: what is flipped, checked and refitted, going on after a kill, and mistakes."""

import csv
from types import SimpleNamespace

import numpy as np
import pytest
from omegaconf import OmegaConf
from sklearn.linear_model import LogisticRegression

from quintet.common.errors import UserError
from quintet.harness import cli
from quintet.harness.config import compose
from quintet.harness.config.build import build
from quintet.harness.run import evaluate
from quintet.harness.run.evaluate import find_checkpoint, load_module
from quintet.harness.run.fit import fit
from quintet.papers.influence.protocols import mislabelled, mislabelled_table
from quintet.papers.influence.protocols.mislabelled import Mislabelled
from quintet.papers.influence.protocols.mislabelled_table import METHODS, RefitTable, Refitted
from quintet.papers.influence.solvers.cg import ConjugateGradient
from quintet.papers.influence.solvers.direct import Direct

L2 = 1e-2
FRACTIONS = [0, 0.1, 0.25, 1]


def trained(folder, name, *overrides):
    """A run of the made-up e-mails."""
    overrides = [*overrides, "trainer=cpu", "callbacks=quiet", "trainer.enable_progress_bar=false", "run_id=x",
                 "callbacks.best=null", f"paths.cache_dir={folder}/cache", f"run_dir={folder}/{name}"]  # fmt: skip
    cfg = compose.compose_checked("train", overrides)
    OmegaConf.resolve(cfg)
    fit(cfg)
    return folder / name


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("mislabelled"), "run", "experiment=influence/enron", "data=enron_sample",
                   f"model.l2={L2}")  # fmt: skip


@pytest.fixture(scope="module")
def ready(run):
    """(module, datamodule) of the run."""
    cfg = compose.saved_config(run)
    datamodule = build(cfg.data)
    datamodule.setup()
    return load_module(cfg, find_checkpoint(SimpleNamespace(ckpt=None, run=run))), datamodule


@pytest.fixture
def no_pictures(monkeypatch):
    """They take most of the time."""
    monkeypatch.setattr(mislabelled, "draw", lambda *args: None)


def protocol(**options):
    return Mislabelled(**{"solver": Direct(), "fractions": FRACTIONS, "seeds": 3, "shown": [0.1]} | options)


def refits(folder):
    (path,) = (folder / "mislabelled").glob("refits_*.csv")
    return path


def table(path):
    with path.open() as file:
        return [{k: v if k == "method" else float(v) for k, v in row.items()} for row in csv.DictReader(file)]


def test_every_refit_is_scikit_learns_after_the_same_checks(ready, tmp_path, no_pictures, monkeypatch):
    """Flips and random orders are drawn again here; the scored orders are recomputed from scikit-learn's fit."""
    module, datamodule = ready
    (x, truth), (x_test, y_test) = (datamodule.arrays(split) for split in ("train", "test"))
    x, truth, x_test, y_test = x.double().numpy(), truth.numpy(), x_test.double().numpy(), y_test.numpy()
    n, flips = len(truth), round(0.1 * len(truth))
    protocol(seed=7)(module, datamodule, tmp_path)
    rows = iter(table(refits(tmp_path)))

    def fitted(labels):
        made = LogisticRegression(C=1 / (L2 * n), tol=1e-13, max_iter=5000, fit_intercept=False, solver="newton-cg")
        return made.fit(x, labels)

    for seed in range(3):
        rng = np.random.default_rng((7, seed))
        labels = truth.copy()
        labels[rng.choice(n, flips, replace=False)] ^= 1
        assert (labels != truth).sum() == flips
        theta = fitted(labels).coef_[0]
        chances = 1 / (1 + np.exp(-x @ theta))
        gradients = (chances - labels)[:, None] * x + L2 * theta
        hessian = x.T @ ((chances * (1 - chances))[:, None] * x) / n + L2 * np.eye(x.shape[1])
        influence = np.einsum("np,np->n", gradients, np.linalg.solve(hessian, gradients.T).T)
        losses = -np.log(np.where(labels == 1, chances, 1 - chances))
        # equal e-mails have equal scores, which rounding may put in either order: the rank by a rounded score
        orders = [np.argsort(-np.round(score, 9), kind="stable") for score in (influence, losses)]
        for method, order in zip(METHODS, [*orders, rng.permutation(n)], strict=True):
            for fraction in FRACTIONS:
                row, checked = next(rows), order[: round(fraction * n)]
                now = labels.copy()
                now[checked] = truth[checked]
                assert (row["seed"], row["method"], row["fraction"]) == (seed, method, fraction)
                assert row["checked"] == len(checked)
                found = (labels[checked] != truth[checked]).sum()
                assert row["found"] == found, (seed, method, fraction)
                assert row["test_accuracy"] == pytest.approx(fitted(now).score(x_test, y_test))
                assert row["gradient_norm"] <= 1e-8
    assert next(rows, None) is None


def test_numbers_are_means_over_seeds_and_pairs(ready, tmp_path, no_pictures):
    metrics = protocol(seeds=4)(*ready, tmp_path)
    rows, flips = table(refits(tmp_path)), round(0.1 * ready[1].num_examples("train"))
    column = {
        (method, name): np.array([r[name] for r in rows if r["method"] == method and r["fraction"] == 0.1])
        for method in METHODS
        for name in ("found", "test_accuracy")
    }
    for method in METHODS:
        found = metrics[f"mislabelled/found_10pct_{method}"]
        assert found == pytest.approx(column[method, "found"].mean() / flips)
        accuracy = metrics[f"mislabelled/accuracy_10pct_{method}"]
        assert accuracy == pytest.approx(column[method, "test_accuracy"].mean())
    gain = (column["influence", "found"] - column["loss", "found"]) / flips
    assert metrics["mislabelled/found_10pct_influence_minus_loss"] == pytest.approx(gain.mean())
    assert metrics["mislabelled/found_10pct_influence_minus_loss_se"] == pytest.approx(gain.std(ddof=1) / 2)
    assert metrics["mislabelled/found_10pct_seeds_influence_above_loss"] == (gain > 0).sum()
    assert metrics["mislabelled/gradient_norm_max"] == max(r["gradient_norm"] for r in rows)
    assert metrics["mislabelled/accuracy_clean"] == next(r["test_accuracy"] for r in rows if r["fraction"] == 1)
    with (tmp_path / "mislabelled" / "curves.csv").open() as file:
        curves = {(float(r["fraction_checked"]), r["method"]): r for r in csv.DictReader(file)}
    assert float(curves[1, "loss"]["fraction_found"]) == 1 and float(curves[0, "loss"]["fraction_found"]) == 0
    ours = curves[0.1, "influence"]
    assert float(ours["fraction_found"]) == pytest.approx(column["influence", "found"].mean() / flips, rel=1e-5)
    assert float(ours["test_accuracy_se"]) == pytest.approx(
        column["influence", "test_accuracy"].std(ddof=1) / 2, rel=1e-5
    )


def test_a_killed_run_goes_on_and_more_seeds_are_added(ready, tmp_path, no_pictures, monkeypatch):
    protocol(seeds=4)(*ready, tmp_path / "whole")
    wanted = refits(tmp_path / "whole").read_text()
    killed = protocol(seeds=4)
    once = killed.one_seed

    def dies(task, seed):
        if seed == 2:
            raise KeyboardInterrupt
        return once(task, seed)

    killed.one_seed = dies
    with pytest.raises(KeyboardInterrupt):
        killed(*ready, tmp_path)
    path = refits(tmp_path)
    lines = wanted.splitlines(keepends=True)
    done = 1 + 2 * len(METHODS) * len(FRACTIONS)
    assert path.read_text() == "".join(lines[:done])
    for left in (lines[done][:-5], "".join(lines[done : done + 3]), "".join(lines[done : done + 3]) + lines[-1][:9]):
        path.write_text("".join(lines[:done]) + left)  # a kill in the middle of writing a seed
        again = protocol(seeds=4)
        seeds = []
        again.one_seed = lambda task, seed, seeds=seeds: seeds.append(seed) or once(task, seed)
        again(*ready, tmp_path)
        assert seeds == [2, 3] and path.read_text() == wanted
    protocol(seeds=2)(*ready, tmp_path)  # fewer are the first ones of the same file
    assert path.read_text() == wanted


def test_other_settings_have_another_file(ready, tmp_path, no_pictures):
    settings = [{}, {"flip": 0.2}, {"seed": 1}, {"solver": Direct(damping=0.5)}, {"fractions": [0, 0.1]},
                {"tolerance": 1e-7}, {"solver": ConjugateGradient()}]  # fmt: skip
    for count, options in enumerate(settings, 1):
        protocol(**{"seeds": 2} | options)(*ready, tmp_path)
        assert len(list((tmp_path / "mislabelled").glob("refits_*.csv"))) == count, options


def test_the_picture_has_the_curves(ready, tmp_path, monkeypatch):
    from matplotlib.axes import Axes

    drawn, errorbar = [], Axes.errorbar
    monkeypatch.setattr(
        Axes, "errorbar", lambda *args, **more: drawn.append((args[1:], more)) or errorbar(*args, **more)
    )
    protocol()(*ready, tmp_path)
    assert (tmp_path / "mislabelled" / "mislabelled.png").stat().st_size > 10_000
    assert [more["label"] for _, more in drawn] == [*METHODS, *METHODS]
    with (tmp_path / "mislabelled" / "curves.csv").open() as file:
        curves = list(csv.DictReader(file))
    for k, ((x, mean, error), more) in enumerate(drawn):
        name = "test_accuracy" if k < len(METHODS) else "fraction_found"
        mine = [row for row in curves if row["method"] == more["label"]]
        assert list(x) == FRACTIONS
        np.testing.assert_allclose(mean, [float(row[name]) for row in mine], rtol=1e-5)
        np.testing.assert_allclose(error, [float(row[f"{name}_se"]) for row in mine], rtol=1e-5, atol=1e-9)


def test_a_table_counts_complete_seeds_only(tmp_path):
    made = RefitTable(tmp_path / "t.csv", 2)
    rows = [Refitted(0, "loss", 0.1, 3, 2, 1 / 3, 1e-9), Refitted(0, "random", 0.1, 3, 0, 0.5, 2e-9)]
    made.append(0, rows)
    made.append(1, [rows[0]._replace(seed=1)])
    again = RefitTable(tmp_path / "t.csv", 2)
    assert 0 in again and 1 not in again and again.rows(1) == rows  # every digit comes back
    assert len((tmp_path / "t.csv").read_text().splitlines()) == 3
    np.testing.assert_allclose(
        mislabelled_table.standard_error(np.array([1.0, 2.0, 4.0])), 1.527525 / 3**0.5, rtol=1e-6
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"flip": 0}, r"protocol\.flip=0: give a fraction of the labels, above 0 and below 1"),
        ({"flip": 0.001}, r"protocol\.flip=0\.001 flips 0 of 80 training labels"),
        ({"fractions": []}, r"protocol\.fractions=\[\]: give rising numbers from 0 to 1"),
        ({"fractions": [0.2, 0.1]}, r"protocol\.fractions=.*rising"),
        ({"fractions": [0.1, 0.1]}, r"protocol\.fractions=.*rising"),
        ({"fractions": [0, 1.1]}, r"protocol\.fractions=.*from 0 to 1"),
        ({"shown": [0.1, 0.3]}, r"protocol\.shown has 0\.3: choose of protocol\.fractions="),
        ({"seeds": 1}, r"protocol\.seeds=1, .*give 2 or more"),
        ({"seed": -1}, r"seed=-1"),
        ({"tolerance": 0}, r"tolerance=0"),
    ],
)
def test_impossible_requests(ready, tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        protocol(**options)(*ready, tmp_path)


def evaluated(monkeypatch, run, *arguments):
    command = ["eval.py", f"run={run}", "protocol=mislabelled", "trainer=cpu", "trainer.enable_progress_bar=false"]
    monkeypatch.setattr("sys.argv", [*command, *arguments])
    return cli.eval_main()


def test_the_command_line_and_its_solvers(monkeypatch, run, capsys):
    """The yaml's own solver is direct; the command line's comes before it."""
    for more in ((), ("solver=cg",), ("solver=direct", "solver.damping=0.1")):
        assert evaluated(monkeypatch, run, "protocol.seeds=2", *more) == 0
        out = capsys.readouterr().out
        assert "mislabelled/accuracy_20pct_influence" in out and "mislabelled/found_30pct_random" in out
    folder = run / "eval" / "mislabelled"
    assert len(list(folder.glob("refits_*.csv"))) == 3
    assert all((folder / name).is_file() for name in ("curves.csv", "paired.csv", "result.json"))
    assert (run / "eval" / Mislabelled.picture).is_file()
    direct = compose.compose_checked("eval", [f"run={run}", "protocol=mislabelled"])
    assert direct.protocol.solver._target_.endswith("Direct")
    assert compose.compose_checked("eval", [f"run={run}", "protocol=explain"]).protocol.solver._target_.endswith(
        "ConjugateGradient"
    )


def test_a_published_evaluation_has_its_plot(monkeypatch, run, tmp_path):
    """Also explain's, which says only when it has run whether there is one."""
    monkeypatch.setattr(evaluate, "RESULTS_DIR", tmp_path)
    command = ["eval.py", f"run={run}", "protocol=explain", "protocol.queries=2", "publish=x", "trainer=cpu"]
    monkeypatch.setattr("sys.argv", [*command, "trainer.enable_progress_bar=false"])
    assert cli.eval_main() == 0
    assert (tmp_path / "x.json").is_file()
    assert (tmp_path / "x.png").read_bytes() == (run / "eval/explain/by_label.png").read_bytes()


def test_another_kind_of_run_is_one_line(monkeypatch, tmp_path, capsys):
    digits = trained(tmp_path, "digits", "experiment=influence/sample")
    with pytest.raises(SystemExit):
        evaluated(monkeypatch, digits)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "this run has model.loss=cross_entropy; train with model=binary_logistic" in lines[0]
