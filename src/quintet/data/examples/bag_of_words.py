"""Texts -> counts of the words of a vocabulary."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

WORD = re.compile(r"\b[^\W\d_]{2,}\b")  # of letters only, two or more
# words that carry grammar and no subject
STOP_WORDS = frozenset(
    WORD.findall("""
    about above after again against all almost also although always am among an and any are aren around as at be because
    been before being below between both but by can cannot could couldn did didn do does doesn doing don done down
    during each either else ever every few for from further had hadn has hasn have haven having he hence her here hers
    herself him himself his how however if in into is isn it its itself just ll many may me might mine more most much
    must my myself neither never no nor not now of off often on once one only onto or other others our ours ourselves
    out over own per perhaps quite rather re same several shall she should shouldn since so some such than that the
    their theirs them themselves then there therefore these they this those though through thus to together too toward
    towards under until up upon us ve very via was wasn we well were weren what whatever when whenever where whereas
    wherever whether which while who whoever whole whom whose why will with within without won would wouldn yet you your
    yours yourself yourselves
    """)
)


def words(text: str) -> list[str]:
    """The words of a text in lower case, in order."""
    return WORD.findall(text.lower())


def learn_vocabulary(documents: Iterable[Sequence[str]], min_documents: int = 1, max_words: int | None = None,
                     stop_words: frozenset[str] = STOP_WORDS) -> list[str]:  # fmt: skip
    """The words that occur in at least `min_documents` documents, sorted; of these the `max_words` most widespread.

    Words that are equally widespread are taken in alphabetical order.
    """
    spread = Counter(word for document in documents for word in set(document))
    kept = [word for word, count in spread.items() if count >= min_documents and word not in stop_words]
    kept.sort(key=lambda word: (-spread[word], word))
    return sorted(kept[:max_words])


def count_words(documents: Sequence[Sequence[str]], vocabulary: Sequence[str], binary: bool = False) -> NDArray:
    """(documents, words) float32: how often each word of the vocabulary occurs; binary: whether it does."""
    column = {word: number for number, word in enumerate(vocabulary)}
    counts_dv = np.zeros((len(documents), len(vocabulary)), np.float32)
    for row, document in zip(counts_dv, documents, strict=True):
        for word in document:
            if word in column:
                row[column[word]] += 1
    return np.minimum(counts_dv, 1) if binary else counts_dv
