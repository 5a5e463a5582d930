"""The risk of a softmax layer that predicts a label at each of many positions, such as the samples of a window.

With outputs z_t = W x_t, p_t = softmax(z_t) and the loss of an example the sum over positions of s_t times the
cross-entropy, the gradient is s_t (p_t - e_y) x_t^T summed, and the Hessian s_t (diag p_t - p_t p_t^T) (x) x_t x_t^T
summed: no approximation, and never of size C x C a position. It is convex in W.
Legend: B examples, T positions, R positions of some examples, F features (ones last for a bias), C classes, K vectors.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from quintet.papers.influence.risk.examples import Examples
from quintet.papers.influence.risk.kronecker import KroneckerFactor
from quintet.papers.influence.risk.one_layer import OneLayer
from quintet.papers.influence.risk.risk import ranks
from quintet.papers.influence.risk.sampled import draw

STRIPE = 2048  # rows of a Hessian at a time
ROWS = 2048  # positions at a time, so that what is computed of them stays in the processor's cache


class SoftmaxParts(NamedTuple):
    """The last layer's view of a batch, from `module.softmax_parts(batch)`."""

    design: Tensor  # (B, T, F) features, without a column for the bias
    targets: Tensor  # (B, T) classes
    weights: Tensor  # (B, T) of each position in its example's loss, 0 where it has no label
    weight: str  # name of the parameter of shape (C, F) or (C, F, 1)
    bias: str | None


