"""First and second derivatives of per-example losses in the parameters, in the fastest mode that a model allows.

`forward` pushes tangents through the model (torch.func jvp under vmap): nothing per example is ever held. `reverse`
needs only that the loss can be differentiated twice by ordinary autograd, which custom kernels and data-dependent
shapes allow. Legend: B examples, K vectors, p parameters. `losses` maps (theta (p,), batch) to (B,).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, jvp, vmap

Losses = Callable[[Tensor, Any], Tensor]


class ForwardMode:
    """Tangents: a Hessian-vector product is the derivative of the gradient along the vector (Pearlmutter 1994)."""

    def __init__(self, losses: Losses) -> None:
        self.losses = losses

    def gradient(self, theta_p: Tensor, batch: Any) -> Tensor:
        with torch.no_grad():
            return grad(lambda theta: self.losses(theta, batch).sum())(theta_p)

    def hvp(self, theta_p: Tensor, batch: Any, vectors_kp: Tensor) -> Tensor:
        def along(vector_p: Tensor) -> Tensor:
            return jvp(lambda theta: self.gradient(theta, batch), (theta_p,), (vector_p,))[1]

        with torch.no_grad():
            return vmap(along)(vectors_kp)

    def directional(self, theta_p: Tensor, batch: Any, vectors_kp: Tensor) -> Tensor:
        with torch.no_grad():
            return vmap(lambda v: jvp(lambda theta: self.losses(theta, batch), (theta_p,), (v,))[1])(vectors_kp)

    def example_gradients(self, theta_p: Tensor, batch: Any) -> Tensor:
        def one(*parts: Tensor) -> Tensor:
            single = iter(parts)
            example = type(batch)(*(None if part is None else next(single).unsqueeze(0) for part in batch))
            return grad(lambda theta: self.losses(theta, example).sum())(theta_p)

        with torch.no_grad():
            return vmap(one)(*(part for part in batch if part is not None))


class ReverseMode:
    """Ordinary autograd, one backward pass a vector; the graph of a batch is freed before the next batch."""

    def __init__(self, losses: Losses) -> None:
        self.losses = losses

    def gradient(self, theta_p: Tensor, batch: Any) -> Tensor:
        with torch.enable_grad():
            theta = theta_p.detach().requires_grad_()
            return torch.autograd.grad(self.losses(theta, batch).sum(), theta)[0]

    def hvp(self, theta_p: Tensor, batch: Any, vectors_kp: Tensor) -> Tensor:
        with torch.enable_grad():
            theta = theta_p.detach().requires_grad_()
            (slope,) = torch.autograd.grad(self.losses(theta, batch).sum(), theta, create_graph=True)
            return torch.stack([_backward(slope, theta, v, k + 1 < len(vectors_kp)) for k, v in enumerate(vectors_kp)])

    def directional(self, theta_p: Tensor, batch: Any, vectors_kp: Tensor) -> Tensor:
        # J^T u is linear in u, so that its derivative in u along v is J v: forward mode out of two backward passes
        with torch.enable_grad():
            theta = theta_p.detach().requires_grad_()
            losses_b = self.losses(theta, batch)
            u_b = torch.zeros_like(losses_b, requires_grad=True)
            (pulled_p,) = torch.autograd.grad(losses_b, theta, u_b, create_graph=True)
            return torch.stack([_backward(pulled_p, u_b, v, k + 1 < len(vectors_kp)) for k, v in enumerate(vectors_kp)])

    def example_gradients(self, theta_p: Tensor, batch: Any) -> Tensor:
        with torch.enable_grad():
            theta = theta_p.detach().requires_grad_()
            losses_b = self.losses(theta, batch)
            rows = [torch.autograd.grad(loss, theta, retain_graph=b + 1 < len(losses_b))[0]
                    for b, loss in enumerate(losses_b)]  # fmt: skip
            return torch.stack(rows)


def _backward(output: Tensor, of: Tensor, weight: Tensor, again: bool) -> Tensor:
    # a loss that is linear in the parameters has no second derivative, for which autograd returns None
    (found,) = torch.autograd.grad(output, of, weight, retain_graph=again, allow_unused=True)
    return torch.zeros_like(of) if found is None else found


OPERATIONS = ("gradient", "hvp", "directional", "example_gradients")


class Derivatives:
    """Each operation in the mode of automatic differentiation that the model allows.

    ad_mode: operation -> "forward" or "reverse".

    gradient(theta_p, batch) -> (p,): sum over the batch. hvp(theta_p, batch, vectors_kp) -> (K, p): sum over the batch
    of Hessian times vector. directional(...) -> (K, B): each example's gradient times each vector.
    example_gradients(theta_p, batch) -> (B, p).
    """

    def __init__(self, losses: Losses, theta_p: Tensor, batch: Any) -> None:
        """`batch`: a few examples to try on, of different lengths where lengths differ."""
        forward, reverse = ForwardMode(losses), ReverseMode(losses)
        vectors_kp = torch.stack([torch.linspace(-1, 1, len(theta_p)).to(theta_p), torch.ones_like(theta_p)])
        arguments = {"hvp": (vectors_kp,), "directional": (vectors_kp,)}
        self.ad_mode = {
            name: "forward" if _agree(forward, reverse, name, theta_p, batch, *arguments.get(name, ())) else "reverse"
            for name in OPERATIONS
        }
        chosen = {"forward": forward, "reverse": reverse}
        self.gradient, self.hvp, self.directional, self.example_gradients = (
            getattr(chosen[self.ad_mode[name]], name) for name in OPERATIONS
        )


UNSUPPORTED = (RuntimeError, NotImplementedError, ValueError, TypeError, AssertionError)  # what torch.func may raise


def _agree(forward: ForwardMode, reverse: ReverseMode, name: str, *arguments: Any) -> bool:
    """Whether forward mode runs and gives what reverse mode gives: a kernel's tangent may differ from its gradient."""
    try:
        found = getattr(forward, name)(*arguments)
    except UNSUPPORTED:
        return False
    wanted = getattr(reverse, name)(*arguments)
    return bool((found - wanted).norm() <= 1e-3 * wanted.norm() + 1e-12)
