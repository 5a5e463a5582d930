"""Scores of captions against the Java-based coco-caption's, against brute force, and over two processes."""

import itertools
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from caption_texts import HYPOTHESES, REFERENCES
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.text import BLEUScore

from quintet.common.errors import UserError
from quintet.metrics.captions import CaptionMetrics
from quintet.metrics.captions.bleu import CaptionBLEU
from quintet.metrics.captions.cider import cider_d
from quintet.metrics.captions.meteor import _align, _stem, normalized, segment
from quintet.metrics.captions.metrics import NAMES, scores
from quintet.metrics.captions.rouge import common_subsequence, rouge_l
from quintet.metrics.captions.tokenizer import tokenize

SCRIPT = Path(__file__).with_name("caption_ranks.py")
WORDS = st.lists(st.sampled_from(["a", "dog", "dogs", "runs"]), max_size=4)

# of pycocoevalcap 1.2 (Java 17) for caption_texts.py; METEOR: its meteor-1.5.jar with -m 'exact stem' -w '1.0 0.6'
JAVA = {
    "bleu1": 0.7090909090780165,
    "bleu2": 0.5156637382041871,
    "bleu3": 0.31888917548997137,
    "bleu4": 3.102507372027769e-05,
    "rouge_l": 0.6045032939368036,
    "cider": 1.2369356600130301,
    "meteor_exact_stem": 0.2865003753067456,
}
JAVA_ROUGE = [0.6489361702127661, 0.8299319727891156, 0.6853932584269663, 0.7558859975216852, 0.0, 0.31881533101045295,
              1.0, 0.5970636215334422]  # fmt: skip
JAVA_CIDER = [1.0292642335285795, 1.5126277947881523, 2.3023683068690994, 2.248050539991333, 0.0, 0.03785035964659589,
              1.900974697977631, 0.8643493473028496]  # fmt: skip
JAVA_METEOR = [0.2757375217933613, 0.30866411996488574, 0.383670411262912, 0.4166924647215696, 0.0,
               0.06798866855524079, 1.0, 0.3655616972827233]  # fmt: skip


def words_of():
    return [tokenize(text) for text in HYPOTHESES], [[tokenize(text) for text in texts] for texts in REFERENCES]


def measured(hypotheses, references, ids=None):
    metric = CaptionMetrics()
    metric.update(hypotheses, references, ids)
    return {name: float(value) for name, value in metric.compute().items()}


def test_as_the_java_tools_score():
    assert measured(HYPOTHESES, REFERENCES) == pytest.approx(JAVA, rel=1e-12, abs=1e-12)
    assert tuple(JAVA) == NAMES


def test_each_image_as_the_java_tools_score():
    ours, theirs = words_of()
    assert [*map(rouge_l, ours, theirs)] == pytest.approx(JAVA_ROUGE, abs=1e-12)
    assert cider_d(ours, theirs) == pytest.approx(JAVA_CIDER, abs=1e-12)
    each = [
        segment(normalized(words), [*map(normalized, texts)]).score() for words, texts in zip(ours, theirs, strict=True)
    ]
    assert each == pytest.approx(JAVA_METEOR, abs=1e-12)


def test_the_difference_from_torchmetrics_own_bleu():
    """It takes the first of equally near reference lengths, coco-caption the shorter; and it gives up at no 4-gram."""
    hypothesis, references = ["a b c d e"], [["a b c d e f g", "a b c"]]  # two words more, two words fewer
    theirs = BLEUScore()
    theirs.update(hypothesis, references)
    ours = CaptionBLEU()
    ours.update(hypothesis, references)
    assert float(theirs.compute()) == pytest.approx(math.exp(1 - 7 / 5))
    assert ours.compute().tolist() == pytest.approx([1.0] * 4, abs=1e-8)
    turned = BLEUScore()
    turned.update(hypothesis, [references[0][::-1]])
    assert float(turned.compute()) == pytest.approx(1.0)  # the same references in another order: another score
    ours.reset()
    theirs.reset()
    for bleu in (ours, theirs):
        bleu.update(["a dog runs"], [["a dog runs fast"]])
    assert float(theirs.compute()) == 0
    assert ours.compute()[:3].tolist() == pytest.approx([math.exp(1 - 4 / 3)] * 3, abs=1e-8)


def test_equal_to_torchmetrics_bleu_where_both_are_defined():
    hypotheses = ["a man rides a bicycle down the wide street", "two dogs run along the beach together"]
    references = [["a man rides a bicycle along the wide street of a town", "man on bicycle"],
                  ["two dogs run along the beach", "the two dogs run along the sand together"]]  # fmt: skip
    theirs, ours = BLEUScore(), CaptionBLEU()
    theirs.update(hypotheses, references)
    ours.update(hypotheses, references)
    assert float(ours.compute()[3]) == pytest.approx(float(theirs.compute()), rel=1e-5)


def test_bleu_in_batches_is_bleu_at_once():
    whole, parts = CaptionBLEU(), CaptionBLEU()
    whole.update(HYPOTHESES, REFERENCES)
    for i in range(len(HYPOTHESES)):
        parts.update(HYPOTHESES[i : i + 1], REFERENCES[i : i + 1])
    assert torch.equal(whole.compute(), parts.compute())


@given(WORDS, WORDS)
def test_longest_common_subsequence(a, b):
    found = {s for n in range(len(a) + 1) for s in itertools.combinations(a, n)}
    both = found & {s for n in range(len(b) + 1) for s in itertools.combinations(b, n)}
    assert common_subsequence(a, b) == max(map(len, both))


