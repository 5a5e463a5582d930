"""The problem that every influence candidate solves, and its exact answer: written once, read by ours and by the peers.

Needs only torch and NumPy, so that the peers' own environment can read it. Legend: n training examples, q queries,
d inputs, c classes, p parameters. All scores are `delta_test_loss_if_removed` without the constant that the regulariser
adds to a training gradient (lambda theta . s, the same for all n): most peers cannot put it there.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

# ["linear", inputs, outputs, bias], ["conv", inputs, outputs, kernel, stride, padding], ["tanh"], ["mean"]
Layers = list[list]


@dataclass
class Problem:
    """A trained network, its examples and the damping that all candidates use: (H + damping I) s = g."""

    layers: Layers
    parameters: list[Tensor]
    l2: float
    damping: float  # beyond l2
    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor

    @property
    def total_damping(self) -> float:
        """What is added to the Hessian of the mean data loss."""
        return self.l2 + self.damping

    def network(self) -> nn.Sequential:
        made = make_network(self.layers).to(self.parameters[0].dtype).eval()
        with torch.no_grad():
            for own, value in zip(made.parameters(), self.parameters, strict=True):
                own.copy_(value)
        return made

    def save(self, path: Path) -> None:
        arrays = {name: getattr(self, name).numpy() for name in ("x_train", "y_train", "x_test", "y_test")}
        arrays |= {f"parameter_{i}": value.numpy() for i, value in enumerate(self.parameters)}
        settings = {"layers": self.layers, "l2": self.l2, "damping": self.damping, "parameters": len(self.parameters)}
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, settings=json.dumps(settings), **arrays)

    @classmethod
    def load(cls, path: Path, dtype: torch.dtype, queries: int | None = None, train: int | None = None) -> "Problem":
        """In `dtype`; only the first `queries` test and `train` training examples."""
        with np.load(path) as file:
            settings = json.loads(str(file["settings"]))
            parameters = [torch.from_numpy(file[f"parameter_{i}"]).to(dtype) for i in range(settings.pop("parameters"))]
            x_train, y_train = (torch.from_numpy(file[name])[:train] for name in ("x_train", "y_train"))
            x_test, y_test = (torch.from_numpy(file[name])[:queries] for name in ("x_test", "y_test"))
        data = {"x_train": x_train.to(dtype), "y_train": y_train, "x_test": x_test.to(dtype), "y_test": y_test}
        return cls(parameters=parameters, **data, **settings)


def make_network(layers: Layers) -> nn.Sequential:
    """A plain torch network, the same in every environment."""
    kinds = {
        "linear": lambda inputs, outputs, bias: nn.Linear(inputs, outputs, bias=bias),
        "conv": lambda inputs, outputs, kernel, stride, padding: nn.Conv2d(inputs, outputs, kernel, stride, padding),
        "tanh": nn.Tanh,
        "mean": lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    }
    return nn.Sequential(*(kinds[kind](*sizes) for kind, *sizes in layers))


def fit_linear(x_nd: Tensor, y_n: Tensor, classes: int, l2: float, tolerance: float = 1e-8) -> Tensor:
    """Weights (c, d) of multinomial logistic regression without bias, by full-batch L-BFGS in float64.

    Raises ValueError where the norm of the gradient stays above `tolerance`.
    """
    weight_cd = torch.zeros(classes, x_nd.shape[1], dtype=torch.float64, requires_grad=True)
    rules = {"tolerance_grad": tolerance / weight_cd.numel() ** 0.5, "tolerance_change": 0.0}
    optimizer = torch.optim.LBFGS([weight_cd], max_iter=5000, history_size=100, line_search_fn="strong_wolfe", **rules)

    def risk() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(x_nd @ weight_cd.T, y_n) + l2 / 2 * weight_cd.square().sum()
        value.backward()
        return value

    optimizer.step(risk)
    risk()
    norm = float(weight_cd.grad.norm())
    if norm > tolerance:
        raise ValueError(f"L-BFGS ended at a gradient norm of {norm:.2e}, above {tolerance:.0e}")
    return weight_cd.detach()


def linear_hessian(x_nd: Tensor, p_nc: Tensor, rows: int = 5500) -> Tensor:
    """Hessian (c d, c d) of the mean cross-entropy of a linear classifier: blocks X^T diag(w_ab) X / n."""
    (n, d), c = x_nd.shape, p_nc.shape[1]
    blocks = torch.zeros(c, d, c, d, dtype=x_nd.dtype)
    for start in range(0, n, rows):
        x, p = x_nd[start : start + rows], p_nc[start : start + rows]
        for a in range(c):
            for b in range(a, c):
                w = p[:, a] * (float(a == b) - p[:, b])
                blocks[a, :, b].addmm_((x * w[:, None]).T, x, alpha=1 / n)
    for a in range(c):
        for b in range(a):
            blocks[a, :, b] = blocks[b, :, a].T
    return blocks.view(c * d, c * d)


def linear_exact(problem: Problem) -> np.ndarray:
    """Scores (q, n) by the dense Hessian and a Cholesky factorisation."""
    (weight_cd,) = problem.parameters
    pairs = [(problem.x_train, problem.y_train), (problem.x_test, problem.y_test)]
    slope_train, slope_test = (residuals(x @ weight_cd.T, y) for x, y in pairs)
    hessian = linear_hessian(problem.x_train, torch.softmax(problem.x_train @ weight_cd.T, 1))
    hessian.diagonal().add_(problem.total_damping)
    gradient_qp = (slope_test[:, :, None] * problem.x_test[:, None, :]).flatten(1)
    solution_qp = torch.cholesky_solve(gradient_qp.T, torch.linalg.cholesky(hessian)).T
    solution_qcd = solution_qp.view(len(problem.x_test), *weight_cd.shape)
    scores = [((problem.x_train @ s_cd.T) * slope_train).sum(1) for s_cd in solution_qcd]
    return (torch.stack(scores) / len(problem.x_train)).numpy()


def residuals(logits_nc: Tensor, y_n: Tensor) -> Tensor:
    """Slope (n, c) of the cross-entropy in the logits."""
    return torch.softmax(logits_nc, 1) - F.one_hot(y_n, logits_nc.shape[1])


def cnn_layers() -> Layers:
    """The 2,616 parameters of Koh & Liang's tanh network for 28 x 28 grey pixels and ten classes."""
    layers, inside = [], 1
    for stride in (1, 2, 1, 2, 1):
        layers += [["conv", inside, 8, 3, stride, 1], ["tanh"]]
        inside = 8
    return [*layers, ["conv", 8, 10, 1, 1, 0], ["tanh"], ["mean"], ["linear", 10, 10, True]]


