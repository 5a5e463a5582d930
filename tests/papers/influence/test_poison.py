"""The training-set attack on a toy frozen network, against SciPy's refits of every moved training set."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import nn

from quintet.common.errors import UserError
from quintet.data.batches import ExampleBatch
from quintet.data.examples.features import Backbone
from quintet.papers.influence.attack.poison import LEVEL, AttackConfig, Attempt, PoisonedTraining
from quintet.papers.influence.classifiers.losses import logistic

TRAIN, TEST, SIDE, FEATURES, L2 = 14, 6, 2, 4, 0.05


def toy_backbone() -> Backbone:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        body = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE * SIDE, FEATURES), nn.Tanh())
    return Backbone(body, SIDE, (0.5, 0.5, 0.5), (0.3, 0.3, 0.3)).double()


class ToyData:
    """Images of whole 8-bit levels, some of them 0 and 255, and the backbone's features of them."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.pictures, self.batches = {}, {}
        for split, count in (("train", TRAIN), ("test", TEST)):
            levels = torch.randint(-60, 320, (count, 3, SIDE, SIDE), generator=generator).clamp(0, 255)
            images = levels.double() / 255
            features = toy_backbone()(images)
            noise = 0.4 * torch.randn(count, generator=generator)
            labels = (features[:, 0] - features[:, 1] + noise > 0).long()
            self.pictures[split], self.batches[split] = images, ExampleBatch(features, labels, torch.arange(count))

    def num_examples(self, split: str) -> int:
        return len(self.pictures[split])

    def example_batch(self, split: str, indices) -> ExampleBatch:
        return ExampleBatch(*(part[list(indices)] for part in self.batches[split]))

    def images(self, split: str, indices) -> torch.Tensor:
        return self.pictures[split][list(indices)]


class Top(nn.Module):
    """Logistic regression; where it starts is not its minimum."""

    loss = "logistic"

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.top = nn.Linear(FEATURES, 1, bias).double()

    def example_losses(self, batch: ExampleBatch) -> torch.Tensor:
        return logistic(self.top(batch.inputs)[:, 0], batch.labels)

    def regularisation(self) -> torch.Tensor:
        return L2 / 2 * self.top.weight.square().sum()


def toy(bias: bool = True, **settings) -> PoisonedTraining:
    settings = {"shortlist": None, "tolerance": 1e-12} | settings
    return PoisonedTraining(Top(bias), ToyData(), toy_backbone(), "test", AttackConfig(**settings))


def refitted_margin(moved: dict[int, torch.Tensor], query: int, bias: bool = True) -> float:
    """Of a test example, with some training images replaced, by SciPy."""
    data = ToyData()
    images = data.pictures["train"].clone()
    for row, image in moved.items():
        images[row] = image
    features = toy_backbone()(images).detach().numpy()
    ones = np.ones((TRAIN, int(bias)))
    x, y = np.hstack([features, ones]), 2 * data.batches["train"].labels.numpy() - 1
    decay = np.array([L2] * FEATURES + [0.0] * int(bias))

    def risk(theta):
        margins = y * (x @ theta)
        slope = -(x * (y / (1 + np.exp(margins)))[:, None]).mean(0) + decay * theta
        return np.log1p(np.exp(-margins)).mean() + 0.5 * (decay * theta**2).sum(), slope

    theta = minimize(risk, np.zeros(x.shape[1]), jac=True, method="BFGS", options={"gtol": 1e-11}).x
    row, label = data.batches["test"].inputs[query].detach().numpy(), int(data.batches["test"].labels[query])
    return float((2 * label - 1) * (np.append(row, np.ones(int(bias))) @ theta))


def loss_of(margin: float) -> float:
    return float(np.log1p(np.exp(-margin)))


def strengths(query: int) -> np.ndarray:
    """Sum over an image's pixels of the test loss's slope, by refitting with each pixel moved both ways."""
    pictures, size = ToyData().pictures["train"], 1e-4
    found = np.zeros(TRAIN)
    for row in range(TRAIN):
        for pixel in range(pictures[row].numel()):
            ends = []
            for sign in (1, -1):
                image = pictures[row].clone()
                image.view(-1)[pixel] += sign * size
                ends.append(loss_of(refitted_margin({row: image}, query)))
            found[row] += abs(ends[0] - ends[1]) / (2 * size)
    return found


