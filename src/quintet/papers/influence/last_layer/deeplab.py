"""What DeepLab's classifier sees of a batch (influence/softmax_top.py). Legend: B images, F features, h x w cells."""

import torch
from torch import nn

from quintet.data.batches import SegmentationBatch
from quintet.papers.deeplab.multi_scale import IGNORE, coarse_labels
from quintet.papers.influence.last_layer.softmax_top import TopBatch, mean_shares

LAST = "network.head.branches.0.fc8"


def top_of(module: nn.Module, batch: SegmentationBatch) -> TopBatch:
    """Of a DeepLabModule: features (B, h * w, F), classes and the share of each labelled cell of the score map."""
    images, labels = module.on_grid(batch)
    with torch.no_grad():
        features_bfhw = module.network.before_last(images)
    cells_bt = coarse_labels(labels, features_bfhw.shape[-2:]).flatten(1)
    labelled_bt = cells_bt != IGNORE
    return TopBatch(features_bfhw.flatten(2).mT.contiguous(), cells_bt.where(labelled_bt, 0), mean_shares(labelled_bt))
