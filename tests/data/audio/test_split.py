from pathlib import Path

import pytest

from quintet.common.errors import UserError
from quintet.data.audio.recording import Recording
from quintet.data.audio.split import split_names, subset


def corpus(**speakers):
    return [Recording(f"{s}_{i:03d}", Path(f"{s}{i}"), s) for s, n in sorted(speakers.items()) for i in range(n)]


def test_every_speaker_is_in_every_split_with_its_fraction():
    names = split_names(corpus(a=20, b=40), 0.1, 0.2, seed=1)
    for part, n in ((names[:20], 20), (names[20:], 40)):
        assert part.count("val") == n // 10 and part.count("test") == n // 5
    small = split_names(corpus(a=3), 0.05, 0.05, seed=1)
    assert sorted(small) == ["test", "train", "val"]


def test_split_of_a_speaker_depends_on_that_speaker_and_the_seed_only():
    alone, both = split_names(corpus(b=30), 0.2, 0.2, 1), split_names(corpus(a=9, b=30), 0.2, 0.2, 1)
    assert both[9:] == alone == split_names(corpus(b=30), 0.2, 0.2, 1)
    assert split_names(corpus(b=30), 0.2, 0.2, 2) != alone


def test_official_splits_win():
    recordings = [Recording(str(i), Path(str(i)), split=s) for i, s in enumerate(["train", "test", "unused", "val"])]
    assert split_names(recordings, 0.5, 0.4, 0) == ["train", "test", "unused", "val"]


@pytest.mark.parametrize("fractions", [(0.5, 0.5), (-0.1, 0), (1, 0)])
def test_impossible_fractions(fractions):
    with pytest.raises(UserError, match=r"data\.val_fraction"):
        split_names(corpus(a=5), *fractions, 0)


def test_subset_takes_speakers_in_turn():
    chosen = subset(corpus(a=10, b=10, c=10), 6, seed=0)
    assert [r.speaker for r in chosen] == ["a", "a", "b", "b", "c", "c"]
    assert chosen == subset(corpus(a=10, b=10, c=10), 6, seed=0)
    assert len(subset(corpus(a=4), 9, 0)) == 4
    with pytest.raises(UserError, match="max_utterances=0"):
        subset(corpus(a=4), 0, 0)
