r"""Linear classifiers of two classes to the minimum of their risk by truncated Newton, for many weightings at once.

$$R_m(\theta) = \frac1n \sum_i w_{im}\, \ell(y_i x_i^\top \theta) + \tfrac12 \theta^\top D \theta$$

with $\ell$ the logistic loss or SmoothHinge. Each Newton step solves with the Hessian by preconditioned conjugate
gradients, only as accurately as the step deserves (Nocedal and Wright, section 7.1), and is halved until R falls.
Retraining without single examples of a model with several outputs is in retraining/chord_newton.py.
Legend: n examples, p parameters, M weightings of the examples, each with parameters of its own.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array, issparse
from torch import Tensor

from quintet.common.errors import UserError
from quintet.papers.influence.classifiers.losses import softplus
from quintet.papers.influence.solvers.cg import conjugate_gradients

SPARSE_BELOW = 0.2  # fraction of nonzero entries below which a sparse matrix is faster
STEPS, CG_ITERATIONS, HALVINGS = 200, 5000, 40
FORCING = 0.1  # the largest residual of a Newton step, relative to the gradient
ROUNDING = 1e-14  # relative to the risk: a smaller increase is rounding

Vectors = Callable[[Tensor], Tensor]  # (M, p) -> (M, p)


class Design:
    """A matrix (n, p) in float64: a tensor as it is, an array as a sparse matrix where most entries are zero."""

    def __init__(self, matrix_np: Any) -> None:
        self.shape = matrix_np.shape
        if isinstance(matrix_np, np.ndarray) and np.count_nonzero(matrix_np) < SPARSE_BELOW * matrix_np.size:
            matrix_np = csr_array(matrix_np)
        sparse = issparse(matrix_np)
        self.rows = matrix_np.astype(np.float64) if sparse else torch.as_tensor(matrix_np).double()

    @cached_property
    def _columns(self) -> Any:
        return csr_array(self.rows.T) if issparse(self.rows) else self.rows.T

    @cached_property
    def _squared_columns(self) -> Any:
        return self._columns**2

    def times(self, vectors_mp: Tensor) -> Tensor:
        """The matrix times each vector, (n, M)."""
        return _product(self.rows, vectors_mp.T)

    def transposed_times(self, weights_nm: Tensor) -> Tensor:
        """The transpose times each column, (M, p)."""
        return _product(self._columns, weights_nm).T

    def squared_transposed_times(self, weights_nm: Tensor) -> Tensor:
        """The transpose with squared entries times each column, (M, p)."""
        return _product(self._squared_columns, weights_nm).T

    def __matmul__(self, vector_p: NDArray) -> NDArray:
        return self.times(torch.from_numpy(vector_p)[None])[:, 0].numpy()


def _product(matrix: Any, columns: Tensor) -> Tensor:
    if not issparse(matrix):
        return matrix @ columns
    if columns.shape[1] == 1:  # SciPy's product with a vector is faster than with a matrix of one column
        return torch.from_numpy(matrix @ columns[:, 0].numpy())[:, None]
    return torch.from_numpy(matrix @ columns.numpy())


class MarginRisk:
    """R_m and its derivatives. A margin is y x . theta; margins come as (n, M), parameters as (M, p).

    t, offset: the loss is t log(1 + exp((offset - margin) / t)), which is the logistic loss for 1 and 0 and
    SmoothHinge for offset 1. weights_nm: None counts every example once; each column sums to the same n.
    """

    def __init__(self, design: Design, signs_n: Tensor, decay_p: Tensor, t: float = 1.0, offset: float = 0.0,
                 weights_nm: Tensor | None = None) -> None:  # fmt: skip
        self.design, self.signs_n1, self.decay_p, self.t, self.offset = design, signs_n[:, None], decay_p, t, offset
        count = len(signs_n) if weights_nm is None else float(weights_nm[:, 0].sum())
        self.weights_nm = 1 / count if weights_nm is None else weights_nm / count

    def margins(self, theta_mp: Tensor) -> Tensor:
        return self.signs_n1 * self.design.times(theta_mp)

    def value(self, margins_nm: Tensor, theta_mp: Tensor) -> Tensor:
        """R of each weighting, (M,)."""
        losses_nm = self.t * softplus((self.offset - margins_nm) / self.t)
        return (self.weights_nm * losses_nm).sum(0) + 0.5 * (self.decay_p * theta_mp.square()).sum(1)

    def gradient(self, margins_nm: Tensor, theta_mp: Tensor) -> Tensor:
        slopes_nm = -self.signs_n1 * torch.sigmoid((self.offset - margins_nm) / self.t)
        return self.design.transposed_times(self.weights_nm * slopes_nm) + self.decay_p * theta_mp

    def curvatures(self, margins_nm: Tensor) -> Tensor:
        """Second derivative of each example's weighted loss in its margin, (n, M)."""
        inside_nm = torch.sigmoid((self.offset - margins_nm) / self.t)
        return self.weights_nm * inside_nm * (1 - inside_nm) / self.t

    def hvp(self, curvatures_nm: Tensor, vectors_mp: Tensor) -> Tensor:
        """Hessian times vector."""
        return self.design.transposed_times(curvatures_nm * self.design.times(vectors_mp)) + self.decay_p * vectors_mp


