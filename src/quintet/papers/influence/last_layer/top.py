"""Activations in place of inputs, where all chosen parameters lie behind them: the rest of the network runs once.

A module that knows how says so by `top(names) -> (module of the same parameter names, batch -> its batch)`, or None
where these parameters are not at its top.
"""

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from quintet.papers.influence.risk.examples import Examples
from quintet.papers.influence.risk.selection import Selection


class _Activations:
    """A source whose examples went through a part of the network."""

    def __init__(self, source: Any, before: Callable[[Any], Any]) -> None:
        self.source, self.before = source, before

    def num_examples(self, split: str) -> int:
        return self.source.num_examples(split)

    def example_batch(self, split: str, indices: Sequence[int]) -> Any:
        return self.before(self.source.example_batch(split, indices))


def at_the_top(module: nn.Module, params: str | Sequence[str], *examples: Examples) -> tuple[Any, ...]:
    """(module, *examples) that give the same losses as functions of the chosen parameters, with less work if it can."""
    found = module.top(Selection(module, params).names) if hasattr(module, "top") else None
    if found is None:
        return module, *examples
    smaller, before = found
    return smaller, *(Examples(_Activations(e.source, before), e.split, e.indices) for e in examples)
