"""Every solver against dense linear algebra; what each reports; how each fails."""

import numpy as np
import pytest
import torch
from small_models import Net, Softmax, data, dense, examples, fit

from quintet.common.errors import UserError
from quintet.papers.influence.risk import kronecker
from quintet.papers.influence.risk.kronecker import fit_factors
from quintet.papers.influence.risk.linear_risk import make_risk
from quintet.papers.influence.risk.risk import EmpiricalRisk
from quintet.papers.influence.solvers import cg
from quintet.papers.influence.solvers.arnoldi import Arnoldi
from quintet.papers.influence.solvers.cg import ConjugateGradient
from quintet.papers.influence.solvers.direct import Direct
from quintet.papers.influence.solvers.ekfac import Ekfac
from quintet.papers.influence.solvers.lissa import Lissa


@pytest.fixture(scope="module", params=["generic", "linear"])
def problem(request):
    torch.manual_seed(0)
    module = fit(Softmax(bias=True, linear=request.param == "linear"), data())
    return make_risk(module, examples(), batch_size=9), dense(module, data())[1]


def right(risk, count=4):
    return torch.randn(count, risk.num_params, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def solved(hessian, damping, vectors):
    matrix = hessian.numpy() + damping * np.eye(len(hessian))
    return torch.from_numpy(np.linalg.solve(matrix, vectors.numpy().T).T)


EXACT = {
    "direct": Direct(damping=0.1),
    "cg": ConjugateGradient(damping=0.1, tolerance=1e-11, preconditioner="none"),
    "preconditioned cg": ConjugateGradient(damping=0.1, tolerance=1e-11, preconditioner="ekfac"),
    "cg as it comes": ConjugateGradient(damping=0.1, tolerance=1e-11),  # a linear model: sampled
    "lissa": Lissa(damping=0.1, batch_size=4000, depth=2000, seed=3),  # batches so large that they are nearly H itself
}


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n == "lissa" else n for n in EXACT])
def test_solution_and_reported_residual(problem, name):
    risk, hessian = problem
    solver, vectors = EXACT[name], right(problem[0])
    solution = solver.solve(risk, vectors)
    wanted = solved(hessian, 0.1, vectors)
    close = 0.05 if name == "lissa" else 1e-8
    assert ((solution.vectors - wanted).norm(dim=1) / wanted.norm(dim=1)).max() < close
    residual = solution.vectors @ (hessian + 0.1 * torch.eye(len(hessian))) - vectors
    torch.testing.assert_close(solution.relative_residual, residual.norm(dim=1) / vectors.norm(dim=1))
    assert solution.effective_damping == 0.1 and solution.seconds > 0


@pytest.mark.parametrize("preconditioner", ["none", "ekfac", "auto"])
@pytest.mark.parametrize("vectors", ["one", "twice the same", "zero among others", "more than parameters"])
def test_block_cg_with_right_hand_sides_that_depend_on_each_other(problem, vectors, preconditioner):
    risk, hessian = problem
    made = right(risk)
    made = {
        "one": made[:1],
        "twice the same": made[[0, 1, 0, 0]],
        "zero among others": torch.cat([made, torch.zeros_like(made[:1])]),
        "more than parameters": right(risk, risk.num_params + 3),
    }[vectors]
    solution = ConjugateGradient(tolerance=1e-10, damping=0.05, preconditioner=preconditioner).solve(risk, made)
    torch.testing.assert_close(solution.vectors, solved(hessian, 0.05, made), rtol=1e-7, atol=1e-7)


def test_cg_stops_at_its_tolerance_and_solving_together_takes_fewer_products(problem):
    risk, _ = problem
    vectors = right(risk, 2)
    rough = ConjugateGradient(damping=0.1, tolerance=1e-2, preconditioner="none").solve(risk, vectors)
    fine = ConjugateGradient(damping=0.1, tolerance=1e-9, preconditioner="none").solve(risk, vectors)
    assert rough.iterations < fine.iterations and fine.relative_residual.max() < 2e-9 < rough.relative_residual.max()
    alone = ConjugateGradient(damping=0.1, tolerance=1e-9, preconditioner="none").solve(risk, vectors[:1])
    assert fine.iterations < alone.iterations


