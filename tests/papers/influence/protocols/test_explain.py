"""`explain` against dense linear algebra, its files, what the picture says, and one line for each mistake."""

import csv
from typing import NamedTuple

import numpy as np
import pytest
import soundfile
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.nn import functional as F

from quintet.common.errors import UserError
from quintet.data.preview import Preview
from quintet.harness import cli
from quintet.harness.config import compose
from quintet.harness.run.fit import fit
from quintet.papers.influence.protocols import explain, panel
from quintet.papers.influence.protocols.explain import Explain
from quintet.papers.influence.protocols.label_plot import draw_labels
from quintet.papers.influence.solvers.cg import ConjugateGradient

TRAIN, TEST, FEATURES, CLASSES, L2, DAMPING = 24, 6, 4, 3, 0.02, 0.05


class Points(NamedTuple):
    inputs: Tensor  # (B, F)
    labels: Tensor  # (B,)


class PointData:
    """Clouds of three classes; an example's group is the third of the split it lies in."""

    def __init__(self, shows: str = "table", groups: bool = True) -> None:
        random = np.random.default_rng(3)
        self.splits, self.shows, self.groups = {}, shows, groups
        for split, count in (("train", TRAIN), ("test", TEST)):
            labels = random.integers(0, CLASSES, count)
            inputs = random.normal(0, 1, (count, FEATURES)) + np.eye(CLASSES, FEATURES)[labels]
            self.splits[split] = Points(torch.tensor(inputs), torch.tensor(labels))

    def num_examples(self, split: str) -> int:
        return len(self.splits[split].labels)

    def example_batch(self, split: str, indices) -> Points:
        return Points(*(part[list(indices)] for part in self.splits[split]))

    def preview(self, split: str, index: int) -> Preview:
        inputs, label = (part[index].numpy() for part in self.splits[split])
        shown = {
            "table": {"table": {f"column {c}": f"{value:.1f}" for c, value in enumerate(inputs)}},
            "text": {"text": f"a sentence about ${index} -> ein Satz ueber {index}"},
            "image": {"image": np.clip(inputs.reshape(2, 2) / 4 + 0.5, 0, 1)},
            "sound": {"audio": np.full(40 + index, 0.01 * index, np.float32), "sample_rate": 1000},
        }[self.shows]
        group = f"{split} {index % 4}" if self.groups else None
        return Preview(f"{split}/{index}", group=group, label=f"class {label}", **shown)


class Softmax(nn.Module):
    """Multinomial logistic regression, fitted to its minimum."""

    def __init__(self, data: PointData, rows=slice(None)) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(CLASSES, FEATURES, dtype=torch.float64))
        self.bias = nn.Parameter(torch.zeros(CLASSES, dtype=torch.float64))
        batch = Points(*(part[rows] for part in data.splits["train"]))
        optimizer = torch.optim.LBFGS(
            self.parameters(), max_iter=200, tolerance_grad=1e-12, tolerance_change=1e-14, line_search_fn="strong_wolfe"
        )

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = self.example_losses(batch).mean() + self.regularisation()
            loss.backward()
            return loss

        optimizer.step(closure)

    def example_losses(self, batch: Points) -> Tensor:
        return F.cross_entropy(F.linear(batch.inputs, self.weight, self.bias), batch.labels, reduction="none")

    def regularisation(self) -> Tensor:
        return L2 / 2 * (self.weight.square().sum() + self.bias.square().sum())


def dense(module: Softmax, data: PointData, rows=slice(None)) -> np.ndarray:
    """(Q, N) scores by writing the Hessian down, with softmax derivatives by hand."""
    x, y = (part[rows].numpy() for part in data.splits["train"])
    xt, yt = (part.numpy() for part in data.splits["test"])
    weight, bias = module.weight.detach().numpy(), module.bias.detach().numpy()

    def probabilities(inputs):
        scores = inputs @ weight.T + bias
        return np.exp(scores) / np.exp(scores).sum(1, keepdims=True)

    def gradients(inputs, labels):
        slope = probabilities(inputs) - np.eye(CLASSES)[labels]
        return np.concatenate([np.einsum("nc,nf->ncf", slope, inputs).reshape(len(inputs), -1), slope], 1)

    p, features = probabilities(x), CLASSES * FEATURES
    hessian = (L2 + DAMPING) * np.eye(features + CLASSES)
    for row, probability in zip(x, p, strict=True):
        jacobian = np.concatenate([np.kron(np.eye(CLASSES), row), np.eye(CLASSES)], 1)  # of the scores, (C, p)
        hessian += jacobian.T @ (np.diag(probability) - np.outer(probability, probability)) @ jacobian / len(x)
    theta = np.concatenate([weight.ravel(), bias])
    train = gradients(x, y) + L2 * theta
    return np.linalg.solve(hessian, gradients(xt, yt).T).T @ train.T / data.num_examples("train")


