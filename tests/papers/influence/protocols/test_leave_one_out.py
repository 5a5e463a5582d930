"""`leave_one_out` on the digits sample, against refits by scikit-learn and SciPy and dense linear algebra."""

import csv
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from omegaconf import OmegaConf
from scipy.optimize import minimize
from scipy.special import softmax
from scipy.stats import pearsonr, spearmanr
from sklearn.linear_model import LogisticRegression

from quintet.common.errors import UserError
from quintet.harness import cli
from quintet.harness.config import compose
from quintet.harness.config.build import build
from quintet.harness.run.evaluate import find_checkpoint, load_module
from quintet.harness.run.fit import fit
from quintet.papers.influence.protocols import leave_one_out
from quintet.papers.influence.protocols.leave_one_out import LeaveOneOut
from quintet.papers.influence.protocols.scatter import Cloud, draw_clouds
from quintet.papers.influence.retraining import chord_newton
from quintet.papers.influence.retraining.leave_one_out import RetrainConfig
from quintet.papers.influence.solvers.cg import ConjugateGradient
from quintet.papers.influence.solvers.direct import Direct

L2 = 0.01
SVM_L2 = 0.5  # so strong that not all support vectors lie on the margin
COUNT, QUERY = 5, 3


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
    """Logistic regression of 120 images, 640 parameters."""
    return trained(tmp_path_factory.mktemp("loo"), "run", "experiment=influence/sample", "data.max_train=120")


@pytest.fixture(scope="module")
def svm(tmp_path_factory):
    folder = tmp_path_factory.mktemp("loo_svm")
    return trained(
        folder,
        "svm",
        "experiment=influence/mnist_svm",
        "data=digits_sample_17",
        "data.max_train=60",
        f"model.l2={SVM_L2}",
    )


def ready(run):
    """(module, datamodule), fresh."""
    cfg = compose.saved_config(run)
    datamodule = build(cfg.data)
    datamodule.setup()
    return load_module(cfg, find_checkpoint(SimpleNamespace(ckpt=None, run=run))), datamodule


@pytest.fixture
def no_pictures(monkeypatch):
    """They take most of the time."""
    monkeypatch.setattr(leave_one_out, "draw_clouds", lambda path, *args: path)


def protocol(**options):
    return LeaveOneOut(**{"solvers": {"direct": Direct()}, "test_index": QUERY, "count": COUNT} | options)


def rows(folder):
    with (folder / "leave_one_out" / "removals.csv").open() as file:
        return list(csv.DictReader(file))


def column(table, name):
    return np.array([float(row[name]) for row in table])


def tables(datamodule):
    """(inputs, labels) of training and test, in numpy."""
    return *(part.numpy() for part in datamodule.arrays("train")), *(part.numpy() for part in datamodule.arrays("test"))


def refitted_loss(x, y, new, label):
    """Of one new example, after scikit-learn has fitted the others."""
    found = LogisticRegression(C=1 / (len(x) * L2), fit_intercept=False, tol=1e-10, solver="newton-cg", max_iter=1000)
    return -found.fit(x.astype(float), y).predict_log_proba(new[None].astype(float))[0, label]


def dense(module, datamodule):
    """Influence (N,) on the query's loss, written out."""
    x, y, new, label = tables(datamodule)
    weights_cf = module.network.top.weight.detach().numpy()
    chances = softmax(x @ weights_cf.T, 1)
    curvature = chances[:, :, None] * (np.eye(10) - chances[:, None])
    hessian = np.einsum("ncd,nf,ng->cfdg", curvature, x, x, optimize=True).reshape(640, 640) / len(x) + L2 * np.eye(640)
    gradients = (chances - np.eye(10)[y])[:, :, None] * x[:, None] + L2 * weights_cf
    slope = softmax(new[QUERY] @ weights_cf.T) - np.eye(10)[label[QUERY]]
    solved = np.linalg.solve(hessian, np.outer(slope, new[QUERY]).ravel())
    return gradients.reshape(len(x), -1) @ solved / len(x)


