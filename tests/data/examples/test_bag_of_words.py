"""Words, vocabularies and counts by hand and beside scikit-learn's CountVectorizer."""

import numpy as np
import pytest
from sklearn.feature_extraction.text import CountVectorizer

from quintet.data.examples.bag_of_words import STOP_WORDS, count_words, learn_vocabulary, words

TEXTS = [
    "Subject: gas nomination for Daren\r\n-- 100 mmbtu of gas, gas_flow, x2 y Café",
    "Subject: GAS! gas? the plant's meter",
    "subject the meter of the café",
    "subject viagra",
]
NONE = frozenset()


def test_words_are_runs_of_two_letters_or_more():
    assert words("Re: X-mas 4 U, gas_flow x2 ÉTÉ don't (a) 24th end.") == ["re", "mas", "été", "don", "end"]


def test_vocabulary_and_counts_by_hand():
    documents = [words(text) for text in TEXTS]
    vocabulary = learn_vocabulary(documents, min_documents=2)
    assert vocabulary == ["café", "gas", "meter", "subject"]  # "the" and "of" are stop words
    expected = [[1, 2, 0, 1], [0, 2, 1, 1], [1, 0, 1, 1], [0, 0, 0, 1]]
    counts = count_words(documents, vocabulary)
    assert counts.tolist() == expected and counts.dtype == np.float32
    assert count_words(documents, vocabulary, binary=True).tolist() == np.minimum(expected, 1).tolist()
    assert learn_vocabulary(documents, min_documents=5) == []


@pytest.mark.parametrize("min_documents", [1, 2, 3])
def test_the_same_as_scikit_learn(min_documents):
    reference = CountVectorizer(min_df=min_documents, token_pattern=r"\b[^\W\d_]{2,}\b")
    counts = reference.fit_transform(TEXTS).toarray()
    documents = [words(text) for text in TEXTS]
    vocabulary = learn_vocabulary(documents, min_documents, stop_words=NONE)
    assert vocabulary == reference.get_feature_names_out().tolist()
    assert np.array_equal(count_words(documents, vocabulary), counts)


def test_max_words_keeps_the_most_widespread_not_the_most_frequent():
    documents = [["often"] * 9, ["wide", "tie"], ["wide", "also"]]
    assert learn_vocabulary(documents, max_words=1, stop_words=NONE) == ["wide"]
    assert learn_vocabulary(documents, max_words=3, stop_words=NONE) == ["also", "often", "wide"]  # ties by alphabet


def test_stop_words_are_words():
    assert {"the", "and", "yourselves", "about"} <= STOP_WORDS and "gas" not in STOP_WORDS
    assert all(words(word) == [word] for word in STOP_WORDS)
