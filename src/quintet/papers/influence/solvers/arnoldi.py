"""Low-rank inverse from a Krylov space (Schioppa et al. 2022, arXiv 2112.03052): the dominant eigenpairs of H only."""

from dataclasses import dataclass

import torch
from torch import Tensor

from quintet.common.errors import UserError
from quintet.papers.influence.risk.risk import EmpiricalRisk
from quintet.papers.influence.solvers.interface import InverseHessian, Solver, indefinite


@dataclass
class Arnoldi(Solver):
    """iterations: Hessian-vector products, the dimension of the Krylov space. rank: eigenpairs kept, largest first.

    The components outside the kept eigenvectors are set to zero, so that the residual is large by design: the method
    gives a ranking rather than a solution. H is symmetric, so the iteration is Lanczos' with full orthogonalization.
    """

    iterations: int = 200
    rank: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.rank <= self.iterations:
            raise UserError(f"solver.rank={self.rank}: give 1 to solver.iterations={self.iterations}")

    def prepare(self, risk: EmpiricalRisk) -> "Projected":
        return Projected(risk, self)


class Projected(InverseHessian):
    """Eigenvalues (r,) and eigenvectors (r, p) of H in the Krylov space of a random vector."""

    def __init__(self, risk: EmpiricalRisk, settings: Arnoldi) -> None:
        super().__init__(risk, settings.damping)
        self.iterations = settings.iterations
        generator = torch.Generator().manual_seed(settings.seed)
        start_p = torch.randn(risk.num_params, generator=generator).to(risk.theta)
        basis_mp, projected_mm = lanczos(risk, start_p, settings.iterations)
        values_m, vectors_mm = torch.linalg.eigh(projected_mm)
        kept = values_m.abs().argsort(descending=True)[: settings.rank]
        if float(values_m[kept].min()) + settings.damping <= 0:
            raise indefinite(settings.damping, float(values_m[kept].min()) + settings.damping)
        self.values_r, self.vectors_rp = values_m[kept], vectors_mm[:, kept].T @ basis_mp

    def apply(self, vectors_kp: Tensor) -> tuple[Tensor, int]:
        return (vectors_kp @ self.vectors_rp.T) / (self.values_r + self.damping) @ self.vectors_rp, self.iterations


def lanczos(risk: EmpiricalRisk, start_p: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """An orthonormal basis (m, p) of the Krylov space and H in it (m, m); m is less where the space is exhausted."""
    basis = [start_p / start_p.norm()]
    images: list[Tensor] = []
    limit = min(iterations, risk.num_params)
    while len(images) < limit:
        images.append(risk.hvp(basis[-1][None])[0])
        if len(images) == limit:
            break
        stack_mp, rest_p = torch.stack(basis), images[-1]
        for _ in range(2):  # once is not enough in float32
            rest_p = rest_p - (rest_p @ stack_mp.T) @ stack_mp
        if float(rest_p.norm()) <= 1e-6 * float(images[-1].norm()):
            break
        basis.append(rest_p / rest_p.norm())
    basis_mp = torch.stack(basis)
    projected_mm = basis_mp @ torch.stack(images).T
    return basis_mp, (projected_mm + projected_mm.T) / 2
