"""CIDEr-D of captions (Vedantam, Zitnick, Parikh 2015): similarity to the consensus of the references."""

import math
from collections import Counter
from collections.abc import Sequence

from quintet.metrics.captions.ngrams import ngrams

LONGEST, SIGMA, SCALE = 4, 6.0, 10.0
Vector = tuple[dict[tuple[str, ...], float], list[float], int]  # weight of each n-gram, norm of each n, length


def cider_d(hypotheses: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]) -> list[float]:
    """Score of each image's caption, from 0 to 10.

    The weight of an n-gram decreases with the number of images whose references contain it. Each score therefore
    depends on the whole set of images, which must be scored at once, not in batches. A single image scores 0.
    """
    counts = [[ngrams(words, LONGEST) for words in of_image] for of_image in references]
    frequency = Counter(words for of_image in counts for words in set().union(*of_image))
    log_images = math.log(max(len(references), 1))
    rarity = {words: log_images - math.log(images) for words, images in frequency.items()}
    scores = []
    for hypothesis, of_image in zip(hypotheses, counts, strict=True):
        ours = _vector(ngrams(hypothesis, LONGEST), rarity, log_images)
        each = [_similarity(ours, _vector(reference, rarity, log_images)) for reference in of_image]
        scores.append(SCALE * sum(each) / len(each))
    return scores


def _vector(counts: Counter, rarity: dict[tuple[str, ...], float], unseen: float) -> Vector:
    weights = {words: count * rarity.get(words, unseen) for words, count in counts.items()}
    squares = [0.0] * LONGEST
    for words, weight in weights.items():
        squares[len(words) - 1] += weight * weight
    length = sum(
        count for words, count in counts.items() if len(words) == 2
    )  # as in coco-caption, which counts the bigrams
    return weights, [math.sqrt(square) for square in squares], length


def _similarity(hypothesis: Vector, reference: Vector) -> float:
    """Mean cosine over n, with the caption's weights clipped to the reference's and a penalty on different lengths."""
    (ours, our_norms, our_length), (theirs, their_norms, their_length) = hypothesis, reference
    dots = [0.0] * LONGEST
    for words, weight in ours.items():
        if words in theirs:
            dots[len(words) - 1] += min(weight, theirs[words]) * theirs[words]
    cosines = [dot / (a * b) if a and b else dot for dot, a, b in zip(dots, our_norms, their_norms, strict=True)]
    return math.exp(-((our_length - their_length) ** 2) / (2 * SIGMA**2)) * sum(cosines) / LONGEST
