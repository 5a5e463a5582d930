"""The Hessian without its eigenvalues' signs, dense: coordinates in which a small network's valleys are round.

|H| = U |E| U^T with H = U E U^T, the matrix of the saddle-free Newton method (Dauphin et al. 2014, arXiv 1406.2572).
The Gauss-Newton matrix leaves out the outputs' own second derivatives; this does not. It costs a Hessian-vector product
for each parameter and a decomposition, so that some hundred examples stand for all.
"""

import logging

import torch
from torch import Tensor

from quintet.papers.influence.risk.examples import Examples
from quintet.papers.influence.risk.gauss_newton import check_size
from quintet.papers.influence.risk.linear_risk import make_risk
from quintet.papers.influence.risk.risk import EmpiricalRisk
from quintet.papers.influence.solvers.direct import dense_hessian

EXAMPLES = 300  # at most so many, evenly spaced, stand for all
FLOOR = 1e-5  # of the largest eigenvalue: directions that bend less are taken to bend that much

log = logging.getLogger(__name__)


class AbsoluteHessian:
    """M = |H| of a risk, L2 term included, by its symmetric root: M^-1 = R R^T. Errors: UserError for too many params.

    eigenvalues: of H itself, of the examples that stand for all, in rising order, in float64.
    """

    def __init__(self, risk: EmpiricalRisk) -> None:
        check_size(risk, "hessian")
        some = _fewer(risk)
        self.eigenvalues, basis_pp = torch.linalg.eigh(dense_hessian(some).double())
        lowest, highest = self.eigenvalues[[0, -1]].tolist()
        log.info("the Hessian of %d examples has eigenvalues from %.3g to %.3g", len(some.train), lowest, highest)
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
