"""Retraining without an example, against minima that SciPy finds from nothing and training loops written out."""

import logging
from copy import deepcopy

import numpy as np
import pytest
import torch
from scipy.optimize import minimize, root
from scipy.special import expit, log_softmax, softmax
from small_models import Net, Softmax, data, dense, examples, fit
from tables import blobs, classifier
from torch import nn

from quintet.common.errors import UserError
from quintet.data.batches import ExampleBatch
from quintet.papers.influence.fit.svm import fit_smooth_hinge
from quintet.papers.influence.retraining import chord_newton, optimizers
from quintet.papers.influence.retraining.leave_one_out import RetrainConfig, leave_one_out
from quintet.papers.influence.risk.examples import Examples, rows_of
from quintet.papers.influence.risk.linear_risk import make_risk

L2 = 0.05


def without(batch, row):
    """The batch with an example less."""
    return rows_of(batch, torch.arange(len(batch.labels)) != row)


def softmax_minimum(x, y, bias):
    """Multinomial logistic regression by SciPy's Levenberg-Marquardt on the gradient: outputs of a new x."""
    design = np.hstack([x, np.ones((len(x), 1))]) if bias else x
    decay = np.full(design.shape[1], L2)
    decay[x.shape[1] :] = 0
    target = np.eye(3)[y]

    def gradient(w):
        w = w.reshape(3, -1)
        return ((softmax(design @ w.T, 1) - target).T @ design / len(x) + decay * w).ravel()

    found = root(gradient, np.zeros(3 * design.shape[1]), method="lm", tol=1e-15)
    assert np.linalg.norm(gradient(found.x)) < 1e-12
    w = found.x.reshape(3, -1)
    return lambda new: np.hstack([new, np.ones((len(new), 1))]) @ w.T if bias else new @ w.T


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("linear", [True, False])
def test_cross_entropy_against_scipy(linear, bias):
    batch, queries, removals = data(), data(7, 6), [0, 3, 11, 39]
    tolerance = 1e-11 if linear else 1e-8  # L-BFGS compares losses, whose rounding ends it at about 1e-9
    module = fit(Softmax(l2=L2, linear=linear, bias=bias), batch)
    found = leave_one_out(module, Examples.of_batch(batch), Examples.of_batch(queries), removals,
                          config=RetrainConfig(tolerance=tolerance))  # fmt: skip
    assert found.method == ("newton" if linear else "lbfgs") and found.residual.max() <= tolerance
    x, y, new, wanted = batch.inputs.numpy(), batch.labels.numpy(), queries.inputs.numpy(), queries.labels.numpy()
    losses = [
        -log_softmax(softmax_minimum(*rows, bias)(new), 1)[np.arange(6), wanted]
        for rows in ((x, y), *((np.delete(x, i, 0), np.delete(y, i)) for i in removals))
    ]
    np.testing.assert_allclose(found.losses, losses[0], atol=1e-8)
    np.testing.assert_allclose(found.delta_test_loss, np.array(losses[1:]) - losses[0], atol=30 * tolerance)


def binary(loss, smoothness=0.0, bias=False, dtype="float64"):
    """(data, module fitted roughly, signed rows) of a problem with two classes."""
    table = blobs(50, classes=2, features=4, spread=2.0)
    optimizer = {"name": "exact_hinge"} if loss == "smooth_hinge" and not smoothness else {}
    module = classifier(table, optimizer, {"bias": bias}, loss=loss, smoothness=smoothness, l2=L2, dtype=dtype)
    x = table.inputs.double().numpy()
    x = np.hstack([x, np.ones((50, 1))]) if bias else x
    return table, module, x * (2 * table.labels.numpy() - 1)[:, None]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("bias", [False, True])
def test_logistic_against_scipy_from_any_start_and_in_any_precision(bias, dtype):
    table, module, rows = binary("logistic", bias=bias, dtype=dtype)
    decay = np.full(rows.shape[1], L2)
    decay[4:] = 0

    def minimum(rows):
        found = root(lambda t: decay * t - rows.T @ expit(-rows @ t) / len(rows), np.zeros(rows.shape[1]), tol=1e-15)
        return found.x

    queries = Examples(table, "test", [1, 4])
    found = leave_one_out(module, Examples(table, "train"), queries, [2, 9], keep_params=True,
                          config=RetrainConfig(tolerance=1e-11))  # fmt: skip
    whole, less = minimum(rows), [minimum(np.delete(rows, i, 0)) for i in (2, 9)]
    np.testing.assert_allclose(found.params, less, atol=1e-9)
    losses = [np.logaddexp(0, -rows[[1, 4]] @ theta) for theta in (whole, *less)]
    np.testing.assert_allclose(found.delta_test_loss, np.array(losses[1:]) - losses[0], atol=1e-9)
    assert found.control_change.abs().min() > 1e-2  # the weights were zeros
    assert found.method == "newton" and found.residual.max() <= 1e-11


