"""Retraining of any model, one removal at a time, by L-BFGS or by Adam as the paper does for its network.

A network is rarely at a minimum: some more training would change it without leaving anything out. So a control is
trained in the same way on all examples, and what it changes is subtracted (retrain.py).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap

from quintet.common.errors import UserError
from quintet.papers.influence.retraining.interface import Refitted, Removal
from quintet.papers.influence.risk.examples import rows_of, tensors
from quintet.papers.influence.risk.risk import EmpiricalRisk, has_recurrence


@dataclass
class Lbfgs:
    """Full-batch L-BFGS with a strong Wolfe line search until |gradient| <= tolerance, or max_iterations."""

    tolerance: float = 1e-8
    max_iterations: int = 1000
    history_size: int = 50

    def run(self, risk: EmpiricalRisk, removals: Sequence[Removal]) -> Iterator[Refitted]:
        """Refit without each of `removals`."""
        value, gradient_p = value_and_gradient(risk, risk.theta, None)
        for removal in removals:
            yield self._one(risk, removal, *less(risk, removal, value, gradient_p))

    def _one(self, risk: EmpiricalRisk, removal: Removal, value: float, gradient_p: Tensor) -> Refitted:
        """value, gradient_p: of the risk without the example, at the start."""
        theta = risk.theta.clone().requires_grad_()

        def closure() -> float:
            if torch.equal(theta, risk.theta):
                found, theta.grad = value, gradient_p.clone()
            else:
                found, theta.grad = value_and_gradient(risk, theta, removal)
            if theta.grad.norm() <= self.tolerance:
                raise _ConvergedError
            return found

        # torch stops at the largest entry of the gradient or at small changes: neither is what we want
        optimizer = torch.optim.LBFGS(
            [theta], max_iter=self.max_iterations, max_eval=100 * self.max_iterations, tolerance_grad=0.0,
            tolerance_change=0.0, history_size=self.history_size, line_search_fn="strong_wolfe",
        )  # fmt: skip
        try:
            optimizer.step(closure)
            # its last evaluation may have been at a point of the line search that was not taken
            _, theta.grad = value_and_gradient(risk, theta, removal)
        except _ConvergedError:
            pass
        assert theta.grad is not None
        iterations = optimizer.state[theta].get("n_iter", 0)
        return Refitted(removal, theta.detach().clone(), float(theta.grad.norm()), iterations)


class _ConvergedError(Exception):
    """Ends torch's loop where the gradient is small enough; `theta` and its gradient are those of that point."""


@dataclass
class Adam:
    """`steps` of Adam at a constant rate; every removal sees the same batches in the same order, itself left out.

    together: removals that take each step at once, which a GPU likes; the model's operations must allow vmap.
    """

    steps: int = 30_000
    lr: float = 1e-6
    batch_size: int = 500
    together: int = 1
    seed: int = 0

    def run(self, risk: EmpiricalRisk, removals: Sequence[Removal]) -> Iterator[Refitted]:
        """Refit without each of `removals`."""
        if self.batch_size > len(risk.train):
            raise UserError(f"retrain.batch_size={self.batch_size}: there are {len(risk.train)} training examples")
        for start in range(0, len(removals), self.together):
            some = removals[start : start + self.together]
            theta_kp = self._train(risk, some)
            for removal, theta in zip(some, theta_kp, strict=True):
                gradient_p = value_and_gradient(risk, theta, removal)[1]
                yield Refitted(removal, theta.clone(), float(gradient_p.norm()), self.steps)

    def _train(self, risk: EmpiricalRisk, removals: Sequence[Removal]) -> Tensor:
        """Parameters (K, p) after all steps; Adam is elementwise, so that one optimizer holds K vectors."""
        theta_kp = risk.theta.repeat(len(removals), 1).requires_grad_()
        optimizer = torch.optim.Adam([theta_kp], lr=self.lr)
        left_k1 = torch.tensor([-1 if removal is None else removal for removal in removals])[:, None]
        for rows_b in batch_order(len(risk.train), self.batch_size, self.steps, self.seed):
            # weighted so that an epoch's mean is the mean over those that stay
            count_k1 = len(risk.train) - (left_k1 >= 0).to(risk.dtype)
            weight_kb = (rows_b != left_k1) * len(risk.train) / count_k1 / len(rows_b)
            batch = risk.read(risk.train, rows_b)
            optimizer.zero_grad()
            torch.stack([risk.penalty(theta) for theta in theta_kp]).sum().backward()
            assert theta_kp.grad is not None
            if len(removals) == 1:
                theta_kp.grad += risk.sum_and_gradient(theta_kp[0], batch, weight_kb[0])[1]
            else:
                with plain_kernels(risk):
                    losses_kb = vmap(lambda theta, batch=batch: risk.losses(theta, batch))(theta_kp)
                    (weight_kb.to(risk.device) * losses_kb).sum().backward()
            optimizer.step()
        return theta_kp.detach()


def batch_order(count: int, size: int, steps: int, seed: int) -> Iterator[Tensor]:
    """Positions (size,) of each step's batch: epochs of random order, what does not fill a batch is dropped."""
    generator, taken = torch.Generator().manual_seed(seed), 0
    while taken < steps:
        whole = torch.randperm(count, generator=generator).split(size)[: count // size]
        yield from whole[: steps - taken]
        taken += len(whole)


def value_and_gradient(risk: EmpiricalRisk, theta_p: Tensor, removal: Removal) -> tuple[float, Tensor]:
    """The risk without an example at any parameters, and its gradient (p,); the mean is over those that stay."""
    count, value, total_p = len(risk.train) - (removal is not None), 0.0, torch.zeros_like(risk.theta)
    for place, batch in risk.train.batches(risk.batch_size, risk.dtype, risk.device):
        if removal is not None and place.start <= removal < place.stop:
            stays = torch.arange(place.start, min(place.stop, len(risk.train))) != removal
            batch = rows_of(batch, stays.to(risk.device))
        if len(tensors(batch)[0]):
            found, gradient_p = risk.sum_and_gradient(theta_p, batch)
            value, total_p = value + found / count, total_p + gradient_p / count
    theta = theta_p.detach().requires_grad_()
    with torch.enable_grad():
        penalty = risk.penalty(theta)
        (gradient_p,) = torch.autograd.grad(penalty, theta)
    return value + float(penalty.detach()), total_p + gradient_p


def less(risk: EmpiricalRisk, removal: Removal, value: float, gradient_p: Tensor) -> tuple[float, Tensor]:
    """The risk without an example and its gradient, from those with it, at the risk's own parameters."""
    if removal is None:
        return value, gradient_p
    theta, count = risk.theta.clone().requires_grad_(), len(risk.train)
    with torch.enable_grad(), plain_kernels(risk):
        own = risk.losses(theta, risk.read(risk.train, slice(removal, removal + 1)))[0] + risk.penalty(theta)
        (own_p,) = torch.autograd.grad(own, theta)
    return (count * value - float(own.detach())) / (count - 1), (count * gradient_p - own_p) / (count - 1)


def plain_kernels(risk: EmpiricalRisk) -> Any:
    """cuDNN's recurrent kernels have no backward pass in eval mode."""
    return torch.backends.cudnn.flags(enabled=not has_recurrence(risk.module))
