"""Held-out likelihood of audio, weighted by samples. Legend: B batch, S speakers."""

import math

import torch
from torch import Tensor
from torchmetrics import Metric

NATS_PER_BIT = math.log(2.0)


class SampleNats(Metric):
    """Exact mean nats per sample, over everything and per speaker; sums and counts are float64 states.

    DDP adds the states of all ranks, so the mean is over samples and not over batches or ranks.
    """

    full_state_update = False

    def __init__(self, num_speakers: int = 0) -> None:
        super().__init__()
        # One slot more than speakers: examples without a speaker are counted in the last one.
        zeros_s = torch.zeros(num_speakers + 1, dtype=torch.float64)
        self.add_state("nats_s", default=zeros_s.clone(), dist_reduce_fx="sum")
        self.add_state("samples_s", default=zeros_s.clone(), dist_reduce_fx="sum")

    def update(self, nats_b: Tensor, samples_b: Tensor, speaker_b: Tensor | None = None) -> None:
        """Add summed nats (B,) over `samples_b` (B,) real targets."""
        if speaker_b is None:
            speaker_b = torch.full(nats_b.shape, len(self.nats_s) - 1, device=nats_b.device)
        self.nats_s.index_add_(0, speaker_b, nats_b.double())
        self.samples_s.index_add_(0, speaker_b, samples_b.double())

    def compute(self) -> tuple[Tensor, Tensor]:
        """Nats per sample over all, and per slot (S + 1,) with NaN where nothing was seen."""
        return self.nats_s.sum() / self.samples_s.sum(), self.nats_s / self.samples_s