@pytest.mark.parametrize("bias", [False, True])
def test_hinge_against_scipys_dual(bias):
    table, module, rows = binary("smooth_hinge", bias=bias)
    module.decay_bias = True

    def minimum(rows):
        n = len(rows)
        kernel = rows @ rows.T / (n * n * L2)
        found = minimize(lambda a: (0.5 * a @ kernel @ a - a.mean(), kernel @ a - 1 / n), np.full(n, 0.5), jac=True,
                         bounds=[(0, 1)] * n, options={"ftol": 1e-18, "gtol": 1e-12, "maxiter": 10**5})  # fmt: skip
        return rows.T @ found.x / (n * L2)

    found = leave_one_out(module, Examples(table, "train"), Examples(table, "test"), [0, 1, 7, 30], keep_params=True)
    less = [minimum(np.delete(rows, i, 0)) for i in (0, 1, 7, 30)]
    np.testing.assert_allclose(found.params, less, atol=2e-5)
    losses = [np.maximum(0, 1 - rows @ theta) for theta in (minimum(rows), *less)]
    np.testing.assert_allclose(found.delta_test_loss, np.array(losses[1:]) - losses[0], atol=1e-4)
    assert found.method == "hinge" and found.residual.max() < 1e-12 and found.delta_test_loss.abs().max() > 1e-2


@pytest.mark.parametrize("tolerance", [1e-3, 1e-8, 1e-12])
@pytest.mark.parametrize("dense_params", [20_000, 1])
def test_the_tolerance_is_kept_with_a_factor_and_with_conjugate_gradients(tolerance, dense_params):
    """The gradient without the example, by autograd on that example's absence, at the parameters returned."""
    module, batch = Softmax(linear=True), data()
    refit = chord_newton.ChordNewton(tolerance, dense_params=dense_params)
    removals = [None, *range(0, 40, 3)]
    found = list(refit.run(make_risk(module, examples()), removals))
    assert sorted(str(one.removal) for one in found) == sorted(map(str, removals))
    for one in found:
        with torch.no_grad():
            module.layer.weight.copy_(one.theta.view(3, 5))
        norm = dense(module, batch if one.removal is None else without(batch, one.removal))[0].norm()
        assert norm <= tolerance and one.residual == pytest.approx(float(norm), abs=1e-15)


def test_blocks_of_removals_are_what_they_are_together(monkeypatch):
    module = fit(Softmax(linear=True), data())
    some = {"queries": examples(7, 3), "removals": range(8), "keep_params": True}
    together = leave_one_out(module, examples(), **some)
    monkeypatch.setattr(chord_newton, "BLOCK", 3 * 15)
    monkeypatch.setattr(chord_newton, "PRODUCT", 1)
    apart = leave_one_out(module, Examples.of_batch(data()), **some)
    torch.testing.assert_close(apart.params, together.params, rtol=0, atol=1e-12)
    assert together.removals == list(range(8)) and together.control_change.abs().max() < 1e-9


def test_steps_that_do_not_converge_are_left_to_lbfgs(caplog):
    """A hinge that is only slightly smooth: its curvature is another one after every step."""
    table, module, rows = binary("smooth_hinge", smoothness=2e-3)
    decay = torch.full((4,), L2, dtype=torch.float64)
    start = fit_smooth_hinge(torch.from_numpy(rows), decay, 2e-3)
    with torch.no_grad():
        module.network.top.weight.copy_(start)
    with caplog.at_level(logging.WARNING):
        found = leave_one_out(module, Examples(table, "train"), Examples(table, "test"), range(12), keep_params=True)
    assert "do not converge for" in caplog.text and "L-BFGS for them" in caplog.text
    assert found.method == "newton" and found.residual.max() <= 1e-8
    for i in range(12):
        wanted = fit_smooth_hinge(torch.from_numpy(np.delete(rows, i, 0)), decay, 2e-3, 1e-11)
        torch.testing.assert_close(found.params[i], wanted, rtol=0, atol=1e-6)


def test_only_the_chosen_parameters_are_retrained():
    module = fit(Softmax(linear=True, bias=True), data())
    found = leave_one_out(module, examples(), examples(7, 2), [5], params="layer.weight", keep_params=True)
    assert found.method == "lbfgs" and found.params.shape == (1, 15)
    with torch.no_grad():
        module.layer.weight.copy_(found.params.view(3, 5))
    assert dense(module, without(data(), 5))[0][:15].norm() < 1e-8


def trained_on(module, batch, steps, optimizer_of, weights=None):
    """A copy of the module after a plain training loop."""
    module = deepcopy(module)
    optimizer = optimizer_of(module.parameters())

    def closure():
        optimizer.zero_grad()
        loss = module.example_losses(batch).mean() + module.regularisation()
        loss.backward()
        return loss

    for _ in range(steps):
        optimizer.step(closure)
    return module