@pytest.fixture
def no_pictures(monkeypatch):
    """They take most of the time."""
    monkeypatch.setattr(explain, "draw_panel", lambda *args: None)


def explained(folder, data=None, module=None, **options):
    """The metrics and the rows of influence.csv."""
    data = data or PointData()
    solver = ConjugateGradient(damping=DAMPING, tolerance=1e-10)
    metrics = Explain(solver, **{"queries": [4, 1], "top": 3} | options)(module or Softmax(data), data, folder)
    with (folder / "explain" / "influence.csv").open() as file:
        return metrics, list(csv.DictReader(file))


def test_ranks_are_those_of_dense_linear_algebra(tmp_path, no_pictures):
    data = PointData()
    module = Softmax(data)
    scores_qn = dense(module, data)
    metrics, rows = explained(tmp_path, data, module)
    losses = module.example_losses(data.splits["train"]).detach()
    for query in (4, 1):
        for kind, sign in (("helpful", 1), ("harmful", -1)):
            mine = [row for row in rows if row["query"] == str(query) and row["kind"] == kind]
            order = [n for n in np.argsort(-sign * scores_qn[query]) if sign * scores_qn[query, n] > 0]
            assert [int(row["train_index"]) for row in mine] == order and len(order) > 5
            assert [int(row["rank"]) for row in mine] == list(range(1, len(order) + 1))
            for row, n in zip(mine, order, strict=True):
                assert float(row["delta_test_loss_if_removed"]) == pytest.approx(scores_qn[query, n], rel=1e-5)
                assert float(row["train_loss"]) == pytest.approx(float(losses[n]), rel=1e-5)
                assert row["title"] == f"train/{n}" and row["query_title"] == f"test/{query}"
                assert row["label"] == f"class {data.splits['train'].labels[n]}" and row["group"] == f"train {n % 4}"
    stored = np.load(tmp_path / "explain" / "scores.npz")
    np.testing.assert_allclose(stored["delta_test_loss_if_removed"], scores_qn[[4, 1]], rtol=1e-6, atol=1e-12)
    assert stored["query_index"].tolist() == [4, 1] and stored["train_index"].tolist() == list(range(TRAIN))
    assert metrics["explain/parameters"] == 15 and metrics["explain/train_examples"] == TRAIN
    assert metrics["explain/relative_residual"] < 1e-8 and metrics["explain/effective_damping"] == DAMPING
    assert metrics["explain/gradient_norm"] < 1e-6


def test_a_part_of_the_parameters_and_of_the_examples(tmp_path, no_pictures):
    """Scores from a sample are those of removing one of ALL training examples, the Hessian is the sample's."""
    data = PointData()
    module = Softmax(data)
    metrics, rows = explained(tmp_path / "some", data, module, max_train=10, seed=5)
    used = np.load(tmp_path / "some" / "explain" / "scores.npz")
    assert metrics["explain/train_examples"] == 10 == len(set(used["train_index"].tolist()))
    wanted = dense(module, data, rows=torch.tensor(used["train_index"]))
    np.testing.assert_allclose(used["delta_test_loss_if_removed"], wanted[[4, 1]], rtol=1e-6, atol=1e-12)
    assert {int(row["train_index"]) for row in rows} <= set(used["train_index"].tolist())
    assert explained(tmp_path / "bias", data, module, params="bi*")[0]["explain/parameters"] == 3


