"""EK-FAC as a solver: the inverse of a Kronecker-factored approximation, for networks at scale."""

from dataclasses import dataclass

import torch
from torch import Tensor

from quintet.common.errors import UserError
from quintet.papers.influence.risk.kronecker import KroneckerCurvature, fit_factors
from quintet.papers.influence.risk.risk import EmpiricalRisk
from quintet.papers.influence.solvers.interface import InverseHessian, Solver


@dataclass
class Ekfac(Solver):
    """seed: of the labels sampled from the model's prediction.

    residual: measures the error of the approximation by one Hessian-vector product a query, which is most of the time.
    """

    seed: int = 0
    residual: bool = True

    def prepare(self, risk: EmpiricalRisk) -> "Factored":
        return Factored(risk, self.damping, curvature_of(risk, self.damping, self.seed), self.residual)


class Factored(InverseHessian):
    """The factored curvature of one risk."""

    def __init__(self, risk: EmpiricalRisk, damping: float, curvature: KroneckerCurvature, residual: bool) -> None:
        super().__init__(risk, damping, residual)
        self.curvature = curvature
        if min(curvature.ridges) + min(float(f.eigenvalues.min()) for f in curvature.factors) <= 0:
            raise UserError("the factored Hessian is singular: set solver.damping above 0, or train with an L2 term")

    def apply(self, vectors_kp: Tensor) -> tuple[Tensor, int]:
        return self.curvature.power(vectors_kp, -1.0), 0


def curvature_of(risk: EmpiricalRisk, damping: float, seed: int, floor: float = 0.0) -> KroneckerCurvature:
    """The factors of a risk with damping and L2 term; exact second derivatives where the model is linear."""
    generator = torch.Generator(device=risk.device).manual_seed(seed)
    factors = [risk.kronecker()] if hasattr(risk, "kronecker") else fit_factors(risk, generator)
    ridge_p = risk.penalty_hvp(torch.ones_like(risk.theta)[None])[0] + damping
    return KroneckerCurvature(factors, risk.selection, ridge_p, floor)
