"""Input features and targets of DeepLab's classifier for a batch.

Legend: B images, F features, h x w cells of the score map.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch

from quintet.data.batches import SegmentationBatch
from quintet.papers.deeplab.heads import LargeFOV
from quintet.papers.deeplab.module import DeepLabModule
from quintet.papers.deeplab.multi_scale import IGNORE, coarse_labels
from quintet.papers.influence.last_layer.last_layer import LastLayer, LastLayerBatch, are_all_of, mean_weights

LAST = "network.head.classifier"


def split(
    module: DeepLabModule, names: Sequence[str]
) -> tuple[LastLayer, Callable[[SegmentationBatch], LastLayerBatch]] | None:
    """The classifier, where it is one convolution of the finest scale's features."""
    head, scales = module.network.head, module.hparams["network"]["scales"]
    if not isinstance(head, LargeFOV) or len(scales) > 1 or not are_all_of(module, names, LAST):
        return None
    if head.classifier.kernel_size != (1, 1):
        return None
    decayed = f"{LAST.removeprefix('network.')}.weight" in module.decayed
    return LastLayer(module, LAST, module.weight_decay if decayed else 0.0), partial(before_last, module)


def before_last(module: DeepLabModule, batch: SegmentationBatch) -> LastLayerBatch:
    """Features (B, h * w, F), classes and the weight of each labelled cell of the score map."""
    images, labels = module.pad_to_stride(batch)
    with torch.no_grad():
        features_bfhw = module.network.classifier_input(images)
    cells_bt = coarse_labels(labels, features_bfhw.shape[-2:]).flatten(1)
    labelled_bt = cells_bt != IGNORE
    targets_bt = cells_bt.where(labelled_bt, 0)
    return LastLayerBatch(features_bfhw.flatten(2).mT.contiguous(), targets_bt, mean_weights(labelled_bt))
