"""What the captioner's layer of words sees of a batch (influence/softmax_top.py). Legend: B captions, T words read."""

import torch
from torch import nn

from quintet.data.batches import CaptionBatch
from quintet.papers.influence.last_layer.softmax_top import TopBatch

LAST = "network.output"


def top_of(module: nn.Module, batch: CaptionBatch) -> TopBatch:
    """Of a ShowAndTellModule: LSTM outputs (B, T, H), the words to say, and 1 / mean caption length for each."""
    read_bt, say_bt = batch.words[:, :-1], batch.words[:, 1:]
    with torch.no_grad():
        top_bth = module.network(module.features(batch), read_bt, batch.image_row)
    return TopBatch(top_bth, say_bt, batch.real / module.mean_length)