def test_figure_2_from_the_command_line(monkeypatch, run):
    """What is left out, what was predicted and what refitting gives; the numbers that compare them."""
    command = ["eval.py", f"run={run}", "protocol=leave_one_out", "trainer=cpu", "trainer.enable_progress_bar=false",
               f"protocol.count={COUNT}", f"protocol.test_index={QUERY}", "protocol.pick=both",
               "protocol.solvers.lissa.depth=20", "protocol.solvers.lissa.repeats=1"]  # fmt: skip
    monkeypatch.setattr("sys.argv", command)
    assert cli.eval_main() == 0
    folder, (module, datamodule) = run / "eval", ready(run)
    assert (folder / "leave_one_out" / "scatter.png").stat().st_size > 20_000
    table, scores = rows(folder), dense(module, datamodule)
    largest = [row for row in table if "largest" in row["picked"]]
    random = [row for row in table if "random" in row["picked"]]
    assert [int(row["train_index"]) for row in largest] == np.argsort(-np.abs(scores))[:COUNT].tolist()
    assert len({row["train_index"] for row in random}) == COUNT and random != largest
    x, y, new, label = tables(datamodule)
    before = refitted_loss(x, y, new[QUERY], label[QUERY])
    for row in table:
        i = int(row["train_index"])
        assert float(row["predicted_cg"]) == pytest.approx(scores[i], rel=1e-4, abs=1e-9)
        after = refitted_loss(np.delete(x, i, 0), np.delete(y, i), new[QUERY], label[QUERY])
        assert float(row["actual"]) == pytest.approx(after - before, rel=1e-3, abs=1e-6)
        assert row["label"] == str(y[i]) and float(row["residual"]) <= 1e-8
    stored = json.loads((folder / "leave_one_out" / "result.json").read_text())["rows"]
    metrics = {row["metric"].partition("/")[2]: row["value"] for row in stored}
    for start, part in (("", largest), ("random_", random)):
        actual = column(part, "actual")
        for solver in ("cg", "lissa"):
            predicted = column(part, f"predicted_{solver}")
            wanted = {
                "pearson": pearsonr(predicted, actual)[0],
                "spearman": spearmanr(predicted, actual)[0],
                "rms_ratio": np.sqrt((predicted**2).sum() / (actual**2).sum()),
            }
            for name, value in wanted.items():
                assert metrics[f"{start}{name}_{solver}"] == pytest.approx(value, rel=1e-4, abs=1e-4)
    assert metrics["pearson_cg"] > 0.99 and metrics["pearson_cg"] > metrics["pearson_lissa"]  # of twenty steps only
    assert metrics["relative_residual_cg"] < 1e-7 < metrics["relative_residual_lissa"]
    assert metrics["removals"] == len(table) == len({row["train_index"] for row in table})
    assert metrics["query_loss"] == pytest.approx(before, abs=1e-6) and abs(metrics["control_change"]) < 1e-6
    assert metrics["largest_change"] == pytest.approx(np.abs(column(table, "actual")).max(), rel=1e-5)


@pytest.mark.parametrize("method", ["newton", "lbfgs"])
def test_what_retraining_changes_anyway_is_the_controls(run, tmp_path, no_pictures, monkeypatch, method):
    """From weights that are not the minimum: the change is that from minimum to minimum all the same."""
    module, datamodule = ready(run)
    if method == "lbfgs":  # the same model, which no longer says that it is linear
        monkeypatch.setattr(type(module), "linear_parts", lambda self, batch: None)
    with torch.no_grad():
        module.network.top.weight.mul_(0.9)
    x, y, new, label = tables(datamodule)
    outputs = new[QUERY] @ module.network.top.weight.detach().numpy().T
    metrics = protocol(count=2, retrain={"method": method, "tolerance": 1e-7})(module, datamodule, tmp_path)
    minimum = refitted_loss(x, y, new[QUERY], label[QUERY])
    assert metrics["leave_one_out/query_loss"] == pytest.approx(-np.log(softmax(outputs)[label[QUERY]]))
    moved = minimum - metrics["leave_one_out/query_loss"]
    assert abs(moved) > 1e-3 and metrics["leave_one_out/control_change"] == pytest.approx(moved, rel=1e-4)
    for row in rows(tmp_path):
        i = int(row["train_index"])
        after = refitted_loss(np.delete(x, i, 0), np.delete(y, i), new[QUERY], label[QUERY])
        assert float(row["actual"]) == pytest.approx(after - minimum, rel=1e-3, abs=1e-6)