def test_a_network_is_compared_with_a_control_by_lbfgs():
    """Five iterations from random weights: what they change for all is far more than what an example does."""
    module, queries = Net(), data(7, 5)
    found = leave_one_out(module, examples(), Examples.of_batch(queries), [4, 17],
                          config=RetrainConfig(max_iterations=5))  # fmt: skip

    def lbfgs(parameters):
        return torch.optim.LBFGS(parameters, max_iter=5, max_eval=500, tolerance_change=0, history_size=50,
                                 line_search_fn="strong_wolfe")  # fmt: skip

    losses = [trained_on(module, batch, 1, lbfgs).example_losses(queries).detach()
              for batch in (data(), without(data(), 4), without(data(), 17))]  # fmt: skip
    torch.testing.assert_close(found.control_change, losses[0] - module.example_losses(queries).detach())
    torch.testing.assert_close(found.delta_test_loss, torch.stack(losses[1:]) - losses[0], rtol=1e-6, atol=1e-10)
    assert found.control_change.abs().mean() > 10 * found.delta_test_loss.abs().mean() > 0
    assert found.iterations.tolist() == [5, 5] and found.method == "lbfgs"


class Decayed(Net):
    """All weights decay: it has a minimum."""

    def regularisation(self):
        return 0.5 * self.l2 * sum(p.square().sum() for p in self.parameters())


def test_a_network_at_its_minimum_moves_to_the_next_one():
    module, queries = Decayed(0.01), data(7, 5)
    start = next(iter(optimizers.Lbfgs(1e-10).run(make_risk(module, examples()), [None])))
    torch.nn.utils.vector_to_parameters(start.theta, module.parameters())
    found = leave_one_out(module, examples(), Examples.of_batch(queries), [4, 17, 30])
    for k, row in enumerate((4, 17, 30)):
        wanted = fit(deepcopy(module), data(), skip=row).example_losses(queries) - module.example_losses(queries)
        torch.testing.assert_close(found.delta_test_loss[k], wanted.detach(), rtol=1e-4, atol=1e-7)


def test_adam_is_the_same_steps_without_the_example():
    module, queries = Net(), data(7, 5)
    config = RetrainConfig(method="adam", steps=30, lr=1e-2, batch_size=12, seed=3)
    found = leave_one_out(module, examples(), Examples.of_batch(queries), [4, 17], config=config)
    order = list(optimizers.batch_order(40, 12, 30, 3))
    assert len(order) == 30 and all(len(set(torch.cat(order[e : e + 3]).tolist())) == 36 for e in range(0, 30, 3))
    losses = []
    for removed in (None, 4, 17):
        copy = deepcopy(module)
        optimizer = torch.optim.Adam(copy.parameters(), lr=1e-2)
        for rows in order:
            kept = rows if removed is None else rows[rows != removed]
            count = 40 if removed is None else 39
            optimizer.zero_grad()
            mean = copy.example_losses(rows_of(data(), kept)).sum() * 40 / count / 12
            (mean + copy.regularisation()).backward()
            optimizer.step()
        losses.append(copy.example_losses(queries).detach())
    torch.testing.assert_close(found.delta_test_loss, torch.stack(losses[1:]) - losses[0], rtol=1e-6, atol=1e-10)
    assert found.method == "adam" and found.control_change.abs().min() > 1e-3
    together = leave_one_out(module, examples(), Examples.of_batch(queries), [4, 17],
                             config=RetrainConfig(**vars(config) | {"together": 2}))  # fmt: skip
    torch.testing.assert_close(together.delta_test_loss, found.delta_test_loss, rtol=1e-6, atol=1e-10)


class Interrupted(RuntimeError):
    pass


def test_a_second_call_goes_on_after_a_kill_and_computes_nothing_twice(tmp_path, monkeypatch):
    module = Net()
    some = {"queries": examples(7, 3), "cache_dir": tmp_path, "config": RetrainConfig(max_iterations=3)}
    calls, true = [], optimizers.Lbfgs._one

    def one(self, risk, removal, *more):
        if len(calls) == 3:
            raise Interrupted
        calls.append(removal)
        return true(self, risk, removal, *more)

    monkeypatch.setattr(optimizers.Lbfgs, "_one", one)
    with pytest.raises(Interrupted):
        leave_one_out(module, examples(), removals=[7, 8, 9, 10], **some)
    assert calls == [None, 7, 8]
    monkeypatch.setattr(optimizers.Lbfgs, "_one", lambda *a: calls.append(a[2]) or true(*a))
    found = leave_one_out(module, examples(), removals=[7, 8, 9, 10], **some)
    assert calls == [None, 7, 8, 9, 10]
    again = leave_one_out(module, examples(), removals=[10, 7], **some)
    assert len(calls) == 5 and again.seconds == 0 and again.removals == [10, 7]
    torch.testing.assert_close(again.delta_test_loss, found.delta_test_loss[[3, 0]], rtol=0, atol=0)
    torch.testing.assert_close(again.control_change, found.control_change, rtol=0, atol=0)
    kept = leave_one_out(module, examples(), removals=[7], keep_params=True, **some)
    assert calls[5:] == [None, 7] and kept.params.shape == (1, sum(p.numel() for p in module.parameters()))
    (folder,) = tmp_path.iterdir()
    assert sorted(p.name for p in folder.iterdir()) == ["control.pt", *(f"without_{i:09d}.pt" for i in (7, 8, 9, 10))]


