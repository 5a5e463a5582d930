"""The interface of all solvers: x = (H + damping I)^-1 v for many v at once, with the residual reached."""

import time
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from quintet.common.errors import UserError
from quintet.papers.influence.risk.risk import EmpiricalRisk


@dataclass(frozen=True)
class Solution:
    """K solutions of (H + effective_damping I) x = v."""

    vectors: Tensor  # (K, p)
    relative_residual: (
        Tensor  # (K,) |(H + effective_damping I) x - v| / |v|, by a product of its own; nan: not asked for
    )
    iterations: int  # Hessian-vector products that each solution took, without the one for the residual
    effective_damping: float
    seconds: float


class Preconditioner(Protocol):
    """M, near the Hessian + damping I, as R with M^-1 = R R^T: a square root of the inverse."""

    def sqrt(self, vectors_kp: Tensor) -> Tensor:
        """R times each vector, (K, p)."""

    def sqrt_transposed(self, vectors_kp: Tensor) -> Tensor:
        """R^T times each vector, (K, p)."""


class InverseHessian(ABC):
    """What a solver prepares once for a risk: a factorization, a preconditioner, a subspace."""

    def __init__(self, risk: EmpiricalRisk, damping: float, residual: bool = True) -> None:
        self.risk, self.damping, self.residual = risk, damping, residual

    @abstractmethod
    def apply(self, vectors_kp: Tensor) -> tuple[Tensor, int]:
        """x (K, p) for K right-hand sides, the same on all ranks, and the Hessian-vector products that each took."""

    def solve(self, vectors_kp: Tensor) -> Solution:
        """x with its true residual, measured by one product more."""
        started = time.perf_counter()
        x_kp, iterations = self.apply(vectors_kp)
        relative_k = torch.full_like(x_kp[:, 0], torch.nan)
        if self.residual:
            residual_kp = self.risk.hvp(x_kp) + self.damping * x_kp - vectors_kp
            relative_k = residual_kp.norm(dim=1) / vectors_kp.norm(dim=1).clamp(min=1e-30)
        return Solution(x_kp, relative_k, iterations, self.damping, time.perf_counter() - started)


@dataclass
class Solver(ABC):
    """Settings of a solver; `damping` is the multiple of the identity added to the Hessian of the risk."""

    damping: float = field(default=0.0, kw_only=True)

    def __post_init__(self) -> None:
        if self.damping < 0:
            raise UserError(f"solver.damping={self.damping}: give 0 or more")

    @abstractmethod
    def prepare(self, risk: EmpiricalRisk) -> InverseHessian:
        """Do once what does not depend on the right-hand sides."""

    def solve(self, risk: EmpiricalRisk, vectors_kp: Tensor) -> Solution:
        """Prepare and solve."""
        return self.prepare(risk).solve(vectors_kp)


def indefinite(damping: float, curvature: float) -> UserError:
    """The one line for a Hessian that has a direction of negative curvature."""
    return UserError(
        f"the Hessian + solver.damping={damping:g} is not positive definite (curvature {curvature:.3g} along a"
        f" direction): set solver.damping above {damping - curvature:.3g}, or train closer to a minimum"
    )
