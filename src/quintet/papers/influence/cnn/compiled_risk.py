"""The risk of the paper's tanh network on a CPU: the derivatives of EmpiricalRisk by compiled kernels.

Legend: B examples of a batch, K vectors, p parameters.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from quintet.papers.influence.cnn.compiled_cnn import Block, CompiledCnn
from quintet.papers.influence.risk.examples import Examples
from quintet.papers.influence.risk.risk import EmpiricalRisk
from quintet.papers.influence.risk.selection import Selection


class CompiledRisk(EmpiricalRisk):
    """`EmpiricalRisk` for a classifier with such a network, all of whose parameters are chosen."""

    @classmethod
    def applies(cls, module: Any, train: Examples, params: Any) -> bool:
        """Whether there are kernels for this module, loss and choice."""
        if not compiles(module):
            return False
        return Selection(module, params).names == [f"network.{name}" for name, _ in module.network.named_parameters()]

    @property
    def mode(self) -> "CompiledMode":
        if self._mode is None:
            self._mode = CompiledMode(network_of(self.module))
        return self._mode

    def sum_and_gradient(self, theta_p: Tensor, batch: Any, weight_b: Tensor | None = None) -> tuple[float, Tensor]:
        weight_n = None if weight_b is None else weight_b.numpy()
        value, gradient_p = self.mode.network.gradient(theta_p.detach().numpy(), self.mode.blocks(batch), weight_n)
        return value, torch.from_numpy(gradient_p).to(theta_p)

    def curvature_rows(self, batch: Any) -> Iterator[Tensor]:
        """As of `EmpiricalRisk`, a block of images at a time."""
        for rows in self.mode.network.curvature_rows(self.theta.numpy(), self.mode.blocks(batch)):
            yield torch.from_numpy(np.ascontiguousarray(rows))


class CompiledMode:
    """What `Derivatives` does, for this network."""

    routes = dict.fromkeys(("gradient", "hvp", "directional", "example_gradients"), "compiled")

    def __init__(self, network: CompiledCnn) -> None:
        self.network = network

    def blocks(self, batch: Any) -> list[Block]:
        """A batch as the network takes it."""
        return self.network.pack(batch.inputs, batch.labels)

    def gradient(self, theta_p: Tensor, batch: Any) -> Tensor:
        return torch.from_numpy(self.network.gradient(theta_p.numpy(), self.blocks(batch))[1]).to(theta_p)

    def hvp(self, theta_p: Tensor, batch: Any, vectors_kp: Tensor) -> Tensor:
        return torch.from_numpy(self.network.hvp(theta_p.numpy(), self.blocks(batch), vectors_kp.numpy())).to(theta_p)

    def directional(self, theta_p: Tensor, batch: Any, vectors_kp: Tensor) -> Tensor:
        return vectors_kp @ self.example_gradients(theta_p, batch).T

    def example_gradients(self, theta_p: Tensor, batch: Any) -> Tensor:
        rows = list(self.network.example_gradients(theta_p.numpy(), self.blocks(batch)))
        return torch.from_numpy(np.concatenate(rows)).to(theta_p)


class MeanLoss(torch.autograd.Function):
    """Mean loss of packed images, for training: its gradient is computed along with it."""

    @staticmethod
    def forward(ctx: Any, network: CompiledCnn, blocks: list[Block], *parameters: Tensor) -> Tensor:
        count = blocks[-1].start + blocks[-1].count
        theta_p = torch.cat([part.detach().flatten() for part in parameters])
        value, gradient_p = network.gradient(theta_p.numpy(), blocks)
        slopes = torch.from_numpy(gradient_p / count).to(theta_p).split([p.numel() for p in parameters])
        ctx.slopes = [slope.view_as(part) for slope, part in zip(slopes, parameters, strict=True)]
        return theta_p.new_tensor(value / count)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *(slope * part for part in ctx.slopes)


def compiles(module: Any) -> bool:
    """Whether there are kernels for this module: the tanh network with cross-entropy, on a CPU."""
    return getattr(module, "loss", None) == "cross_entropy" and CompiledCnn.applies(getattr(module, "network", None))


def network_of(module: Any) -> CompiledCnn:
    """The compiled twin of a module's network, in its precision."""
    dtype = np.float64 if module.network.top.weight.dtype == torch.float64 else np.float32
    return CompiledCnn(module.network, tuple(module.data_info["input_shape"]), dtype)