def diagonal_preconditioner(risk: MarginRisk, curvatures_nm: Tensor) -> Vectors:
    """Preconditioner: the inverse of the Hessian's diagonal. Costs as much as one product, so good for sparse data."""
    scale_mp = risk.design.squared_transposed_times(curvatures_nm) + risk.decay_p
    scale_mp = scale_mp.clamp(min=torch.finfo(torch.float64).tiny)
    return lambda vectors_mp: vectors_mp / scale_mp


def dense_preconditioner(risk: MarginRisk, curvatures_n1: Tensor) -> Vectors:
    """Preconditioner for a single weighting of dense rows: the inverse of the Hessian itself."""
    curvature_n = curvatures_n1[:, 0]
    near = curvature_n > 1e-16 * curvature_n.max()  # SmoothHinge bends only near the margin
    rows = risk.design.rows[near]
    hessian_pp = (rows.T * curvature_n[near]) @ rows
    # the ridge is for a bias without decay when no example is near the margin: it does not move the minimum
    hessian_pp.diagonal().add_(risk.decay_p + 1e-12)
    factor, pivots = torch.linalg.lu_factor(hessian_pp)
    return lambda vectors_1p: torch.linalg.lu_solve(factor, pivots, vectors_1p.T).T


@dataclass(frozen=True)
class Minimum:
    """Where Newton's method ended."""

    theta: Tensor  # (M, p)
    gradient_norm: float  # the largest of the M
    steps: int
    products: int  # Hessian-vector products


def minimize(
    risk: MarginRisk, start_mp: Tensor, tolerance: float = 1e-8, steps: int = STEPS,
    preconditioner: Callable[[MarginRisk, Tensor], Vectors] = diagonal_preconditioner, forcing: float = FORCING,
) -> Minimum:  # fmt: skip
    """Newton steps from `start_mp` until every gradient's norm is at most `tolerance`, or `steps` of them."""
    theta_mp, margins_nm, products = start_mp.clone(), risk.margins(start_mp), 0
    for step in range(steps + 1):
        gradient_mp = risk.gradient(margins_nm, theta_mp)
        norm_m = gradient_mp.norm(dim=1)
        if float(norm_m.max()) <= tolerance or step == steps:
            break
        curvatures_nm = risk.curvatures(margins_nm)
        precondition = preconditioner(risk, curvatures_nm)
        direction_mp, used = conjugate_gradients(
            partial(risk.hvp, curvatures_nm),
            -gradient_mp, precondition, norm_m.sqrt().clamp(max=forcing) * norm_m, CG_ITERATIONS,
        )  # fmt: skip
        products += used
        # a row is still zero where rounding leaves the Hessian without curvature along the first direction
        direction_mp = torch.where(direction_mp.any(1, keepdim=True), direction_mp, precondition(-gradient_mp))
        change_nm = risk.margins(direction_mp)
        size_m = _step_sizes(risk, theta_mp, margins_nm, direction_mp, change_nm, (gradient_mp * direction_mp).sum(1))
        theta_mp, margins_nm = theta_mp + size_m[:, None] * direction_mp, margins_nm + size_m * change_nm
    return Minimum(theta_mp, float(norm_m.max()), step, products)


def _step_sizes(risk: MarginRisk, theta_mp: Tensor, margins_nm: Tensor, direction_mp: Tensor, change_nm: Tensor,
                slope_m: Tensor) -> Tensor:  # fmt: skip
    """1 for each weighting, halved until its risk falls by a part of what the slope promises (Armijo)."""
    before_m = risk.value(margins_nm, theta_mp)
    size_m = torch.ones_like(before_m)
    for _ in range(HALVINGS):
        after_m = risk.value(margins_nm + size_m * change_nm, theta_mp + size_m[:, None] * direction_mp)
        too_high_m = ~(after_m <= before_m + 1e-4 * size_m * slope_m + ROUNDING * before_m)
        if not bool(too_high_m.any()):
            break
        size_m = torch.where(too_high_m, size_m / 2, size_m)
    return size_m


@dataclass(frozen=True)
class LogisticFit:
    """The minimum of one logistic regression."""

    theta: NDArray[np.float64]  # (p,)
    gradient_norm: float
    steps: int
    products: int


def fit_logistic(design: Design, signs_n: NDArray, decay_p: NDArray, start_p: NDArray | None = None,
                 tolerance: float = 1e-8) -> LogisticFit:  # fmt: skip
    """theta where the gradient's norm is at most `tolerance`. signs_n: y, +1 or -1. decay_p: the diagonal of D.

    Errors: UserError where there is no minimum: without decay, separable classes have none.
    """
    start_p = np.zeros(design.shape[1]) if start_p is None else np.array(start_p, np.float64)
    signs = torch.from_numpy(np.asarray(signs_n, np.float64))
    risk = MarginRisk(design, signs, torch.from_numpy(np.asarray(decay_p, np.float64)))
    found = minimize(risk, torch.from_numpy(start_p)[None], tolerance)
    if not found.gradient_norm <= tolerance:
        raise UserError(
            f"logistic regression did not reach a minimum in {STEPS} Newton steps (gradient norm"
            f" {found.gradient_norm:.2g}, wanted {tolerance:g}): set model.l2 above 0, or a larger one"
        )
    return LogisticFit(found.theta[0].numpy(), found.gradient_norm, found.steps, found.products)
