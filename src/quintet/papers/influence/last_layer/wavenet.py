"""What WaveNet's last layer sees of a batch (influence/softmax_top.py).

Legend: B windows, C targets each, F channels.
"""

import torch
from torch import nn

from quintet.data.batches import AudioBatch
from quintet.papers.influence.last_layer.softmax_top import TopBatch, mean_shares

LAST = 3  # of the head's layers


def top_of(module: nn.Module, batch: AudioBatch) -> TopBatch:
    """Of a WaveNetModule: activations (B, C, F), mu-law classes and the share of each real target."""
    chunk = batch.mask.shape[1]
    with torch.no_grad():
        skips_bst = module.network.skips(batch.audio[:, :-1], **module.condition(batch), last=chunk)
        features_bfc = module.network.head[:LAST](skips_bst)
    return TopBatch(features_bfc.mT.contiguous(), batch.audio[:, -chunk:], mean_shares(batch.mask))
