"""The explicit Hessian and its Cholesky factor in float64: exact, for some ten thousand parameters at most."""

from dataclasses import dataclass

import torch
from torch import Tensor

from quintet.common.errors import UserError
from quintet.papers.influence.risk.risk import EmpiricalRisk
from quintet.papers.influence.solvers.interface import InverseHessian, Solver, indefinite

BLOCK = 256  # columns of the Hessian at a time


@dataclass
class Direct(Solver):
    """max_params: the largest p for which the p x p matrix is computed."""

    max_params: int = 20_000

    def prepare(self, risk: EmpiricalRisk) -> "Factorized":
        if risk.num_params > self.max_params:
            gigabytes = risk.num_params**2 * 8 / 2**30
            raise UserError(
                f"solver=direct needs the {risk.num_params:,} x {risk.num_params:,} Hessian ({gigabytes:.0f} GB): "
                "choose fewer params, solver cg or ekfac, or raise solver.max_params"
            )
        return Factorized(risk, self.damping)


class Factorized(InverseHessian):
    """H + damping I = L L^T, kept for any number of right-hand sides."""

    def __init__(self, risk: EmpiricalRisk, damping: float) -> None:
        super().__init__(risk, damping)
        hessian = dense_hessian(risk).double()
        hessian.diagonal().add_(damping)
        self.factor, failed = torch.linalg.cholesky_ex(hessian)
        if failed:
            raise indefinite(damping, float(torch.linalg.eigvalsh(hessian)[0]))

    def apply(self, vectors_kp: Tensor) -> tuple[Tensor, int]:
        return torch.cholesky_solve(vectors_kp.double().T, self.factor).T.to(vectors_kp.dtype).contiguous(), 0


def dense_hessian(risk: EmpiricalRisk) -> Tensor:
    """H of the risk, (p, p), symmetric."""
    if hasattr(risk, "hessian"):
        return risk.hessian()
    identity = torch.eye(risk.num_params, dtype=risk.dtype, device=risk.device)
    found = torch.cat([risk.hvp(block) for block in identity.split(BLOCK)])
    return (found + found.T) / 2