def test_adam_trains_each_removal_and_the_control_for_as_long(run, tmp_path, no_pictures):
    module, datamodule = ready(run)
    retrain = RetrainConfig("adam", steps=7, lr=1e-4, batch_size=50)
    metrics = protocol(count=2, retrain=retrain)(module, datamodule, tmp_path)
    assert [row["iterations"] for row in rows(tmp_path)] == ["7", "7"]
    assert metrics["leave_one_out/retrained_residual"] > 1e-5 and metrics["leave_one_out/control_change"] != 0


def hinge_minimum(rows_nf):
    """The SVM's weights by SciPy on its dual."""
    n = len(rows_nf)
    kernel = rows_nf @ rows_nf.T / (n * n * SVM_L2)
    found = minimize(lambda a: (0.5 * a @ kernel @ a - a.mean(), kernel @ a - 1 / n), np.full(n, 0.5), jac=True,
                     bounds=[(0, 1)] * n, options={"ftol": 1e-18, "gtol": 1e-12, "maxiter": 10**5})  # fmt: skip
    return rows_nf.T @ found.x / (n * SVM_L2)


def smooth(margins, t):
    return np.maximum(0, 1 - margins) if t == 0 else t * np.logaddexp(0, (1 - margins) / t)


def smooth_influence(rows_nf, query_f, weights_f, t):
    """(N,) by SmoothHinge(t) at weights fitted with the hinge."""
    chance = (lambda s: (s < 1).astype(float)) if t == 0 else lambda s: 1 / (1 + np.exp((s - 1) / t))
    at = chance(rows_nf @ weights_f)
    bend = at * (1 - at) / t if t else np.zeros(len(at))
    hessian = rows_nf.T @ (bend[:, None] * rows_nf) / len(rows_nf) + SVM_L2 * np.eye(len(weights_f))
    solved = np.linalg.solve(hessian, -chance(query_f @ weights_f) * query_f)
    return (-at[:, None] * rows_nf + SVM_L2 * weights_f) @ solved / len(rows_nf)


@pytest.mark.parametrize("own", [0, 0.03])
def test_figure_3_smooths_the_prediction_and_not_the_retraining(svm, tmp_path, no_pictures, own):
    """The model's own t is that of the changes; each t also meets the change of its own loss."""
    module, datamodule = ready(svm)
    module.smoothness = own
    times = [own, 0.1] if own else [0, 0.01, 0.1]
    x, y, new, label = tables(datamodule)
    rows_nf, queries = x * (2.0 * y - 1)[:, None], new * (2.0 * label - 1)[:, None]
    weights_f = module.network.top.weight.detach().numpy()[0]
    query = int(np.argmin(np.abs(queries @ weights_f - 0.9)))  # inside the margin: t = 0 is no hopeless choice
    tolerance = {"tolerance": 1e-7}
    metrics = protocol(test_index=query, smoothness=times, retrain=tolerance)(module, datamodule, tmp_path)
    metrics = {name.partition("/")[2]: value for name, value in metrics.items()}
    assert module.smoothness == own
    table = rows(tmp_path)
    picked = [int(row["train_index"]) for row in table]
    clear = np.abs(rows_nf @ weights_f - 1) > 1e-9  # rounding says on which side of the hinge's corner the others are
    for t in times:
        known = np.ones(len(picked), bool) if t else clear[picked]
        wanted = smooth_influence(rows_nf, queries[query], weights_f, t)[picked][known]
        np.testing.assert_allclose(column(table, f"predicted_direct_t{t:g}")[known], wanted, rtol=1e-4, atol=1e-9)
    sizes = np.abs(column(table, f"predicted_direct_t{times[0]:g}"))
    rest = np.delete(
        np.abs(smooth_influence(rows_nf, queries[query], weights_f, times[0])) * (clear | (own > 0)), picked
    )
    assert clear[picked].any() and sorted(sizes)[::-1] == sizes.tolist() and sizes.min() >= rest.max() * (1 - 1e-5)
    for t in times:
        wanted = pearsonr(column(table, f"predicted_direct_t{t:g}"), column(table, "actual"))[0]
        assert metrics[f"pearson_direct_t{t:g}"] == pytest.approx(wanted, abs=1e-4)
    for t in times[1:]:
        predicted, actual = column(table, f"predicted_direct_t{t:g}"), column(table, f"actual_t{t:g}")
        assert metrics[f"own_pearson_direct_t{t:g}"] == pytest.approx(pearsonr(predicted, actual)[0], abs=1e-4)
    if own == 0:
        less = [hinge_minimum(np.delete(rows_nf, i, 0)) for i in picked]
        for t in times:
            changes = [smooth(queries[query] @ w, t) - smooth(queries[query] @ weights_f, t) for w in less]
            name = "actual" if t == 0 else f"actual_t{t:g}"
            np.testing.assert_allclose(column(table, name), changes, atol=2e-4)
        assert np.abs(changes).max() > 2e-3


