"""The empirical risk of a trained model over its training examples, and its derivatives in the chosen parameters.

Koh & Liang 2017, section 2: theta minimizes R(theta) = (1/n) sum L(z_i, theta), where L includes the L2 term.
Legend: n training examples, B of a batch, K vectors, p chosen parameters.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.func import functional_call, grad, jvp, vmap

from quintet.common.errors import UserError
from quintet.common.optim import make_optimizer
from quintet.papers.influence.risk.derivatives import Derivatives
from quintet.papers.influence.risk.examples import Examples, tensors
from quintet.papers.influence.risk.memory import budget, examples_at_once, saved_bytes, vectors_at_once
from quintet.papers.influence.risk.selection import Selection

MANY = 8  # vectors


class _Call(nn.Module):
    """Lets functional_call reach any method of a module."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, method: str, *args: Any) -> Any:
        return getattr(self.module, method)(*args)


class EmpiricalRisk:
    """R at the module's present parameters, with its `regularisation()` (or Adam's weight decay) as the L2 term.

    module: anything with `example_losses(batch) -> (B,)`; it is evaluated in eval mode. params: patterns over parameter
    names; the others are held fixed. batch_size: examples at a time, null: as many as memory.py allows. With
    torch.distributed running, every rank takes its share of the batches and all get the sums. Errors: UserError for a
    module without example_losses.
    """

    def __init__(self, module: nn.Module, train: Examples, params: str | Sequence[str] = "*",
                 batch_size: int | None = None) -> None:  # fmt: skip
        if not callable(getattr(module, "example_losses", None)):
            raise UserError(
                f"{type(module).__name__} has no example_losses(batch) -> (B,): influence functions need each example's"
                " loss; add that method to the module"
            )
        self.module: Any = module.eval()
        self.train = train
        self.selection = Selection(module, params)
        self.theta = self.selection.read(module)
        self.dtype, self.device = self.theta.dtype, self.theta.device
        self._call = _Call(module)
        self._decay = weight_decay(module)
        self._derivatives: Derivatives | None = None
        self.batch_size = batch_size or examples_at_once(
            self.example_bytes, self.num_params, self.theta.element_size(), self.device
        )

    @property
    def num_params(self) -> int:
        """p."""
        return self.selection.num_params

    @property
    def derivatives(self) -> Derivatives:
        """Derivatives in the mode that works on the first examples (one, where a batch holds only one)."""
        if self._derivatives is None:
            with self._quiet():
                few = self.read(self.train, slice(0, min(3, self.batch_size)))
                self._derivatives = Derivatives(self.losses, self.theta, few)
        return self._derivatives

    @cached_property
    def example_bytes(self) -> int:
        """What the backward pass of an example's loss keeps."""
        few = self.read(self.train, slice(0, 3))
        with self._quiet():
            return saved_bytes(lambda theta_p: self.losses(theta_p, few), self.theta) // min(3, len(self.train))

    def read(self, examples: Examples, rows: slice | Tensor | Sequence[int]) -> Any:
        """Examples as a batch in the model's precision."""
        return examples.read(rows, self.dtype, self.device)

    def losses(self, theta_p: Tensor, batch: Any) -> Tensor:
        """L without its L2 term at any parameters, (B,)."""
        return self._at(theta_p, "example_losses", batch)

    def sum_and_gradient(self, theta_p: Tensor, batch: Any, weight_b: Tensor | None = None) -> tuple[float, Tensor]:
        """Sum of a batch's losses, without their L2 term, at any parameters, and its gradient (p,).

        weight_b: how much each example counts, 1 by default.
        """
        theta = theta_p.detach().requires_grad_()
        # cuDNN's recurrent kernels have no backward pass in eval mode
        with torch.enable_grad(), torch.backends.cudnn.flags(enabled=not has_recurrence(self.module)):
            losses_b = self.losses(theta, batch)
            total = losses_b.sum() if weight_b is None else losses_b @ weight_b.to(losses_b)
            return float(total.detach()), torch.autograd.grad(total, theta)[0]

    def penalty(self, theta_p: Tensor) -> Tensor:
        """The L2 term at any parameters, a scalar."""
        explicit = 0.5 * self._decay * theta_p.square().sum()
        if hasattr(self.module, "regularisation"):
            return explicit + self._at(theta_p, "regularisation")
        return explicit

    def _at(self, theta_p: Tensor, method: str, *args: Any) -> Tensor:
        named = {f"module.{name}": part for name, part in self.selection.named(theta_p).items()}
        return functional_call(self._call, named, (method, *args))

    def batch_losses(self, batch: Any) -> Tensor:
        """L of a batch without its L2 term, (B,)."""
        with self._quiet(), torch.no_grad():
            return self.losses(self.theta, batch)

    def value(self) -> float:
        """R itself."""
        total = sum((self.batch_losses(batch).sum() for _, batch in self.batches()), self.theta.new_zeros(()))
        with torch.no_grad():
            return float(self.mean(total) + self.penalty(self.theta))

    def gradient(self) -> Tensor:
        """Gradient of R, (p,): zero at a minimum."""
        total = torch.zeros_like(self.theta)
        with self._quiet():
            for _, batch in self.batches():
                total += self.derivatives.gradient(self.theta, batch)
        return self.mean(total) + self.penalty_gradient()

    def penalty_gradient(self) -> Tensor:
        """Gradient of the L2 term, (p,)."""
        with torch.no_grad():
            return grad(self.penalty)(self.theta)

    def hvp(self, vectors_kp: Tensor) -> Tensor:
        """Hessian of R times each of K vectors, (K, p)."""
        total = torch.zeros_like(vectors_kp)
        with self._quiet():
            for _, batch in self.batches():
                total += self.batch_hvp(batch, vectors_kp)
        return self.mean(total) + self.penalty_hvp(vectors_kp)

    def batch_hvp(self, batch: Any, vectors_kp: Tensor) -> Tensor:
        """Sum of the examples' Hessians, without the L2 term, times each vector, (K, p)."""
        return torch.cat([self.derivatives.hvp(self.theta, batch, part) for part in self._split(batch, vectors_kp)])

    def penalty_hvp(self, vectors_kp: Tensor) -> Tensor:
        """Hessian of the L2 term times each vector, (K, p)."""
        with torch.no_grad():
            return vmap(lambda v: jvp(grad(self.penalty), (self.theta,), (v,))[1])(vectors_kp)

    def directional(self, batch: Any, vectors_kp: Tensor) -> Tensor:
        """grad L(z_i), without its L2 term, times each vector, (K, B)."""
        with self._quiet():
            if self._gradients_pay(batch, len(vectors_kp)):
                return vectors_kp @ self.derivatives.example_gradients(self.theta, batch).T
            return torch.cat(
                [self.derivatives.directional(self.theta, batch, part) for part in self._split(batch, vectors_kp)]
            )

    def _gradients_pay(self, batch: Any, vectors: int) -> bool:
        """Whether the examples' gradients, about the work of MANY tangents, are quicker than one tangent a vector."""
        size = len(tensors(batch)[0]) * self.num_params * self.theta.element_size()
        return (
            vectors >= MANY
            and self.derivatives.ad_mode["example_gradients"] == "forward"
            and size <= budget(self.device)
        )

    def _split(self, batch: Any, vectors_kp: Tensor) -> Sequence[Tensor]:
        """As many vectors at a time as memory allows."""
        return vectors_kp.split(vectors_at_once(self.example_bytes, len(tensors(batch)[0]), self.device))

    def example_gradients(self, batch: Any) -> Tensor:
        """grad L(z_i) without its L2 term, (B, p)."""
        with self._quiet():
            return self.derivatives.example_gradients(self.theta, batch)

    def batches(self) -> Iterator[tuple[slice, Any]]:
        """This rank's share of the training examples."""
        rank, world = ranks()
        return self.train.batches(self.batch_size, self.dtype, self.device, rank, world)

    def prepared(self, batch: Any) -> Any:
        """A raw batch as the methods here like it best."""
        return batch

    def mean(self, total: Tensor) -> Tensor:
        """A rank's sum over its examples -> the mean over all n."""
        return sum_of_ranks(total) / len(self.train)

    @contextmanager
    def _quiet(self) -> Iterator[None]:
        """eval mode; cuDNN's recurrent kernels cannot be differentiated twice."""
        self.module.eval()
        with torch.backends.cudnn.flags(enabled=not has_recurrence(self.module)):
            yield


def has_recurrence(module: nn.Module) -> bool:
    """Whether any part is one of torch's recurrent layers."""
    return any(isinstance(part, nn.RNNBase) for part in module.modules())


def weight_decay(module: nn.Module) -> float:
    """The L2 coefficient that the module's optimizer adds to the gradient; 0 for decoupled decay such as AdamW's."""
    config = getattr(module, "optimizer_config", None)
    if config is None or not (config.weight_decay or config.options):
        return 0.0
    optimizer = make_optimizer(module.parameters(), config)
    decoupled = isinstance(optimizer, torch.optim.AdamW) or optimizer.defaults.get("decoupled_weight_decay", False)
    return 0.0 if decoupled else float(optimizer.defaults.get("weight_decay", 0.0))


def ranks() -> tuple[int, int]:
    """(rank, number of ranks)."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


def sum_of_ranks(value: Tensor) -> Tensor:
    """The sum over all ranks, on each of them."""
    if ranks()[1] > 1:
        distributed.all_reduce(value)
    return value