def fit_network(layers: Layers, x: Tensor, y: Tensor, l2: float, steps: int = 2000) -> list[Tensor]:
    """Parameters after `steps` of Adam on batches of 500, the rate a tenth for the last fifth."""
    torch.manual_seed(0)
    network = make_network(layers)
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [steps * 4 // 5])
    for _ in range(steps):
        rows = torch.randint(len(x), (500,))
        loss = F.cross_entropy(network(x[rows]), y[rows])
        optimizer.zero_grad()
        (loss + l2 / 2 * sum(p.square().sum() for p in network.parameters())).backward()
        optimizer.step()
        schedule.step()
    return [p.detach() for p in network.parameters()]


def network_exact(problem: Problem, chunk: int = 250) -> np.ndarray:
    """Scores (q, n) with the damped Gauss-Newton matrix, which EK-FAC approximates, by a Cholesky factorisation."""
    network, n = problem.network(), len(problem.x_train)
    matrix, gradients = 0.0, []
    for x, y in zip(problem.x_train.split(chunk), problem.y_train.split(chunk), strict=True):
        jacobian_bcp, logits_bc = jacobian(network, x)
        chance_bc = torch.softmax(logits_bc, 1)
        centred_bcp = jacobian_bcp - torch.einsum("bc,bcp->bp", chance_bc, jacobian_bcp)[:, None]
        half = (chance_bc.sqrt()[:, :, None] * centred_bcp).flatten(0, 1)
        matrix = matrix + half.T @ half / n
        gradients.append(torch.einsum("bc,bcp->bp", residuals(logits_bc, y), jacobian_bcp))
    matrix.diagonal().add_(problem.total_damping)
    jacobian_qcp, logits_qc = jacobian(network, problem.x_test)
    right_qp = torch.einsum("qc,qcp->qp", residuals(logits_qc, problem.y_test), jacobian_qcp)
    solution_qp = torch.cholesky_solve(right_qp.T, torch.linalg.cholesky(matrix)).T
    return (solution_qp @ torch.cat(gradients).T / n).numpy()


def jacobian(network: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Derivatives (b, c, p) of the logits in the flat parameters, and the logits (b, c)."""
    fixed = {name: value.detach() for name, value in network.named_parameters()}
    logits = lambda params, one: torch.func.functional_call(network, params, one[None])[0]  # noqa: E731
    found = torch.func.vmap(torch.func.jacrev(logits), in_dims=(None, 0))(fixed, x)
    with torch.no_grad():
        return torch.cat([part.flatten(2) for part in found.values()], 2), network(x)
