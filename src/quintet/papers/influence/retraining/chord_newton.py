"""Leave-one-out minima of a convex linear model, many removals at once: Newton's method that keeps its first Hessian.

R_-i = 1/(n-1) sum over j != i of L_j, plus the L2 term, has nearly the Hessian of R, so that one Cholesky factor serves
all removals and steps. For examples with much leverage the curvature differs; each removal's L-BFGS, which starts
from the factor, learns the difference. The gradients of all K parameter vectors are two products of matrices: outputs
X Theta^T, and the losses' slopes times X.
Legend: n training examples, B of a batch, F features (ones last for a bias), C outputs, K removals, p = C * F.
"""

import logging
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, vmap

from quintet.papers.influence.retraining.interface import Refitted, Removal
from quintet.papers.influence.retraining.optimizers import Lbfgs
from quintet.papers.influence.risk.examples import rows_of
from quintet.papers.influence.risk.linear_risk import LinearRisk
from quintet.papers.influence.solvers.cg import ConjugateGradient
from quintet.papers.influence.solvers.direct import dense_hessian

log = logging.getLogger(__name__)
BLOCK = 4 << 20  # numbers of the parameter vectors retrained together
PRODUCT = 8 << 20  # numbers of their outputs for a batch of examples
PROGRESS, PATIENCE = 0.5, 5  # steps in which the gradient must have come down to that part of its least
MEMORY = 8  # steps whose curvature is remembered
RIDGE = 1e-9  # of the mean curvature, where a common bias of all classes is a direction without any


