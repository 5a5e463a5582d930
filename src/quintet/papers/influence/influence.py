"""The influence of every training example on the loss of every query.

Koh & Liang 2017, equation 2: I_up,loss(z, z_test) = -grad L(z_test)^T H^-1 grad L(z); removing z changes the test loss
by about -I_up,loss / n. `delta_test_loss_if_removed` is that change: > 0 means that the example helps.
Legend: Q queries, N training examples, p parameters.
"""

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quintet.common.checkpoints import weights_digest
from quintet.papers.influence.kept import KeptResults
from quintet.papers.influence.last_layer.split import at_last_layer
from quintet.papers.influence.risk.examples import Examples
from quintet.papers.influence.risk.linear_risk import make_risk
from quintet.papers.influence.risk.risk import EmpiricalRisk, ranks, sum_of_ranks
from quintet.papers.influence.solvers.cg import ConjugateGradient
from quintet.papers.influence.solvers.interface import InverseHessian, Solution, Solver

log = logging.getLogger(__name__)
FORMAT = 1  # raise when the meaning of the kept files changes
QUERY_BLOCK = 128  # queries solved together
SOLVE_NUMBERS = 256 << 20  # largest number of entries of right-hand sides solved together
CONVERGED = 1e-4  # gradient norm above which a warning says that the parameters are not at a minimum


@dataclass(frozen=True)
class InfluenceResult:
    """The result of `influence`."""

    delta_test_loss_if_removed: Tensor  # (Q, N) nats (or the loss's unit); > 0: helpful
    query_losses: Tensor  # (Q,) without the L2 term
    train_losses: Tensor  # (N,)
    s_test: Tensor  # (Q, p) = (H + damping I)^-1 grad L(z_test)
    relative_residual: Tensor  # (Q,) of the solver
    iterations: int  # the most that a block of queries took
    effective_damping: float
    gradient_norm: float  # of the training risk; 0 at a minimum
    num_params: int

    def top_helpful(self, count: int) -> tuple[Tensor, Tensor]:
        """Scores and positions (Q, count) of the training examples whose removal raises the test loss most."""
        values, places = self.delta_test_loss_if_removed.topk(min(count, self.delta_test_loss_if_removed.shape[1]))
        return values, places

    def top_harmful(self, count: int) -> tuple[Tensor, Tensor]:
        """Scores and positions (Q, count) of those whose removal lowers it most."""
        values, places = (-self.delta_test_loss_if_removed).topk(min(count, self.delta_test_loss_if_removed.shape[1]))
        return -values, places


def influence(
    module: Any,
    train: Examples,
    queries: Examples,
    params: str | Sequence[str] = "*",
    solver: Solver | None = None,
    batch_size: int | None = None,
    cache_dir: Path | None = None,
) -> InfluenceResult:
    """The influence of all `train` examples on the loss of each query.

    module: any LightningModule with example_losses, at its trained parameters. params: patterns of parameter names; the
    others count as fixed. solver: conjugate gradients without damping by default. cache_dir: what is finished is kept
    there, and a second call with the same weights, examples and settings goes on from it. With torch.distributed the
    ranks share all sweeps and each returns everything. Errors: UserError, with advice, for an indefinite Hessian, a
    diverging series, a module without example_losses, params that match nothing.
    """
    solver = solver or ConjugateGradient()
    module, train, queries = at_last_layer(module, params, train, queries)
    risk = make_risk(module, train, params, batch_size)
    kept = kept_scores(cache_dir, risk, queries, solver)
    norm = (kept.load("gradient_norm") or {"value": float(risk.gradient().norm())})["value"]
    kept.save("gradient_norm", {"value": norm})
    warn_unless_converged(norm, risk)
    query_losses = sweep_losses(risk, queries)
    solutions, prepared = [], None
    for block, rows in enumerate(_slices(len(queries), query_block(risk))):
        saved = kept.load(f"solution_{block:05d}")
        if saved is None:
            prepared = prepared or solver.prepare(risk)
            saved = vars(prepared.solve(gradients_of(risk, queries, rows)))
            if ranks()[0] == 0:  # the solutions of all ranks are the same
                kept.save(f"solution_{block:05d}", saved)
        solutions.append(Solution(**saved))
    s_test = torch.cat([s.vectors for s in solutions])
    scores, losses = sweep(risk, s_test, kept)
    return InfluenceResult(
        delta_test_loss_if_removed=scores,
        query_losses=query_losses,
        train_losses=losses,
        s_test=s_test,
        relative_residual=torch.cat([s.relative_residual for s in solutions]),
        iterations=max(s.iterations for s in solutions),
        effective_damping=solutions[0].effective_damping,
        gradient_norm=norm,
        num_params=risk.num_params,
    )