@pytest.mark.parametrize("other", ["weights", "l2", "queries", "settings", "params", "train"])
def test_what_was_kept_is_for_the_same_question_only(other, tmp_path):
    module = Net()
    config, params, queries, train = RetrainConfig(max_iterations=2), "*", examples(7, 3), examples()
    leave_one_out(module, train, queries, [7], params, config, cache_dir=tmp_path)
    if other == "weights":
        nn.init.ones_(module.layer.bias)
    if other == "l2":
        module.l2 = 0.06
    config = RetrainConfig(max_iterations=3) if other == "settings" else config
    queries = examples(8, 3) if other == "queries" else queries
    params = "layer.*" if other == "params" else params
    train = examples(1) if other == "train" else train
    leave_one_out(module, train, queries, [7], params, config, cache_dir=tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    "removals, message",
    [
        ([], "no example to leave out"),
        ([40], "cannot leave out example 40: there are 40 training examples"),
        ([3, -1], "cannot leave out example -1"),
        ([3, 3], "listed twice among those to leave out"),
    ],
)
def test_removals_that_are_refused(removals, message):
    with pytest.raises(UserError, match=message):
        leave_one_out(Softmax(linear=True), examples(), examples(7, 1), removals)


def test_the_only_example_cannot_be_left_out():
    with pytest.raises(UserError, match="it cannot be left out"):
        leave_one_out(Softmax(linear=True), examples(0, 1), examples(7, 1), [0])


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"method": "sgd"}, "method='sgd' is unknown: use one of auto, newton"),
        ({"tolerance": 0}, "tolerance=0"),
        ({"lr": -1.0}, "lr=-1.0"),
        ({"steps": 0}, "steps=0"),
        ({"together": 0}, "together=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"max_iterations": 0}, "max_iterations=0"),
    ],
)
def test_settings_that_are_refused(settings, message):
    with pytest.raises(UserError, match=f"retrain.{message}"):
        RetrainConfig(**settings)


def test_methods_that_a_model_does_not_allow():
    def attempt(module, method, table=None, **settings):
        train = examples() if table is None else Examples(table, "train")
        leave_one_out(module, train, train, [1], config=RetrainConfig(method=method, **settings))

    for method in ("newton", "hinge"):
        with pytest.raises(UserError, match=f"{method} needs a model that is linear in all chosen params.*Net"):
            attempt(Net(), method)
    with pytest.raises(UserError, match="hinge: the loss of Softmax is not the hinge"):
        attempt(Softmax(linear=True), "hinge")
    table, module, _ = binary("smooth_hinge")
    for method in ("newton", "lbfgs", "adam"):
        with pytest.raises(UserError, match=f"{method}: the loss of ClassifierModule has no gradient at its corner"):
            attempt(module, method, table)
    with pytest.raises(UserError, match="batch_size=41: there are 40 training examples"):
        attempt(Net(), "adam", batch_size=41)


def test_single_precision_is_said(caplog):
    table = blobs(20)
    module = classifier(table, network={"kind": "linear"}, dtype="float32")
    with caplog.at_level(logging.WARNING):
        leave_one_out(module, Examples(table, "train"), Examples(table, "test", [0]), [1],
                      config=RetrainConfig(method="lbfgs", max_iterations=2))  # fmt: skip
    assert "retraining in torch.float32" in caplog.text


def test_batches_are_ignored_that_the_example_is_not_in():
    """value_and_gradient over several batches is the mean over those that stay."""
    module = Net()
    risk = make_risk(module, examples(), batch_size=7)
    value, gradient = optimizers.value_and_gradient(risk, risk.theta, 13)
    less = without(data(), 13)
    short = optimizers.less(risk, 13, *optimizers.value_and_gradient(risk, risk.theta, None))
    assert short[0] == pytest.approx(value)
    torch.testing.assert_close(short[1], gradient)
    assert value == pytest.approx(float((module.example_losses(less).mean() + module.regularisation()).detach()))
    torch.testing.assert_close(gradient, dense(module, less)[0])
    assert isinstance(less, ExampleBatch)
