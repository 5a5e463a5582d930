"""A kernel machine as a linear one: the RBF SVM of section 5.1 on the features of its Cholesky factor.

With K = L L^T the kernel matrix of the n training inputs, phi(x) = L^-1 k(x) has phi(x_i) . phi(x_j) = k(x_i, x_j), and
phi(x_i) is row i of L. A linear SVM on phi is the kernel SVM: its weights w represent the function w . phi, whose norm
in the kernel's space is |w|. Legend: n training inputs, B examples, D numbers of an input, flattened.
"""

import torch
from torch import Tensor, nn

from quintet.common.errors import UserError
from quintet.papers.influence.classifiers.network import ClassifierConfig, zero_linear

BLOCK = 1 << 24  # numbers of the training inputs that are cast to the model's precision at a time


class RbfMachine(nn.Module):
    """Inputs (B, *shape) -> scores (B, outputs) of k(x, z) = exp(-gamma |x - z|^2).

    `fill` takes the training inputs in; they, and the inverse of L, are part of the state, so that a checkpoint can
    score what it has never seen; pixels: as bytes. jitter: K + jitter I is what is factorized.
    """

    inputs: Tensor
    whitening: Tensor

    def __init__(
        self, config: ClassifierConfig, num_train: int, num_inputs: int, outputs: int, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.gamma, self.jitter, self.pixels = config.gamma, config.jitter, config.pixels
        stored = torch.uint8 if config.pixels else torch.float32
        self.register_buffer("inputs", torch.zeros(num_train, num_inputs, dtype=stored))
        self.register_buffer("whitening", torch.zeros(num_train, num_train, dtype=dtype))
        self.top = zero_linear(num_train, outputs, config.bias, dtype)

    def fill(self, inputs: Tensor) -> None:
        """Take the training inputs (n, *shape) and factorize their kernel matrix. Errors: UserError when singular."""
        self.inputs.copy_((inputs.flatten(1) * 255).round() if self.pixels else inputs.flatten(1))
        if self.pixels and (self._unpacked(self.inputs) - inputs.flatten(1)).abs().max() > 1e-6:
            raise UserError("model.network.pixels=true, but the inputs are not k / 255: set model.network.pixels=false")
        kernel_nn = self.kernel(inputs.flatten(1))
        kernel_nn.diagonal().add_(self.jitter)
        factor_nn, failed = torch.linalg.cholesky_ex(kernel_nn)
        if int(failed):
            raise UserError(
                f"the kernel matrix is singular at training example {int(failed) - 1} (equal or nearly equal inputs):"
                f" raise model.network.jitter={self.jitter:g}, say to 1e-8, or model.network.gamma={self.gamma:g}"
            )
        eye_nn = torch.eye(len(factor_nn), dtype=factor_nn.dtype, device=factor_nn.device)
        self.whitening.copy_(torch.linalg.solve_triangular(factor_nn, eye_nn, upper=False))

    def _unpacked(self, stored: Tensor) -> Tensor:
        # float32 times 1 / 255, as the data makes them: not the last digit differs
        return stored.float().mul(1 / 255) if self.pixels else stored

    def kernel(self, inputs: Tensor) -> Tensor:
        """k(x, x_i) of inputs (B, D) with the training inputs, (B, n)."""
        return torch.exp(-self.gamma * self._squared_distances(inputs))

    def _squared_distances(self, inputs: Tensor) -> Tensor:
        """|x|^2 - 2 x . x_i + |x_i|^2, (B, n), over blocks of the D numbers: all may not fit in float64."""
        width = max(1, BLOCK // len(self.inputs))
        total_bn = self.whitening.new_zeros(len(inputs), len(self.inputs))
        for mine_bd, theirs_nd in zip(inputs.split(width, 1), self.inputs.split(width, 1), strict=True):
            mine_bd = mine_bd.to(self.whitening.dtype)
            theirs_nd = self._unpacked(theirs_nd).to(self.whitening.dtype)
            norms_bn = mine_bd.square().sum(1, keepdim=True) + theirs_nd.square().sum(1)
            total_bn += norms_bn - 2 * mine_bd @ theirs_nd.T
        return total_bn

    def features(self, inputs: Tensor) -> Tensor:
        """phi of any inputs, (B, n)."""
        return self.kernel(inputs.flatten(1)) @ self.whitening.T

    def train_features(self) -> Tensor:
        """phi of the training inputs, (n, n), without the kernel: L^-1 K = L^T - jitter L^-1."""
        eye_nn = torch.eye(len(self.whitening), dtype=self.whitening.dtype, device=self.whitening.device)
        factor_nn = torch.linalg.solve_triangular(self.whitening, eye_nn, upper=False)
        return factor_nn - self.jitter * self.whitening.T

    def forward(self, inputs: Tensor) -> Tensor:
        return self.top(self.features(inputs))
