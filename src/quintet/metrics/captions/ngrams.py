"""Counts of the n-grams of a caption."""

from collections import Counter
from collections.abc import Sequence


def ngrams(words: Sequence[str], longest: int = 4) -> Counter[tuple[str, ...]]:
    """The counts of all n-grams of 1 to `longest` words."""
    words = tuple(words)
    return Counter(words[i : i + n] for n in range(1, longest + 1) for i in range(len(words) - n + 1))