@dataclass
class ChordNewton:
    """Until |gradient| <= tolerance, in float64. dense_params: above it conjugate gradients replace the factor.

    Full steps only: removals that make no progress (a minimum far off, curvature that changes on the way) are left to
    L-BFGS with a line search.
    """

    tolerance: float = 1e-8
    max_steps: int = 50
    dense_params: int = 20_000
    max_iterations: int = 1000  # of L-BFGS where it is needed

    def run(self, risk: LinearRisk, removals: Sequence[Removal]) -> Iterator[Refitted]:
        """Refit without each of `removals`."""
        size, left = max(1, BLOCK // risk.num_params), list(removals)
        inverse = self._inverse(risk)
        if inverse is not None:
            left = []
            for start in range(0, len(removals), size):
                left += yield from self._block(risk, inverse, removals[start : start + size])
        if left:
            log.warning("Newton's steps do not converge for %d of %d: L-BFGS for them", len(left), len(removals))
            yield from Lbfgs(self.tolerance, self.max_iterations).run(risk, left)

    def _inverse(self, risk: LinearRisk) -> Callable[[Tensor], Tensor] | None:
        """(K, p) -> (K, p): about the inverse Hessian of R at its parameters; None where that is not positive."""
        if risk.num_params > self.dense_params:
            prepared = ConjugateGradient(tolerance=1e-2).prepare(risk)
            return lambda vectors_kp: prepared.solve(vectors_kp.to(risk.dtype)).vectors.double()
        hessian = dense_hessian(risk).double()
        hessian.diagonal().add_(RIDGE * hessian.diagonal().mean())
        factor, failed = torch.linalg.cholesky_ex(hessian)
        return None if failed else lambda vectors_kp: torch.cholesky_solve(vectors_kp.T, factor).T

    def _block(self, risk: LinearRisk, inverse: Callable[[Tensor], Tensor],
               removals: Sequence[Removal]) -> Generator[Refitted, None, list[Removal]]:  # fmt: skip
        """Removals that share their products of matrices; returns those that made no progress."""
        problem, failed, history = Without(risk, removals), [], History(inverse)
        theta_kp, rows = risk.theta.double().repeat(len(removals), 1), torch.arange(len(removals))
        gradient_kp = problem.first_gradients(theta_kp)
        least_k, patience_k = torch.full((len(removals),), torch.inf), torch.full((len(removals),), PATIENCE)
        for step in range(self.max_steps + 1):
            norm_k = gradient_kp.norm(dim=1).cpu()
            progress = norm_k <= PROGRESS * least_k
            patience_k = torch.where(progress, PATIENCE, patience_k - 1)
            least_k = torch.where(progress, norm_k, least_k)
            done = norm_k <= self.tolerance
            stuck = ~done & ((patience_k == 0) | ~norm_k.isfinite() | (step == self.max_steps))
            for k in done.nonzero()[:, 0].tolist():
                yield Refitted(removals[int(rows[k])], theta_kp[k].clone(), float(norm_k[k]), step)
            failed += [removals[int(row)] for row in rows[stuck]]
            going = ~(done | stuck)
            if not bool(going.any()):
                break
            rows, least_k, patience_k = rows[going], least_k[going], patience_k[going]
            before_kp, slope_kp = theta_kp[going], gradient_kp[going]
            history.keep(going)
            theta_kp = before_kp - history.solve(slope_kp)
            gradient_kp = problem.gradients(theta_kp, rows)
            history.add(theta_kp - before_kp, gradient_kp - slope_kp)
        return failed


class History:
    """L-BFGS's inverse of K Hessians (Nocedal and Wright, algorithm 7.4) that starts from one they nearly share.

    A pair is a step (K, p), the change of gradient (K, p) and 1 over their product (K, 1).
    """

    def __init__(self, inverse: Callable[[Tensor], Tensor]) -> None:
        self.inverse = inverse
        self.pairs: list[tuple[Tensor, Tensor, Tensor]] = []

    def add(self, step_kp: Tensor, change_kp: Tensor) -> None:
        product_k1 = (step_kp * change_kp).sum(1, keepdim=True)
        weight_k1 = torch.where(product_k1 > 0, 1 / product_k1, 0.0)  # 0: nothing to learn
        self.pairs = [*self.pairs, (step_kp, change_kp, weight_k1)][-MEMORY:]

    def keep(self, which: Tensor) -> None:
        """Only these removals go on."""
        if not bool(which.all()):
            kept = which.to(self.pairs[0][0].device) if self.pairs else which
            self.pairs = [(step[kept], change[kept], weight[kept]) for step, change, weight in self.pairs]

    def solve(self, gradient_kp: Tensor) -> Tensor:
        """(K, p) inverse Hessians times gradients."""
        shares = []
        for step_kp, change_kp, weight_k1 in reversed(self.pairs):
            shares.append(weight_k1 * (step_kp * gradient_kp).sum(1, keepdim=True))
            gradient_kp = gradient_kp - shares[-1] * change_kp
        found_kp = self.inverse(gradient_kp)
        for (step_kp, change_kp, weight_k1), share_k1 in zip(self.pairs, reversed(shares), strict=True):
            found_kp = found_kp + step_kp * (share_k1 - weight_k1 * (change_kp * found_kp).sum(1, keepdim=True))
        return found_kp


class Without:
    """The risks without one example each: gradients at as many parameter vectors."""

    def __init__(self, risk: LinearRisk, removals: Sequence[Removal]) -> None:
        self.risk = risk
        self.leaves_k = torch.tensor([removal is not None for removal in removals], device=risk.device)
        self.removed = risk.read(risk.train, torch.tensor([removal or 0 for removal in removals]))
        self.batch_size = max(64, PRODUCT // (len(removals) * risk.num_outputs))

    def first_gradients(self, theta_kp: Tensor) -> Tensor:
        """All at the same parameters, (K, p): one sweep that does not depend on K."""
        return self._without(self._totals(theta_kp[:1]).expand(len(theta_kp), -1, -1), theta_kp, slice(None))

    def gradients(self, theta_kp: Tensor, rows: Tensor) -> Tensor:
        """Of the removals `rows`, each at its own parameters, (K, p)."""
        return self._without(self._totals(theta_kp), theta_kp, rows.to(self.leaves_k.device))

    def _totals(self, theta_kp: Tensor) -> Tensor:
        """Sum of all examples' gradients at each parameter vector, (K, C, F)."""
        weights_kcf = self.risk.matrix(theta_kp)
        total_df = torch.zeros_like(weights_kcf).flatten(0, 1)  # d: K * C
        for _, batch in self.risk.train.batches(self.batch_size, self.risk.dtype, self.risk.device):
            design_bf, losses = linear(self.risk, batch)
            outputs_bkc = (design_bf @ weights_kcf.flatten(0, 1).T).unflatten(1, weights_kcf.shape[:2])
            total_df += slopes(vmap(losses, 1, 1), outputs_bkc).flatten(1).T @ design_bf
        return total_df.view_as(weights_kcf)

    def _without(self, total_kcf: Tensor, theta_kp: Tensor, rows: Tensor | slice) -> Tensor:
        """Gradients of the risks from the sums over all examples."""
        design_kf, losses = linear(self.risk, rows_of(self.removed, rows))
        outputs_kc = torch.einsum("kf,kcf->kc", design_kf, self.risk.matrix(theta_kp))
        leaves_k = self.leaves_k[rows].to(outputs_kc)
        own_kcf = (leaves_k[:, None] * slopes(losses, outputs_kc))[:, :, None] * design_kf[:, None]
        mean_kcf = (total_kcf - own_kcf) / (len(self.risk.train) - leaves_k)[:, None, None]
        with torch.no_grad():
            return self.risk.vector(mean_kcf) + vmap(grad(self.risk.penalty))(theta_kp)


def linear(risk: LinearRisk, batch: Any) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Features (B, F) of a raw batch in float64, a bias's ones last, and its losses as a function of outputs (B, C)."""
    with torch.no_grad():
        parts = risk.module.linear_parts(batch)
        design_bf = parts.design.double()
        ones = [torch.ones_like(design_bf[:, :1])] if risk.bias else []
        return torch.cat([design_bf, *ones], 1) if ones else design_bf, parts.losses


def slopes(losses: Callable[[Tensor], Tensor], outputs: Tensor) -> Tensor:
    """Derivative of every loss in its outputs."""
    with torch.no_grad():
        return grad(lambda z: losses(z).sum())(outputs)
