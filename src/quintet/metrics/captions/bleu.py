"""BLEU-1 to BLEU-4 (Papineni et al. 2002) as computed by coco-caption, on torchmetrics."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics.text import BLEUScore

from quintet.metrics.captions.ngrams import ngrams
from quintet.metrics.captions.tokenizer import tokenize

TINY, SMALL = 1e-15, 1e-9  # as in coco-caption: an order without a match gives a small score instead of zero


class CaptionBLEU(BLEUScore):
    """Corpus BLEU for n-grams of 1 to `n_gram` words; exact with several processes, whose counts are added.

    torchmetrics' own BLEU differs in three ways: it splits words at white space, of two references equally near in
    length it takes the first instead of the shorter, and it is 0 if one order has no match. coco-caption itself uses
    the mean reference length for a set of one image; here it is the nearest length then too.
    """

    preds_len: Tensor
    target_len: Tensor
    numerator: Tensor
    denominator: Tensor

    def __init__(self, n_gram: int = 4, **options) -> None:
        super().__init__(n_gram, **options)
        for name in ("preds_len", "target_len", "numerator", "denominator"):
            self.add_state(name, getattr(self, name).double(), dist_reduce_fx="sum")

    def update(self, preds: Sequence[str], target: Sequence[Sequence[str]]) -> None:
        """Add captions and the references of each caption."""
        lengths, matched, guessed = [0, 0], [0] * self.n_gram, [0] * self.n_gram
        for hypothesis, references in zip(preds, target, strict=True):
            words, theirs = tokenize(hypothesis), [tokenize(reference) for reference in references]
            lengths[0] += len(words)
            lengths[1] += nearest_length(theirs, len(words))
            most = most_often(theirs, self.n_gram)
            for gram, count in ngrams(words, self.n_gram).items():
                guessed[len(gram) - 1] += count
                matched[len(gram) - 1] += min(count, most.get(gram, 0))
        self.preds_len += lengths[0]
        self.target_len += lengths[1]
        self.numerator += self.numerator.new_tensor(matched)
        self.denominator += self.denominator.new_tensor(guessed)

    def compute(self) -> Tensor:
        """BLEU-1 to BLEU-n as (n_gram,) float64."""
        precision_n = (self.numerator + TINY) / (self.denominator + SMALL)
        orders_n = torch.arange(1, self.n_gram + 1, dtype=torch.float64, device=precision_n.device)
        ratio = (self.preds_len + TINY) / (self.target_len + SMALL)
        brevity = torch.where(ratio < 1, torch.exp(1 - 1 / ratio), torch.ones_like(ratio))
        return brevity * precision_n.cumprod(0) ** (1 / orders_n)


def nearest_length(references: Sequence[Sequence[str]], length: int) -> int:
    """Length of the reference nearest to `length` words; of two that are equally near, the shorter."""
    return min((len(reference) for reference in references), key=lambda words: (abs(words - length), words))


def most_often(references: Sequence[Sequence[str]], longest: int) -> dict[tuple[str, ...], int]:
    """The highest count of each n-gram in any of the references."""
    most: dict[tuple[str, ...], int] = {}
    for reference in references:
        for gram, count in ngrams(reference, longest).items():
            if count > most.get(gram, 0):
                most[gram] = count
    return most
