"""The Gauss-Newton matrix against Jacobians by autograd; what it and the Hessian shorten: training, retraining, CG."""

from copy import deepcopy

import pytest
import torch
from small_models import Net, dense, examples
from tables import blobs, classifier, fit, pictures
from torch.autograd.functional import jacobian

from quintet.common.errors import UserError
from quintet.papers.influence.retrain.retrain import RetrainConfig, leave_one_out
from quintet.papers.influence.risk import gauss_newton as gn
from quintet.papers.influence.risk.examples import Examples, rows_of
from quintet.papers.influence.risk.linear_risk import make_risk
from quintet.papers.influence.risk.risk import EmpiricalRisk
from quintet.papers.influence.solvers.cg import ConjugateGradient

CNN = {"kind": "all_cnn", "channels": [3, 3], "strides": [1, 2]}
NEWTON = {"max_iter": 10, "preconditioner": "gauss_newton", "tolerance_grad": 1e-7}
L2 = {"l2": 0.005, "decay_bias": True}  # all weights decay: it has a minimum


@pytest.fixture(scope="module", params=["gauss_newton", "hessian"])
def network(request):
    """(data, a network at a minimum of its loss, what trained it), in the coordinates of either dense matrix."""
    data = pictures(rows=40)
    module = classifier(data, {**NEWTON, "preconditioner": request.param}, CNN, **L2)
    trainer = fit(module, data, max_epochs=40)
    return data, module, trainer