def test_long_conjugate_gradients_say_how_far_they_are(problem, monkeypatch, caplog):
    risk, _ = problem
    monkeypatch.setattr(cg, "LOG_INTERVAL", 0.0)
    with caplog.at_level("INFO"):
        found = ConjugateGradient(tolerance=1e-6, preconditioner="none", damping=0.1).solve(risk, right(risk, 2))
    told = [record.message for record in caplog.records if record.message.startswith("conjugate gradients: ")]
    assert len(told) == found.iterations - 1 and told[0].startswith("conjugate gradients: 1 iterations, residual ")


def test_lissa_matches_a_literal_loop_of_the_papers_code():
    """v + (1 - d) h - H_b h / scale, d = damping / scale, on the same draws, one example at a time."""
    torch.manual_seed(0)
    module = fit(Softmax(), data())
    risk = EmpiricalRisk(module, examples())
    solver = Lissa(damping=0.2, batch_size=1, depth=50, repeats=2, scale=4.0, seed=7)
    solution = solver.solve(risk, right(risk, 1))
    draw, vector, total = torch.Generator().manual_seed(7), right(risk, 1)[0], 0
    for _ in range(2):
        h = vector
        for _ in range(50):
            row = int(torch.randint(40, (1,), generator=draw))
            hessian = dense(module, type(data())(*(part[row : row + 1] for part in data())))[1]
            h = vector + (1 - 0.2 / 4.0) * h - hessian @ h / 4.0
        total = total + h / 4.0
    torch.testing.assert_close(solution.vectors[0], total / 2)


class Spread:
    """A risk that is a matrix with no eigenvalue twice: a single start vector reaches every eigenvector."""

    num_params, theta = 12, torch.zeros(12, dtype=torch.float64)

    def __init__(self) -> None:
        turn = torch.linalg.qr(torch.randn(12, 12, generator=torch.Generator().manual_seed(2)).double())[0]
        self.hessian_pp = turn @ torch.diag(torch.arange(12).double() - 1) @ turn.T

    def hvp(self, vectors_kp):
        return vectors_kp @ self.hessian_pp


def test_arnoldi_with_the_whole_space_is_exact():
    risk = Spread()  # one eigenvalue is -1
    solution = Arnoldi(damping=1.5, iterations=12, rank=12).solve(risk, right(risk))
    torch.testing.assert_close(solution.vectors, solved(risk.hessian_pp, 1.5, right(risk)))
    assert solution.relative_residual.max() < 1e-8


def test_arnoldi_keeps_the_dominant_eigenpairs_only(problem):
    risk, hessian = problem
    values, vectors = np.linalg.eigh(hessian.numpy())
    kept = np.argsort(-np.abs(values))[:5]
    low = vectors[:, kept] @ np.diag(1 / (values[kept] + 0.1)) @ vectors[:, kept].T
    solution = Arnoldi(damping=0.1, iterations=18, rank=5).solve(risk, right(risk))
    torch.testing.assert_close(solution.vectors, right(risk) @ torch.from_numpy(low), rtol=1e-4, atol=1e-4)
    assert solution.relative_residual.min() > 0.01  # and it says that this is no solution


def test_ekfac_is_exact_where_the_fisher_matrix_is_a_kronecker_product():
    """With one input vector for all examples the curvature of a linear model is x x^T (x) D exactly."""
    module = Softmax()
    batch = data()._replace(inputs=data().inputs[:1].expand(40, -1).clone())
    risk = make_risk(module.requires_grad_(), type(examples()).of_batch(batch))
    module.linear = True
    linear = make_risk(module, type(examples()).of_batch(batch))
    vectors = right(risk)
    torch.testing.assert_close(
        Ekfac(damping=0.1).solve(linear, vectors).vectors, solved(dense(module, batch)[1], 0.1, vectors)
    )
    assert Ekfac(damping=0.1).solve(linear, vectors).relative_residual.max() < 1e-10


@pytest.mark.parametrize("memory", ["enough", "little"])
def test_factors_from_hooks_are_second_moments_in_the_eigenbases(memory, monkeypatch):
    """Against gradients of single examples; the layer that is called twice adds up its calls."""
    if memory == "little":
        monkeypatch.setattr(kronecker, "budget", lambda device: 0)
    module = Net()
    risk = EmpiricalRisk(module, examples(), ["conv.*", "twice.*", "layer.*"], batch_size=9)
    batch = data()
    for factor in fit_factors(risk, torch.Generator()):
        moment = 0
        for row in range(40):
            single = type(batch)(*(part[row : row + 1] for part in batch))
            names = (factor.weight, factor.bias)
            parameters = dict(module.named_parameters())
            weight, bias = torch.autograd.grad(module.example_losses(single).sum(), [parameters[n] for n in names])
            matrix = torch.cat([weight.flatten(1), bias[:, None]], 1)
            moment = moment + (factor.basis_out.T @ matrix @ factor.basis_in).square() / 40
        torch.testing.assert_close(factor.eigenvalues, moment)
        for basis in (factor.basis_in, factor.basis_out):
            torch.testing.assert_close(basis.T @ basis, torch.eye(len(basis), dtype=torch.float64))


