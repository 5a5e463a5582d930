"""Losses against SciPy, in both tails, and their derivatives against finite differences."""

import numpy as np
import pytest
import torch
from scipy.special import expit, log_softmax
from torch.func import grad, jvp, vmap

from quintet.papers.influence.classifiers.losses import cross_entropy, logistic, loss_of, smooth_hinge

SCORES = torch.tensor([-800.0, -45.0, -21.0, -1.5, 0.0, 0.3, 1.0, 2.0, 30.0, 800.0], dtype=torch.float64)
ONES = torch.ones(len(SCORES), dtype=torch.int64)


def slopes(function, x):
    """First and second derivative of each element by torch.func, forward over reverse."""
    first = grad(lambda s: function(s).sum())
    return first(x), jvp(first, (x,), (torch.ones_like(x),))[1]


def test_cross_entropy_is_minus_log_softmax():
    logits = torch.randn(5, 3, dtype=torch.float64) * 50
    labels = torch.tensor([0, 2, 1, 1, 0])
    wanted = -log_softmax(logits.numpy(), axis=1)[np.arange(5), labels.numpy()]
    np.testing.assert_allclose(cross_entropy(logits, labels), wanted, rtol=1e-12)


@pytest.mark.parametrize("label", [0, 1])
def test_logistic_to_the_last_digit_in_both_tails(label):
    y = 2 * label - 1
    labels = torch.full_like(ONES, label)
    np.testing.assert_allclose(logistic(SCORES, labels), np.logaddexp(0, -y * SCORES.numpy()), rtol=1e-14)
    first, second = slopes(lambda s: logistic(s, labels), SCORES)
    np.testing.assert_allclose(first, -y * expit(-y * SCORES.numpy()), rtol=1e-13, atol=1e-300)
    np.testing.assert_allclose(second, expit(SCORES.numpy()) * expit(-SCORES.numpy()), rtol=1e-13, atol=2e-16)


@pytest.mark.parametrize("t", [1e-3, 0.1, 1.0])
def test_smooth_hinge_and_its_derivatives(t):
    z = (1 - SCORES.numpy()) / t
    np.testing.assert_allclose(smooth_hinge(SCORES, ONES, t), t * np.logaddexp(0, z), rtol=1e-13, atol=1e-300)
    first, second = slopes(lambda s: smooth_hinge(s, ONES, t), SCORES)
    np.testing.assert_allclose(first, -expit(z), rtol=1e-13, atol=1e-300)
    np.testing.assert_allclose(second, expit(z) * expit(-z) / t, rtol=1e-12, atol=1e-14)


def test_smooth_hinge_by_finite_differences_near_the_corner():
    t, h = 1e-3, 1e-7
    s = 1 + torch.linspace(-5 * t, 5 * t, 11, dtype=torch.float64)
    labels = torch.ones(11, dtype=torch.int64)
    first, second = slopes(lambda x: smooth_hinge(x, labels, t), s)
    up, down = (smooth_hinge(s + d, labels, t) for d in (h, -h))
    np.testing.assert_allclose(first, (up - down) / (2 * h), rtol=1e-6)
    up, down = (slopes(lambda x: smooth_hinge(x, labels, t), s + d)[0] for d in (h, -h))
    np.testing.assert_allclose(second, (up - down) / (2 * h), rtol=1e-5)


def test_smooth_hinge_falls_to_the_hinge():
    hinge = torch.relu(1 - SCORES)
    for t in (1.0, 1e-2, 1e-4, 1e-8):
        above = smooth_hinge(SCORES, ONES, t) - hinge
        assert (above >= 0).all() and above.max() <= t * np.log(2) + 1e-18
    assert torch.equal(smooth_hinge(SCORES, ONES, 0), hinge)
    assert torch.equal(smooth_hinge(SCORES, 0 * ONES, 0), torch.relu(1 + SCORES))


@pytest.mark.parametrize(("name", "t"), [("cross_entropy", 0.0), ("logistic", 0.0), ("smooth_hinge", 1e-3)])
def test_losses_go_through_vmap_of_jvp_of_grad(name, t):
    torch.manual_seed(0)
    x, labels = torch.randn(6, 3, dtype=torch.float64), torch.tensor([0, 1, 1, 0, 1, 0])
    columns = 2 if name == "cross_entropy" else 1
    weight, vectors = torch.randn(3, columns, dtype=torch.float64), torch.randn(4, 3, columns, dtype=torch.float64)

    def total(w):
        outputs = x @ w if columns == 2 else (x @ w)[:, 0]
        return loss_of(name, t)(outputs, labels).sum()

    found = vmap(lambda v: jvp(grad(total), (weight,), (v,))[1])(vectors)
    hessian = torch.autograd.functional.hessian(total, weight).reshape(3 * columns, -1)
    torch.testing.assert_close(found.flatten(1), vectors.flatten(1) @ hessian)
    single = vmap(lambda row, label: grad(lambda w: loss_of(name, t)(
        (row @ w)[None] if columns == 2 else row @ w, label[None]).sum())(weight))(x, labels)  # fmt: skip
    torch.testing.assert_close(single.sum(0), grad(total)(weight))
