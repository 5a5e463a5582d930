"""Binary logistic regression refitted after some training rows were replaced, for many sets of replacements at once.

The minimum of a set is near that of the unchanged training set, so that the inverse Hessian there preconditions
Newton's method for all sets (fit/newton.py). A set's replacements are further rows that only this set counts.
Legend: n training examples, p parameters (a bias is the last), M sets, R replaced rows of all sets.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from quintet.common.errors import UserError
from quintet.papers.influence.fit.newton import Design, MarginRisk, minimize
from quintet.papers.influence.solvers.cg import conjugate_gradients

FORCING = 1e-3  # relative residual of a Newton step: three digits a step
MAX_STEPS, CG_ITERATIONS = 50, 400


class RowReplacements(NamedTuple):
    """(set, row, new row) of each replacement. A set may have any number of them, each row once."""

    set_r: Tensor  # (R,) int64
    row_r: Tensor  # (R,) int64
    new_rp: Tensor  # (R, p)


class ReplacedRowFits:
    """Minima of R(theta) = mean log(1 + exp(-y_i theta . x_i)) + 1/2 sum decay theta^2, in float64.

    rows_np: x, ones last for a bias. signs_n: y, +-1. decay_p: of each parameter. theta_p: near the minimum; `theta` is
    the minimum itself. tolerance: of the gradient's norm, here and in `fit`. Errors: UserError where it is not reached.
    """

    def __init__(self, rows_np: Tensor, signs_n: Tensor, decay_p: Tensor, theta_p: Tensor,
                 tolerance: float = 1e-8) -> None:  # fmt: skip
        self.rows_np, self.signs_n, self.decay_p, self.tolerance = rows_np, signs_n, decay_p, tolerance
        self.inverse_pp = self._inverse_hessian(theta_p)
        self.theta = self.fit(self.none(), theta_p[None])[0]
        self.inverse_pp = self._inverse_hessian(self.theta)

    def none(self) -> RowReplacements:
        """No replacements."""
        empty = torch.zeros(0, dtype=torch.int64, device=self.rows_np.device)
        return RowReplacements(empty, empty, self.rows_np[:0])

    def fit(self, replacements: RowReplacements, start_mp: Tensor) -> Tensor:
        """Parameters (M, p) at each set's minimum, starting from `start_mp`."""
        risk = self._risk(replacements, len(start_mp))
        found = minimize(risk, start_mp, self.tolerance, MAX_STEPS, lambda *_: self._precondition, FORCING)
        if not found.gradient_norm <= self.tolerance:
            raise UserError(
                f"refitting the last layer stopped at gradient norm {found.gradient_norm:.2g}, not at"
                f" {self.tolerance:g}: fit the run with a larger model.l2"
            )
        return found.theta

    def solve(self, theta_mp: Tensor, replacements: RowReplacements, right_mp: Tensor, start_mp: Tensor,
              tolerance: float = 1e-8) -> Tensor:  # fmt: skip
        """H^-1 right of each set at its own parameters, to that relative residual, from `start_mp`; (M, p)."""
        risk = self._risk(replacements, len(theta_mp))
        curvatures_nm = risk.curvatures(risk.margins(theta_mp))

        def times(vectors_mp: Tensor) -> Tensor:
            return risk.hvp(curvatures_nm, vectors_mp)

        bound_m = tolerance * right_mp.norm(dim=1)
        return conjugate_gradients(times, right_mp, self._precondition, bound_m, CG_ITERATIONS, start_mp)[0]

    def _precondition(self, vectors_mp: Tensor) -> Tensor:
        return vectors_mp @ self.inverse_pp

    def _risk(self, replacements: RowReplacements, sets: int) -> MarginRisk:
        set_r, row_r, new_rp = replacements
        count, new = len(self.rows_np), torch.arange(len(row_r), device=row_r.device)
        weights_nm = self.rows_np.new_ones(count, sets)
        weights_nm[row_r, set_r] = 0
        weights_rm = self.rows_np.new_zeros(len(row_r), sets)
        weights_rm[new, set_r] = 1
        rows, signs = torch.cat([self.rows_np, new_rp]), torch.cat([self.signs_n, self.signs_n[row_r]])
        return MarginRisk(Design(rows), signs, self.decay_p, weights_nm=torch.cat([weights_nm, weights_rm]))

    def _inverse_hessian(self, theta_p: Tensor) -> Tensor:
        risk = self._risk(self.none(), 1)
        curvature_n = risk.curvatures(risk.margins(theta_p[None]))[:, 0]
        hessian_pp = (self.rows_np.T * curvature_n) @ self.rows_np + torch.diag(self.decay_p)
        factor, failed = torch.linalg.cholesky_ex(hessian_pp)
        if int(failed):
            raise UserError("the Hessian of the last layer is singular: fit the run with model.l2 above 0")
        return torch.cholesky_inverse(factor)
