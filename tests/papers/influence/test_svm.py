"""The exact SVM against scikit-learn's dual solvers, and its warm start against a fit from nothing."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from sklearn.svm import SVC, LinearSVC
from tables import blobs, classifier, fit

from quintet.papers.influence.classifiers.losses import signs
from quintet.papers.influence.fit import svm
from quintet.papers.influence.fit.lbfgs import hinge_rows
from quintet.papers.influence.fit.svm import fit_hinge, fit_smooth_hinge, leave_out

L2 = 0.05


def problem(bias_l2=None, rows=80, seed=0):
    data = blobs(rows, classes=2, features=6, seed=seed, spread=1.5)
    x, y = data.inputs.double(), signs(data.labels, torch.float64)
    return x, y, hinge_rows(x, y, L2, bias_l2)


def objective(rows, decay, theta):
    return float(0.5 * (decay * theta.square()).sum() + torch.relu(1 - rows @ theta).mean())


@pytest.mark.parametrize("bias_l2", [None, L2])
def test_the_hinge_objective_is_linear_svcs(bias_l2):
    x, y, (rows, decay) = problem(bias_l2)
    found = fit_hinge(rows, decay)
    theirs = LinearSVC(loss="hinge", C=1 / (len(x) * L2), tol=1e-10, max_iter=10**6, fit_intercept=bias_l2 is not None)
    theirs.fit(x.numpy(), y.numpy())  # it decays its intercept
    wanted = torch.from_numpy(np.append(theirs.coef_[0], theirs.intercept_ if bias_l2 else []))
    assert abs(found.gap) < 1e-12
    assert objective(rows, decay, found.theta) <= objective(rows, decay, wanted) + 1e-15
    assert objective(rows, decay, found.theta) == pytest.approx(objective(rows, decay, wanted), rel=1e-8)
    torch.testing.assert_close(found.theta, wanted, rtol=1e-4, atol=1e-5)


def test_a_bias_without_decay_is_svcs():
    x, y, (rows, decay) = problem(0.0)
    found = fit_hinge(rows, decay)
    theirs = SVC(kernel="linear", C=1 / (len(x) * L2), tol=1e-10).fit(x.numpy(), y.numpy())
    wanted = torch.from_numpy(np.append(theirs.coef_[0], theirs.intercept_))
    assert abs(found.gap) < 1e-12
    torch.testing.assert_close(found.theta, wanted, rtol=1e-6, atol=1e-7)


def test_the_dual_says_who_is_where_and_sums_to_theta():
    _, _, (rows, decay) = problem()
    found, margins = fit_hinge(rows, decay), rows @ fit_hinge(rows, decay).theta
    torch.testing.assert_close(found.theta, rows.T @ found.dual / len(rows) / decay)
    assert (margins[found.dual == 1] <= 1 + 1e-12).all() and (margins[found.dual == 0] >= 1 - 1e-12).all()
    on = (found.dual > 0) & (found.dual < 1)
    assert on.any() and (margins[on] - 1).abs().max() < 1e-12


@pytest.mark.parametrize("rows", [30, 80, 1000])
@pytest.mark.parametrize("bias_l2", [None, 0.0])
def test_leaving_out_follows_the_minimum_to_where_a_fit_from_nothing_ends(bias_l2, rows, monkeypatch):
    _, _, (rows, decay) = problem(bias_l2, rows)
    whole = fit_hinge(rows, decay)
    on = ((whole.dual > 0) & (whole.dual < 1)).nonzero()[:, 0].tolist()
    within, far = (whole.dual == 1).nonzero()[:4, 0].tolist(), int(whole.dual.argmin())
    groups = [[on[0]], [on[-1]], *([i] for i in within), [far], [on[0], far, *within]]
    for out in groups:
        kept = torch.ones(len(rows), dtype=torch.bool)
        kept[out] = False
        wanted = fit_hinge(rows[kept], decay)
        with monkeypatch.context() as patch:
            patch.setattr(svm, "fit_hinge", None)  # followed all the way, not fitted again
            found = leave_out(rows, decay, whole, out)
        torch.testing.assert_close(found.theta, wanted.theta, rtol=1e-8, atol=1e-10)
        torch.testing.assert_close(found.dual, wanted.dual, rtol=1e-6, atol=1e-8)
        assert abs(found.gap) < 1e-12


def test_coinciding_examples_leave_the_set_open_and_are_fitted_all_the_same():
    x, y, _ = problem(rows=30)
    rows, decay = hinge_rows(x.repeat(3, 1), y.repeat(3), L2, None)
    found, alone = fit_hinge(rows, decay), fit_hinge(*hinge_rows(x, y, L2, None))
    assert abs(found.gap) < 1e-4
    torch.testing.assert_close(found.theta, alone.theta, rtol=1e-3, atol=1e-3)
    less, wanted = leave_out(rows, decay, found, range(30, 60)), fit_hinge(*hinge_rows(x, y, L2, None))
    torch.testing.assert_close(less.theta, wanted.theta, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("t", [1e-3, 0.1, 3.0])
def test_smooth_minimum_by_scipy(t):
    _, _, (rows, decay) = problem(0.0)
    a, d = rows.numpy(), decay.numpy()

    def loss(theta):
        z = (1 - a @ theta) / t
        inside = 1 / (1 + np.exp(-np.clip(z, -700, 700)))
        value = 0.5 * d @ theta**2 + t * np.logaddexp(0, z).mean()
        return value, d * theta - a.T @ inside / len(a)

    found = fit_smooth_hinge(rows, decay, t).numpy()
    assert np.abs(loss(found)[1]).max() < 1e-10
    theirs = minimize(loss, np.zeros(len(d)), jac=True, method="BFGS", options={"gtol": 1e-9, "maxiter": 10**4})
    assert loss(found)[0] == pytest.approx(theirs.fun, rel=1e-7)


def test_the_smooth_minimum_approaches_the_hinges():
    _, _, (rows, decay) = problem()
    hinge = fit_hinge(rows, decay).theta
    away = [float((fit_smooth_hinge(rows, decay, t) - hinge).norm()) for t in (1e-1, 1e-2, 1e-3, 1e-4)]
    assert all(far > 3 * near for far, near in pairwise(away)) and away[-1] < 1e-2


@pytest.mark.parametrize("t", [0.0, 0.01])
@pytest.mark.parametrize("bias", [False, True])
def test_a_module_is_fitted_in_one_step(t, bias):
    data = blobs(50, classes=2, features=6)
    module = classifier(data, {"name": "exact_hinge"}, {"bias": bias}, loss="smooth_hinge", l2=L2, smoothness=t)
    trainer = fit(module, data, max_epochs=5)
    assert trainer.global_step == 1  # it stops by itself
    rows, decay = hinge_rows(data.inputs.double(), signs(data.labels, torch.float64), L2, 0.0 if bias else None)
    wanted = fit_smooth_hinge(rows, decay, t) if t else fit_hinge(rows, decay).theta
    found = torch.cat([p.detach().flatten() for p in module.parameters()])
    torch.testing.assert_close(found, wanted)
    loss = module.example_losses(data.batch()).mean() + module.regularisation()
    assert float(trainer.callback_metrics["train/loss"]) == pytest.approx(loss.item(), rel=1e-6)
    if t:
        assert trainer.callback_metrics["train/gradient_norm"] < 1e-9
    else:
        assert abs(trainer.callback_metrics["train/duality_gap"]) < 1e-12
        assert "train/gradient_norm" not in trainer.callback_metrics