def test_cider_by_hand():
    """Two images, words that one or both have: log 2 for the former, 0 for the latter."""
    hypotheses = [["red", "dog"], ["a"]]
    references = [[["red", "dog"], ["red", "a"]], [["a", "cat"]]]
    # image 1: unigrams red, dog weigh log 2 each; `a` 0. first reference: cosine 1 for n = 1 and 2, none for 3, 4;
    # second: red only, 1 / sqrt 2, and another pair. Image 2: `a` weighs nothing
    one = (1 + 1) / 4
    other = (1 / math.sqrt(2)) / 4
    assert cider_d(hypotheses, references) == pytest.approx([10 * (one + other) / 2, 0.0])


def test_cider_needs_the_whole_set():
    ours, theirs = words_of()
    apart = [cider_d([words], [texts])[0] for words, texts in zip(ours, theirs, strict=True)]
    assert apart == [0.0] * len(ours)


@settings(max_examples=300, deadline=None)
@given(WORDS, WORDS)
def test_meteor_alignment_is_the_best_of_all(hypothesis, reference):
    def cost(pairs):
        equal = sum(hypothesis[i] == reference[j] for i, j in pairs)
        chunks = sum((i - 1, j - 1) not in pairs for i, j in pairs)
        return -equal, chunks, equal - len(pairs), sum(abs(i - j) for i, j in pairs)

    possible = [(i, j) for i, a in enumerate(hypothesis) for j, b in enumerate(reference) if _stem(a) == _stem(b)]
    sure = [p for p in possible if sum(p[0] == i for i, _ in possible) == sum(p[1] == j for _, j in possible) == 1]
    best = min(
        cost(chosen)
        for n in range(len(sure), min(len(hypothesis), len(reference)) + 1)
        for chosen in itertools.combinations(possible, n)
        if set(sure) <= set(chosen) and len({i for i, _ in chosen}) == len({j for _, j in chosen}) == n
    )
    chunks, pairs = _align(hypothesis, reference)
    assert cost(pairs) == best and chunks == best[1]


def test_a_caption_equal_to_its_reference():
    values = scores(["Two dogs run on the beach", "a cat"], [["two dogs run on the beach."], ["a cat"]])
    assert [values[n] for n in ("bleu1", "bleu4", "rouge_l", "meteor_exact_stem")] == pytest.approx([1] * 4, abs=1e-6)


def test_batches_are_one_set():
    metric = CaptionMetrics()
    for i, (hypothesis, references) in enumerate(zip(HYPOTHESES, REFERENCES, strict=True)):
        metric.update([hypothesis], [references], torch.tensor([i]))
    assert {name: float(value) for name, value in metric.compute().items()} == measured(HYPOTHESES, REFERENCES)


def test_an_image_seen_twice_counts_once():
    again = measured([*HYPOTHESES, HYPOTHESES[3]], [*REFERENCES, REFERENCES[3]], [*range(8), 3])
    assert again == measured(HYPOTHESES, REFERENCES, range(8))
    assert again != measured([*HYPOTHESES, HYPOTHESES[3]], [*REFERENCES, REFERENCES[3]])


def test_nothing_scored_is_nan_and_reset_forgets():
    metric = CaptionMetrics()
    metric.update([], [])
    assert all(math.isnan(value) for value in metric.compute().values())
    metric.update(HYPOTHESES, REFERENCES)
    metric.reset()
    metric.update(HYPOTHESES[:3], REFERENCES[:3])
    assert {n: float(v) for n, v in metric.compute().items()} == measured(HYPOTHESES[:3], REFERENCES[:3])


@pytest.mark.parametrize("hypotheses", [[""] * 8, ["."] * 8, ["xyzzy"] * 8])
def test_captions_that_share_nothing(hypotheses):
    values = measured(hypotheses, REFERENCES)
    assert all(0 <= value < 1e-3 for value in values.values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["a dog"], [[]]), "An image with the caption 'a dog' has no reference caption"),
        ((["a dog"], [["", " "]], [7]), "Image 7 with the caption 'a dog' has no reference"),
        ((["a dog"], ["a dog"]), "a list of one or more"),
        ((["a dog"], []), "1 captions, references of 0 images"),
        (([], [["a dog"]]), "0 captions, references of 1 images"),
        ((["a dog"], [["a dog"]], [1, 2]), "and 2 image ids"),
    ],
)
def test_captions_and_references_must_pair(arguments, message):
    with pytest.raises(UserError, match=message):
        CaptionMetrics().update(*arguments)


def test_two_captions_of_one_image_are_refused():
    metric = CaptionMetrics()
    metric.update(["a dog", "a cat"], [["a dog"], ["a dog"]], [4, 4])
    with pytest.raises(UserError, match="Image 4 has two captions, 'a dog' and 'a cat'"):
        metric.compute()


@pytest.mark.slow
def test_two_processes_report_what_one_would(tmp_path):
    """Uneven shares, one image seen by both, and a process without any."""
    path = os.pathsep.join(filter(None, [str(SCRIPT.parent), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    started = [
        subprocess.Popen([sys.executable, SCRIPT, str(rank), str(tmp_path)], env=environment, stderr=subprocess.PIPE)
        for rank in range(2)
    ]
    for process in started:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors.decode()[-2000:]
    whole = measured(HYPOTHESES, REFERENCES, range(8))
    for rank in range(2):
        for found in torch.load(tmp_path / f"rank{rank}.pt", weights_only=True):
            assert {name: float(value) for name, value in found.items()} == whole