def test_groups_add_up(tmp_path, no_pictures):
    data = PointData()
    module = Softmax(data)
    scores_qn = dense(module, data)
    _, rows = explained(tmp_path, data, module, aggregate="group")
    losses = module.example_losses(data.splits["train"]).detach().numpy()
    for query in (4, 1):
        sums = scores_qn[query].reshape(-1, 4).sum(0)  # groups are n % 4
        mine = {row["title"]: row for row in rows if row["query"] == str(query)}
        assert set(mine) == {f"train {g}" for g in range(4)}
        for g in range(4):
            row, members = mine[f"train {g}"], range(g, TRAIN, 4)
            assert float(row["delta_test_loss_if_removed"]) == pytest.approx(sums[g], rel=1e-5)
            assert row["kind"] == ("helpful" if sums[g] > 0 else "harmful")
            assert float(row["train_loss"]) == pytest.approx(losses[list(members)].mean(), rel=1e-5)
            assert int(row["train_index"]) == max(members, key=lambda n: np.sign(sums[g]) * scores_qn[query, n])
        for kind in ("helpful", "harmful"):
            found = [abs(float(row["delta_test_loss_if_removed"])) for row in mine.values() if row["kind"] == kind]
            assert found == sorted(found, reverse=True)


def test_shares_of_a_label_are_counted(tmp_path, no_pictures):
    data = PointData()
    module = Softmax(data)
    scores_qn, train, test = (
        dense(module, data),
        data.splits["train"].labels.numpy(),
        data.splits["test"].labels.numpy(),
    )
    metrics, _ = explained(tmp_path, data, module)
    for kind, sign in (("helpful", 1), ("harmful", -1)):
        tops = {query: np.argsort(-sign * scores_qn[query])[:3] for query in (4, 1)}
        wanted = np.mean([train[top] == test[query] for query, top in tops.items()])
        assert metrics[f"explain/{kind}_same_label"] == pytest.approx(wanted)
    assert metrics["explain/helpful_same_label"] > metrics["explain/all_same_label"]
    assert metrics["explain/all_same_label"] == pytest.approx(
        np.mean([(train == test[query]).mean() for query in (4, 1)])
    )


def test_a_number_of_queries_is_drawn_by_the_seed(tmp_path, no_pictures):
    drawn = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        _, rows = explained(tmp_path / name, queries=3, seed=seed)
        drawn.append(sorted({int(row["query"]) for row in rows}))
    assert len(drawn[0]) == 3 and drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize("shows", ["table", "text", "image", "sound"])
@pytest.mark.parametrize("aggregate", ["example", "group"])
def test_the_picture_shows_the_query_and_the_top_ones(tmp_path, monkeypatch, shows, aggregate):
    drawn = []
    show = panel._draw_card
    monkeypatch.setattr(panel, "_draw_card", lambda *args: drawn.append((args[2], args[4])) or show(*args))
    _, rows = explained(tmp_path, PointData(shows), queries=[2], aggregate=aggregate)
    assert (tmp_path / "explain" / "query_2.png").stat().st_size > 10_000
    assert drawn[0][1] == "query" and drawn[0][0].preview.title == "test/2"
    for kind in ("helpful", "harmful"):
        mine = [row for row in rows if row["kind"] == kind][:3]
        cards = [card for card, of in drawn if of == kind]
        assert [card.heading for card in cards] == [f"{float(r['delta_test_loss_if_removed']):+#.3g}" for r in mine]
        for card, row in zip(cards, mine, strict=True):
            expected = f"train/{row['train_index']}" if aggregate == "example" or shows != "sound" else row["title"]
            assert card.preview.title.startswith(expected)


