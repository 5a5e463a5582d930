"""Where only a model's last layer is chosen, replace inputs by its input features: the rest of the network runs once.

Each model's file beside this one has `split(module, names) -> (LastLayer, batch -> LastLayerBatch)`, None where these
parameters are not its last layer. The papers themselves know nothing of influence functions.
"""

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

from torch import nn

from quintet.papers.influence.risk.examples import Examples
from quintet.papers.influence.risk.selection import Selection

SPLITS = {  # class -> module with its `split`
    "quintet.papers.deeplab.module.DeepLabModule": "quintet.papers.influence.last_layer.deeplab",
    "quintet.papers.show_and_tell.module.ShowAndTellModule": "quintet.papers.influence.last_layer.show_and_tell",
    "quintet.papers.wavenet.module.WaveNetModule": "quintet.papers.influence.last_layer.wavenet",
}


class _Activations:
    """A source whose examples went through a part of the network."""

    def __init__(self, source: Any, before: Callable[[Any], Any]) -> None:
        self.source, self.before = source, before

    def num_examples(self, split: str) -> int:
        return self.source.num_examples(split)

    def example_batch(self, split: str, indices: Sequence[int]) -> Any:
        return self.before(self.source.example_batch(split, indices))


def at_last_layer(module: nn.Module, params: str | Sequence[str], *examples: Examples) -> tuple[Any, ...]:
    """(module, *examples) that give the same losses as functions of the chosen parameters, with less work if it can."""
    names = {f"{cls.__module__}.{cls.__qualname__}" for cls in type(module).__mro__}
    for name in SPLITS.keys() & names:
        found = import_module(SPLITS[name]).split(module, Selection(module, params).names)
        if found is not None:
            layer, before = found
            return layer, *(Examples(_Activations(e.source, before), e.split, e.indices) for e in examples)
    return module, *examples
