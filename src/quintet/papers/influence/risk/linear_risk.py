"""The risk of a model whose outputs are linear in the parameters: every derivative is a few large matrix products.

With outputs z_i = W x_i the gradient of example i is d_i x_i^T and its Hessian D_i (x) x_i x_i^T, where d_i and D_i are
the loss's first and second derivative in z: no approximation, and the numbers of `EmpiricalRisk`. This makes
all 55,000 training images of MNIST affordable.
Legend: B examples, F features (a column of ones last when there is a bias), C outputs, K vectors, p = C * F parameters.
"""

from collections.abc import Callable, Iterator
from itertools import combinations_with_replacement
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import grad, vjp

from quintet.papers.influence.risk.examples import Examples
from quintet.papers.influence.risk.kronecker import KroneckerFactor
from quintet.papers.influence.risk.one_layer import OneLayer
from quintet.papers.influence.risk.risk import EmpiricalRisk, ranks
from quintet.papers.influence.risk.sampled import Sample, draw
from quintet.papers.influence.risk.softmax_risk import SoftmaxRisk

STRIPE = 196  # rows of a block of the Hessian at a time
PRODUCT = 16 << 20  # numbers of an intermediate (B, K * C)


class LinearParts(NamedTuple):
    """A linear module's view of a batch, from `module.linear_parts(batch)`."""

    design: Tensor  # (B, F) features, without a column for the bias
    weight: str  # name of the (C, F) parameter; outputs = design @ weight.T + bias
    bias: str | None
    losses: Callable[[Tensor], Tensor]  # outputs (B, C) -> losses (B,)


class LinearBatch(NamedTuple):
    """A batch at the risk's own parameters."""

    design: Tensor  # (B, F)
    losses: Tensor  # (B,)
    slope: Tensor  # (B, C) d: derivative of each loss in the outputs
    curvature: Tensor  # (B, C, C) D: second derivative


