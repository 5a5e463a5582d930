"""Binary logistic regression refitted while a few training rows are altered, for many altered sets side by side.

A set differs from the training set in some rows, its minimum little from the training set's: the inverse Hessian there
preconditions conjugate gradients for Newton's steps here, and all sets share their products with the unaltered rows.
Legend: n training examples, p parameters (a bias is the last), M sets, R altered rows of all sets.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from quintet.common.errors import UserError
from quintet.papers.influence.classifiers.losses import softplus

INNER = 1e-3  # relative residual of a Newton step: three digits a step
MAX_STEPS, MAX_INNER = 50, 400
HALVINGS = 30


class Altered(NamedTuple):
    """Which rows of which sets are what instead. A set may have any number of them, each row once."""

    set_r: Tensor  # (R,) int64
    row_r: Tensor  # (R,) int64
    new_rp: Tensor  # (R, p)


class AlteredFits:
    """R(theta) = mean log(1 + exp(-y_i theta . x_i)) + 1/2 sum decay theta^2, in float64.

    rows_np: x, ones last for a bias. signs_n: y, +-1. decay_p: of each parameter. theta_p: near the minimum; `theta` is
    the minimum itself. tolerance: of the gradient's norm, here and in `fit`. Errors: UserError where it is not reached.
    """

    def __init__(self, rows_np: Tensor, signs_n: Tensor, decay_p: Tensor, theta_p: Tensor,
                 tolerance: float = 1e-8) -> None:  # fmt: skip
        self.rows_np, self.signs_n, self.decay_p, self.tolerance = rows_np, signs_n, decay_p, tolerance
        self.inverse_pp = self._inverse_hessian(theta_p)
        self.theta = self.fit(self.none(), theta_p[None])[0]
        self.inverse_pp = self._inverse_hessian(self.theta)

    def none(self) -> Altered:
        """Nothing altered."""
        empty = torch.zeros(0, dtype=torch.int64, device=self.rows_np.device)
        return Altered(empty, empty, self.rows_np[:0])

    def _inverse_hessian(self, theta_p: Tensor) -> Tensor:
        curvature_n = self._bends(self._scores(theta_p[None], self.none()))[:, 0]
        hessian_pp = (self.rows_np.T * curvature_n) @ self.rows_np / len(self.rows_np) + torch.diag(self.decay_p)
        factor, failed = torch.linalg.cholesky_ex(hessian_pp)
        if int(failed):
            raise UserError("the top layer's Hessian is singular: fit the run with model.l2 above 0")
        return torch.cholesky_inverse(factor)

    def fit(self, altered: Altered, start_mp: Tensor) -> Tensor:
        """Parameters (M, p) at each set's minimum, from those of `start_mp`."""
        theta_mp = start_mp
        for _ in range(MAX_STEPS):
            scores_nm = self._scores(theta_mp, altered)
            gradient_mp = self.gradients(scores_nm, theta_mp, altered)
            if float(gradient_mp.norm(dim=1).max()) <= self.tolerance:
                return theta_mp
            step_mp = self._solve(scores_nm, altered, -gradient_mp, torch.zeros_like(theta_mp), INNER)
            theta_mp = self._descend(theta_mp, step_mp, gradient_mp, scores_nm, altered)
        norm = float(gradient_mp.norm(dim=1).max())
        raise UserError(f"refitting the top layer stopped at gradient norm {norm:.2g}, not {self.tolerance:g}")

    def _descend(self, theta_mp: Tensor, step_mp: Tensor, gradient_mp: Tensor, scores_nm: Tensor,
                 altered: Altered) -> Tensor:  # fmt: skip
        """Newton's step, halved for the sets whose risk it does not lower (by more than rounding)."""
        risk_m, slope_m = self._risks(scores_nm, theta_mp), (gradient_mp * step_mp).sum(1)
        change_nm = self._scores(step_mp, altered)
        size_m = torch.ones_like(risk_m)
        for _ in range(HALVINGS):
            moved_mp = theta_mp + size_m[:, None] * step_mp
            new_m = self._risks(scores_nm + size_m * change_nm, moved_mp)
            high_m = ~(new_m <= risk_m + 1e-4 * size_m * slope_m + 1e-13 * risk_m)
            if not bool(high_m.any()):
                break
            size_m = torch.where(high_m, size_m / 2, size_m)
        return moved_mp

    def solve(self, theta_mp: Tensor, altered: Altered, right_mp: Tensor, start_mp: Tensor,
              tolerance: float = 1e-8) -> Tensor:  # fmt: skip
        """H^-1 right of each set at its own parameters, to that relative residual, from `start_mp`; (M, p)."""
        return self._solve(self._scores(theta_mp, altered), altered, right_mp, start_mp, tolerance)

    def _solve(self, scores_nm: Tensor, altered: Altered, right_mp: Tensor, start_mp: Tensor,
               tolerance: float) -> Tensor:  # fmt: skip
        bends_nm = self._bends(scores_nm)
        bound_m = tolerance * right_mp.norm(dim=1)
        x_mp, residual_mp = start_mp, right_mp - self._hvp(bends_nm, altered, start_mp)
        near_mp = residual_mp @ self.inverse_pp
        direction_mp, size_m = near_mp, (residual_mp * near_mp).sum(1)
        for _ in range(MAX_INNER):
            if bool((residual_mp.norm(dim=1) <= bound_m).all()):
                break
            image_mp = self._hvp(bends_nm, altered, direction_mp)
            step_m = size_m / (direction_mp * image_mp).sum(1).clamp(min=1e-300)  # a solved set stands still
            x_mp, residual_mp = x_mp + step_m[:, None] * direction_mp, residual_mp - step_m[:, None] * image_mp
            near_mp, old_m = residual_mp @ self.inverse_pp, size_m
            size_m = (residual_mp * near_mp).sum(1)
            direction_mp = near_mp + (size_m / old_m.clamp(min=1e-300))[:, None] * direction_mp
        return x_mp

    def gradients(self, scores_nm: Tensor, theta_mp: Tensor, altered: Altered) -> Tensor:
        """Of each set's risk, (M, p)."""
        slopes_nm = -self.signs_n[:, None] * torch.sigmoid(-self.signs_n[:, None] * scores_nm)
        return self._summed(slopes_nm, altered) / len(self.rows_np) + self.decay_p * theta_mp

    def _hvp(self, bends_nm: Tensor, altered: Altered, vectors_mp: Tensor) -> Tensor:
        total_mp = self._summed(bends_nm * self._scores(vectors_mp, altered), altered)
        return total_mp / len(self.rows_np) + self.decay_p * vectors_mp

    def _scores(self, theta_mp: Tensor, altered: Altered) -> Tensor:
        """theta . x for every example of every set, (n, M)."""
        scores_nm = self.rows_np @ theta_mp.T
        scores_nm[altered.row_r, altered.set_r] = (altered.new_rp * theta_mp[altered.set_r]).sum(1)
        return scores_nm

    def _summed(self, weights_nm: Tensor, altered: Altered) -> Tensor:
        """Sum of weight times x over each set's examples, (M, p)."""
        weight_r = weights_nm[altered.row_r, altered.set_r]
        weights_nm = weights_nm.clone()
        weights_nm[altered.row_r, altered.set_r] = 0
        return (weights_nm.T @ self.rows_np).index_add_(0, altered.set_r, weight_r[:, None] * altered.new_rp)

    def _bends(self, scores_nm: Tensor) -> Tensor:
        return torch.sigmoid(scores_nm) * torch.sigmoid(-scores_nm)

    def _risks(self, scores_nm: Tensor, theta_mp: Tensor) -> Tensor:
        return softplus(-self.signs_n[:, None] * scores_nm).mean(0) + 0.5 * (self.decay_p * theta_mp.square()).sum(1)
