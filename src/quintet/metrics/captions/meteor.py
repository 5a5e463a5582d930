"""The first two stages of METEOR 1.5 (Denkowski and Lavie 2014): equal words and equal stems.

The stages for synonyms and paraphrases need WordNet and a paraphrase table of 60 MB, which no maintained Python package
includes. The metric is therefore called `meteor_exact_stem`, and is some points below METEOR. Parameters and rules are
those of METEOR 1.5 for English, with the same Snowball stemmer.
"""

import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from snowballstemmer import stemmer

ALPHA, BETA, GAMMA, DELTA = (
    0.85,
    0.2,
    0.6,
    0.75,
)  # weight of recall, power and weight of the fragmentation penalty, weight of content words
EXACT, STEM = 1.0, 0.6  # weight of a matched pair
FUNCTION_WORDS = (  # English words with a frequency above 1/1000
    "the to of and a in that for is on 's it with was as said at he by be from have has are his but an this not i "
    "will they who their had we which were been more or s its would about new one after you also up when there "
    "than all out her people she year two can if last first over other into some what so no time years could 't ' "
    ". $ -lrb- -rrb-"
)
STEMMER, FUNCTIONAL = stemmer("english"), frozenset(FUNCTION_WORDS.split())


class Statistics(NamedTuple):
    """Statistics from which scores are computed; those of a set of captions are the sums over its captions."""

    hypothesis: float  # weighted words: content words DELTA, function words 1 - DELTA
    reference: float
    hypothesis_matched: float  # weighted matched words, times the weight of their stage
    reference_matched: float
    matches: int
    chunks: int  # runs of matches that are adjacent and in the same order in both; 0 if all words are one run

    def score(self) -> float:
        """The weighted harmonic mean of precision and recall, with the fragmentation penalty (equations 1 to 5)."""
        if not self.hypothesis_matched or not self.reference_matched:
            return 0.0
        precision, recall = self.hypothesis_matched / self.hypothesis, self.reference_matched / self.reference
        mean = precision * recall / (ALPHA * precision + (1 - ALPHA) * recall)
        return mean * (1 - GAMMA * (self.chunks / self.matches) ** BETA)


def meteor_exact_stem(hypotheses: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]) -> float:
    """Score of all captions together, each compared with the reference that scores best."""
    each = [
        segment(normalized(words), [*map(normalized, of_image)])
        for words, of_image in zip(hypotheses, references, strict=True)
    ]
    return Statistics(*map(sum, zip(*each, strict=True))).score() if each else 0.0


def normalized(words: Sequence[str]) -> list[str]:
    """Words as split by METEOR's own normalizer: red-vested into two, man 's into three, d.c. as dc."""
    text = re.sub(r"[^\w\s.'`,-]", r" \g<0> ", " ".join(words))
    text = re.sub(r"(?<![^\W\d_])'|'(?![^\W\d_])", " ' ", text)
    text = re.sub(r"(?<=[^\W\d_])'(?=[^\W\d_])", " '", text)
    found = re.sub(r"(\w)-(\w)", r"\1 \2", text).split()
    if found and found[-1].count(".") == 1 and found[-1].endswith(".") and len(found[-1]) > 1:
        found[-1:] = [found[-1][:-1], "."]
    return [word.replace(".", "") if re.fullmatch(r"(?:[^\W\d_]\.)+[^\W\d_]?\.?", word) else word for word in found]


def segment(hypothesis: Sequence[str], references: Sequence[Sequence[str]]) -> Statistics:
    """Statistics of one caption with its best reference."""
    return max((_statistics(hypothesis, reference) for reference in references), key=Statistics.score)


def _statistics(hypothesis: Sequence[str], reference: Sequence[str]) -> Statistics:
    chunks, pairs = _align(hypothesis, reference)
    staged = [(i, j, EXACT if hypothesis[i] == reference[j] else STEM) for i, j in pairs]
    return Statistics(
        sum(map(_weight, hypothesis)),
        sum(map(_weight, reference)),
        sum(_weight(hypothesis[i]) * stage for i, _, stage in staged),
        sum(_weight(reference[j]) * stage for _, j, stage in staged),
        len(pairs),
        0 if chunks == 1 and len(pairs) == len(hypothesis) == len(reference) else chunks,
    )


def _align(hypothesis: Sequence[str], reference: Sequence[str]) -> tuple[int, list[tuple[int, int]]]:
    """Number of chunks and one-to-one matches of the best alignment.

    Two words whose stem occurs once in both captions are always matched. Of all ways to match the others, the best has
    the most equal words, then the fewest chunks, then the most equal stems, then the least distance. This is the order
    of METEOR's own program; a stem that several words share stays unmatched if it would begin a new chunk. Exact, by
    dynamic programming over the words of the hypothesis, with the set of used reference words and the last one as
    state.
    """
    ours, theirs = [_stem(word) for word in hypothesis], [_stem(word) for word in reference]
    places: dict[str, list[int]] = {}
    for j, stem in enumerate(theirs):
        places.setdefault(stem, []).append(j)
    often = Counter(ours)
    # (last, used) -> (cost, to be minimized in this order; the matches as a linked list)
    paths: dict[tuple[int, int], tuple[tuple[int, int, int, int], Any]] = {(-2, 0): ((0, 0, 0, 0), ())}
    for i, stem in enumerate(ours):
        candidates = places.get(stem, ())
        unique = len(candidates) == often[stem] == 1
        grown: dict[tuple[int, int], tuple] = {}
        for (last, used), (cost, matches) in paths.items():
            steps = [] if unique else [((-2, used), cost, matches)]
            for j in candidates:
                if not used >> j & 1:
                    equal = hypothesis[i] == reference[j]
                    unequal, chunks, unlike, distance = cost
                    more = (unequal - equal, chunks + (j != last + 1), unlike - (not equal), distance + abs(i - j))
                    steps.append(((j, used | 1 << j), more, (i, j, matches)))
            for key, value, linked in steps:
                if key not in grown or value < grown[key][0]:
                    grown[key] = (value, linked)
        paths = grown
    (_, chunks, _, _), linked = min(paths.values(), key=lambda path: path[0])
    pairs: list[tuple[int, int]] = []
    while linked:
        i, j, linked = linked
        pairs.append((i, j))
    return chunks, pairs


def _weight(word: str) -> float:
    return 1 - DELTA if word in FUNCTIONAL else DELTA


@lru_cache(maxsize=1 << 16)
def _stem(word: str) -> str:
    return STEMMER.stemWord(word)
