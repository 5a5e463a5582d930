"""The benchmark of caption metrics without Java: its three sets, the comparison, and absent peers."""

import copy

import pytest

from benchmarks.show_and_tell import caption_metrics as bench
from quintet.common.errors import UserError
from quintet.metrics.captions.metrics import scores
from quintet.metrics.captions.tokenizer import tokenize

REFERENCES = [["A dog runs .", "the dog is running"], ["Two men sit .", "men sitting"], ["a red car", "A car ."]]


def answers(sets):
    """What the Java side would write if it were ours."""
    found = {}
    for name, made in sets.items():
        values = scores(made["hypotheses"], made["references"])
        pairs = zip(made["hypotheses"], made["references"], strict=True)
        found[name] = {
            "values": values | {"meteor_exact_stem_wide": values["meteor_exact_stem"]},
            "meteor": 0.5,
            "seconds": 8.0,
            "tokens": [[tokenize(text) for text in (hypothesis, *texts)] for hypothesis, texts in pairs],
        }
    return found


def test_differences_are_found():
    sets = bench.caption_sets(REFERENCES)
    assert sets["human"]["hypotheses"] == ["A dog runs .", "Two men sit .", "a red car"]
    assert sets["human"]["references"][0] == ["the dog is running"]
    assert sets["another image's"]["hypotheses"] == ["Two men sit .", "a red car", "A dog runs ."]
    theirs = answers(sets)
    rows = {entry["metric"]: entry["value"] for entry in bench.compared(sets, theirs)}
    largest = "poor: largest difference of BLEU, ROUGE-L and CIDEr"
    assert rows["human: captions with other words than Java's"] == 0 and rows[largest] == 0
    assert rows["times as fast"] == pytest.approx(8 / rows["all scores of the human set, ours"])
    other = copy.deepcopy(theirs)
    other["poor"]["values"]["cider"] += 0.25
    other["poor"]["tokens"][0][1] = ["else"]
    rows = {entry["metric"]: entry["value"] for entry in bench.compared(sets, other)}
    assert rows[largest] == pytest.approx(0.25) and rows["poor: captions with other words than Java's"] == 1


def test_peers_that_are_not_there(tmp_path):
    with pytest.raises(UserError, match="no environment with bin/python there"):
        bench.java({}, tmp_path / "none", tmp_path)