def test_ekfac_inverts_what_it_holds_and_reports_how_far_that_is_from_the_hessian():
    module = fit(Softmax(), data())
    risk = EmpiricalRisk(module, examples())
    solution = Ekfac(damping=0.1).solve(risk, right(risk))
    residual = solution.vectors @ (dense(module, data())[1] + 0.1 * torch.eye(15)) - right(risk)
    torch.testing.assert_close(solution.relative_residual, residual.norm(dim=1) / right(risk).norm(dim=1))
    assert solution.relative_residual.min() > 1e-4  # an approximation, and it says so
    unchecked = Ekfac(damping=0.1, residual=False).solve(risk, right(risk))
    assert unchecked.relative_residual.isnan().all() and torch.equal(unchecked.vectors, solution.vectors)
    curvature = Ekfac(damping=0.1).prepare(risk).curvature
    back = curvature.power(solution.vectors, 1.0)
    torch.testing.assert_close(back, right(risk))
    torch.testing.assert_close(curvature.power(curvature.power(back, -0.5), -0.5), solution.vectors)


REFUSING = [Direct(), ConjugateGradient(preconditioner="none"), Arnoldi(iterations=20, rank=20)]


@pytest.mark.parametrize("solver", REFUSING)
def test_an_indefinite_hessian_is_refused_with_advice_that_works(solver):
    module = Net(l2=0.0)
    risk = EmpiricalRisk(module, examples())
    lowest = float(torch.linalg.eigvalsh(dense(module, data())[1])[0])
    assert lowest < -1e-3
    with pytest.raises(UserError, match=r"not positive definite .* set solver\.damping above") as caught:
        solver.solve(risk, right(risk))
    advised = float(str(caught.value).split("damping above ")[1].split(",")[0])
    assert 0 < advised <= -lowest * 1.01  # never more than the most negative eigenvalue asks for
    Direct(damping=-lowest * 1.01).solve(risk, right(risk))


def test_lissa_says_when_it_diverges():
    risk = EmpiricalRisk(fit(Softmax(), data()), examples())
    with pytest.raises(UserError, match=r"LiSSA diverged after \d+ steps: raise solver\.scale above 0\.01"):
        Lissa(scale=0.01, depth=300).solve(risk, right(risk))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Direct(damping=-1), "solver.damping=-1: give 0 or more"),
        (
            lambda: ConjugateGradient(preconditioner="kfac"),
            "solver.preconditioner='kfac' is unknown: use sampled, ekfac",
        ),
        (lambda: ConjugateGradient(tolerance=0), "solver.max_iterations must be at least 1 and solver.tolerance"),
        (lambda: Lissa(depth=0), "solver.depth=0: give 1 or more"),
        (lambda: Lissa(scale=0.0), "solver.scale=0.0: give a number above 0"),
        (lambda: Arnoldi(rank=300), "solver.rank=300: give 1 to solver.iterations=200"),
    ],
)
def test_settings_are_checked(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_too_many_parameters_and_layers_that_ekfac_does_not_know():
    risk = EmpiricalRisk(Net(), examples())
    with pytest.raises(UserError, match=r"solver=direct needs the 71 x 71 Hessian"):
        Direct(max_params=70).solve(risk, right(risk))
    module = Softmax()
    module.scale = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))
    with pytest.raises(UserError, match=r"EK-FAC covers Linear, Conv1d and Conv2d layers .*, not scale"):
        Ekfac(damping=0.1).prepare(EmpiricalRisk(module, examples()))
    assert ConjugateGradient().prepare(EmpiricalRisk(module, examples())).preconditioner is None  # auto goes without


def test_float32_converges_to_its_own_rounding():
    module = fit(Softmax(), data()).float()
    risk = EmpiricalRisk(module, examples())
    assert risk.dtype == torch.float32
    solution = ConjugateGradient(damping=0.1).solve(risk, right(risk).float())
    assert solution.relative_residual.max() < 1e-5 and solution.iterations < 30
