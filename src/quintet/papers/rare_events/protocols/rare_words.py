"""Bins of training counts, and the recall of words in each: shared by the two sequence protocols."""

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

from quintet.common.errors import UserError


class Bin(NamedTuple):
    """Training counts from low to high, both included; high None = no upper limit."""

    low: int
    high: int | None

    @property
    def name(self) -> str:
        if self.high is None:
            return f"{self.low}plus"
        return f"{self.low}" if self.low == self.high else f"{self.low}to{self.high}"


def bins_of(edges: Sequence[int]) -> list[Bin]:
    """[0, 1, 2, 5] -> the bins 0, 1, 2to4, 5plus. UserError unless the edges are increasing, from 0 or more."""
    edges = list(edges)
    if not edges or edges[0] < 0 or any(b <= a for a, b in pairwise(edges)):
        raise UserError(f"protocol.bins={edges} must be increasing training counts, such as [0, 1, 2, 5, 10]")
    return [Bin(low, high - 1) for low, high in pairwise(edges)] + [Bin(edges[-1], None)]


def bin_of(count: int, bins: Sequence[Bin]) -> Bin | None:
    """The bin of a training count; None below the first."""
    return next((b for b in reversed(bins) if count >= b.low), None)


def word_recall(
    references: Iterable[Sequence[str]],
    hypotheses: Iterable[Sequence[str]],
    counts: Counter,
    bins: Sequence[Bin],
) -> dict[Bin, tuple[int, int]]:
    """(found, wanted) for each bin: a reference word is found at most as often as it occurs in its hypothesis."""
    found: Counter[Bin] = Counter()
    wanted: Counter[Bin] = Counter()
    for reference, hypothesis in zip(references, hypotheses, strict=True):
        given = Counter(hypothesis)
        for word, times in Counter(reference).items():
            where = bin_of(counts[word], bins)
            if where is not None:
                wanted[where] += times
                found[where] += min(times, given[word])
    return {b: (found[b], wanted[b]) for b in bins}
