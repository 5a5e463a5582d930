"""Conjugate gradients for many right-hand sides at once, preconditioned by a sampled Hessian or by EK-FAC.

The block form with a QR factorization in each step (Dubrulle 2001, "BCGrQ") shares one Krylov space between all
right-hand sides and stays stable when some of them have converged. One right-hand side is ordinary CG.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from quintet.common.errors import UserError
from quintet.papers.influence.risk.risk import EmpiricalRisk
from quintet.papers.influence.risk.sampled import SampledCurvature, SampledHessian
from quintet.papers.influence.solvers.ekfac import curvature_of
from quintet.papers.influence.solvers.interface import InverseHessian, Preconditioner, Solver, indefinite

log = logging.getLogger(__name__)
LOG_INTERVAL = 60.0  # seconds
PRECONDITIONERS = ("sampled", "ekfac", "none", "auto")


@dataclass
class ConjugateGradient(Solver):
    """tolerance: of the residual relative to the right-hand side, ten times the precision's rounding at least.

    preconditioner: sampled (linear models with few outputs, a last softmax layer), ekfac, none, or auto: the first of
    these that the model and the chosen parameters allow.

    Errors: UserError with advice when a direction of negative curvature shows that the Hessian is indefinite.
    """

    tolerance: float = 1e-8
    max_iterations: int = 100
    preconditioner: str = "auto"
    seed: int = 0  # of the examples of `sampled`, and of the labels of `ekfac`

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.preconditioner not in PRECONDITIONERS:
            raise UserError(
                f"solver.preconditioner={self.preconditioner!r} is unknown: use {', '.join(PRECONDITIONERS)}"
            )
        if self.max_iterations < 1 or not self.tolerance > 0:
            raise UserError("solver.max_iterations must be at least 1 and solver.tolerance above 0")

    def prepare(self, risk: EmpiricalRisk) -> "Iterative":
        return Iterative(risk, self, self._preconditioner(risk))

    def _preconditioner(self, risk: EmpiricalRisk) -> Preconditioner | None:
        for sampled in (SampledCurvature, SampledHessian):
            if self.preconditioner in ("sampled", "auto") and sampled.applies(risk):
                return sampled(risk, self.damping, self.seed)
        if self.preconditioner == "sampled":
            raise UserError(
                "solver.preconditioner=sampled is for linear models with few outputs, and for the last layer of a"
                " network that gives softmax_parts: use auto"
            )
        if self.preconditioner == "none":
            return None
        try:
            return curvature_of(risk, self.damping, self.seed, floor=1e-6)
        except UserError:
            if self.preconditioner == "ekfac":
                raise
        return None


class Iterative(InverseHessian):
    """The operator H + damping I and its preconditioner."""

    def __init__(self, risk: EmpiricalRisk, settings: ConjugateGradient, preconditioner: Preconditioner | None) -> None:
        super().__init__(risk, settings.damping)
        self.settings, self.preconditioner = settings, preconditioner

    def apply(self, vectors_kp: Tensor) -> tuple[Tensor, int]:
        x_kp, iterations = self._iterate(self._sqrt_transposed(vectors_kp))
        return self._sqrt(x_kp), iterations

    def _sqrt(self, vectors_kp: Tensor) -> Tensor:
        return vectors_kp if self.preconditioner is None else self.preconditioner.sqrt(vectors_kp)

    def _sqrt_transposed(self, vectors_kp: Tensor) -> Tensor:
        return vectors_kp if self.preconditioner is None else self.preconditioner.sqrt_transposed(vectors_kp)

    def _times(self, directions_kp: Tensor) -> Tensor:
        """R^T (H + damping I) R."""
        inner_kp = self._sqrt(directions_kp)
        return self._sqrt_transposed(self.risk.hvp(inner_kp) + self.damping * inner_kp)

    def _iterate(self, right_kp: Tensor) -> tuple[Tensor, int]:
        """Block CG on the preconditioned system; the residual is always residual_pk = basis_pk @ size_kk."""
        basis_pk, size_kk = torch.linalg.qr(right_kp.T)
        norm_k = right_kp.norm(dim=1).clamp(min=1e-30)
        x_pk, direction_pk = torch.zeros_like(right_kp.T), basis_pk
        tolerance = max(self.settings.tolerance, 10 * torch.finfo(right_kp.dtype).eps)
        iterations, last_logged = 0, time.monotonic()
        while iterations < self.settings.max_iterations:
            iterations += 1
            image_pk = self._times(direction_pk.T).T
            curvature_kk = direction_pk.T @ image_pk
            factor_kk, failed = torch.linalg.cholesky_ex((curvature_kk + curvature_kk.T) / 2)
            if failed:
                raise self._negative(direction_pk, curvature_kk)
            step_kk = torch.cholesky_inverse(factor_kk)
            x_pk += direction_pk @ (step_kk @ size_kk)
            basis_pk, turn_kk = torch.linalg.qr(basis_pk - image_pk @ step_kk)
            size_kk = turn_kk @ size_kk
            left = float((size_kk.norm(dim=0) / norm_k).max())
            if left <= tolerance:
                break
            if time.monotonic() - last_logged >= LOG_INTERVAL:
                last_logged = time.monotonic()
                log.info("conjugate gradients: %d iterations, residual %.2g, wanted %.2g", iterations, left, tolerance)
            direction_pk = basis_pk + direction_pk @ turn_kk.T
        return x_pk.T.contiguous(), iterations

    def _negative(self, direction_pk: Tensor, curvature_kk: Tensor) -> UserError:
        """The most negative curvature of H + damping I in the space of the directions."""
        original_pk = self._sqrt(direction_pk.T).T
        _, triangle_kk = torch.linalg.qr(original_pk)
        inverse_kk = torch.linalg.pinv(triangle_kk)
        lowest = torch.linalg.eigvalsh(inverse_kk.T @ (curvature_kk + curvature_kk.T) @ inverse_kk / 2)[0]
        return indefinite(self.damping, float(lowest))


def conjugate_gradients(
    times: Callable[[Tensor], Tensor],
    right_kp: Tensor,
    precondition: Callable[[Tensor], Tensor],
    bound_k: Tensor,
    max_iterations: int,
    start_kp: Tensor | None = None,
) -> tuple[Tensor, int]:
    """K systems with a matrix each: (x (K, p), iterations) when every residual's norm is at most its bound.

    times: (K, p) -> (K, p), each vector times its own matrix. precondition: the same for an approximate inverse. A row
    stops where rounding leaves its matrix without positive curvature along the direction.
    """
    x_kp = torch.zeros_like(right_kp) if start_kp is None else start_kp
    residual_kp = right_kp if start_kp is None else right_kp - times(start_kp)
    near_kp = precondition(residual_kp)
    direction_kp, size_k = near_kp, (residual_kp * near_kp).sum(1)
    for iteration in range(max_iterations):
        if bool((residual_kp.norm(dim=1) <= bound_k).all()):
            return x_kp, iteration
        image_kp = times(direction_kp)
        curvature_k = (direction_kp * image_kp).sum(1)
        step_k = torch.where(curvature_k > 0, size_k / curvature_k, 0.0)
        if not bool(step_k.any()):
            return x_kp, iteration + 1
        x_kp, residual_kp = x_kp + step_k[:, None] * direction_kp, residual_kp - step_k[:, None] * image_kp
        near_kp, old_k = precondition(residual_kp), size_k
        size_k = (residual_kp * near_kp).sum(1)
        direction_kp = near_kp + torch.where(old_k > 0, size_k / old_k, 0.0)[:, None] * direction_kp
    return x_kp, max_iterations
