"""Words and ids; nothing of val or test gets in."""

import pytest
from caption_files import captions_of, write_flickr8k
from hypothesis import given
from hypothesis import strategies as st

from quintet.common.errors import UserError
from quintet.data.captions.datamodule import CaptionDataModule
from quintet.data.captions.flickr8k import Flickr8k
from quintet.data.captions.vocabulary import Vocabulary
from quintet.data.special_ids import BOS, EOS, PAD, SPECIAL, UNKNOWN

COUNTS = {"a": 9, "dog": 5, "cat": 5, "rare": 4, "<unk>": 50}


def test_frequent_words_in_order_of_frequency():
    words = Vocabulary.from_counts(COUNTS, 5)
    assert words.words == [*SPECIAL, "a", "cat", "dog"] and len(words) == 7
    assert words.encode(["a", "rare", "dog", "<pad>", "<eos>"]) == [4, UNKNOWN, 6, UNKNOWN, UNKNOWN]
    assert len(Vocabulary.from_counts(COUNTS, 1)) == 8


def test_decoding_ends_at_the_first_eos():
    words = Vocabulary.from_counts(COUNTS, 5)
    assert words.decode([BOS, 4, UNKNOWN, 6, EOS, 5, PAD]) == "a <unk> dog"
    assert words.decode([PAD, 4, PAD]) == "a" and words.decode([]) == "" == words.decode([EOS, 4])


@given(st.dictionaries(st.text(st.characters(codec="utf-8"), min_size=1), st.integers(1, 9), min_size=1))
def test_known_words_come_back(counts):
    counts = {word: count for word, count in counts.items() if word not in SPECIAL}
    words = Vocabulary.from_counts(counts | {"a": 9}, 5)
    known = [word for word, count in counts.items() if count >= 5]
    assert Vocabulary(words.words).encode(known) == words.encode(known)
    assert [words.words[number] for number in words.encode(known)] == known
    assert all(words.encode([word]) == [UNKNOWN] for word, count in counts.items() if count < 5 and word != "a")


@pytest.mark.parametrize("words", [["a", "b"], [*SPECIAL, "a", "a"], [*SPECIAL[::-1], "a"]])
def test_other_lists_are_refused(words):
    with pytest.raises(UserError, match="a vocabulary is <pad>, <bos>, <eos>, <unk> and then different words"):
        Vocabulary(words)
    with pytest.raises(UserError, match=r"data\.min_count=10: the most frequent training word occurs 9 times"):
        Vocabulary.from_counts({"a": 9}, 10)


def test_words_of_val_and_test_do_not_leak(tmp_path):
    """Frequent there, or there and in training together: neither makes a word known."""

    def captions(number):
        extra = {0: "zebra", 1: "zebra"}.get(number, "giraffe zebra" if number >= 4 else "")
        return [f"{text} {extra}" for text in captions_of(number)][:2]

    root = write_flickr8k(tmp_path / "flickr", 4, 4, 4, captions)
    module = CaptionDataModule(Flickr8k(str(root)), str(tmp_path), min_count=5)
    module.setup()
    words = module.data_info["vocabulary"]
    assert "a" in words and not {"zebra", "giraffe"} & set(words)  # zebra: 4 in training, 16 elsewhere
    batch = module.example_batch("val", [0])
    assert UNKNOWN in batch.words[0].tolist()
    lower = CaptionDataModule(Flickr8k(str(root)), str(tmp_path), min_count=4)
    assert "zebra" in lower.data_info["vocabulary"] and "giraffe" not in lower.data_info["vocabulary"]


def test_counts_are_of_the_training_captions_in_use(tmp_path):
    root = write_flickr8k(tmp_path / "flickr")
    for max_words in (None, 7):
        module = CaptionDataModule(Flickr8k(str(root)), str(tmp_path), min_count=40, max_words=max_words)
        data_info, total = module.data_info, module.num_examples("train")
        ids = module.example_batch("train", range(total)).words.flatten().tolist()
        expected = [0, 0, total, *(ids.count(n) for n in range(UNKNOWN, len(data_info["vocabulary"])))]
        assert data_info["counts"] == expected and expected[UNKNOWN] > 0


def test_another_runs_vocabulary(tmp_path):
    root = write_flickr8k(tmp_path / "flickr")
    module = CaptionDataModule(Flickr8k(str(root)), str(tmp_path), min_count=1)
    own = module.example_batch("test", [4]).words
    module.use_vocabulary([*SPECIAL, "garden", "the"])
    assert module.data_info["vocabulary"] == [*SPECIAL, "garden", "the"]
    assert module.vocabulary.decode(module.example_batch("test", [4]).words[0]) == "<unk> <unk> <unk> <unk> the garden"
    assert own.shape == (1, 8) and UNKNOWN not in own
