"""The last layer at its own minimum, as a function of the rest: variable projection (Golub and Pereyra 1973).

With the features held fixed, softmax regression on them is convex and small: Newton's method solves it to the end in a
few steps. What is left, phi(rest) = min over the last layer of R, has the minima of R and its gradient in the rest,
without the narrow curved valleys that a last layer of large weights makes of R.
Legend: n examples, F features (a one last, for the bias), C classes.
"""

import torch
from torch import Tensor, nn

STEPS = 50
ROUNDING = 1e-14  # of the loss: a smaller rise is none
RIDGE = 1e-10  # a common bias of all classes is a direction without curvature


def fit_top(top: nn.Linear, features_nf: Tensor, labels_n: Tensor, l2: float, bias_l2: float,
            tolerance: float = 1e-11) -> None:  # fmt: skip
    """Moves `top` to the minimum of mean cross-entropy + l2/2 |weight|^2 + bias_l2/2 |bias|^2.

    In float64, until no entry of the gradient is above `tolerance`.
    """
    design_nf = torch.cat([features_nf.double(), torch.ones_like(features_nf[:, :1]).double()], 1)
    matrix_cf = torch.cat([top.weight, top.bias[:, None]], 1).detach().double()
    decay_cf = torch.full_like(matrix_cf, l2)
    decay_cf[:, -1] = bias_l2
    own_nc = nn.functional.one_hot(labels_n, len(matrix_cf))
    value, chances_nc = _value(matrix_cf, decay_cf, design_nf, labels_n)
    for _ in range(STEPS):
        gradient_cf = (chances_nc - own_nc).T @ design_nf / len(labels_n) + decay_cf * matrix_cf
        if gradient_cf.abs().max() <= tolerance:
            break
        change_cf = -torch.linalg.solve(_hessian(chances_nc, design_nf, decay_cf), gradient_cf.flatten())
        change_cf = change_cf.view_as(matrix_cf)
        slope, size = float((gradient_cf * change_cf).sum()), 1.0
        while True:  # Armijo
            found = _value(matrix_cf + size * change_cf, decay_cf, design_nf, labels_n)
            if found[0] <= value * (1 + ROUNDING) + 1e-4 * size * slope or size < 1e-6:
                break
            size /= 2
        matrix_cf, (value, chances_nc) = matrix_cf + size * change_cf, found
    with torch.no_grad():
        top.weight.copy_(matrix_cf[:, :-1])
        top.bias.copy_(matrix_cf[:, -1])


def _value(matrix_cf: Tensor, decay_cf: Tensor, design_nf: Tensor, labels_n: Tensor) -> tuple[float, Tensor]:
    """(loss, chances (n, C))."""
    logs_nc = (design_nf @ matrix_cf.T).log_softmax(1)
    mean = -logs_nc.gather(1, labels_n[:, None]).mean()
    return float(mean + 0.5 * (decay_cf * matrix_cf.square()).sum()), logs_nc.exp()


def _hessian(chances_nc: Tensor, design_nf: Tensor, decay_cf: Tensor) -> Tensor:
    """(C * F, C * F), a block for each pair of classes."""
    classes, features = decay_cf.shape
    blocks = design_nf.new_zeros(classes, features, classes, features)
    for a in range(classes):
        for b in range(a, classes):
            weight_n = chances_nc[:, a] * (float(a == b) - chances_nc[:, b]) / len(design_nf)
            blocks[a, :, b] = blocks[b, :, a] = design_nf.T @ (weight_n[:, None] * design_nf)
    found = blocks.view(classes * features, classes * features)
    found.diagonal().add_(decay_cf.flatten() + RIDGE)
    return found
