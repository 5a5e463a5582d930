"""Subwords and symbols: exact round trips, special ids, and nothing learnt from held-out text."""

import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from quintet.common.errors import UserError
from quintet.data.pairs.vocabulary import SubwordCodec, Subwords, SymbolCodec, SymbolIds
from quintet.data.special_ids import EOS, SPECIAL

LINES = ["A man rides a horse.", "Two men ride two horses.", "A woman is riding a bicycle in the rain."] * 5
CODEC = SubwordCodec.train(LINES, 300)


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40).filter(lambda text: not text.startswith(" ")))
def test_every_text_comes_back_exactly(text):
    (ids,) = CODEC.encode([text])
    assert min(ids, default=4) >= len(SPECIAL) and CODEC.decode(ids) == text


def test_special_names_inside_a_text_are_plain_characters():
    (ids,) = CODEC.encode(["stop <eos> here <pad>"])
    assert EOS not in ids and CODEC.decode(ids) == "stop <eos> here <pad>"
    assert CODEC.decode([1, *ids, 2, 0, 0]) == "stop <eos> here <pad>"


def test_frequent_words_are_one_token_and_the_size_is_kept():
    assert CODEC.size == 300
    assert len(CODEC.encode(["A"])[0]) == 1 and len(CODEC.encode(["riding"])[0]) < len("riding")
    assert CODEC.encode(["A horse"])[0][1:] == CODEC.encode(["horse"])[0]  # the same token first and later


def test_saved_and_loaded_it_encodes_alike(tmp_path):
    CODEC.save(tmp_path / "v.json")
    text = "A man — größer than <eos>"
    assert SubwordCodec.load(tmp_path / "v.json").encode([text]) == CODEC.encode([text])


def test_it_is_the_same_every_time_and_shared_when_asked(tmp_path):
    train = Dataset.from_dict({"source": LINES, "target": [line.upper() for line in LINES]})
    texts = []
    for name, vocabulary in (("a", Subwords(300)), ("b", Subwords(300)), ("c", Subwords(300, shared=True))):
        (tmp_path / name).mkdir()
        vocabulary.build(train, tmp_path / name)
        texts.append([(tmp_path / name / f"{side}.json").read_bytes() for side in ("source", "target")])
    assert texts[0] == texts[1] and texts[0][0] != texts[0][1] and texts[2][0] == texts[2][1]


def test_symbols_come_back_and_others_are_refused():
    codec = SymbolCodec(16000)
    assert codec.encode(["2 16000 7"]) == [[4, 16002, 9]] and codec.size == 16003
    assert codec.decode([1, 4, 16002, 9, 2, 0]) == "2 16000 7"
    with pytest.raises(UserError, match=r"symbol 16001 is outside 2\.\.16000"):
        codec.encode(["5 16001"])


def test_sizes_too_small_are_refused():
    with pytest.raises(UserError, match=r"data\.vocabulary\.size=100: give 260"):
        Subwords(100)
    assert SymbolIds(9).open(None)["target"].size == 12
