"""Influence of a change of a training input, section 2.2, and the training-set attack that follows it, section 5.2.

Legend: B training examples, p parameters, K query directions.
"""

from typing import Any

import torch
from torch import Tensor
from torch.func import jvp

from quintet.common.errors import UserError
from quintet.papers.influence.risk.risk import EmpiricalRisk


def perturbation_influence(risk: EmpiricalRisk, batch: Any, s_test_p: Tensor, field: str = "inputs") -> Tensor:
    """I_pert,loss(z, z_test) = -s_test^T grad_x grad_theta L(z, theta) of each example, shaped as its input.

    Moving training input x by d changes the test loss by about I_pert,loss . d / n. s_test_p: H^-1 grad L(z_test).
    Errors: UserError for an input that is not made of real numbers (mu-law classes, tokens).
    """
    given = getattr(batch, field, None)
    if not isinstance(given, Tensor) or not given.is_floating_point():
        raise UserError(
            f"{type(batch).__name__}.{field} is not a floating-point tensor:"
            " the influence of a small change needs real-valued inputs"
        )
    # inside is d/dt L(theta + t s), whose gradient in x is the mixed derivative: forward over parameters, then reverse
    with torch.enable_grad():
        x = given.detach().requires_grad_()

        def losses(theta_p: Tensor) -> Tensor:
            return risk.losses(theta_p, batch._replace(**{field: x}))

        slopes_b = jvp(losses, (risk.theta,), (s_test_p,))[1]
        (mixed,) = torch.autograd.grad(slopes_b.sum(), x)
    return -mixed


def attack_step(x: Tensor, original: Tensor, influence: Tensor, step: float, radius: float) -> Tensor:
    """x <- clip(x + step * sign(I_pert,loss)) into the box of `radius` about the original, and into [0, 1].

    Ascends the test loss; section 5.2 writes the same with a minus sign and descends the margin. In the unit of x:
    8-bit levels are 1/255 each.
    """
    moved = x + step * influence.sign()
    return torch.minimum(torch.maximum(moved, original - radius), original + radius).clamp(0, 1)
