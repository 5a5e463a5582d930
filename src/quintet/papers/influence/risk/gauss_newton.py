"""The Gauss-Newton matrix of a classifier's risk, dense and exact, for some thousands of parameters.

G = 1/n sum_i J_i^T (diag(q_i) - q_i q_i^T) J_i, with q_i the model's class probabilities of example i and J_i
the Jacobian of its outputs, is the Hessian without the outputs' own second derivatives: never negative, and near the
Hessian where the loss is low. For cross-entropy it is 1/n sum_i sum_c q_ic g_ic g_ic^T, where g_ic is the gradient of
example i had it label c: gradients are all it takes (Kunstner et al. 2019, arXiv 1905.12558, section 2).
"""

import torch
from torch import Tensor

from quintet.common.errors import UserError
from quintet.papers.influence.risk.risk import EmpiricalRisk

FLOOR = 1e-6  # of the mean diagonal, added to it: a common bias of all classes is a direction without curvature
MAX_PARAMS = 20_000


class GaussNewton:
    """M = G + the L2 term's Hessian + damping I, by a root: M^-1 = R R^T. Errors: UserError where it does not apply."""

    def __init__(self, risk: EmpiricalRisk, damping: float = 0.0) -> None:
        matrix = gauss_newton(risk).double()
        ridge_p = risk.penalty_hvp(torch.ones_like(risk.theta)[None])[0] + damping
        matrix.diagonal().add_(ridge_p + FLOOR * matrix.diagonal().mean())
        identity = torch.eye(risk.num_params).to(matrix)
        self.lower = torch.linalg.solve_triangular(torch.linalg.cholesky(matrix), identity, upper=False).to(risk.theta)

    def root(self, vectors_kp: Tensor) -> Tensor:
        """R times each vector, (K, p)."""
        return vectors_kp @ self.lower

    def root_transposed(self, vectors_kp: Tensor) -> Tensor:
        """R^T times each vector, (K, p)."""
        return vectors_kp @ self.lower.T


def gauss_newton(risk: EmpiricalRisk) -> Tensor:
    """G, (p, p)."""
    if not callable(getattr(risk.module, "predict_proba", None)):
        raise UserError(
            f"preconditioner=gauss_newton needs a classifier with predict_proba(batch), which"
            f" {type(risk.module).__name__} is not: use ekfac"
        )
    check_size(risk, "gauss_newton")
    total = torch.zeros(risk.num_params, risk.num_params).to(risk.theta)
    for _, batch in risk.batches():
        for rows_bp in risk.curvature_rows(batch):
            total.addmm_(rows_bp.T, rows_bp)
    return risk.mean(total)


def check_size(risk: EmpiricalRisk, name: str) -> None:
    """UserError where a dense matrix of all parameters is too large."""
    if risk.num_params > MAX_PARAMS:
        raise UserError(
            f"preconditioner={name} is for {MAX_PARAMS:,} parameters at most, not {risk.num_params:,}: use ekfac"
        )
