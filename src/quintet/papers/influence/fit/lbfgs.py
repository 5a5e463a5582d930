"""How a classifier is fitted: Adam and SGD as everywhere here, or to the minimum that influence functions assume."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from quintet.common.errors import UserError
from quintet.common.optim import OptimizerConfig
from quintet.papers.influence.fit.newton import Design, fit_logistic
from quintet.papers.influence.fit.svm import fit_hinge, fit_smooth_hinge

log = logging.getLogger(__name__)
FULL_BATCH = ("lbfgs", "exact_hinge")
Problem = Callable[[], tuple[Tensor, Tensor]]  # features (n, F) and signs (n,) of the training split


@dataclass(frozen=True)
class FitConfig(OptimizerConfig):
    """Everything under `model.optimizer`.

    lbfgs: L-BFGS on the whole training split; an optimizer step is up to `max_iter` iterations, and training ends when
    no entry of the gradient is above `tolerance_grad`. Logistic regression of two classes, in float64 and with an L2
    term, is finished by Newton's method (newton.py) where L-BFGS does not reach the tolerance, as with the badly scaled
    columns of hospital data. exact_hinge: the SVM's minimum in one step (svm.py).
    """

    names = ("lbfgs", "exact_hinge", "adam", "sgd")

    name: Literal["lbfgs", "exact_hinge", "adam", "sgd"] = "lbfgs"  # type: ignore[assignment]
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


def build_lbfgs(module: Any, config: FitConfig, problem: Problem | None = None) -> torch.optim.Optimizer:
    """L-BFGS with a strong Wolfe line search that stops for the gradient alone, not for small changes.

    problem: of a logistic regression that Newton's method shall finish.
    """
    settings: dict[str, Any] = {
        "max_iter": config.max_iter,
        "max_eval": 100 * config.max_iter,
        "tolerance_grad": config.tolerance_grad,
        "tolerance_change": 0.0,
        "history_size": config.history_size,
        "line_search_fn": "strong_wolfe",
    }
    if problem is None:
        return Lbfgs(module.parameters(), **settings)
    bias_l2 = module.l2 if module.decay_bias else 0.0
    return Lbfgs(module.parameters(), LogisticFinish(module.network.top, problem, module.l2, bias_l2), **settings)


class Lbfgs(torch.optim.LBFGS):
    """L-BFGS; then `finish(tolerance)` moves the parameters on, and returns whether it did."""

    def __init__(self, params: Any, finish: Callable[[float], bool] | None = None, **settings: Any) -> None:
        super().__init__(params, **settings)
        self.finish = finish

    def step(self, closure: Any = None) -> Any:
        """Up to max_iter iterations, and the finish."""
        loss = super().step(closure)
        if self.finish is not None and self.finish(self.param_groups[0]["tolerance_grad"]):
            self.state.clear()  # its memory of the curvature ends where the parameters were
        return loss


class LogisticFinish:
    """Moves a linear layer with one output on to the minimum of mean log(1 + exp(-y z)) and its L2 term."""

    def __init__(self, top: nn.Linear, problem: Problem, l2: float, bias_l2: float) -> None:
        self.top, self.problem, self.l2, self.bias_l2 = top, problem, l2, bias_l2

    def __call__(self, tolerance: float) -> bool:
        rows_nd, decay_d = hinge_rows(*self.problem(), self.l2, self.bias_l2 if self.top.bias is not None else None)
        parts = [self.top.weight, *([] if self.top.bias is None else [self.top.bias])]
        start_d = torch.cat([part.detach().flatten() for part in parts])
        rows, decay, start = (part.cpu().numpy() for part in (rows_nd, decay_d, start_d))
        fit = fit_logistic(Design(rows), np.ones(len(rows)), decay, start, tolerance)
        if fit.steps:
            log.info("finished by Newton's method: %d steps, gradient norm %.2g", fit.steps, fit.gradient_norm)
            write_linear(self.top, torch.from_numpy(fit.theta))
        return bool(fit.steps)


class ExactHinge(torch.optim.Optimizer):
    """Sets a linear layer with one output to the minimum of the mean SmoothHinge(., t) and its L2 term.

    problem: called once a step. gap: of the last fit at t = 0, see HingeFit.
    """

    def __init__(self, top: nn.Linear, problem: Problem, l2: float, bias_l2: float, t: float) -> None:  # fmt: skip
        super().__init__(top.parameters(), {})
        self.top, self.problem, self.l2, self.bias_l2, self.t = top, problem, l2, bias_l2, t
        self.gap: float | None = None

    def step(self, closure: Any = None) -> Any:
        """Solve, write the solution, and give the loss there."""
        rows_nd, decay_d = hinge_rows(*self.problem(), self.l2, self.bias_l2 if self.top.bias is not None else None)
        if self.t:
            theta = fit_smooth_hinge(rows_nd, decay_d, self.t)
        else:
            fit = fit_hinge(rows_nd, decay_d)
            theta, self.gap = fit.theta, fit.gap
        write_linear(self.top, theta)
        with torch.enable_grad():
            return closure()


def write_linear(top: nn.Linear, theta_d: Tensor) -> None:
    """Parameters of a layer with one output, the bias last."""
    with torch.no_grad():
        top.weight.copy_(theta_d[: top.in_features])
        if top.bias is not None:
            top.bias.copy_(theta_d[-1])


def hinge_rows(features_nf: Tensor, signs_n: Tensor, l2: float, bias_l2: float | None) -> tuple[Tensor, Tensor]:
    """(A, diagonal of D) of svm.py; bias_l2 None: no bias."""
    decay_d = features_nf.new_full((features_nf.shape[1],), l2)
    if bias_l2 is not None:
        features_nf = torch.cat([features_nf, torch.ones_like(features_nf[:, :1])], 1)
        decay_d = torch.cat([decay_d, decay_d.new_tensor([bias_l2])])
    return features_nf * signs_n[:, None], decay_d
