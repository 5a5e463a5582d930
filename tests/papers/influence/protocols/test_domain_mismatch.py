"""`domain_mismatch` on invented hospital stays, against linear algebra written out, and section 5.3's own numbers."""

import csv
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from commands import REPOSITORY
from omegaconf import OmegaConf
from scipy.special import expit

from quintet.common.errors import UserError
from quintet.data.examples.datamodule import ExampleDataModule
from quintet.data.examples.diabetes import Diabetes
from quintet.harness import cli
from quintet.harness.config import compose
from quintet.harness.config.build import build
from quintet.harness.run.evaluate import find_checkpoint, load_module
from quintet.harness.run.fit import fit
from quintet.papers.influence.classifiers.module import ClassifierModule
from quintet.papers.influence.fit.newton import Design, fit_logistic
from quintet.papers.influence.protocols import domain_mismatch
from quintet.papers.influence.protocols.domain_mismatch import DomainMismatch, Standing
from quintet.papers.influence.solvers.cg import ConjugateGradient
from quintet.papers.influence.solvers.direct import Direct

REAL = REPOSITORY.parent / "shared" / "data" / "diabetes130" / "dataset_diabetes.zip"
L2 = 1e-4
CHILD = "age=[0-10)"


def trained(folder, name, *overrides):
    """A run on sample data."""
    overrides = [*overrides, "trainer=cpu", "callbacks=quiet", "trainer.enable_progress_bar=false", "run_id=x",
                 "callbacks.best=null", f"paths.cache_dir={folder}/cache", f"run_dir={folder}/{name}"]  # fmt: skip
    cfg = compose.compose_checked("train", overrides)
    OmegaConf.resolve(cfg)
    fit(cfg)
    return folder / name


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("domain_mismatch")
    return trained(folder, "run", "experiment=influence/diabetes", "data=diabetes_sample")


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
    monkeypatch.setattr(domain_mismatch, "draw", lambda *args: None)


def protocol(**options):
    return DomainMismatch(**{"solver": Direct(), "feature": CHILD} | options)


def account(ready):
    """(design, signs, weights) of training and test, in numpy."""
    module, datamodule = ready
    weights = module.network.top.weight.detach().numpy()[0]
    parts = []
    for split in ("train", "test"):
        inputs, labels = datamodule.arrays(split)
        parts.append((inputs.double().numpy(), 2.0 * labels.numpy() - 1))
    return *parts, weights


def dense(ready, query):
    """Scores (N,) for the loss on a test example."""
    (x, y), (x_test, y_test), weights = account(ready)
    chance = expit(x @ weights)
    hessian = x.T @ ((chance * (1 - chance))[:, None] * x) / len(x) + L2 * np.eye(x.shape[1])
    gradients = -(y * expit(-y * (x @ weights)))[:, None] * x + L2 * weights
    wrong = -y_test[query] * expit(-y_test[query] * (x_test[query] @ weights))
    return gradients @ np.linalg.solve(hessian, wrong * x_test[query]) / len(x)


