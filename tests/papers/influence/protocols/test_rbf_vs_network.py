"""The comparison of an RBF SVM with a network's features, on the digits sample, against dense linear algebra."""

import csv
import json

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from scipy.stats import spearmanr

from quintet.harness import cli
from quintet.harness.config import compose
from quintet.harness.run.fit import fit
from quintet.harness.run.second_run import load_run
from quintet.papers.influence.protocols import rbf_vs_network

pytestmark = pytest.mark.filterwarnings("ignore:data.features.weights=null")
T, L2 = 0.05, 0.001
FEATURES = ["data=digits_sample_features", "data.features.name=resnet18", "data.features.image_size=16"]


def trained(folder, name, *overrides):
    common = ["trainer=cpu", "callbacks=quiet", "trainer.enable_progress_bar=false", "data.max_train=50", "run_id=x",
              f"model.l2={L2}", f"paths.cache_dir={folder}/cache", f"run_dir={folder}/{name}"]  # fmt: skip
    cfg = compose.compose_checked("train", [*overrides, *common])
    OmegaConf.resolve(cfg)
    fit(cfg)
    return folder / name


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rbf")
    rbf = ["experiment=influence/dogfish_rbf", "data=digits_sample_17", "model.network.gamma=0.3"]
    features = ["experiment=influence/dogfish_features", *FEATURES]
    return trained(folder, "rbf", *rbf), trained(folder, "features", *features)


def evaluated(monkeypatch, run, other, *arguments):
    """Metrics by name, and the rows of the two tables."""
    command = ["eval.py", f"run={run}", "protocol=rbf_vs_network", f"protocol.other_run={other}", "trainer=cpu",
               "trainer.enable_progress_bar=false", f"protocol.smoothness={T}", "protocol.queries=6"]  # fmt: skip
    monkeypatch.setattr("sys.argv", [*command, *arguments])
    assert cli.eval_main() == 0
    folder = run / "eval" / "rbf_vs_network"
    tables = []
    for name in ("influence.csv", "queries.csv"):
        with (folder / name).open() as file:
            tables.append(list(csv.DictReader(file)))
    result = json.loads((folder / "result.json").read_text())
    return {row["metric"].split("/")[1]: row["value"] for row in result["rows"]}, *tables


def dense_svm(run, query):
    """delta of the test loss from the kernel alone: theta = sum of alpha_j phi(x_j) is kept as alpha."""
    module, data = load_run(str(run), None, "cpu")
    (train, labels), (test, test_labels) = (data.arrays(split) for split in ("train", "test"))
    x, z = train.numpy().astype(float), test.numpy().astype(float)[query]
    kernel = np.exp(-0.3 * ((x[:, None] - x[None]) ** 2).sum(2)) + module.network.jitter * np.eye(len(x))
    factor = np.linalg.cholesky(kernel)
    phi_test = np.linalg.solve(factor, np.exp(-0.3 * ((z - x) ** 2).sum(1)))
    phi, y, yt = factor, 2 * labels.numpy() - 1, 2 * int(test_labels[query]) - 1
    theta = module.network.top.weight.detach().numpy()[0]
    inside = 1 / (1 + np.exp(-(1 - y * (phi @ theta)) / T))
    hessian = (phi.T * (inside * (1 - inside) / T)) @ phi / len(x) + L2 * np.eye(len(x))
    slope = -yt / (1 + np.exp(-(1 - yt * (phi_test @ theta)) / T)) * phi_test
    gradients = -(y * inside)[:, None] * phi + L2 * theta
    return gradients @ np.linalg.solve(hessian, slope) / len(x)


