"""Held-out likelihood of audio as a mean over samples. B: batch, S: speakers."""

import math

import torch
from torch import Tensor
from torchmetrics import Metric

NATS_PER_BIT = math.log(2.0)


class MeanNLL(Metric):
    """Mean negative log-likelihood in nats per audio sample, overall and per speaker, from float64 sums and counts.

    DDP sums the states of all ranks, so the mean is over samples and not over batches or ranks.
    """

    full_state_update = False
    nll_s: Tensor
    samples_s: Tensor

    def __init__(self, num_speakers: int = 0) -> None:
        super().__init__()
        # One slot more than speakers: the last one counts examples without a speaker.
        zeros_s = torch.zeros(num_speakers + 1, dtype=torch.float64)
        self.add_state("nll_s", default=zeros_s.clone(), dist_reduce_fx="sum")
        self.add_state("samples_s", default=zeros_s.clone(), dist_reduce_fx="sum")

    def update(self, nll_b: Tensor, samples_b: Tensor, speaker_b: Tensor | None = None) -> None:
        """Add the summed NLL (B,) of `samples_b` (B,) real targets."""
        if speaker_b is None:
            speaker_b = torch.full(nll_b.shape, len(self.nll_s) - 1, device=nll_b.device)
        self.nll_s.index_add_(0, speaker_b, nll_b.double())
        self.samples_s.index_add_(0, speaker_b, samples_b.double())

    def compute(self) -> tuple[Tensor, Tensor]:
        """Nats per sample overall, and per slot (S + 1,) with NaN for a slot without samples."""
        return self.nll_s.sum() / self.samples_s.sum(), self.nll_s / self.samples_s
