"""Fits and scores under changed labels, against scikit-learn and dense linear algebra written out."""

import numpy as np
import pytest
import torch
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from tables import Tables, blobs, classifier, fit, pictures

from quintet.common.errors import UserError
from quintet.papers.influence.retraining.changed_labels import Relabelled
from quintet.papers.influence.solvers.cg import ConjugateGradient
from quintet.papers.influence.solvers.direct import Direct

L2 = 0.02


class Held(Tables):
    """Another set of the same clouds to test on."""

    def example_batch(self, split, indices):
        return self.held.example_batch("train", indices) if split == "test" else super().example_batch(split, indices)

    def num_examples(self, split):
        return len(self.held.labels if split == "test" else self.labels)


def clouds(rows=60, held=33):
    whole = blobs(rows + held, classes=2, spread=2.0)
    data = Held(whole.inputs[:rows], whole.labels[:rows])
    data.held = Tables(whole.inputs[rows:], whole.labels[rows:])
    return data


def task(bias=False, data=None, **more):
    """(relabelled task, its module, its data) of a fitted run."""
    data = data or clouds()
    module = classifier(data, network={"bias": bias}, **{"loss": "logistic", "l2": L2} | more)
    fit(module, data)
    return Relabelled(module, data, 1e-11), module, data


def flipped(data, count=6):
    labels = data.labels.numpy().copy()
    labels[:count] = 1 - labels[:count]
    return labels


@pytest.mark.parametrize("bias", [False, True])
def test_a_fit_to_other_labels_is_scikit_learns(bias):
    made, _, data = task(bias)
    labels = flipped(data)
    ours = made.fit(labels)
    theirs = LogisticRegression(C=1 / (L2 * 60), tol=1e-14, max_iter=1000, fit_intercept=bias, solver="newton-cg")
    theirs.fit(data.inputs.double().numpy(), labels)
    wanted = np.concatenate([theirs.coef_[0], theirs.intercept_[: 1 if bias else 0]])
    np.testing.assert_allclose(ours.theta, wanted, rtol=1e-6, atol=1e-9)
    assert made.accuracy(ours) == pytest.approx(theirs.score(data.held.inputs.double(), data.held.labels))
    assert 0.5 < made.accuracy(ours) < 1


@pytest.mark.parametrize("decay_bias", [False, True])
def test_the_runs_own_parameters_are_its_own_minimum(decay_bias):
    made, _, data = task(bias=True, decay_bias=decay_bias, optimizer={"tolerance_grad": 1e-11})
    assert made.decay_p.tolist() == [L2] * 4 + [L2 if decay_bias else 0.0]
    again = made.fit(data.labels.numpy())
    np.testing.assert_allclose(made.start_p, again.theta, atol=1e-8)
    assert made.fit(data.labels.numpy(), made.start_p).steps <= 1


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("solver", [Direct(damping=0.1), ConjugateGradient(damping=0.1, tolerance=1e-12)])
def test_scores_are_those_of_the_changed_labels(solver, bias):
    made, module, data = task(bias)
    before = [p.detach().clone() for p in module.parameters()]
    labels = flipped(data)
    theta = made.fit(labels).theta
    influence, losses = made.scores(theta, labels, solver)
    x = np.hstack([data.inputs.double().numpy(), np.ones((60, 1))])[:, : len(theta)]
    decay = np.array([L2] * 4 + [0.0] * bias)
    margins = (2 * labels - 1) * (x @ theta)
    slopes = -(2 * labels - 1) * expit(-margins)
    hessian = x.T @ ((expit(margins) * expit(-margins))[:, None] * x) / 60 + np.diag(decay + 0.1)
    gradients = slopes[:, None] * x + decay * theta
    np.testing.assert_allclose(losses, np.log1p(np.exp(-margins)), rtol=1e-9)
    wanted = (gradients * np.linalg.solve(hessian, gradients.T).T).sum(1) / 60
    np.testing.assert_allclose(influence, wanted, rtol=1e-8)
    assert all(torch.equal(p, old) for p, old in zip(module.parameters(), before, strict=True))


def test_the_module_is_itself_again_after_an_error():
    made, module, data = task()
    before = module.network.top.weight.detach().clone()
    with pytest.raises(UserError, match="max_params"):
        made.scores(2 * made.start_p, data.labels.numpy(), Direct(max_params=3))
    assert torch.equal(module.network.top.weight, before)


def test_the_fingerprint_is_of_everything_that_fits_depend_on():
    made, module, data = task()
    known = {made.fingerprint()}
    assert Relabelled(module, data).fingerprint() in known
    for change in ("inputs", "labels", "held", "l2"):
        other = clouds()
        if change == "held":
            other.held.labels[3] = 1 - other.held.labels[3]
        elif change == "labels":
            other.labels[3] = 1 - other.labels[3]
        elif change == "inputs":
            other.inputs[3, 0] += 1
        found = task(data=other, l2=0.03 if change == "l2" else L2)[0].fingerprint()
        assert found not in known, change
        known.add(found)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"loss": "cross_entropy"}, r"this run has model\.loss=cross_entropy; train with model=binary_logistic"),
        ({"loss": "smooth_hinge", "smoothness": 0.1}, r"this run has model\.loss=smooth_hinge"),
        ({"loss": "logistic", "dtype": "float32"}, r"need float64: train with model\.dtype=float64"),
    ],
)
def test_runs_of_another_kind_are_one_line(model, message):
    data = clouds()
    with pytest.raises(UserError, match=message):
        Relabelled(classifier(data, **model), data)


def test_networks_are_one_line():
    data = pictures(classes=2)
    network = {"kind": "all_cnn", "channels": [2, 2], "strides": [1, 2]}
    with pytest.raises(UserError, match=r"logistic regression of two classes only: this run has a network AllCnn"):
        Relabelled(classifier(data, network=network, loss="logistic"), data)
    with pytest.raises(UserError, match=r"this run has a network Linear"):
        Relabelled(torch.nn.Linear(2, 2), data)
