"""WaveNet's last layer by itself, on the activations that it sees: all that changes where only it is free to move.

Its loss is convex in the layer's parameters, and a sweep over the data leaves the dilated stack out.
Legend: B windows, C targets each, F channels before the last layer, Q mu-law classes.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as nnf

from quintet.data.batches import AudioBatch
from quintet.models.influence.softmax_risk import SoftmaxParts

LAST = "3"  # of the head's layers


class TopBatch(NamedTuple):
    """What the last layer sees and should say."""

    features: Tensor  # (B, C, F)
    targets: Tensor  # (B, C) int64 classes
    mask: Tensor  # (B, C) bool


class WaveNetTop(nn.Module):
    """The last layer of a WaveNetModule, its parameters under the names that they have there."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.network = nn.Module()
        self.network.head = nn.ModuleDict({LAST: module.network.head[int(LAST)]})
        self.optimizer_config = module.optimizer_config

    def forward(self, batch: TopBatch) -> Tensor:
        """Logits (B, Q, C)."""
        return self.network.head[LAST](batch.features.mT)

    def example_losses(self, batch: TopBatch) -> Tensor:
        """As WaveNetModule's: nats per real target (B,)."""
        nats_bc = nnf.cross_entropy(self(batch), batch.targets, reduction="none")
        return (nats_bc * shares(batch.mask)).sum(1)

    def softmax_parts(self, batch: TopBatch) -> SoftmaxParts:
        """Every target is a softmax of an affine function of its position's activations."""
        layer, name = self.network.head[LAST], f"network.head.{LAST}"
        bias = None if layer.bias is None else f"{name}.bias"
        return SoftmaxParts(batch.features, batch.targets, shares(batch.mask), f"{name}.weight", bias)


def shares(mask_bc: Tensor) -> Tensor:
    """Of each target in the mean over its window's real ones, (B, C)."""
    return mask_bc / mask_bc.sum(1, keepdim=True).clamp(min=1)


def top_of(module: nn.Module, batch: AudioBatch) -> TopBatch:
    """What the last layer of a WaveNetModule sees of a batch."""
    chunk = batch.mask.shape[1]
    with torch.no_grad():
        skips_bst = module.network.skips(batch.audio[:, :-1], **module.condition(batch), last=chunk)
        features_bfc = module.network.head[: int(LAST)](skips_bst)
    return TopBatch(features_bfc.mT.contiguous(), batch.audio[:, -chunk:], batch.mask)
