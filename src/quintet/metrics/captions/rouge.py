"""ROUGE-L of a caption (Lin 2004) with coco-caption's beta."""

from collections.abc import Sequence

BETA = 1.2


def rouge_l(hypothesis: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """F-measure of the longest common subsequence; precision and recall are each the best over the references."""
    longest = [common_subsequence(hypothesis, reference) for reference in references]
    precision = max(longest) / max(len(hypothesis), 1)
    recall = max(common / max(len(reference), 1) for common, reference in zip(longest, references, strict=True))
    if not precision:
        return 0.0
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)


def common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence; each row of the table is the bits of one integer."""
    places: dict[str, int] = {}
    for index, word in enumerate(a):
        places[word] = places.get(word, 0) | 1 << index
    every = (1 << len(a)) - 1
    row = every
    for word in b:
        hits = row & places.get(word, 0)
        row = ((row + hits) | (row - hits)) & every
    return len(a) - row.bit_count()