def test_sounds_are_written_and_a_group_is_all_its_windows(tmp_path, no_pictures):
    data = PointData("sound")
    _, rows = explained(tmp_path, data, queries=[2], aggregate="group")
    first = next(row for row in rows if row["kind"] == "helpful" and row["rank"] == "1")
    members = range(int(first["title"].split()[1]), TRAIN, 4)
    wave, rate = soundfile.read(tmp_path / "explain" / "query_2_helpful_1.wav")
    assert rate == 1000
    np.testing.assert_allclose(wave, np.concatenate([data.preview("train", n).audio for n in members]), atol=1e-4)
    assert len(soundfile.read(tmp_path / "explain" / "query_2.wav")[0]) == 42
    cards = len(list((tmp_path / "explain").glob("query_2_h*.wav")))
    assert cards == min(3, sum(row["kind"] == "helpful" for row in rows)) + min(
        3, sum(r["kind"] == "harmful" for r in rows)
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"queries": [6]}, r"protocol\.queries has index 6: the test split has 6 examples, counted from 0"),
        ({"queries": [-1]}, r"protocol\.queries has index -1"),
        ({"queries": []}, r"protocol\.queries is empty"),
        ({"queries": 7}, r"protocol\.queries=7: there are 6 examples"),
        ({"queries": 0}, r"protocol\.queries=0: give 1 or more"),
        ({"max_train": 25}, r"protocol\.max_train=25: there are 24 examples"),
        ({"top": 0}, r"protocol\.top=0"),
        ({"aggregate": "speaker"}, r"protocol\.aggregate='speaker': choose example or group"),
        ({"params": "head.*"}, r"matches no parameter: choose from weight, bias"),
    ],
)
def test_impossible_requests(tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        explained(tmp_path, **options)


def test_data_without_groups_and_modules_without_losses(tmp_path):
    with pytest.raises(UserError, match=r"protocol\.aggregate=group: .* have no groups"):
        explained(tmp_path, PointData(groups=False), aggregate="group")
    with pytest.raises(UserError, match=r"Linear has no example_losses\(batch\)"):
        explained(tmp_path, module=nn.Linear(2, 2))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A trained run of the pairs sample."""
    folder = tmp_path_factory.mktemp("explain")
    overrides = ["experiment=rare_events/translation_multi30k", "data=pairs_sample", "trainer=cpu", "callbacks=quiet",
                 "trainer.max_steps=2", "trainer.enable_progress_bar=false", "trainer.limit_val_batches=1",
                 "model.network.width=8", "model.memory.slots=64", "model.memory.width=8", "model.memory.neighbours=8",
                 "data.source.num_train=30", "data.source.num_test=4", "data.batch_size=8", "run_id=x",
                 f"paths.cache_dir={folder}/cache", f"run_dir={folder}/run"]  # fmt: skip
    cfg = compose.compose_checked("train", overrides)
    OmegaConf.resolve(cfg)
    fit(cfg)
    return folder / "run"


def evaluated(monkeypatch, run, *arguments):
    command = ["eval.py", f"run={run}", "protocol=explain", "trainer=cpu", "trainer.enable_progress_bar=false"]
    monkeypatch.setattr("sys.argv", [*command, *arguments])
    return cli.eval_main()


def test_the_command_line_explains_a_run(monkeypatch, run, capsys):
    arguments = [
        "protocol.queries=[1]",
        "protocol.params=network.bias",
        "solver.damping=1.0",
        "protocol.top=2",
    ]
    assert evaluated(monkeypatch, run, *arguments) == 0
    assert "explain/relative_residual" in capsys.readouterr().out
    files = {path.name for path in (run / "eval" / "explain").iterdir()}
    assert {"influence.csv", "scores.npz", "query_1.png", "result.json"} <= files
    assert not any(name.endswith(".wav") for name in files)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("protocol.queries=[4]", "protocol.queries has index 4: the test split has 4 examples"),
        ("protocol.params=network.haed.*", "matches no parameter: choose from network.bias, "),
        ("protocol.aggregate=group", "have no groups"),
        ("protocol.tops=3", "did you mean top?"),
        ("solver.dampnig=3", "did you mean damping?"),
    ],
)
def test_mistakes_are_one_line(monkeypatch, run, capsys, argument, message):
    with pytest.raises(SystemExit):
        evaluated(monkeypatch, run, "protocol.params=network.bias", "solver.damping=1.0", argument)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and message in lines[0]


def test_the_plot_marks_the_querys_own_label(tmp_path, no_pictures, monkeypatch):
    data, drawn = PointData(), []
    monkeypatch.setattr(explain, "draw_labels", lambda path, *rest: drawn.append(rest) or draw_labels(path, *rest))
    protocol = Explain(ConjugateGradient(damping=DAMPING), queries=[4, 1], top=3)
    assert protocol.picture is None
    protocol(Softmax(data), data, tmp_path)
    assert (tmp_path / protocol.picture).stat().st_size > 5000
    [(shown, scores_qu, labels_u, *_)] = drawn
    assert [one.title for one in shown] == ["test/4", "test/1"] and scores_qu.shape == (2, TRAIN)
    assert labels_u == [f"class {label}" for label in data.splits["train"].labels]
