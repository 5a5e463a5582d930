"""`components` on the sample's ones and sevens, against the formula written out, and against refits."""

import csv
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from scipy.stats import pearsonr, spearmanr
from sklearn.linear_model import LogisticRegression

from quintet.common.errors import UserError
from quintet.harness import cli
from quintet.harness.config import compose
from quintet.harness.config.build import build
from quintet.harness.run.evaluate import find_checkpoint, load_module
from quintet.harness.run.fit import fit
from quintet.papers.influence.classifiers.module import ClassifierModule
from quintet.papers.influence.protocols import components
from quintet.papers.influence.protocols.components import Components
from quintet.papers.influence.solvers.cg import ConjugateGradient
from quintet.papers.influence.solvers.direct import Direct

L2, QUERY = 0.01, 51
PARTS = ("without_train_loss", "without_hessian", "without_both")


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
    """130 images, 64 weights and a bias."""
    return trained(tmp_path_factory.mktemp("components"), "run", "experiment=influence/components",
                   "data=digits_sample_17", "data.max_train=130", "model.network.bias=true")  # fmt: skip


def ready(run):
    """(module, datamodule), fresh."""
    cfg = compose.saved_config(run)
    datamodule = build(cfg.data)
    datamodule.setup()
    return load_module(cfg, find_checkpoint(SimpleNamespace(ckpt=None, run=run))), datamodule


@pytest.fixture
def no_pictures(monkeypatch):
    """They take most of the time."""
    monkeypatch.setattr(components, "draw_row", lambda path, *args: path)


def rows(folder):
    with (folder / "components" / "components.csv").open() as file:
        return list(csv.DictReader(file))


def column(table, name):
    return np.array([float(row[name]) for row in table])


def by_hand(module, datamodule, decay_bias=False, damping=0.0):
    """(parts by name, constant of the L2 term), one example after the other."""
    weights, bias = (part.detach().numpy().ravel() for part in (module.network.top.weight, module.network.top.bias))
    theta = np.append(weights, bias)
    (x, y), (new, label) = ([part.numpy() for part in datamodule.arrays(split)] for split in ("train", "test"))
    x = np.hstack([x.astype(float), np.ones((len(x), 1))])
    query, y_test = np.append(new[QUERY].astype(float), 1), 1.0 if label[QUERY] else -1.0
    decay = np.diag([L2] * 64 + [L2 * decay_bias])
    hessian = decay + damping * np.eye(65)
    for row in x:
        p = 1 / (1 + np.exp(-(theta @ row)))
        hessian = hessian + p * (1 - p) * np.outer(row, row) / len(x)
    solved, n = np.linalg.solve(hessian, query), len(x)
    surprise = 1 / (1 + np.exp(y_test * (theta @ query)))
    found = {name: [] for name in ("everything", *PARTS)}
    for row, label in zip(x, y, strict=True):
        sign = 1.0 if label else -1.0
        own = 1 / (1 + np.exp(sign * (theta @ row)))
        found["everything"].append(y_test * sign * surprise * own * (row @ solved) / n)
        found["without_train_loss"].append(y_test * sign * surprise * (row @ solved) / n)
        found["without_hessian"].append(y_test * sign * surprise * own * (row @ query) / n)
        found["without_both"].append(y_test * sign * surprise * (row @ query) / n)
    constant = -y_test * surprise * (decay @ theta) @ solved / n
    return {name: np.array(values) for name, values in found.items()}, constant


