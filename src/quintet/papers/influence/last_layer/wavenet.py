"""What WaveNet's last convolution sees of a batch. Legend: B windows, C targets each, F channels."""

from collections.abc import Callable, Sequence
from functools import partial

import torch

from quintet.data.batches import AudioBatch
from quintet.papers.influence.last_layer.last_layer import LastLayer, LastLayerBatch, are_all_of, mean_weights
from quintet.papers.wavenet.module import WaveNetModule

LAST = 3  # of the head's layers


def split(
    module: WaveNetModule, names: Sequence[str]
) -> tuple[LastLayer, Callable[[AudioBatch], LastLayerBatch]] | None:
    """The head's last convolution, where no second loss is added to that of the next sample."""
    if module.recognizes or not are_all_of(module, names, f"network.head.{LAST}"):
        return None
    return LastLayer(module, f"network.head.{LAST}"), partial(before_last, module)


def before_last(module: WaveNetModule, batch: AudioBatch) -> LastLayerBatch:
    """Activations (B, C, F), mu-law classes and the weight of each real target."""
    chunk = batch.mask.shape[1]
    with torch.no_grad():
        skips_bst = module.network.skips(batch.audio[:, :-1], **module.condition(batch), last=chunk)
        features_bfc = module.network.head[:LAST](skips_bst)
    return LastLayerBatch(features_bfc.mT.contiguous(), batch.audio[:, -chunk:], mean_weights(batch.mask))