def right(problem: PoisonedTraining) -> list[int]:
    return torch.nonzero(problem.margins() > 0)[:, 0].tolist()


@pytest.mark.parametrize("bias", [True, False])
def test_starts_from_the_minimum(bias):
    margins = toy(bias).margins()
    np.testing.assert_allclose(margins, [refitted_margin({}, q, bias) for q in range(TEST)], atol=1e-7)


def test_chooses_what_moves_the_loss_of_the_refitted_model_most():
    problem = toy()
    query = right(problem)[0]
    wanted = np.argsort(-strengths(query)).tolist()
    assert problem.choose(query, TRAIN) == wanted and problem.choose(query, 3) == wanted[:3]
    near = toy(shortlist=5).choose(query, 5)
    assert len(set(near)) == 5 and near == [row for row in wanted if row in near]


@pytest.mark.parametrize("count", [1, 3])
def test_the_first_step_raises_the_refitted_loss_by_what_was_predicted(count):
    problem = toy(iterations=1, step=0.01)
    query = right(problem)[0]
    images = problem.choose(query, count)
    (found,) = problem.run([Attempt(query, images)])
    pictures = ToyData().pictures["train"]
    moved = {row: pictures[row] + move * LEVEL for row, move in zip(images, found.moves, strict=True)}
    change = loss_of(refitted_margin(moved, query)) - loss_of(refitted_margin({}, query))
    assert change > 0 and found.predicted == pytest.approx(change, rel=2e-3)
    assert found.losses[1] - found.losses[0] == pytest.approx(change, rel=1e-3)
    # only the image's own share of n: all pixels that can move have moved by a step
    assert {round(v, 6) for v in found.moves.abs().unique().tolist()} <= {0.0, 0.01}


def test_every_margin_is_that_of_a_refit_and_pixels_stay_in_the_box():
    problem = toy(iterations=12, step=0.1, radius=0.499)
    query = right(problem)[0]
    images = problem.choose(query, 2)
    (found,) = problem.run([Attempt(query, images)])
    assert len(found.margins) == 13 and not found.flipped
    assert all(after < before for before, after in zip(found.margins, found.margins[1:5], strict=False))
    originals = ToyData().pictures["train"][images]
    moved = originals + found.moves * LEVEL
    wanted = refitted_margin(dict(zip(images, moved, strict=True)), query)
    assert found.margins[-1] == pytest.approx(wanted, abs=1e-7)
    assert found.margins[-1] < refitted_margin({}, query) - 1e-4
    assert 0.498 < float(found.moves.abs().max()) < 0.4991
    assert moved.min() >= -1e-12 and moved.max() <= 1 + 1e-12
    assert bool((originals == 0).any()) and bool((originals == 1).any())  # the edge of [0, 1] was there to be crossed
    torch.testing.assert_close((moved * 255).round(), (originals * 255).round())


def test_attempts_side_by_side_are_those_alone_and_leave_when_flipped():
    problem = toy(iterations=25, step=10, radius=250)
    queries = right(problem)
    attempts = [Attempt(query, problem.choose(query, 1 + place)) for place, query in enumerate(queries)]
    together = problem.run(attempts)
    lengths = set()
    for attempt, found in zip(attempts, together, strict=True):
        (alone,) = problem.run([attempt])
        np.testing.assert_allclose(found.margins, alone.margins, atol=1e-8)
        torch.testing.assert_close(found.moves, alone.moves)
        assert all(margin >= 0 for margin in found.margins[:-1])
        moved = ToyData().pictures["train"][attempt.images] + found.moves * LEVEL
        wanted = refitted_margin(dict(zip(attempt.images, moved, strict=True)), attempt.query)
        assert found.margins[-1] == pytest.approx(wanted, abs=1e-6)
        lengths.add(len(found.margins))
    assert len(lengths) > 1 and any(found.flipped for found in together)


def test_another_loss_is_refused():
    module = Top(True)
    module.loss = "smooth_hinge"
    with pytest.raises(UserError, match="use a run of model=binary_logistic"):
        PoisonedTraining(module, ToyData(), toy_backbone(), "test", AttackConfig())
    with pytest.raises(UserError, match=r"protocol\.attack\.step=0: give more than 0"):
        AttackConfig(step=0)
