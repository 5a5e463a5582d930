"""How a classifier is fitted: Adam and SGD as everywhere here, or to the minimum that influence functions assume."""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from quintet.errors import UserError
from quintet.models.influence.svm import fit_hinge, fit_smooth_hinge
from quintet.models.optimizer import OptimizerConfig

log = logging.getLogger(__name__)
FULL_BATCH = ("lbfgs", "exact_hinge")


@dataclass(frozen=True)
class FitConfig(OptimizerConfig):
    """Everything under `model.optimizer`.

    lbfgs: L-BFGS on the whole training split; an optimiser step is up to `max_iter` iterations, and training ends when
    no entry of the gradient is above `tolerance_grad`. exact_hinge: the SVM's minimum in one step (svm.py).
    """

    names = ("lbfgs", "exact_hinge", "adam", "sgd")

    name: str = "lbfgs"
    max_iter: int = 1000
    tolerance_grad: float = 1e-8
    history_size: int = 50

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weight_decay:
            raise UserError(
                f"model.optimizer.weight_decay={self.weight_decay:g} would be invisible to influence functions: set"
                " model.l2, which is part of the loss"
            )
        if self.max_iter < 1 or self.history_size < 1 or not self.tolerance_grad > 0:
            raise UserError("model.optimizer.max_iter, .history_size and .tolerance_grad must be above 0")
        if self.full_batch and (self.schedule != "constant" or self.warmup_steps):
            log.warning("model.optimizer.schedule and .warmup_steps are ignored: %s has no rate", self.name)

    @property
    def full_batch(self) -> bool:
        """Whether a step needs the whole training split."""
        return self.name in FULL_BATCH


def build_lbfgs(module: nn.Module, config: FitConfig) -> torch.optim.LBFGS:
    """L-BFGS with a strong Wolfe line search that stops for the gradient alone, not for small changes."""
    return torch.optim.LBFGS(
        module.parameters(),
        max_iter=config.max_iter,
        max_eval=100 * config.max_iter,
        tolerance_grad=config.tolerance_grad,
        tolerance_change=0.0,
        history_size=config.history_size,
        line_search_fn="strong_wolfe",
    )


class ExactHinge(torch.optim.Optimizer):
    """Sets a linear layer with one output to the minimum of the mean SmoothHinge(., t) and its L2 term.

    problem: called once a step, gives (features (n, F), signs (n,)). gap: of the last fit at t = 0, see HingeFit.
    """

    def __init__(self, top: nn.Linear, problem: Callable[[], tuple[Tensor, Tensor]], l2: float, bias_l2: float,
                 t: float) -> None:  # fmt: skip
        super().__init__(top.parameters(), {})
        self.top, self.problem, self.l2, self.bias_l2, self.t = top, problem, l2, bias_l2, t
        self.gap: float | None = None

    def step(self, closure: Callable[[], Tensor]) -> Tensor:
        """Solve, write the solution, and give the loss there."""
        rows_nd, decay_d = hinge_rows(*self.problem(), self.l2, self.bias_l2 if self.top.bias is not None else None)
        if self.t:
            theta = fit_smooth_hinge(rows_nd, decay_d, self.t)
        else:
            fit = fit_hinge(rows_nd, decay_d)
            theta, self.gap = fit.theta, fit.gap
        with torch.no_grad():
            self.top.weight.copy_(theta[: self.top.in_features])
            if self.top.bias is not None:
                self.top.bias.copy_(theta[-1])
        with torch.enable_grad():
            return closure()


def hinge_rows(features_nf: Tensor, signs_n: Tensor, l2: float, bias_l2: float | None) -> tuple[Tensor, Tensor]:
    """(A, diagonal of D) of svm.py; bias_l2 None: no bias."""
    decay_d = features_nf.new_full((features_nf.shape[1],), l2)
    if bias_l2 is not None:
        features_nf = torch.cat([features_nf, torch.ones_like(features_nf[:, :1])], 1)
        decay_d = torch.cat([decay_d, decay_d.new_tensor([bias_l2])])
    return features_nf * signs_n[:, None], decay_d