def test_a_second_call_retrains_only_what_is_new(run, tmp_path, no_pictures, monkeypatch):
    retrained = []
    real = chord_newton.ChordNewton.run
    monkeypatch.setattr(
        chord_newton.ChordNewton, "run", lambda self, risk, left: retrained.append(len(left)) or real(self, risk, left)
    )
    first = protocol(count=2)(*ready(run), tmp_path)
    more = protocol(count=4)(*ready(run), tmp_path)
    again = protocol(count=4, solvers={"cg": ConjugateGradient()})(*ready(run), tmp_path)
    assert retrained == [3, 2] and again["leave_one_out/seconds_retraining"] == 0  # the control is one of the three
    assert again["leave_one_out/pearson_cg"] == pytest.approx(more["leave_one_out/pearson_direct"])
    assert first["leave_one_out/largest_change"] <= more["leave_one_out/largest_change"]
    protocol(count=2, test_index=QUERY + 1)(*ready(run), tmp_path)
    assert retrained == [3, 2, 3]  # another query's losses were not measured


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 120}, r"protocol\.count=120: there are 120 training examples, leave out fewer"),
        ({"count": 1}, r"protocol\.count=1: give 2 or more"),
        ({"solvers": {}}, r"protocol\.solvers is empty"),
        ({"solvers": {"cg": None, "lissa": None}}, r"protocol\.solvers is empty"),
        ({"pick": "smallest"}, r"protocol\.pick='smallest' is unknown: use one of largest, random, both"),
        ({"test_index": 400}, r"protocol\.test_index has index 400: the test split has 400 examples"),
        ({"split": "val", "test_index": 200}, r"the val split has 200 examples"),
        ({"smoothness": [0, -1]}, r"protocol\.smoothness=\[0, -1\]: give numbers of 0 or more"),
        ({"smoothness": []}, r"protocol\.smoothness=\[\]"),
        ({"smoothness": [0.1]}, r"protocol\.smoothness is for model\.loss=smooth_hinge"),
        ({"retrain": {"method": "sgd"}}, r"retrain\.method='sgd' is unknown"),
        ({"retrain": {"method": "hinge"}}, r"retrain\.method=hinge: the loss of ClassifierModule is not the hinge"),
        ({"retrain": {"tolerence": 1}}, r"tolerence"),
    ],
)
def test_impossible_requests(run, tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        protocol(**options)(*ready(run), tmp_path)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("protocol.count=120", "protocol.count=120: there are 120 training examples"),
        ("protocol.cuont=3", "did you mean count?"),
        ("protocol.solvers.cg.dampnig=3", "did you mean damping?"),
        ("protocol.retrain.step=3", "did you mean steps?"),
    ],
)
def test_mistakes_are_one_line(monkeypatch, run, capsys, argument, message):
    monkeypatch.setattr("sys.argv", ["eval.py", f"run={run}", "protocol=leave_one_out", "trainer=cpu", argument])
    with pytest.raises(SystemExit):
        cli.eval_main()
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and message in lines[0]


@pytest.mark.parametrize("panels", [1, 3])
def test_a_headline_is_no_wider_than_its_figure(tmp_path, monkeypatch, panels):
    drawn, save = [], Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda figure, *rest, **more: drawn.append(figure) or save(figure, *rest, **more)
    )
    points = np.arange(5.0)
    cloud = Cloud("cg", points, points, "", "x", "y")
    headline = "loss of test example 8 (5) without each of 100 training examples, one at a time"
    draw_clouds(tmp_path / "a.png", [[cloud] * panels], [points > 2], ("a", "b"), headline)
    [figure] = drawn
    assert figure.get_suptitle().replace("\n", " ") == headline
    figure.canvas.draw()  # at the figure's own resolution, not that of the file
    assert figure._suptitle.get_window_extent().width < figure.bbox.width
