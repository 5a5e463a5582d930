"""Held-out likelihood weighted by samples, and the phone error rate.

Legend: B batch, C predicted samples of a window, S speakers.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

from quintet.data.audio.phones import TIMIT_61_TO_39

NATS_PER_BIT = math.log(2.0)

# Lee & Hon (1989) as the TIMIT source has it, and the silences of the Montreal Forced Aligner.
FOLD = TIMIT_61_TO_39 | dict.fromkeys(("sp", "spn", ""), "sil")


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


def fold_phones(symbols: Sequence[str]) -> list[str]:
    """A frame sequence as a phone sequence: fold to 39 classes, drop `q`, merge repeats."""
    bases = (symbol.lower().rstrip("012") for symbol in symbols)
    folded = [phone for base in bases if (phone := FOLD.get(base, base)) is not None]
    return [phone for i, phone in enumerate(folded) if i == 0 or phone != folded[i - 1]]


def edit_distance(reference: Sequence, hypothesis: Sequence) -> int:
    """Levenshtein distance: the least number of insertions, deletions and substitutions."""
    row = list(range(len(hypothesis) + 1))
    for i, expected in enumerate(reference, 1):
        diagonal, row[0] = row[0], i
        for j, found in enumerate(hypothesis, 1):
            best = min(row[j] + 1, row[j - 1] + 1, diagonal + (expected != found))
            diagonal, row[j] = row[j], best
    return row[-1]


def phone_error_rate(references: Sequence[Sequence[str]], hypotheses: Sequence[Sequence[str]]) -> float:
    """Edits over reference phones, both given as frame-level symbols and folded to 39 classes (section 3.4)."""
    pairs = [(fold_phones(r), fold_phones(h)) for r, h in zip(references, hypotheses, strict=True)]
    return sum(edit_distance(r, h) for r, h in pairs) / max(1, sum(len(r) for r, _ in pairs))