def flat(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def by_jacobians(module, batch):
    """Mean over the examples of J^T (diag(q) - q q^T) J."""
    parameters = dict(module.named_parameters())
    shapes = [p.shape for p in parameters.values()]

    def outputs(theta):
        parts = theta.split([shape.numel() for shape in shapes])
        named = {n: part.view(s) for n, part, s in zip(parameters, parts, shapes, strict=True)}
        with torch.nn.utils.stateless._reparametrize_module(module, named):
            return module(batch).view(len(batch.labels), -1)

    theta = flat(module)
    jacobian_bcp, outputs_bc = jacobian(outputs, theta), outputs(theta).detach()
    total = torch.zeros(len(theta), len(theta), dtype=theta.dtype)
    for j_cp, z_c in zip(jacobian_bcp, outputs_bc, strict=True):
        if len(z_c) == 1:
            inner = (z_c.sigmoid() * (1 - z_c.sigmoid())).view(1, 1)
        else:
            q_c = z_c.softmax(0)
            inner = torch.diag(q_c) - torch.outer(q_c, q_c)
        total += j_cp.T @ inner @ j_cp
    return total / len(batch.labels)


@pytest.mark.parametrize("loss", ["cross_entropy", "logistic"])
def test_it_is_the_mean_of_the_jacobians_products(loss):
    data = pictures(rows=13, classes=2)
    module = classifier(data, {"name": "adam"}, CNN, l2=0.02, loss=loss).double()
    risk = EmpiricalRisk(module, Examples(data, "train"), batch_size=5)
    torch.testing.assert_close(gn.gauss_newton(risk), by_jacobians(module, data.batch()), rtol=1e-9, atol=1e-12)


def test_of_a_linear_model_it_is_the_hessian_and_its_root_the_inverse():
    data = blobs()
    module = classifier(data, network={"bias": True}, l2=0.02, decay_bias=True)
    fit(module, data, max_epochs=1)
    root = gn.GaussNewton(EmpiricalRisk(module, Examples(data, "train")), damping=0.1)
    _, hessian = dense(module, data.batch()._replace(inputs=data.inputs.double()))
    identity = torch.eye(len(hessian)).to(hessian)
    inverse = root.root(root.root_transposed(identity))
    torch.testing.assert_close(inverse @ (hessian + 0.1 * identity), identity, rtol=0, atol=1e-5)


def test_only_the_chosen_parameters():
    data = pictures(rows=13)
    module = classifier(data, {"name": "adam"}, CNN, l2=0.02)
    whole = gn.gauss_newton(make_risk(module, Examples(data, "train")))
    risk = EmpiricalRisk(module, Examples(data, "train"), ["network.convolutions.*"])
    torch.testing.assert_close(gn.gauss_newton(risk), whole[: risk.num_params, : risk.num_params])


def doubled(data):
    """All examples in float64."""
    return data.batch()._replace(inputs=data.inputs.double())


def test_training_ends_at_a_minimum_that_kronecker_factors_are_still_far_from(network):
    data, module, trainer = network
    assert trainer.callback_metrics["train/gradient_norm"] < 1e-6 and trainer.global_step < 30
    gradient, hessian = dense(module, doubled(data))
    assert gradient.norm() < 1e-6 and torch.linalg.eigvalsh(hessian)[0] > 0
    other = classifier(data, {**NEWTON, "preconditioner": "ekfac"}, CNN, **L2)
    slope = fit(other, data, max_epochs=trainer.global_step).callback_metrics["train/gradient_norm"]
    assert slope > 100 * trainer.callback_metrics["train/gradient_norm"]


def test_retraining_ends_at_a_minimum_without_the_example(network):
    data, module, _ = network
    train, queries, removals = Examples(data, "train"), Examples(data, "test", [0, 1]), [2, 5]
    coordinates = module.optimizer_config.preconditioner
    config = RetrainConfig(tolerance=1e-7, max_iterations=100, preconditioner=coordinates)
    found = leave_one_out(module, train, queries, removals, config=config, keep_params=True)
    assert found.residual.max() <= 1e-7
    batch = doubled(data)
    for k, row in enumerate(removals):
        there = deepcopy(module)
        torch.nn.utils.vector_to_parameters(found.params[k], there.parameters())
        gradient, hessian = dense(there, rows_of(batch, torch.arange(40) != row))
        assert gradient.norm() < 1e-6 and torch.linalg.eigvalsh(hessian)[0] > 0
        change = there.example_losses(batch) - module.example_losses(batch)
        torch.testing.assert_close(found.delta_test_loss[k], change[:2].detach(), rtol=1e-4, atol=1e-6)
        assert change[row] > 0
    assert found.control_change.abs().max() < 1e-3 * found.delta_test_loss.abs().max()
    plain = leave_one_out(module, train, queries, removals, config=RetrainConfig(max_iterations=20))
    assert (plain.residual > 100 * found.residual).all()


def test_conjugate_gradients_of_a_linear_model_need_hardly_a_product():
    data = blobs(classes=2)
    module = classifier(data, network={"bias": True}, l2=0.02, loss="logistic")
    fit(module, data, max_epochs=1)
    risk = EmpiricalRisk(module, Examples(data, "train"))
    vectors = torch.randn(1, risk.num_params, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    solver = ConjugateGradient(damping=0.01, preconditioner="gauss_newton", tolerance=1e-6)
    solution = solver.solve(risk, vectors)
    _, hessian = dense(module, doubled(data))
    wanted = torch.linalg.solve(hessian + 0.01 * torch.eye(len(hessian)), vectors[0])
    torch.testing.assert_close(solution.vectors[0], wanted, rtol=1e-5, atol=1e-6)
    assert solution.iterations <= 2


def test_refusals(monkeypatch):
    with pytest.raises(UserError, match="a classifier with predict_proba"):
        gn.GaussNewton(make_risk(Net(), examples()))
    data = blobs(classes=2)
    hinge = classifier(data, loss="smooth_hinge", smoothness=0.1)
    with pytest.raises(UserError, match="smooth_hinge gives no probabilities"):
        gn.gauss_newton(make_risk(hinge, Examples(data, "train")))
    monkeypatch.setattr(gn, "MAX_PARAMS", 3)
    with pytest.raises(UserError, match="3 parameters at most, not 8: use ekfac"):
        gn.gauss_newton(EmpiricalRisk(classifier(data), Examples(data, "train")))
    with pytest.raises(UserError, match=r"retrain.preconditioner='kfac' is unknown: use one of none, ekfac"):
        RetrainConfig(preconditioner="kfac")
