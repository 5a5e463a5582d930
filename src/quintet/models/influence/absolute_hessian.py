"""The Hessian without its eigenvalues' signs, dense: coordinates in which a small network's valleys are round.

|H| = U |E| U^T with H = U E U^T, the matrix of the saddle-free Newton method (Dauphin et al. 2014, arXiv 1406.2572). Of
the tanh network of Koh and Liang the Gauss-Newton matrix leaves out what decides how long a step may be; this does not.
It costs a Hessian-vector product for each parameter and a decomposition.
"""

import torch
from torch import Tensor

from quintet.errors import UserError
from quintet.models.influence.risk import EmpiricalRisk
from quintet.models.influence.solvers.direct import dense_hessian

FLOOR = 1e-6  # of the largest eigenvalue: directions that bend less are taken to bend that much
MAX_PARAMS = 20_000


class AbsoluteHessian:
    """M = |H| of a risk, L2 term included, by its symmetric root: M^-1 = R R^T. Errors: UserError for too many params.

    eigenvalues: of H itself, in rising order, in float64.
    """

    def __init__(self, risk: EmpiricalRisk) -> None:
        if risk.num_params > MAX_PARAMS:
            raise UserError(
                f"preconditioner=hessian is for {MAX_PARAMS:,} parameters at most, not {risk.num_params:,}: use ekfac"
            )
        self.eigenvalues, basis_pp = torch.linalg.eigh(dense_hessian(risk).double())
        size_p = self.eigenvalues.abs()
        size_p = size_p.clamp(min=FLOOR * float(size_p.max())).clamp(min=torch.finfo(torch.float64).tiny)
        self.inverse_root = ((basis_pp * size_p.rsqrt()) @ basis_pp.T).to(risk.theta)

    def root(self, vectors_kp: Tensor) -> Tensor:
        """R times each vector, (K, p)."""
        return vectors_kp @ self.inverse_root

    root_transposed = root  # it is symmetric
