"""Base class for the risks of a single linear layer, whose parameters form a matrix.

Legend: F features (a column of ones last when there is a bias), C outputs, K vectors, p = C * F parameters.
"""

from typing import Any

import torch
from torch import Tensor

from quintet.papers.influence.risk.examples import Examples
from quintet.papers.influence.risk.risk import EmpiricalRisk


class OneLayer(EmpiricalRisk):
    """A risk whose chosen parameters are the weight and the bias of one linear layer.

    described_by: name of the module's method batch -> parts with `weight` and `bias`, the parameter names; or None.
    """

    described_by = "linear_parts"

    def __init__(self, module: Any, train: Examples, params: Any = "*", batch_size: int = 4096) -> None:
        super().__init__(module, train, params, batch_size)
        parts = getattr(module, self.described_by)(self.read(train, slice(0, 1)))
        self.weight, self.bias = parts.weight, parts.bias
        self.num_outputs = self.selection.shapes[self.selection.names.index(self.weight)][0]

    @classmethod
    def applies(cls, module: Any, train: Examples, params: Any) -> bool:
        """Whether the module is linear and its weight and bias are just what was chosen."""
        if not callable(getattr(module, cls.described_by, None)):
            return False
        probe = EmpiricalRisk(module, train, params, batch_size=1)
        parts = getattr(module, cls.described_by)(probe.read(train, slice(0, 1)))
        return parts is not None and set(probe.selection.names) == {parts.weight, parts.bias} - {None}

    def matrix(self, vectors_kp: Tensor) -> Tensor:
        """Vectors as matrices (K, C, F), the bias as the last column."""
        weights_kcf = vectors_kp[:, self.selection.place(self.weight)].unflatten(1, (self.num_outputs, -1))
        if not self.bias:
            return weights_kcf
        return torch.cat([weights_kcf, vectors_kp[:, self.selection.place(self.bias)].unsqueeze(2)], 2)

    def vector(self, matrices_kcf: Tensor) -> Tensor:
        """The inverse of `matrix`."""
        if not self.bias:
            return matrices_kcf.flatten(1)
        found = matrices_kcf.new_empty(len(matrices_kcf), self.num_params)
        found[:, self.selection.place(self.bias)] = matrices_kcf[:, :, -1]
        found[:, self.selection.place(self.weight)] = matrices_kcf[:, :, :-1].flatten(1)
        return found

    def with_ones(self, design: Tensor) -> Tensor:
        """Features (..., F) with a column of ones last where there is a bias."""
        return torch.cat([design, torch.ones_like(design[..., :1])], -1) if self.bias else design

    def _zeros(self) -> Tensor:
        """A matrix (C, F) to add to: a rank may have no batch."""
        return torch.zeros_like(self.matrix(self.theta[None])[0])
