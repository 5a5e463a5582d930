"""Models small enough for dense linear algebra, and their data, for the tests of the influence engine."""

import torch
from torch import Tensor, nn
from torch.nn import functional as nnf

from quintet.data.batches import ExampleBatch
from quintet.papers.influence.risk.examples import Examples
from quintet.papers.influence.risk.linear_risk import LinearParts

N, F, C = 40, 5, 3


class Softmax(nn.Module):
    """Multinomial logistic regression with an L2 term; `linear` says whether it offers its linear parts."""

    def __init__(self, l2: float = 0.05, bias: bool = False, linear: bool = False) -> None:
        super().__init__()
        self.layer = nn.Linear(F, C, bias=bias).double()
        self.l2, self.linear = l2, linear

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layer(inputs)

    def example_losses(self, batch: ExampleBatch) -> Tensor:
        return nnf.cross_entropy(self(batch.inputs), batch.labels, reduction="none")

    def regularisation(self) -> Tensor:
        return 0.5 * self.l2 * self.layer.weight.square().sum()

    def linear_parts(self, batch: ExampleBatch) -> LinearParts | None:
        if not self.linear:
            return None
        bias = "layer.bias" if self.layer.bias is not None else None
        losses = lambda z_bc: nnf.cross_entropy(z_bc, batch.labels, reduction="none")  # noqa: E731
        return LinearParts(batch.inputs, "layer.weight", bias, losses)


class Net(Softmax):
    """A tanh network with a convolution, a layer that is called twice and a head: not convex."""

    def __init__(self, l2: float = 0.05) -> None:
        super().__init__(l2)
        torch.manual_seed(1)
        self.conv = nn.Conv1d(1, 2, 3, stride=2, padding=1).double()
        self.twice = nn.Linear(6, 6).double()
        self.layer = nn.Linear(6, C).double()

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.conv(inputs.unsqueeze(1)).tanh().flatten(1)
        return self.layer(self.twice(self.twice(hidden).tanh()).tanh())


class Awkward(Softmax):
    """The same loss through an operation that only reverse mode knows."""

    def forward(self, inputs: Tensor) -> Tensor:
        return _Doubled.apply(self.layer(inputs)) / 2


class _Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx, slope: Tensor) -> Tensor:
        return 2 * slope


def data(seed: int = 0, count: int = N) -> ExampleBatch:
    """Three noisy clouds."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(C, (count,), generator=generator)
    centres = torch.randn(C, F, generator=torch.Generator().manual_seed(99), dtype=torch.float64)
    noise = torch.randn(count, F, generator=generator, dtype=torch.float64)
    return ExampleBatch(centres[labels] + noise, labels, torch.arange(count))


def examples(seed: int = 0, count: int = N) -> Examples:
    return Examples.of_batch(data(seed, count))


def fit(module: nn.Module, batch: ExampleBatch, skip: int | None = None, steps: int = 40) -> nn.Module:
    """To the minimum by Newton's method on the dense Hessian; `skip` leaves one example out.

    Without `skip` it starts at zero, where the first steps are safe.
    """
    if skip is None:
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.zero_()
    kept = torch.arange(len(batch.labels)) != (-1 if skip is None else skip)
    batch = ExampleBatch(*(part[kept] for part in batch))
    parameters = dict(module.named_parameters())
    for _ in range(steps):
        gradient, hessian = dense(module, batch)
        step = torch.linalg.pinv(hessian, hermitian=True) @ gradient  # a common bias is a direction without curvature
        with torch.no_grad():
            for parameter, part in zip(parameters.values(), step.split([p.numel() for p in parameters.values()]),
                                       strict=True):  # fmt: skip
                parameter -= part.view_as(parameter)
        if step.norm() < 1e-10:
            return module
    raise AssertionError("Newton's method did not converge: start nearer")


def dense(module: nn.Module, batch: ExampleBatch) -> tuple[Tensor, Tensor]:
    """Gradient (p,) and Hessian (p, p) of the risk by autograd's own dense Hessian."""
    names = [name for name, _ in module.named_parameters()]
    shapes = [p.shape for p in module.parameters()]
    theta = torch.cat([p.detach().flatten() for p in module.parameters()])

    def risk(vector: Tensor) -> Tensor:
        parts = vector.split([shape.numel() for shape in shapes])
        named = {n: p.view(s) for n, p, s in zip(names, parts, shapes, strict=True)}
        with torch.nn.utils.stateless._reparametrize_module(module, named):
            return module.example_losses(batch).mean() + module.regularisation()

    gradient = torch.autograd.functional.jacobian(risk, theta)
    return gradient, torch.autograd.functional.hessian(risk, theta)


def slopes(module: nn.Module, batch: ExampleBatch) -> Tensor:
    """Each example's gradient (B, p) without the L2 term, one backward pass each."""
    found = []
    for row in range(len(batch.labels)):
        single = ExampleBatch(*(part[row : row + 1] for part in batch))
        gradients = torch.autograd.grad(module.example_losses(single).sum(), list(module.parameters()))
        found.append(torch.cat([g.flatten() for g in gradients]))
    return torch.stack(found)
