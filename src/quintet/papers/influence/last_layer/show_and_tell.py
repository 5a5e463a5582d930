"""Input features and targets of the captioner's output layer for a batch.

Legend: B captions, T words read, H LSTM outputs.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch

from quintet.data.batches import CaptionBatch
from quintet.papers.influence.last_layer.last_layer import LastLayer, LastLayerBatch, are_all_of
from quintet.papers.show_and_tell.module import ShowAndTellModule

LAST = "network.output"


def split(
    module: ShowAndTellModule, names: Sequence[str]
) -> tuple[LastLayer, Callable[[CaptionBatch], LastLayerBatch]] | None:
    """The output layer, where it is not tied to the word embedding and no memory answers beside it."""
    if module.token_memory is not None or module.network.config.tied or not are_all_of(module, names, LAST):
        return None
    return LastLayer(module, LAST), partial(before_last, module)


def before_last(module: ShowAndTellModule, batch: CaptionBatch) -> LastLayerBatch:
    """LSTM outputs (B, T, H), the next words, and 1 / mean caption length as the weight of each."""
    read_bt, next_bt = batch.words[:, :-1], batch.words[:, 1:]
    with torch.no_grad():
        outputs_bth = module.network(module.features(batch), read_bt, batch.image_row)
    return LastLayerBatch(outputs_bth, next_bt, batch.real / module.mean_length)