class SoftmaxRisk(OneLayer):
    """`EmpiricalRisk` for a module with `softmax_parts`, all of whose parameters are chosen."""

    described_by = "softmax_parts"

    def __init__(self, module: Any, train: Examples, params: Any = "*", batch_size: int = 16) -> None:
        super().__init__(module, train, params, batch_size)

    def prepared(self, batch: Any) -> SoftmaxParts:
        """Features and targets of a raw batch."""
        if isinstance(batch, SoftmaxParts):
            return batch
        with torch.no_grad():
            parts = self.module.softmax_parts(batch)
        return parts._replace(design=self.with_ones(parts.design), weights=parts.weights.to(self.dtype))

    def batch_losses(self, batch: Any) -> Tensor:
        parts = self.prepared(batch)
        found = []
        for one in zip(parts.design, parts.targets, parts.weights, strict=True):
            rows = (
                weight_r @ -_log_softmax(design_rf, self._weight()).gather(1, targets_r[:, None])[:, 0]
                for design_rf, targets_r, weight_r in _cut(*one)
            )
            found.append(torch.stack(list(rows)).sum())
        return torch.stack(found)

    def example_gradients(self, batch: Any) -> Tensor:
        parts = self.prepared(batch)
        found = []
        for one in zip(parts.design, parts.targets, parts.weights, strict=True):
            total_cf = self._zeros()
            for design_rf, targets_r, weight_r in _cut(*one):
                slope_rc = _log_softmax(design_rf, self._weight()).exp_()
                slope_rc[torch.arange(len(slope_rc)), targets_r] -= 1
                total_cf += (slope_rc * weight_r[:, None]).T @ design_rf
            found.append(total_cf)
        return self.vector(torch.stack(found))

    def directional(self, batch: Any, vectors_kp: Tensor) -> Tensor:
        return vectors_kp @ self.example_gradients(batch).T

    def gradient(self) -> Tensor:
        total_p = sum((self.example_gradients(batch).sum(0) for _, batch in self.batches()), 0 * self.theta)
        return self.mean(total_p) + self.penalty_gradient()

    def batch_hvp(self, batch: Any, vectors_kp: Tensor) -> Tensor:
        matrices_df = self.matrix(vectors_kp).flatten(0, 1)  # d: K * C
        total_df = torch.zeros_like(matrices_df)
        for design_rf, weight_r, prob_rc in self._probabilities(batch):
            turn_rkc = (design_rf @ matrices_df.T).unflatten(1, (len(vectors_kp), -1))
            mean_rk1 = turn_rkc @ prob_rc[:, :, None]
            turn_rkc -= mean_rk1
            turn_rkc *= (prob_rc * weight_r[:, None])[:, None]
            total_df.addmm_(turn_rkc.flatten(1).T, design_rf)
        return self.vector(total_df.unflatten(0, (len(vectors_kp), -1)))

    def kronecker(self) -> KroneckerFactor:
        """The eigenbases of mean x x^T and of the mean D, and the Hessian's exact diagonal in them."""
        second_ff = self.theta.new_zeros(self._zeros().shape[1:] * 2)
        curvature_cc = self.theta.new_zeros((self.num_outputs,) * 2)
        for design_rf, weight_r, prob_rc in self._all_probabilities():
            weighted_rf, weighted_rc = design_rf * weight_r[:, None], prob_rc * weight_r[:, None]
            second_ff += weighted_rf.T @ design_rf
            curvature_cc += torch.diag(weighted_rc.sum(0)) - weighted_rc.T @ prob_rc
        basis_in, basis_out = (torch.linalg.eigh(self.mean(m).double())[1].to(m) for m in (second_ff, curvature_cc))
        total_cf = self._zeros()
        for design_rf, weight_r, prob_rc in self._all_probabilities():
            curve_rc = prob_rc @ basis_out.square() - (prob_rc @ basis_out).square()
            total_cf += (curve_rc * weight_r[:, None]).T @ (design_rf @ basis_in).square()
        return KroneckerFactor(self.weight, self.bias, basis_in, basis_out, self.mean(total_cf))

    def sampled_hessian(self, count: int, seed: int) -> Tensor:
        """The Hessian of R without its L2 term from `count` positions, in the order of flattened (C, F) matrices.

        They are drawn in proportion to the trace of their Hessian and weighted accordingly (see sampled.py).
        Only the lower triangle is filled in.
        """
        traces = [_curvature_trace(*some) for some in self._all_probabilities()]
        rows_m, weight_m = draw(torch.cat([*traces, self.theta.new_zeros(0)]), max(1, count // ranks()[1]), seed)
        found = self.theta.new_zeros(self.num_params, self.num_params)
        start = 0
        for (design_rf, weight_r, prob_rc), here in zip(self._all_probabilities(), traces, strict=True):
            mine = (rows_m >= start) & (rows_m < start + len(here))
            rows = (rows_m[mine] - start).to(self.device)
            weight_r = weight_r[rows] * weight_m[mine.to(weight_m.device)]
            _add_hessian(found, design_rf[rows], weight_r, prob_rc[rows])
            start += len(here)
        return self.mean(found)

    def _weight(self) -> Tensor:
        """(C, F)."""
        return self.matrix(self.theta[None])[0]

    def _probabilities(self, batch: Any) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """(features (R, F), weights (R,), p (R, C)) of some positions of a batch at a time."""
        parts, weight_cf = self.prepared(batch), self._weight()
        for design_rf, weight_r in _cut(parts.design.flatten(0, 1), parts.weights.flatten()):
            yield design_rf, weight_r, _log_softmax(design_rf, weight_cf).exp_()

    def _all_probabilities(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for _, batch in self.batches():
            yield from self._probabilities(batch)


def _cut(*parts: Tensor) -> Iterator[tuple[Tensor, ...]]:
    return zip(*(part.split(ROWS) for part in parts), strict=True)


def _curvature_trace(design_rf: Tensor, weight_r: Tensor, prob_rc: Tensor) -> Tensor:
    """Trace of each position's Hessian, (R,)."""
    return weight_r * (1 - prob_rc.square().sum(1)) * design_rf.square().sum(1)


def _add_hessian(total_pp: Tensor, design_rf: Tensor, weight_r: Tensor, prob_rc: Tensor) -> None:
    """Add the positions' Hessians to the lower triangle of a matrix."""
    (_, features), classes = design_rf.shape, prob_rc.shape[1]
    square_rg = (design_rf[:, :, None] * design_rf[:, None]).flatten(1)
    own_cff = ((weight_r[:, None] * prob_rc).T @ square_rg).unflatten(1, (features, features))
    total_pp.view(classes, features, classes, features).diagonal(dim1=0, dim2=2).add_(own_cff.permute(1, 2, 0))
    half_rp = (weight_r.sqrt()[:, None] * prob_rc)[:, :, None] * design_rf[:, None]
    half_rp = half_rp.flatten(1)
    for start in range(0, len(total_pp), STRIPE):
        stop = start + STRIPE
        total_pp[start:stop, :stop].addmm_(half_rp[:, start:stop].T, half_rp[:, :stop], alpha=-1)


def _log_softmax(design_rf: Tensor, weight_cf: Tensor) -> Tensor:
    return torch.log_softmax(design_rf @ weight_cf.T, 1)