def kept_scores(cache_dir: Path | None, risk: EmpiricalRisk, queries: Examples, solver: Solver) -> KeptResults:
    """Results of earlier calls with exactly these weights, parameters, examples and solver settings."""
    settings = {"solver": type(solver).__name__, **asdict(solver)}
    depends_on = [FORMAT, weights_digest(risk.module), risk.selection.names, risk.batch_size,
                  risk.train.fingerprint(), queries.fingerprint(), settings]  # fmt: skip
    return KeptResults(cache_dir, depends_on, settings | {"params": risk.selection.names})


def warn_unless_converged(gradient_norm: float, risk: EmpiricalRisk) -> None:
    """Warn if the parameters are not at a minimum, which the first-order approximation assumes."""
    if gradient_norm > CONVERGED:
        log.warning(
            "the training risk has gradient norm %.3g at these parameters (0 at a minimum, |theta| = %.3g), so that the"
            " scores are approximate: train longer, or set solver.damping",
            gradient_norm, float(risk.theta.norm()),
        )  # fmt: skip


def gradients_of(risk: EmpiricalRisk, examples: Examples, rows: slice) -> Tensor:
    """grad L of some examples without the L2 term, (rows, p)."""
    places = range(*rows.indices(len(examples)))
    parts = [slice(a, min(a + risk.batch_size, rows.stop)) for a in places[:: risk.batch_size]]
    return torch.cat([risk.example_gradients(risk.read(examples, part)) for part in parts])


def sweep_losses(risk: EmpiricalRisk, examples: Examples) -> Tensor:
    """Losses (N,) of examples without the L2 term, on the CPU."""
    with torch.no_grad():
        batches = examples.batches(risk.batch_size, risk.dtype, risk.device, keep=False)
        return torch.cat([risk.losses(risk.theta, batch) for _, batch in batches]).cpu()


def sweep(risk: EmpiricalRisk, s_test_qp: Tensor, kept: KeptResults | None = None) -> tuple[Tensor, Tensor]:
    """s_test . grad L(z_i) / n for all training examples, (Q, N), L2 term included, and their losses (N,)."""
    scores_qn = torch.zeros(len(s_test_qp), len(risk.train), dtype=risk.dtype)
    losses_n = torch.zeros(len(risk.train), dtype=risk.dtype)
    penalty_q = (s_test_qp @ risk.penalty_gradient()).cpu()
    for place, batch in risk.batches():
        name = f"scores_{place.start:09d}"
        found = kept.load(name) if kept else None
        if found is None:
            found = {"scores": risk.directional(batch, s_test_qp).cpu(), "losses": risk.batch_losses(batch).cpu()}
            if kept:
                kept.save(name, found)
        scores_qn[:, place], losses_n[place] = found["scores"] + penalty_q[:, None], found["losses"]
    if ranks()[1] > 1:
        scores_qn, losses_n = (sum_of_ranks(t.to(risk.device)).cpu() for t in (scores_qn, losses_n))
    return scores_qn / len(risk.train), losses_n


def self_influence(risk: EmpiricalRisk, inverse: InverseHessian) -> Tensor:
    """grad L(z_i)^T (H + damping I)^-1 grad L(z_i) / n of every training example, (N,): its influence on its own loss.

    Section 5.4 orders examples by it to find wrong labels. The L2 term is in the gradients.
    """
    # every rank takes all examples: the ranks share the Hessian-vector products, which need the same vectors everywhere
    found = []
    for rows in _slices(len(risk.train), max(1, min(risk.batch_size, SOLVE_NUMBERS // risk.num_params))):
        gradients_bp = gradients_of(risk, risk.train, rows) + risk.penalty_gradient()
        found.append((gradients_bp * inverse.apply(gradients_bp)[0]).sum(1))
    return torch.cat(found).cpu() / len(risk.train)


def influence_on_params(risk: EmpiricalRisk, inverse: InverseHessian, rows: slice) -> Solution:
    """I_up,params(z) = -H^-1 grad L(z), section 2.1, of some training examples, (rows, p).

    Removing z moves theta by about -1/n of it.
    """
    gradients_kp = gradients_of(risk, risk.train, rows) + risk.penalty_gradient()
    return inverse.solve(-gradients_kp)


def query_block(risk: EmpiricalRisk) -> int:
    """How many queries to solve together."""
    return max(1, min(QUERY_BLOCK, SOLVE_NUMBERS // risk.num_params))


def _slices(total: int, size: int) -> list[slice]:
    return [slice(a, min(a + size, total)) for a in range(0, total, size)]