@pytest.mark.parametrize("decay_bias", [False, True])
@pytest.mark.parametrize("damping", [0.0, 0.1])
@pytest.mark.parametrize("solver", [Direct, ConjugateGradient])
def test_parts_are_the_formula_and_the_engine_is_all_of_it(run, tmp_path, no_pictures, solver, damping, decay_bias):
    module, datamodule = ready(run)
    module.decay_bias = decay_bias
    metrics = Components(solver(damping=damping), QUERY)(module, datamodule, tmp_path)
    metrics = {name.partition("/")[2]: value for name, value in metrics.items()}
    wanted, constant = by_hand(module, datamodule, decay_bias, damping)
    table, size = rows(tmp_path), np.abs(wanted["everything"] + constant).max()
    assert [int(row["train_index"]) for row in table] == list(range(130))
    for name, values in wanted.items():
        np.testing.assert_allclose(column(table, name), values, rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(column(table, "engine"), wanted["everything"] + constant, rtol=1e-5, atol=1e-6 * size)
    assert abs(metrics["one_minus_pearson"]) < 1e-12 and metrics["pearson"] == 1 - metrics["one_minus_pearson"]
    assert metrics["relative_difference"] < 1e-6 < metrics["relative_difference_without_l2_term"]
    assert metrics["relative_difference_without_l2_term"] == pytest.approx(abs(constant) / size, rel=1e-4)
    for name in PARTS:
        assert metrics[f"pearson_{name}"] == pytest.approx(pearsonr(wanted[name], wanted["everything"])[0])
        assert metrics[f"spearman_{name}"] == pytest.approx(spearmanr(wanted[name], wanted["everything"])[0])
        assert metrics[f"pearson_{name}"] < 0.99
    same = datamodule.arrays("train")[1].numpy() == datamodule.arrays("test")[1].numpy()[QUERY]
    assert metrics["same_class"] == same.sum() and metrics["train_examples"] == 130
    assert metrics["same_class_harmful"] == (wanted["everything"][same] < 0).sum()
    assert metrics["same_class_harmful"] > 0 or damping
    assert metrics["same_class_harmful_without_hessian"] == 0  # no pixel is below 0


def test_the_sign_is_that_of_removing(run, tmp_path, no_pictures):
    module, datamodule = ready(run)
    Components(Direct(), QUERY)(module, datamodule, tmp_path)
    (x, y), (new, label) = ([part.double().numpy() for part in datamodule.arrays(split)] for split in ("train", "test"))

    def loss(keep):
        found = LogisticRegression(C=1 / (keep.sum() * L2), tol=1e-10, solver="newton-cholesky").fit(x[keep], y[keep])
        return -found.predict_log_proba(new[QUERY][None])[0, int(label[QUERY])]

    scores = column(rows(tmp_path), "engine")
    for n in (scores.argmax(), scores.argmin()):
        change = loss(np.arange(130) != n) - loss(np.ones(130, bool))
        assert change == pytest.approx(scores[n], rel=0.5) and abs(change) > 1e-3


def test_the_command_line_draws_figure_1(monkeypatch, run):
    command = ["eval.py", f"run={run}", "protocol=components", "trainer=cpu", "trainer.enable_progress_bar=false",
               f"protocol.test_index={QUERY}", "solver=direct"]  # fmt: skip
    monkeypatch.setattr("sys.argv", command)
    drawn = []
    real = components.draw_row
    monkeypatch.setattr(components, "draw_row", lambda *args: drawn.append(args) or real(*args))
    assert cli.eval_main() == 0
    folder = run / "eval" / "components"
    assert (run / "eval/components/components.png").stat().st_size > 20_000
    assert json.loads((folder / "result.json").read_text())["rows"][0] | {"note": None, "unit": ""} == {
        "metric": "components/pearson", "value": pytest.approx(1), "paper": 1.0, "note": None, "unit": ""}  # fmt: skip
    (_, clouds, same, _, _, pictures), table = drawn[0], rows(run / "eval")
    for cloud, name in zip(clouds, ("everything", *PARTS), strict=True):
        np.testing.assert_allclose(cloud.x, column(table, name), rtol=1e-4, atol=1e-9)
        np.testing.assert_allclose(cloud.y, column(table, "engine"), rtol=1e-4, atol=1e-9)
    _, datamodule = ready(run)
    query = datamodule.preview("test", QUERY)
    worst = min((n for n in range(130) if table[n]["label"] == query.label), key=lambda n: float(table[n]["engine"]))
    assert len(pictures) == 2 and same.tolist() == [row["label"] == query.label for row in table]
    for (image, _), wanted in zip(pictures, (query, datamodule.preview("train", worst)), strict=True):
        np.testing.assert_array_equal(image, wanted.image)


def test_a_singular_hessian_is_told(run, tmp_path):
    """Corner pixels that are always dark have no curvature without an L2 term."""
    module, datamodule = ready(run)
    module.l2 = 0.0
    with pytest.raises(UserError, match=r"Hessian is singular: train with model\.l2 above 0, or give solver\.damping"):
        components.closed_form(components.read_terms(module, *of(datamodule)))


def of(datamodule):
    """(training examples, the query)."""
    return components.Examples(datamodule, "train"), components.Examples(datamodule, "test", [QUERY])


def test_other_losses_are_refused(run, tmp_path):
    _, datamodule = ready(run)
    other = ClassifierModule({"kind": "linear"}, {"name": "lbfgs"}, datamodule.data_info, loss="cross_entropy")
    for module in (other, torch.nn.Linear(2, 1)):
        with pytest.raises(UserError, match=r"protocol=components is for model\.loss=logistic"):
            Components(Direct())(module, datamodule, tmp_path)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("protocol.test_index=999", "protocol.test_index has index 999: the test split has"),
        ("protocol.index=3", "did you mean test_index?"),
    ],
)
def test_mistakes_are_one_line(monkeypatch, run, capsys, argument, message):
    monkeypatch.setattr("sys.argv", ["eval.py", f"run={run}", "protocol=components", "trainer=cpu", argument])
    with pytest.raises(SystemExit):
        cli.eval_main()
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and message in lines[0]
