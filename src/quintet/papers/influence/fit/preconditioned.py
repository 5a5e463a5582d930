"""L-BFGS in the coordinates of a network's curvature: a tenth of the iterations on the paper's tanh CNN.

A network's loss bends by orders of magnitude more in some directions than in others, and L-BFGS learns that a pair of
steps at a time. With theta = theta_0 + R z, where M^-1 = R R^T and M is near the Hessian at theta_0, it starts with it.
M is `ekfac`, the Kronecker-factored curvature; `gauss_newton`, dense and dearer; or `hessian`, with the signs of its
eigenvalues dropped, the dearest: for the last part of the way to a minimum, and for retraining around one.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from quintet.papers.influence.fit.absolute_hessian import AbsoluteHessian
from quintet.papers.influence.risk.examples import Examples
from quintet.papers.influence.risk.gauss_newton import GaussNewton
from quintet.papers.influence.risk.linear_risk import make_risk
from quintet.papers.influence.risk.risk import EmpiricalRisk
from quintet.papers.influence.solvers.ekfac import curvature_of
from quintet.papers.influence.solvers.interface import Root

NAMES = ("none", "ekfac", "gauss_newton", "hessian")
FLOOR = 1e-6  # ekfac: eigenvalues below this part of a layer's largest count as that much


class PreconditionedLbfgs(torch.optim.Optimizer):
    """A step is up to `max_iter` iterations at one M, which `curvature(step)` gives for the parameters as they are.

    project: called before each evaluation, it moves parameters that are not among `params` to their own minimum.
    """

    def __init__(self, params: Iterable[nn.Parameter], curvature: Callable[[int], Root | None], tolerance_grad: float,
                 project: Callable[[], None] = lambda: None, **settings: Any) -> None:  # fmt: skip
        super().__init__(params, {"step": 0})  # in the checkpoint, so that a resumed run draws the same labels
        self.curvature, self.tolerance, self.settings, self.project = curvature, tolerance_grad, settings, project

    def step(self, closure: Callable[[], Tensor]) -> Tensor:
        """The loss where the step began, as torch's own L-BFGS gives it."""
        [group] = self.param_groups
        params, values = group["params"], []
        start_p, root = parameters_to_vector(params).detach().clone(), self.curvature(group["step"])
        group["step"] += 1

        def evaluate(theta_p: Tensor) -> tuple[Tensor, Tensor]:
            with torch.no_grad():
                vector_to_parameters(theta_p, params)
            self.project()
            with torch.enable_grad():
                values.append(closure())
            return values[-1], parameters_to_vector([p.grad for p in params])

        def reached(gradient_p: Tensor) -> bool:
            return bool(gradient_p.abs().max() <= self.tolerance)

        theta_p, *_ = minimise(evaluate, start_p, root, reached, **self.settings)
        with torch.no_grad():  # its last evaluation may have been at a point of the line search that was not taken
            vector_to_parameters(theta_p, params)
        self.project()
        return values[0]


class _ReachedError(Exception):
    """The gradient, which is small enough, ends torch's loop."""


def minimise(evaluate: Callable[[Tensor], tuple[Any, Tensor]], start_p: Tensor, root: Root | None,
             reached: Callable[[Tensor], bool], **settings: Any) -> tuple[Tensor, Tensor | None, int]:  # fmt: skip
    """theta (p,) and its gradient where `reached(gradient)`, else where torch's L-BFGS with `settings` ends and None.

    Last, its iterations. evaluate: theta -> (loss, gradient (p,)). root: None for plain coordinates.
    """
    z_p = torch.zeros_like(start_p).requires_grad_()

    def theta() -> Tensor:
        return start_p + (z_p.detach() if root is None else root.root(z_p.detach()[None])[0])

    def closure() -> Any:
        loss, gradient_p = evaluate(theta())
        if reached(gradient_p):
            raise _ReachedError(gradient_p)
        z_p.grad = gradient_p.clone() if root is None else root.root_transposed(gradient_p[None])[0]
        return loss

    # stops for the gradient in theta alone, not for that in z or for small changes
    optimizer = torch.optim.LBFGS([z_p], tolerance_grad=0.0, **{"tolerance_change": 0.0} | settings)
    found = None
    try:
        optimizer.step(closure)
    except _ReachedError as at:
        (found,) = at.args
    return theta(), found, optimizer.state[z_p].get("n_iter", 0)


def root_of(risk: EmpiricalRisk, name: str, seed: int = 0) -> Root | None:
    """M at the risk's parameters, by one of NAMES; seed: of the labels that ekfac draws."""
    if name == "none":
        return None
    dense = {"gauss_newton": GaussNewton, "hessian": AbsoluteHessian}
    return dense[name](risk) if name in dense else curvature_of(risk, 0.0, seed, FLOOR)


def curvature_during_training(module: nn.Module, datamodule: Any, name: str, step: int,
                              params: str = "*") -> Root | None:  # fmt: skip
    """Of the training split at the parameters as they are; `step` seeds the labels that are drawn."""
    training = module.training
    try:  # a risk puts its module into eval mode
        return root_of(make_risk(module, Examples(datamodule, "train"), params), name, step)
    finally:
        module.train(training)
