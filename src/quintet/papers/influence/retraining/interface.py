"""The interface of all methods of retraining: new parameters for each example left out, as they are finished."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

from torch import Tensor

Removal = int | None  # position of the training example that is left out; None, the control, leaves none out


class Refitted(NamedTuple):
    """Parameters after retraining without one example."""

    removal: Removal
    theta: Tensor  # (p,)
    residual: float  # how far from the minimum: norm of the gradient, for the hinge itself its relative duality gap
    iterations: int


class Refit(Protocol):
    """Retrains from the risk's parameters; a removal's examples are averaged over the n - 1 that stay."""

    def run(self, risk: Any, removals: Sequence[Removal]) -> Iterator[Refitted]:
        """Every removal once, in any order."""