def test_scores_distances_and_counts_are_those_by_hand(monkeypatch, runs):
    rbf, features = runs
    metrics, influence, queries = evaluated(monkeypatch, rbf, features)
    assert (rbf / "eval" / "rbf_vs_network" / "figure.png").stat().st_size > 20_000
    query = int(queries[0]["query"])
    delta = {name: np.array([float(row[f"{name}_delta_test_loss_if_removed"]) for row in influence])
             for name in ("rbf", "network")}  # fmt: skip
    np.testing.assert_allclose(delta["rbf"], dense_svm(rbf, query), rtol=2e-3, atol=1e-5 * np.abs(delta["rbf"]).max())
    _, data = load_run(str(rbf), None, "cpu")
    train, test = data.arrays("train")[0], data.arrays("test")[0][query]
    # a grey image counts three times: its channels are those of the picture that the network sees
    wanted = np.sqrt(3) * (train - test).norm(dim=1)
    distance = np.array([float(row["distance"]) for row in influence])
    np.testing.assert_allclose(distance, wanted, rtol=1e-4)
    like = np.array([row["label"] == queries[0]["label"] for row in influence])
    for name, values in delta.items():
        touched = np.array([float(row[f"{name}_train_loss"]) for row in influence]) > 1e-6
        wanted = {
            "spearman": spearmanr(np.abs(values), distance).statistic,
            "spearman_touched": spearmanr(np.abs(values[touched]), distance[touched]).statistic,
            "helpful_other": sum(v > 0 and t and not same for v, t, same in zip(values, touched, like, strict=True)),
            "harmful_same": sum(v < 0 and t and same for v, t, same in zip(values, touched, like, strict=True)),
            "share_of_help_by_other": values[~like & (values > 0)].sum() / values[values > 0].sum(),
            "share_of_harm_by_same": values[like & (values < 0)].sum() / values[values < 0].sum(),
            "top20_helpful_other": (~like[np.argsort(-values)[:20]]).sum(),
            "near_over_far": np.abs(values[np.argsort(distance)[:5]]).sum()
            / np.abs(values[np.argsort(distance)[-5:]]).sum(),
        }
        for key, value in wanted.items():
            assert metrics[f"{name}_{key}"] == pytest.approx(value, abs=1e-3, rel=1e-3)
        every = [float(row[f"{name}_near_over_far"]) for row in queries]
        assert metrics[f"{name}_near_over_far_median"] == pytest.approx(np.median(every), rel=1e-4)
    assert len(queries) == 6 and metrics["rbf_spearman"] != metrics["network_spearman"]


def test_either_run_may_come_first_and_the_test_image_may_be_chosen(monkeypatch, runs):
    rbf, features = runs
    _, influence, queries = evaluated(monkeypatch, rbf, features, "protocol.top=2")
    chosen = queries[3]["query"]
    _, other, again = evaluated(monkeypatch, features, rbf, f"protocol.test_index={chosen}")
    assert [row["query"] for row in again] == [chosen, *(r["query"] for r in queries if r["query"] != chosen)]
    assert again[0] == queries[3] and other != influence


def test_what_is_wrong_or_beyond_the_margin_is_not_compared(monkeypatch, runs, capsys):
    """A test image that one of them gets wrong, or whose hinge loss is 0, is not drawn, and refused if asked for."""
    rbf, features = runs
    metrics, _, queries = evaluated(monkeypatch, rbf, features, "protocol.queries=1000")
    right = np.ones(79, bool)
    for run in (features, rbf):
        module, data = load_run(str(run), None, "cpu")
        batch = data.example_batch("test", range(79))
        right &= (module.predict(batch) == batch.labels).numpy()
    hinge = module.example_losses(batch).detach().numpy()  # the last one's: its smoothness is 0
    eligible = right & (hinge > 0)
    assert sorted(int(row["query"]) for row in queries) == np.flatnonzero(eligible).tolist()
    assert not right.all() and eligible.sum() < right.sum() == metrics["both_right"]
    assert metrics["eligible"] == eligible.sum()
    for wrong in (np.flatnonzero(~right)[0], np.flatnonzero(right & ~eligible)[0]):
        with pytest.raises(SystemExit):
            evaluated(monkeypatch, rbf, features, f"protocol.test_index={wrong}")
        said = f"is none of the {eligible.sum()} examples of test that both models get right, within the SVM's margin"
        assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["protocol.other_run=null"], "protocol.other_run is null"),
        (["protocol.other_run=/nowhere"], "'/nowhere' is no run directory"),
        (["protocol.smoothness=0"], "protocol.smoothness=0"),
        (["data.seed=3"], "the two runs have other train examples"),
        (["protocol.queries=0"], "protocol.queries=0"),
    ],
)
def test_mistakes_are_one_line(monkeypatch, runs, capsys, arguments, message):
    with pytest.raises(SystemExit):
        evaluated(monkeypatch, runs[1], runs[0], *arguments)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and message in lines[0]


def test_two_of_a_kind_are_refused(monkeypatch, runs, capsys):
    for run, said in ((runs[0], "both are"), (runs[1], "none is")):
        with pytest.raises(SystemExit):
            evaluated(monkeypatch, run, run)
        assert f"of run and protocol.other_run {said} an rbf_svm" in capsys.readouterr().err


def test_distances_are_of_pixels_in_any_number_of_blocks(monkeypatch, runs):
    _, data = load_run(str(runs[1]), None, "cpu")
    monkeypatch.setattr(rbf_vs_network, "BATCH", 7)
    found = rbf_vs_network.distances(data, "test", [3, 1])
    train, test = (data.images(split, rows) for split, rows in (("train", range(50)), ("test", [3, 1])))
    wanted = (test[:, None] - train[None]).double().flatten(2).norm(dim=2)
    torch.testing.assert_close(torch.from_numpy(found), wanted, rtol=1e-5, atol=1e-5)
