"""Newton's method for logistic regression: the minima of scikit-learn and SciPy, from far off, on awkward columns."""

import logging

import numpy as np
import pytest
import torch
from scipy.optimize import root
from scipy.sparse import csr_array, issparse
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from tables import Tables, blobs, classifier, fit

from quintet.common.errors import UserError
from quintet.papers.influence.fit.newton import Design, fit_logistic

L2 = 0.02


def problem(rows=80, features=6, seed=0, filled=1.0):
    """(design, signs) whose classes overlap; `filled`: share of numbers that are not zero."""
    random = np.random.default_rng(seed)
    design = random.normal(size=(rows, features)) * (random.random((rows, features)) < filled)
    return design, np.where(design[:, 0] + random.normal(size=rows) > 0, 1.0, -1.0)


def gradient(theta, design, signs, decay):
    return decay * theta - design.T @ (signs * expit(-signs * (design @ theta))) / len(signs)


@pytest.mark.parametrize("filled", [1.0, 0.1])
def test_the_minimum_is_scikit_learns(filled):
    x, signs = problem(filled=filled)
    design = Design(x)
    assert issparse(design.rows) == (filled < 0.2)
    ours = fit_logistic(design, signs, np.full(6, L2), tolerance=1e-10)
    theirs = LogisticRegression(C=1 / (L2 * 80), tol=1e-14, max_iter=1000, fit_intercept=False, solver="newton-cg")
    theirs.fit(x, signs)
    np.testing.assert_allclose(ours.theta, theirs.coef_[0], rtol=1e-6)
    assert ours.gradient_norm == pytest.approx(np.linalg.norm(gradient(ours.theta, x, signs, L2)), rel=1e-3, abs=1e-13)
    assert ours.gradient_norm <= 1e-10 and ours.products > ours.steps > 1


def test_columns_may_have_any_decay():
    x, signs = problem()
    x[:, -1], decay = 1, np.array([0.5, 0.1, 0.02, 0.02, 0.3, 0.0])  # a bias that nothing decays
    wanted = root(gradient, np.zeros(6), (x, signs, decay), tol=1e-14).x
    np.testing.assert_allclose(fit_logistic(Design(x), signs, decay, tolerance=1e-11).theta, wanted, rtol=1e-8)


def test_a_given_sparse_matrix_is_taken_as_it_is():
    x, signs = problem()
    dense, sparse = (fit_logistic(Design(m), signs, np.full(6, L2)) for m in (x, csr_array(x)))
    np.testing.assert_allclose(sparse.theta, dense.theta, rtol=1e-6)
    assert issparse(Design(csr_array(x)).rows)


@pytest.mark.parametrize("start", [30.0, 300.0])
def test_it_comes_back_from_where_full_steps_would_not(start):
    """There the curvature is next to none, and a full step goes far beyond the minimum."""
    x, signs = problem()
    away = start * np.random.default_rng(1).normal(size=6)
    decay = np.full(6, 1e-4)
    near = fit_logistic(Design(x), signs, decay)
    found = fit_logistic(Design(x), signs, decay, away)
    np.testing.assert_allclose(found.theta, near.theta, atol=1e-3 * np.abs(near.theta).max())
    assert found.gradient_norm <= 1e-8


def test_a_warm_start_is_quicker_and_a_minimum_is_left_alone():
    x, signs = problem(rows=300)
    cold = fit_logistic(Design(x), signs, np.full(6, 1e-3))
    assert fit_logistic(Design(x), signs, np.full(6, 1e-3), cold.theta).steps == 0
    changed = signs.copy()
    changed[:3] *= -1
    start = cold.theta.copy()
    warm = fit_logistic(Design(x), changed, np.full(6, 1e-3), start)
    assert 0 < warm.products < fit_logistic(Design(x), changed, np.full(6, 1e-3)).products
    assert np.array_equal(start, cold.theta)  # the caller's own


def test_no_minimum_is_one_line():
    x, signs = problem()
    signs = np.sign(x[:, 0])
    with pytest.raises(UserError, match=r"did not reach a minimum in 200 Newton steps .*set model\.l2 above 0"):
        fit_logistic(Design(x), signs, np.zeros(6), tolerance=1e-200)


def hospital(bias=False):
    """Rare indicators beside counts: the Hessian's condition is some 1e6, as that of the hospital data."""
    random = np.random.default_rng(0)
    counts = random.poisson(40, (600, 3))
    x = np.hstack([counts, random.random((600, 30)) < 0.01, counts[:, :1] + random.poisson(1, (600, 1))])
    labels = random.random(600) < expit(0.02 * (counts[:, 0] - 40))
    return Tables(torch.tensor(x, dtype=torch.float32), torch.tensor(labels, dtype=torch.int64))


@pytest.mark.parametrize("bias", [False, True])
def test_training_ends_at_the_minimum_where_l_bfgs_does_not(bias, caplog):
    data = hospital()
    model = {"loss": "logistic", "l2": 1e-4, "network": {"bias": bias}, "optimizer": {"max_iter": 20}}
    module = classifier(data, **model)
    with caplog.at_level(logging.INFO):
        trainer = fit(module, data, max_epochs=5)
    assert "finished by Newton's method" in caplog.text and "not at the minimum" not in caplog.text
    assert trainer.global_step == 1 and trainer.callback_metrics["train/gradient_norm"] <= 1e-8
    x = np.hstack([data.inputs.double().numpy(), np.ones((600, 1))])[:, : None if bias else -1]
    decay = np.array([1e-4] * 34 + [0.0] * bias)
    theta = torch.cat([p.detach().flatten() for p in module.parameters()]).numpy()
    assert np.linalg.norm(gradient(theta, x, 2.0 * data.labels.numpy() - 1, decay)) <= 1e-8


def test_l_bfgs_is_left_alone_where_newton_cannot_follow():
    data, few = blobs(classes=2), {"max_iter": 2}
    for model in ({"loss": "cross_entropy"}, {"loss": "logistic", "dtype": "float32"}, {"loss": "logistic", "l2": 0.0}):
        trainer = fit(classifier(data, few, **{"l2": L2} | model), data)
        assert trainer.callback_metrics["train/gradient_norm"] > 1e-4, model
