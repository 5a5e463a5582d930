"""A run's logistic regression and its data, refitted to changed training labels (section 5.4).

Legend: n training examples, T test examples, p parameters, F features (a column of ones last when there is a bias).
"""

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quintet.common.errors import UserError
from quintet.data.store import digest
from quintet.papers.influence.fit.newton import Design, LogisticFit, fit_logistic
from quintet.papers.influence.influence import self_influence
from quintet.papers.influence.risk.examples import Examples
from quintet.papers.influence.risk.linear_risk import LinearRisk, make_risk
from quintet.papers.influence.solvers.interface import Solver

BATCH = 2000  # examples read at a time


class Relabelled:
    """The examples of `datamodule` under any training labels. Errors: UserError for a run of another kind.

    labels_n: the true ones. start_p: the run's parameters, in the order of the design's columns.
    """

    def __init__(self, module: Any, datamodule: Any, tolerance: float = 1e-8) -> None:
        train, test = Examples(datamodule, "train"), Examples(datamodule, "test")
        _check(module, train)
        self.module, self.tolerance = module, tolerance
        risk = make_risk(module, train)
        assert isinstance(risk, LinearRisk)  # checked above
        self.risk = risk
        self.decay_p = self._row(self.risk.penalty_hvp(torch.ones_like(self.risk.theta)[None]))
        self.start_p = self._row(self.risk.theta[None])
        self.design, self.labels_n = self._read(train)
        self.test_design, self.test_labels_t = self._read(test)
        self.batch = datamodule.example_batch("train", range(len(train)))

    def _read(self, examples: Examples) -> tuple[Design, NDArray]:
        designs, labels = zip(*self._parts(examples), strict=True)
        return Design(np.concatenate(designs)), np.concatenate(labels)

    def _parts(self, examples: Examples) -> Iterator[tuple[NDArray, NDArray]]:
        for _, batch in examples.batches(BATCH, self.risk.dtype, self.risk.device, keep=False):
            with torch.no_grad():
                design_bf = self.module.linear_parts(batch).design.cpu().numpy()
            ones = [np.ones((len(design_bf), 1))] if self.risk.bias else []
            yield np.concatenate([design_bf, *ones], axis=1), batch.labels.cpu().numpy()

    def _row(self, vector_1p: Tensor) -> NDArray:
        """Parameters in the order of the design's columns."""
        return self.risk.matrix(vector_1p)[0, 0].cpu().numpy()

    def fit(self, labels_n: NDArray, start_p: NDArray | None = None) -> LogisticFit:
        """The minimum of the run's loss under these labels."""
        return fit_logistic(self.design, 2.0 * labels_n - 1, self.decay_p, start_p, self.tolerance)

    def accuracy(self, fit: LogisticFit) -> float:
        """Of the test split."""
        return float(((self.test_design @ fit.theta > 0) == self.test_labels_t).mean())

    def scores(self, theta_p: NDArray, labels_n: NDArray, solver: Solver) -> tuple[NDArray, NDArray]:
        """(self-influence, train loss) of every training example at these parameters, under these labels."""
        before = self.risk.theta
        batch = self.batch._replace(labels=torch.from_numpy(labels_n).to(self.batch.labels))
        try:
            self._write(theta_p)
            risk = make_risk(self.module, Examples.of_batch(batch))
            influence_n = self_influence(risk, solver.prepare(risk))
            losses_n = torch.cat([risk.batch_losses(part) for _, part in risk.batches()])
        finally:
            self.risk.selection.write(self.module, before)
        return influence_n.numpy(), losses_n.cpu().numpy()

    def _write(self, theta_p: NDArray) -> None:
        row = torch.from_numpy(theta_p).to(self.risk.theta)
        self.risk.selection.write(self.module, self.risk.vector(row[None, None])[0])

    def fingerprint(self) -> str:
        """A digest of all that the fits depend on."""
        parts = (self.batch.inputs.cpu().numpy(), self.labels_n, self.test_labels_t, self.decay_p)
        return digest([hashlib.sha256(np.ascontiguousarray(part).tobytes()).hexdigest() for part in parts])


def _check(module: Any, train: Examples) -> None:
    loss = getattr(module, "loss", None)
    if loss != "logistic" or not LinearRisk.applies(module, train, "*"):
        network = type(getattr(module, "network", module)).__name__
        kind = f"model.loss={loss}" if loss and loss != "logistic" else f"a network {network}"
        raise UserError(
            f"labels are flipped, and refitted to, in a logistic regression of two classes only: this run has {kind};"
            " train with model=binary_logistic"
        )
    if next(module.parameters()).dtype != torch.float64:
        raise UserError("refits to a minimum need float64: train with model.dtype=float64")
