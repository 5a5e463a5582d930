"""Leave-one-out minima of the linear SVM with the hinge itself, which has no gradient: by its active set, exactly."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from quintet.papers.influence.classifiers.losses import signs
from quintet.papers.influence.fit.svm import fit_hinge, leave_out
from quintet.papers.influence.retraining.chord_newton import linear
from quintet.papers.influence.retraining.interface import Refitted, Removal
from quintet.papers.influence.risk.linear_risk import LinearRisk


class HingePath:
    """Follows the SVM's minimum while an example's weight goes to zero (svm.leave_out)."""

    def run(self, risk: LinearRisk, removals: Sequence[Removal]) -> Iterator[Refitted]:
        """Refit without each of `removals`, whose residual is the relative duality gap."""
        rows_nf, decay_f = hinge_problem(risk)
        whole = fit_hinge(rows_nf, decay_f)
        for removal in removals:
            found = whole if removal is None else leave_out(rows_nf, decay_f, whole, [removal])
            yield Refitted(removal, risk.vector(found.theta.view(1, 1, -1))[0], found.gap, 0)


def hinge_problem(risk: LinearRisk) -> tuple[Tensor, Tensor]:
    """Rows y_i x_i (n, F) and the L2 term's diagonal (F,), a bias last."""
    rows = []
    for _, batch in risk.train.batches(risk.batch_size, risk.dtype, risk.device):
        design_bf, _ = linear(risk, batch)
        rows.append(design_bf * signs(batch.labels, torch.float64)[:, None])
    decay_p = risk.penalty_hvp(torch.ones_like(risk.theta)[None])
    return torch.cat(rows), risk.matrix(decay_p)[0, 0].double()


def is_hinge(module: Any) -> bool:
    """Whether the loss has a corner."""
    return getattr(module, "loss", None) == "smooth_hinge" and module.smoothness == 0
