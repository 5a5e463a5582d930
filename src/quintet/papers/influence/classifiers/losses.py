"""Per-example losses of the classifiers, accurate in both tails and differentiable twice (torch.func included).

Legend: B examples, C classes. A binary classifier has one score (B,); label 1 counts as y = +1 and label 0 as -1.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

LOSSES = ("cross_entropy", "logistic", "smooth_hinge")
LINEAR_FROM = 40.0  # above it softplus(x) = x in float64; torch's own threshold of 20 is 2e-9 off


def cross_entropy(logits_bc: Tensor, labels_b: Tensor) -> Tensor:
    """-log softmax of the true class, (B,) in nats."""
    return F.cross_entropy(logits_bc, labels_b, reduction="none")


def logistic(scores_b: Tensor, labels_b: Tensor) -> Tensor:
    """log(1 + exp(-y s)), (B,) in nats."""
    return softplus(-signs(labels_b, scores_b.dtype) * scores_b)


def smooth_hinge(scores_b: Tensor, labels_b: Tensor, t: float) -> Tensor:
    """SmoothHinge(y s, t) = t log(1 + exp((1 - y s) / t)), (B,); t = 0 is the hinge max(0, 1 - y s) itself.

    Section 4.3. It exceeds the hinge by at most t log 2, and its second derivative is at most 1 / (4 t).
    """
    short_b = 1 - signs(labels_b, scores_b.dtype) * scores_b
    return torch.relu(short_b) if t == 0 else t * softplus(short_b / t)


def softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)) to the last digit of float64."""
    return F.softplus(x, threshold=LINEAR_FROM)


def signs(labels_b: Tensor, dtype: torch.dtype) -> Tensor:
    """Labels 0 and 1 as -1 and +1."""
    return 2 * labels_b.to(dtype) - 1


def loss_of(name: str, t: float) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss function (outputs, labels) -> (B,) of that name; `t` is SmoothHinge's."""
    known = {"cross_entropy": cross_entropy, "logistic": logistic}
    return known[name] if name in known else lambda scores_b, labels_b: smooth_hinge(scores_b, labels_b, t)


@contextmanager
def smoothed(module: Any, t: float | None) -> Iterator[None]:
    """An SVM with another smoothness for a while, section 4.3; null leaves it as it is."""
    if t is None:
        yield
        return
    before = module.smoothness
    module.smoothness = t
    try:
        yield
    finally:
        module.smoothness = before