def rows(folder):
    with (folder / "domain_mismatch" / "influence.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("value", [1, 0])
def test_the_standing_of_a_group_is_that_of_dense_linear_algebra(ready, tmp_path, no_pictures, value):
    feature = "insulin=Up"
    metrics = protocol(feature=feature, value=value, query=5)(*ready, tmp_path)
    metrics = {name.partition("/")[2]: number for name, number in metrics.items()}
    (x, y), _, weights = account(ready)
    scores = dense(ready, 5)
    column = ready[1].feature_names.index(feature)
    group = x[:, column] == value
    order = np.argsort(-np.abs(scores))
    ranks = np.flatnonzero(group[order]) + 1
    assert 0 < group.sum() < len(x) and ranks[0] != ranks[-1]
    assert metrics["group_train"] == group.sum()
    assert metrics["group_train_class_0"] == (y[group] == -1).sum()
    assert metrics["group_train_class_1"] == (y[group] == 1).sum()
    assert metrics["group_in_top"] == group[order[: group.sum()]].sum()
    assert (metrics["group_first_rank"], metrics["group_last_rank"]) == (ranks[0], ranks[-1])
    size = np.abs(scores)
    assert metrics["largest_of_group"] == pytest.approx(size[group].max(), rel=1e-6)
    assert metrics["smallest_of_group"] == pytest.approx(size[group].min(), rel=1e-4)
    assert metrics["factor_largest"] == pytest.approx(size[group].max() / size[~group].max(), rel=1e-6)
    assert metrics["factor_smallest"] == pytest.approx(size[group].min() / size[~group].max(), rel=1e-4)
    assert metrics["features_with_larger_weight"] == (np.abs(weights) > abs(weights[column])).sum()
    table = rows(tmp_path)
    wanted = [(k, n) for k, n in enumerate(order, 1) if k <= domain_mismatch.TABLE_ROWS or group[n]]
    assert [(int(row["rank"]), int(row["train_index"])) for row in table] == wanted
    assert len(wanted) > domain_mismatch.TABLE_ROWS
    for row in table:
        n = int(row["train_index"])
        assert float(row["delta_test_loss_if_removed"]) == pytest.approx(scores[n], rel=1e-4)
        assert float(row["train_loss"]) == pytest.approx(np.log1p(np.exp(-y[n] * (x[n] @ weights))), rel=1e-4)
        assert int(row["in_group"]) == group[n]
        assert row["label"] == ("within 30 days" if y[n] > 0 else "not within 30 days")
        assert row["title"] == ready[1].preview("train", n).title
    stored = np.load(tmp_path / "domain_mismatch" / "scores.npz")
    np.testing.assert_allclose(stored["delta_test_loss_if_removed"], scores, rtol=1e-5, atol=1e-12)
    assert np.array_equal(stored["in_group"], group)


def test_removing_the_strongest_does_what_its_score_says(ready, tmp_path, no_pictures):
    protocol(query=5)(*ready, tmp_path)
    first = rows(tmp_path)[0]
    (x, y), (x_test, y_test), weights = account(ready)
    keep = np.arange(len(x)) != int(first["train_index"])
    refit = fit_logistic(Design(x[keep]), y[keep], np.full(x.shape[1], L2)).theta
    before, after = (np.log1p(np.exp(-y_test[5] * (x_test[5] @ w))) for w in (weights, refit))
    assert float(first["delta_test_loss_if_removed"]) == pytest.approx(after - before, rel=0.3)


def test_the_first_of_the_group_that_is_wrong_is_asked_about(ready, tmp_path, no_pictures):
    _, (x_test, y_test), weights = account(ready)
    margin = y_test * (x_test @ weights)
    child = x_test[:, ready[1].feature_names.index(CHILD)] == 1
    wanted = np.flatnonzero(child & (margin <= 0))[0]
    assert wanted != np.flatnonzero(margin <= 0)[0] or wanted != np.flatnonzero(child)[0]
    metrics = protocol()(*ready, tmp_path)
    assert metrics["domain_mismatch/query"] == wanted
    assert metrics["domain_mismatch/query_loss"] == pytest.approx(np.log1p(np.exp(-margin[wanted])))


def test_the_fit_is_described_as_in_the_notebook(ready, tmp_path, no_pictures):
    metrics = protocol(query=0)(*ready, tmp_path)
    *parts, weights = account(ready)
    for split, (x, y) in zip(("train_example", "test"), parts, strict=True):
        margin = y * (x @ weights)
        assert metrics[f"domain_mismatch/{split}_loss"] == pytest.approx(np.log1p(np.exp(-margin)).mean())
        assert metrics[f"domain_mismatch/{split[:5].rstrip('_')}_accuracy"] == pytest.approx((margin > 0).mean())
    l2 = metrics["domain_mismatch/train_loss"] - metrics["domain_mismatch/train_example_loss"]
    assert l2 == pytest.approx(L2 / 2 * (weights**2).sum())
    assert metrics["domain_mismatch/train_gradient_norm"] <= 1e-8


def test_another_solver_and_split(ready, tmp_path, no_pictures):
    exact = protocol(query=5)(*ready, tmp_path / "exact")
    solver = ConjugateGradient(tolerance=1e-10, max_iterations=1000)
    other = protocol(query=5, solver=solver)(*ready, tmp_path / "cg")
    assert other["domain_mismatch/largest_of_group"] == pytest.approx(
        exact["domain_mismatch/largest_of_group"], rel=1e-5
    )
    own = protocol(query=5, split="train")(*ready, tmp_path / "train")
    assert "domain_mismatch/train_accuracy" in own and own["domain_mismatch/query_loss"] != pytest.approx(
        exact["domain_mismatch/query_loss"]
    )


def test_the_picture_marks_the_group(tmp_path, monkeypatch, ready):
    from matplotlib.axes import Axes

    drawn, plot, barh = {}, Axes.plot, Axes.barh

    def keep(self, x, y, *args, label, **more):
        drawn[label] = np.asarray(y)
        return plot(self, x, y, *args, label=label, **more)

    monkeypatch.setattr(Axes, "plot", keep)
    monkeypatch.setattr(Axes, "barh", lambda *args, **more: drawn.update(bars=(args[2], more)) or barh(*args, **more))
    protocol(query=5)(*ready, tmp_path)
    assert (tmp_path / "domain_mismatch" / "domain_mismatch.png").stat().st_size > 10_000
    stored = np.load(tmp_path / "domain_mismatch" / "scores.npz")
    scores, group = stored["delta_test_loss_if_removed"], stored["in_group"]
    np.testing.assert_array_equal(drawn[f"{CHILD}: {group.sum()}"], np.sort(scores[group]))
    np.testing.assert_array_equal(drawn[f"all other: {(~group).sum()}"], np.sort(scores[~group]))
    lengths, more = drawn["bars"]
    order = np.argsort(-np.abs(scores))[: domain_mismatch.BARS]
    np.testing.assert_array_equal(lengths, scores[order])
    assert more["color"] == [domain_mismatch.GROUP if group[n] else domain_mismatch.REST for n in order]


def test_ranks_count_both_signs():
    standing = Standing.of(np.array([0.1, -5.0, 2.0, -0.5, 0.0]), np.array([0, 1, 1, 0, 0], bool))
    numbers = standing.numbers()
    assert standing.order.tolist() == [1, 2, 3, 0, 4]
    assert numbers["group_in_top"] == 2 == numbers["group_last_rank"]
    assert (numbers["factor_largest"], numbers["factor_smallest"]) == (10, 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"feature": "age=[0-11)"}, r"protocol\.feature='age=\[0-11\)' is not a feature of the data: did you mean"),
        ({"value": 7}, r"protocol\.feature=age=\[0-10\) is 7 for 0 of 380 training examples"),
        ({"query": 600}, r"protocol\.query has index 600: the test split has 600 examples, counted from 0"),
        ({"query": -1}, r"protocol\.query has index -1"),
        ({"split": "tset"}, r"unknown split 'tset'"),
        ({"params": "haed"}, r"matches no parameter"),
    ],
)
def test_impossible_requests(ready, tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        protocol(**options)(*ready, tmp_path)


def test_a_group_that_is_all_right_needs_a_query(ready, tmp_path, monkeypatch):
    right = lambda module, examples: (np.zeros(len(examples)), np.ones(len(examples), bool))  # noqa: E731
    monkeypatch.setattr(domain_mismatch, "predictions", right)
    with pytest.raises(UserError, match=r"none of the \d+ examples .* give an index, protocol\.query"):
        protocol()(*ready, tmp_path)


def evaluated(monkeypatch, run, *arguments):
    command = ["eval.py", f"run={run}", "protocol=domain_mismatch", "trainer=cpu", "trainer.enable_progress_bar=false"]
    monkeypatch.setattr("sys.argv", [*command, *arguments])
    return cli.eval_main()


def test_the_command_line(monkeypatch, run, capsys):
    assert evaluated(monkeypatch, run) == 0
    out = capsys.readouterr().out
    assert "domain_mismatch/group_train " in out and "0.642617" in out  # ours beside the authors'
    assert (run / "eval" / DomainMismatch.picture).is_file()
    assert evaluated(monkeypatch, run, "protocol.feature='insulin=Up'", "protocol.query=3") == 0
    request = compose.compose_checked("eval", [f"run={run}", "protocol=domain_mismatch"])
    assert request.protocol.solver._target_.endswith("Direct")


def test_data_without_named_features_is_one_line(monkeypatch, tmp_path, capsys):
    digits = trained(tmp_path, "digits", "experiment=influence/sample")
    with pytest.raises(SystemExit):
        evaluated(monkeypatch, digits)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "no named features to choose a group by" in lines[0]


@pytest.mark.skipif(not REAL.exists(), reason=f"real data {REAL} is not on this machine")
@pytest.mark.slow
def test_the_four_children_of_section_5_3(tmp_path, no_pictures):
    """The authors' notebook: their influence on the wrong prediction for test example 1742, and the fit's numbers."""
    data = ExampleDataModule(Diabetes(str(REAL), drop_children=20), str(tmp_path))
    data.setup()
    inputs, labels = data.arrays("train")
    theta = fit_logistic(Design(inputs.numpy()), 2.0 * labels.numpy() - 1, np.full(127, L2)).theta
    module = ClassifierModule({"kind": "linear"}, {"name": "lbfgs"}, data.data_info, loss="logistic", l2=L2)
    with torch.no_grad():
        module.network.top.weight.copy_(torch.from_numpy(theta))
    metrics = protocol(query=1742)(module, data, tmp_path)
    metrics = {name.partition("/")[2]: value for name, value in metrics.items()}
    found = {int(r["train_index"]): float(r["delta_test_loss_if_removed"]) for r in rows(tmp_path)[:4]}
    assert found == pytest.approx({13685: -0.1189, 9366: -0.11746, 11116: -0.08258, 19590: 0.07936}, abs=0.02)
    assert (metrics["group_train"], metrics["group_in_top"], metrics["group_train_class_1"]) == (4, 4, 3)
    assert metrics["factor_smallest"] > 20 and metrics["factor_largest"] > 30
    published = {"train_loss": 0.642617, "train_example_loss": 0.641490, "test_loss": 0.653814,
                 "train_accuracy": 0.624074, "test_accuracy": 0.681347}  # fmt: skip
    assert {name: metrics[name] for name in published} == pytest.approx(published, abs=1e-3)
    assert metrics["train_gradient_norm"] <= 1e-8
