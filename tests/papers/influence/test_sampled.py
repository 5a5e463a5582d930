"""The sampled Hessian as a preconditioner, against the dense one; what is drawn, against probability."""

import pytest
import torch
from small_models import Net, Softmax, data, dense, examples, fit
from torch.nn import functional as F

from quintet.common.errors import UserError
from quintet.papers.influence.risk import sampled
from quintet.papers.influence.risk.linear_risk import LinearParts, make_risk
from quintet.papers.influence.risk.risk import EmpiricalRisk
from quintet.papers.influence.risk.sampled import SampledCurvature, draw
from quintet.papers.influence.solvers.cg import ConjugateGradient


def problem(bias=False, l2=0.05, count=40, batch_size=7):
    module = fit(Softmax(bias=bias, l2=l2, linear=True), data(count=count))
    return make_risk(module, examples(count=count), batch_size=batch_size), dense(module, data(count=count))[1]


def inverse(risk, curvature):
    """R R^T, (p, p)."""
    return curvature.sqrt(curvature.sqrt_transposed(torch.eye(risk.num_params, dtype=torch.float64)))


def test_with_all_examples_and_features_it_is_the_inverse(monkeypatch):
    monkeypatch.setattr(sampled, "LEADING", 0.0)
    monkeypatch.setattr(sampled, "FLOOR", 0.0)
    risk, hessian = problem()
    found = inverse(risk, SampledCurvature(risk, 0.1, 0))
    torch.testing.assert_close(found, torch.linalg.inv(hessian + 0.1 * torch.eye(15)))
    solution = ConjugateGradient(damping=0.1, tolerance=1e-10).solve(risk, torch.randn(4, 15).double())
    assert solution.iterations == 1


@pytest.mark.parametrize("bias", [False, True])
def test_few_leading_features_keep_their_block_and_the_rest_their_diagonal(monkeypatch, bias):
    monkeypatch.setattr(sampled, "COARSE", 6)  # two of the features
    monkeypatch.setattr(sampled, "LEADING", 0.0)
    monkeypatch.setattr(sampled, "FLOOR", 0.0)
    risk, hessian = problem(bias)
    curvature = SampledCurvature(risk, 0.1, 0)
    assert curvature.lead == 2
    order = risk.matrix(torch.arange(risk.num_params, dtype=torch.float64)[None]).flatten().long()
    turn = torch.kron(curvature.basis_out, curvature.basis_in)
    turned = turn.T @ hessian[order][:, order] @ turn
    wanted = torch.linalg.inv(turn.T @ inverse(risk, curvature)[order][:, order] @ turn) - 0.1 * torch.eye(len(turn))
    features = len(curvature.basis_in)
    leads = torch.arange(len(turn)) % features < 2
    torch.testing.assert_close(wanted[leads][:, leads], turned[leads][:, leads])
    torch.testing.assert_close(wanted[~leads][:, ~leads].diagonal(), turned.diagonal()[~leads])
    assert float(wanted[leads][:, ~leads].abs().max()) < 1e-10


def test_a_sample_of_the_examples_makes_cg_shorter_and_changes_no_solution(monkeypatch):
    monkeypatch.setattr(sampled, "EXAMPLES", 150)
    risk, hessian = problem(count=600, l2=1e-3, batch_size=100)
    vectors = torch.randn(1, 15, generator=torch.Generator().manual_seed(1)).double()
    assert len(risk.sample(150, 0).weight) == 150
    made = ConjugateGradient(tolerance=1e-9).solve(risk, vectors)
    plain = ConjugateGradient(tolerance=1e-9, preconditioner="none").solve(risk, vectors)
    wanted = torch.linalg.solve(hessian, vectors.T).T
    torch.testing.assert_close(made.vectors, wanted, rtol=1e-6, atol=1e-6)
    assert made.iterations < plain.iterations


def test_the_sampled_hessian_is_the_whole_one_on_average():
    risk, hessian = problem()
    total, hessian = 0, hessian - 0.05 * torch.eye(15)  # without the L2 term
    for seed in range(400):
        part = risk.sample(20, seed)
        total = total + torch.einsum("m,mab,mf,mg->afbg", part.weight, part.curvature, part.design, part.design) / 40
    assert (total.reshape(15, 15) / 400 - hessian).norm() < 0.02 * hessian.norm()


def test_draws_are_in_proportion_and_none_without_a_chance():
    score = torch.tensor([1.0, 0.0, 3.0, 0.0, 4.0] * 20)
    rows, weight = draw(score, 90, 0)
    assert set((rows % 5).tolist()) <= {0, 2, 4}
    torch.testing.assert_close(weight, 160 / (90 * score[rows]))
    assert torch.equal(rows, draw(score, 90, 0)[0]) and not torch.equal(rows, draw(score, 90, 1)[0])
    rows, weight = draw(torch.zeros(100), 90, 0)
    torch.testing.assert_close(weight, torch.full((90,), 100 / 90))
    assert draw(score, 100, 0)[0].tolist() == list(range(100))


class Wavy(Softmax):
    """Linear outputs, but a loss that is not convex in them."""

    def example_losses(self, batch):
        return self.linear_parts(batch).losses(self(batch.inputs))

    def linear_parts(self, batch):
        bend = lambda z_bc: F.cross_entropy(z_bc, batch.labels, reduction="none") + 2 * z_bc.cos().sum(1)  # noqa: E731
        return LinearParts(batch.inputs, "layer.weight", None, bend)


def test_a_loss_that_is_not_convex_is_left_to_conjugate_gradients():
    module = Wavy(linear=True)
    torch.nn.init.zeros_(module.layer.weight)
    risk = make_risk(module, examples())
    assert torch.linalg.eigvalsh(dense(module, data())[1])[0] < -0.1
    with pytest.raises(UserError, match="not positive definite"):
        ConjugateGradient().solve(risk, torch.randn(2, 15).double())


def test_only_for_linear_models_with_few_outputs(monkeypatch):
    with pytest.raises(UserError, match=r"solver\.preconditioner=sampled is for linear models with few outputs"):
        ConjugateGradient(preconditioner="sampled").prepare(EmpiricalRisk(Net(), examples()))
    risk, _ = problem()
    assert SampledCurvature.applies(risk)
    monkeypatch.setattr(sampled, "OUTPUTS", 2)
    assert not SampledCurvature.applies(risk)