class LinearRisk(OneLayer):
    """`EmpiricalRisk` for a module with `linear_parts`, all of whose parameters are chosen."""

    def __init__(self, module: Any, train: Examples, params: Any = "*", batch_size: int = 4096) -> None:
        super().__init__(module, train, params, batch_size)
        self._parts: list[tuple[slice, LinearBatch]] = []

    def prepared(self, batch: Any) -> LinearBatch:
        """Features, and the loss's derivatives in the outputs, of a raw batch."""
        if isinstance(batch, LinearBatch):
            return batch
        with torch.no_grad():
            parts = self.module.linear_parts(batch)
            design_bf = self.with_ones(parts.design)
            z_bc = design_bf @ self.matrix(self.theta[None])[0].T

            def total_loss(outputs_bc: Tensor) -> Tensor:
                return parts.losses(outputs_bc).sum()

            slope_bc, pull = vjp(grad(total_loss), z_bc)[:2]
            rows = [pull(axis.expand_as(z_bc))[0] for axis in torch.eye(z_bc.shape[1]).to(z_bc)]
            return LinearBatch(design_bf, parts.losses(z_bc), slope_bc, torch.stack(rows, 1))

    def batch_losses(self, batch: Any) -> Tensor:
        return self.prepared(batch).losses

    def batches(self) -> Iterator[tuple[slice, LinearBatch]]:
        """This rank's share, linearized once."""
        if not self._parts:
            rank, world = ranks()
            raw = self.train.batches(self.batch_size, self.dtype, self.device, rank, world, keep=False)
            self._parts = [(place, self.prepared(batch)) for place, batch in raw]
        yield from self._parts

    def gradient(self) -> Tensor:
        total = sum((batch.slope.T @ batch.design for _, batch in self.batches()), self._zeros())
        return self.mean(self.vector(total[None])[0]) + self.penalty_gradient()

    def _outputs(self, batch: LinearBatch, vectors_kp: Tensor) -> Tensor:
        """How the outputs change along each vector, (B, C, K): K last, for quick products with D."""
        matrices_ckf = self.matrix(vectors_kp).transpose(0, 1)
        return (batch.design @ matrices_ckf.flatten(0, 1).T).unflatten(1, (-1, len(vectors_kp)))

    def _chunks(self, batch: LinearBatch, vectors_kp: Tensor) -> tuple[Tensor, ...]:
        return vectors_kp.split(max(1, PRODUCT // max(1, len(batch.design) * self.num_outputs)))

    def batch_hvp(self, batch: Any, vectors_kp: Tensor) -> Tensor:
        batch = self.prepared(batch)
        if len(batch.design) < len(vectors_kp):  # where copies of the vectors in another order would take most time
            turn_bkc = (batch.design @ self.matrix(vectors_kp).flatten(0, 1).T).unflatten(1, (len(vectors_kp), -1))
            change_df = (turn_bkc @ batch.curvature).flatten(1).T @ batch.design
            return self.vector(change_df.unflatten(0, (len(vectors_kp), -1)))
        found = [(batch.curvature @ self._outputs(batch, part)).flatten(1).T @ batch.design
                 for part in self._chunks(batch, vectors_kp)]  # fmt: skip
        return self.vector(torch.cat([part.unflatten(0, (self.num_outputs, -1)) for part in found], 1).transpose(0, 1))

    def directional(self, batch: Any, vectors_kp: Tensor) -> Tensor:
        batch = self.prepared(batch)
        found = [(batch.slope[:, None] @ self._outputs(batch, part))[:, 0].T
                 for part in self._chunks(batch, vectors_kp)]  # fmt: skip
        return torch.cat(found)

    def example_gradients(self, batch: Any) -> Tensor:
        batch = self.prepared(batch)
        return self.vector(batch.slope[:, :, None] * batch.design[:, None])

    def hessian(self) -> Tensor:
        """The whole Hessian of R, (p, p): one product of matrices for each pair of outputs."""
        features = self.matrix(self.theta[None]).shape[2]
        blocks = self.theta.new_zeros(self.num_outputs, features, self.num_outputs, features)
        for _, batch in self.batches():
            for a, b in combinations_with_replacement(range(self.num_outputs), 2):
                weighted_bf = batch.curvature[:, a, b, None] * batch.design
                for rows in (slice(k, k + STRIPE) for k in range(0, features, STRIPE)):  # of a symmetric block a half
                    blocks[a, rows, b, : rows.stop] += batch.design[:, rows].T @ weighted_bf[:, : rows.stop]
        for a, b in combinations_with_replacement(range(self.num_outputs), 2):
            lower_ff = blocks[a, :, b].tril()
            blocks[a, :, b] = blocks[b, :, a] = lower_ff + lower_ff.tril(-1).T
        order = self.vector(torch.arange(self.num_params, dtype=torch.float64).view(1, self.num_outputs, -1))
        order = order[0].long().to(self.device)
        found = self.mean(blocks.view(self.num_params, self.num_params))
        found = found if torch.equal(order, torch.arange(len(order)).to(order)) else found[order][:, order]
        return found + torch.diag(self.penalty_hvp(torch.ones_like(self.theta)[None])[0])

    def sample(self, count: int, seed: int) -> Sample:
        """This rank's share of `count` examples, drawn in proportion to the trace of their Hessian."""
        batches = [batch for _, batch in self.batches()]
        empty = self._zeros().new_empty
        parts = [Sample(empty(0, self._zeros().shape[1]), empty(0, self.num_outputs, self.num_outputs), empty(0))]
        traces = [b.curvature.diagonal(dim1=1, dim2=2).sum(1) * b.design.norm(dim=1) ** 2 for b in batches]
        rows_m, weight_m = draw(torch.cat([*traces, empty(0)]), max(1, count // ranks()[1]), seed)
        start = 0
        for batch in batches:
            here = (rows_m >= start) & (rows_m < start + len(batch.losses))
            rows = (rows_m[here] - start).to(self.device)
            parts.append(Sample(batch.design[rows], batch.curvature[rows], weight_m[here.to(weight_m.device)]))
            start += len(batch.losses)
        return Sample(*(torch.cat(part) for part in zip(*parts, strict=True)))

    def kronecker(self) -> KroneckerFactor:
        """The eigenbases of mean x x^T and of mean D, and the Hessian's exact diagonal in them."""
        batches = [batch for _, batch in self.batches()]
        total = self._zeros()
        second_ff = self.mean(sum((b.design.T @ b.design for b in batches), total.new_zeros(total.shape[1:] * 2)))
        curvature_cc = self.mean(sum((b.curvature.sum(0) for b in batches), total.new_zeros(total.shape[:1] * 2)))
        basis_in, basis_out = (torch.linalg.eigh(m)[1] for m in (second_ff, curvature_cc))
        for batch in batches:
            curve_bc = torch.einsum("ac,bad,dc->bc", basis_out, batch.curvature, basis_out)
            total += curve_bc.T @ (batch.design @ basis_in).square()
        return KroneckerFactor(self.weight, self.bias, basis_in, basis_out, self.mean(total))


def make_risk(module: Any, train: Examples, params: Any = "*", batch_size: int | None = None) -> EmpiricalRisk:
    """The risk in the fastest way: matrix products for a linear model, derivatives of the model otherwise."""
    cls = next((cls for cls in (LinearRisk, SoftmaxRisk) if cls.applies(module, train, params)), EmpiricalRisk)
    return cls(module, train, params) if batch_size is None else cls(module, train, params, batch_size)
