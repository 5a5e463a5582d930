"""The Hessian without its eigenvalues' signs, dense: coordinates in which a small network's valleys are round.

|H| = U |E| U^T with H = U E U^T, the matrix of the saddle-free Newton method (Dauphin et al. 2014, arXiv 1406.2572). Of
the tanh network of Koh and Liang the Gauss-Newton matrix leaves out what decides how long a step may be; this does not.
It costs a Hessian-vector product for each parameter and a decomposition. Some hundred examples show it well enough for
coordinates: for the 5,500 images of the paper 275 did.
"""

import torch
from torch import Tensor

from quintet.errors import UserError
from quintet.models.influence.examples import Examples
from quintet.models.influence.linear_risk import make_risk
from quintet.models.influence.risk import EmpiricalRisk
from quintet.models.influence.solvers.direct import dense_hessian

EXAMPLES = 300  # at most so many, evenly spaced, stand for all
FLOOR = 1e-5  # of the largest eigenvalue: directions that bend less are taken to bend that much
MAX_PARAMS = 20_000


class AbsoluteHessian:
    """M = |H| of a risk, L2 term included, by its symmetric root: M^-1 = R R^T. Errors: UserError for too many params.

    eigenvalues: of H itself, of the examples that stand for all, in rising order, in float64.
    """

    def __init__(self, risk: EmpiricalRisk) -> None:
        if risk.num_params > MAX_PARAMS:
            raise UserError(
                f"preconditioner=hessian is for {MAX_PARAMS:,} parameters at most, not {risk.num_params:,}: use ekfac"
            )
        self.eigenvalues, basis_pp = torch.linalg.eigh(dense_hessian(_fewer(risk)).double())
        size_p = self.eigenvalues.abs()
        size_p = size_p.clamp(min=FLOOR * float(size_p.max())).clamp(min=torch.finfo(torch.float64).tiny)
        self.inverse_root = ((basis_pp * size_p.rsqrt()) @ basis_pp.T).to(risk.theta)

    def root(self, vectors_kp: Tensor) -> Tensor:
        """R times each vector, (K, p)."""
        return vectors_kp @ self.inverse_root

    root_transposed = root  # it is symmetric


def _fewer(risk: EmpiricalRisk) -> EmpiricalRisk:
    """The same risk over at most EXAMPLES of its examples."""
    step = -(-len(risk.train) // EXAMPLES)
    if step == 1:
        return risk
    some = Examples(risk.train.source, risk.train.split, risk.train.indices[::step])
    return make_risk(risk.module, some, risk.selection.names)
