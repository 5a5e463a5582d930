"""L-BFGS in the coordinates of a network's EK-FAC curvature: a tenth of the iterations on the paper's tanh CNN.

A network's loss bends by orders of magnitude more in some directions than in others, and L-BFGS learns that a pair of
steps at a time. With theta = theta_0 + M^(-1/2) z, M the Kronecker-factored curvature at theta_0, it starts with it.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from quintet.models.influence.examples import Examples
from quintet.models.influence.kronecker import KroneckerCurvature
from quintet.models.influence.linear_risk import make_risk
from quintet.models.influence.solvers.ekfac import curvature_of

FLOOR = 1e-6  # eigenvalues below this part of a layer's largest count as that much


class PreconditionedLbfgs(torch.optim.Optimizer):
    """A step is up to `max_iter` iterations at one M, which `curvature(step)` gives for the parameters as they are."""

    def __init__(self, params: Iterable[nn.Parameter], curvature: Callable[[int], KroneckerCurvature],
                 **settings: Any) -> None:  # fmt: skip
        super().__init__(params, {"step": 0})  # in the checkpoint, so that a resumed run draws the same labels
        self.curvature, self.settings = curvature, settings

    def step(self, closure: Callable[[], Tensor]) -> Tensor:
        """The loss where the step began, as torch's own L-BFGS gives it."""
        [group] = self.param_groups
        params = group["params"]
        start_p, curvature = parameters_to_vector(params).detach().clone(), self.curvature(group["step"])
        group["step"] += 1

        def half(vector_p: Tensor) -> Tensor:
            return curvature.power(vector_p[None], -0.5)[0]

        z_p = torch.zeros_like(start_p).requires_grad_()

        def evaluate() -> Tensor:
            with torch.no_grad():
                vector_to_parameters(start_p + half(z_p), params)
            with torch.enable_grad():
                loss = closure()
            z_p.grad = half(parameters_to_vector([p.grad for p in params]))
            return loss

        loss = torch.optim.LBFGS([z_p], **self.settings).step(evaluate)
        with torch.no_grad():  # its last evaluation may have been at a point of the line search that was not taken
            vector_to_parameters(start_p + half(z_p), params)
        return loss


def curvature_during_training(module: nn.Module, datamodule: Any, step: int) -> KroneckerCurvature:
    """Of the training split at the parameters as they are; `step` seeds the labels that are drawn."""
    training = module.training
    try:  # a risk puts its module into eval mode
        return curvature_of(make_risk(module, Examples(datamodule, "train")), 0.0, step, FLOOR)
    finally:
        module.train(training)
