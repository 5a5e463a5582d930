"""Batched beam search against the plain one of a single image, and against trying every caption."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_beam import plain_beam

from quintet.common.errors import UserError
from quintet.papers.show_and_tell.beam_search import beam_search, sample
from quintet.papers.show_and_tell.decoding import DecoderSpeaker, DecodingConfig, EnsembleSpeaker, decode, in_words
from quintet.papers.show_and_tell.network import Decoder, NetworkConfig

BOS, EOS, WORDS, LENGTH = 1, 2, 5, 4


def node(prefix):
    """Number of a prefix, so that it indexes a table."""
    start = sum(WORDS**n for n in range(len(prefix)))
    return start + sum(word * WORDS**place for place, word in enumerate(reversed(prefix)))


class Language:
    """Log probabilities depend on the image and the whole prefix, which is the state: wrong reordering shows."""

    def __init__(self, images, seed=0, spread=1.5, length=LENGTH):
        generator = torch.Generator().manual_seed(seed)
        size = sum(WORDS**n for n in range(length))
        self.table = torch.randn(images, size, WORDS, generator=generator).mul(spread).log_softmax(2)
        self.rows = 0

    def start(self):
        return torch.arange(len(self.table))[:, None]  # image, then what was said

    def step(self, word_n, state):
        state = torch.cat([state, word_n[:, None]], 1)
        self.rows += len(state)
        assert (state[:, 1] == BOS).all()
        nodes = [node(row[2:]) for row in state.tolist()]
        return self.table[state[:, 0], nodes], state

    def select(self, state, row_n):
        return state[row_n]

    def of_image(self, image):
        return lambda prefixes: torch.stack([self.table[image, node(prefix)] for prefix in prefixes])


def exhaustive(language, image, alpha, min_length=0, banned=(), length=LENGTH):
    """Every caption that ends in its only eos, best first."""
    found = []
    for size in range(min_length + 1, length + 1):
        for body in itertools.product([w for w in range(WORDS) if w != EOS and w not in banned], repeat=size - 1):
            words = (*body, EOS)
            total = sum(float(language.table[image, node(words[:i]), word]) for i, word in enumerate(words))
            found.append((total / size**alpha, total, list(words)))
    return sorted(found, reverse=True)


def search(language, beam, **options):
    options = {"bos": BOS, "eos": EOS, "max_length": LENGTH} | options
    return beam_search(language, len(language.table), beam_size=beam, **options)


def ids(row):
    row = row.tolist()
    return row[: row.index(EOS) + 1] if EOS in row else [word for word in row if word]


def said(found, image):
    rows = zip(found.words[image], found.log_probability[image], strict=True)
    return [ids(row) for row, log in rows if log > -torch.inf]


@pytest.mark.parametrize(
    ("alpha", "min_length", "banned"), [(0.0, 0, ()), (0.7, 0, (0, 1)), (1.0, 2, (0,)), (2.0, 0, ())]
)
def test_a_beam_as_wide_as_the_tree_finds_what_trying_everything_finds(alpha, min_length, banned):
    language = Language(3)
    found = search(language, 150, alpha=alpha, captions=20, min_length=min_length, banned=banned)
    for image in range(3):
        best = exhaustive(language, image, alpha, min_length, banned)
        assert int((found.log_probability[image] > -torch.inf).sum()) == min(20, len(best))
        for k in range(min(20, len(best))):
            assert found.log_probability[image, k].item() == pytest.approx(best[k][1], rel=1e-5)
            assert ids(found.words[image, k]) == best[k][2]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    beam=st.integers(1, 6),
    captions=st.integers(1, 6),
    alpha=st.sampled_from([0.0, 0.5, 1.0, 2.0]),
    min_length=st.integers(0, 3),
    banned=st.sampled_from([(0,), (0, 1)]),
    spread=st.sampled_from([0.3, 1.5, 4.0]),
)
def test_many_images_give_what_a_plain_beam_gives_one_by_one(seed, beam, captions, alpha, min_length, banned, spread):
    language, captions = Language(4, seed, spread), min(captions, beam)
    options = {"alpha": alpha, "min_length": min_length, "banned": banned, "captions": captions}
    found = search(language, beam, **options)
    for image in range(4):
        expected = plain_beam(language.of_image(image), eos=EOS, beam=beam, max_length=LENGTH, **options)
        assert said(found, image) == [words for _, words in expected]
        totals = torch.tensor([total for total, _ in expected])
        torch.testing.assert_close(found.log_probability[image, : len(expected)], totals)
        assert bool(found.complete[image]) == (expected[0][1][-1] == EOS)


def test_a_beam_of_one_is_greedy():
    language = Language(6, seed=3)
    language.table[..., 0] = -torch.inf  # padding, which `ids` leaves out
    found = search(language, 1)
    for image in range(6):
        words = []
        while len(words) < LENGTH and EOS not in words:
            words.append(int(language.table[image, node(words)].argmax()))
        assert ids(found.words[image, 0]) == words


def test_an_unfinished_caption_only_where_nothing_is_complete():
    language = Language(2)
    language.table[0, :, EOS] = -torch.inf
    found = search(language, 3, captions=2, banned=(0,))
    assert found.complete.tolist() == [False, True]
    assert EOS not in found.words[0] and (found.words[0] > 0).all() and found.log_probability[0].isfinite().all()
    assert all(EOS in row for row, log in zip(found.words[1], found.log_probability[1], strict=True) if log.isfinite())


def test_captions_that_cannot_win_are_no_longer_read():
    language = Language(3)
    language.table[:, :, EOS] = -0.01  # the end is near at once: nothing else can matter
    search(language, 4)
    assert language.rows == 3


def test_the_size_of_the_batch_changes_nothing():
    torch.manual_seed(0)
    decoder, features = decoder_of("paper"), torch.randn(7, 6)
    config = DecodingConfig(beam_size=4, captions=3, max_length=9)
    whole = decode(DecoderSpeaker(decoder, features, 0), 7, config, "cpu")
    parts = [decode(DecoderSpeaker(decoder, part, 0), len(part), config, "cpu") for part in features.split([1, 4, 2])]
    assert torch.equal(whole.words, torch.cat([part.words for part in parts]))


def decoder_of(form, seed=0, words=30):
    torch.manual_seed(seed)
    made = Decoder(NetworkConfig(8, 12, form, init=1.5), 6, [f"w{n}" for n in range(words)]).eval()
    made.output.bias.data[EOS] = -2.0  # so that captions are a few words long
    return made


@pytest.mark.parametrize("form", ["paper", "standard"])
@pytest.mark.parametrize("lookups", [0, 1000])
def test_a_decoders_captions_are_those_of_a_plain_beam_over_whole_prefixes(form, lookups):
    """The plain one reads every prefix from the start, through the training pass."""
    decoder = decoder_of(form)
    features = torch.randn(9, 6)
    config = DecodingConfig(beam_size=5, captions=4, max_length=8, min_length=1)
    found = decode(DecoderSpeaker(decoder, features, lookups), 9, config, "cpu")
    for image in range(9):

        def log_probs(prefixes, image=image):
            told = torch.tensor([[BOS, *prefix] for prefix in prefixes])
            with torch.no_grad():
                top = decoder(features[image : image + 1], told, torch.zeros(len(told), dtype=torch.int64))
                return decoder.logits(top[:, -1]).log_softmax(1)

        best = plain_beam(log_probs, eos=EOS, beam=5, max_length=8, captions=4, min_length=1, banned=(0, 1, 3))
        assert said(found, image) == [words for _, words in best]


def test_an_ensemble_says_what_the_normalised_mean_of_log_probabilities_says():
    decoders, features = [decoder_of("paper", seed) for seed in range(3)], torch.randn(5, 6)
    speakers = [DecoderSpeaker(decoder, features, 0) for decoder in decoders]
    config = DecodingConfig(beam_size=4, max_length=8)
    found = decode(EnsembleSpeaker(speakers), 5, config, "cpu")
    for image in range(5):

        def log_probs(prefixes, image=image):
            told, row = torch.tensor([[BOS, *p] for p in prefixes]), torch.zeros(len(prefixes), dtype=torch.int64)
            with torch.no_grad():
                each = [d.logits(d(features[image : image + 1], told, row)[:, -1]).log_softmax(1) for d in decoders]
            return (sum(each) / 3).log_softmax(1)

        (total, words), *_ = plain_beam(log_probs, eos=EOS, beam=4, max_length=8, banned=(0, 1, 3))
        assert ids(found.words[image, 0]) == words
        assert found.log_probability[image, 0].item() == pytest.approx(total, rel=1e-4)


def test_samples_follow_the_probabilities_and_cold_ones_are_greedy():
    language = Language(1, seed=2)
    many = Language(4000, seed=2)
    many.table = language.table.expand(4000, -1, -1)
    generator = torch.Generator().manual_seed(0)
    drawn = sample(many, 4000, bos=BOS, eos=EOS, max_length=2, generator=generator)
    counts = torch.bincount(drawn.words[:, 0, 0], minlength=WORDS) / 4000
    torch.testing.assert_close(counts, language.table[0, 0].exp(), atol=0.03, rtol=0)
    both = drawn.words[0, 0].tolist()
    expected = language.table[0, 0, both[0]] + (0 if both[0] == EOS else language.table[0, node(both[:1]), both[1]])
    assert drawn.log_probability[0, 0].item() == pytest.approx(float(expected), rel=1e-5)
    assert torch.equal(drawn.complete, (drawn.words[:, 0] == EOS).any(1))
    cold = sample(language, 1, bos=BOS, eos=EOS, max_length=LENGTH, temperature=1e-3)
    assert ids(cold.words[0, 0]) == ids(search(language, 1).words[0, 0])


def test_in_words():
    found = search(Language(2), 3, captions=3)
    captions = in_words(found, ["<pad>", "<bos>", "<eos>", "a", "dog"])
    assert [len(row) for row in captions] == [int((row > -torch.inf).sum()) for row in found.log_probability]
    first = [["<pad>", "<bos>", "<eos>", "a", "dog"][w] for w in ids(found.words[0, 0]) if w not in (0, EOS)]
    assert captions[0][0].words == first and captions[0][0].text == " ".join(first) and captions[0][0].complete


def test_the_input_table_follows_its_weights():
    decoder = decoder_of("standard")
    assert decoder.input_table(3) is None
    table = decoder.input_table(100)
    assert decoder.input_table(1) is table, "kept"
    torch.testing.assert_close(table, decoder.lstm.project(decoder.words.weight))
    optimizer = torch.optim.SGD(decoder.parameters(), lr=0.1)
    decoder.lstm.project(decoder.words.weight).square().sum().backward()
    optimizer.step()
    torch.testing.assert_close(decoder.input_table(100), decoder.lstm.project(decoder.words.weight))
    decoder.load_state_dict(decoder_of("standard", seed=1).state_dict())
    torch.testing.assert_close(decoder.input_table(100), decoder.lstm.project(decoder.words.weight))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beam_size": 0}, "beam_size=0"),
        ({"method": "best"}, "model.decoding.method='best': choose beam, greedy, sample"),
        ({"captions": 4, "beam_size": 3}, "captions=4: beam finds 3 an image"),
        ({"captions": 2, "method": "greedy"}, "captions=2: greedy finds 1"),
        ({"min_length": 20}, "min_length=20"),
        ({"temperature": 0.0}, "temperature=0"),
        ({"length_normalisation": -1.0}, "length_normalisation=-1"),
    ],
)
def test_impossible_settings(options, message):
    with pytest.raises(UserError, match=message):
        DecodingConfig(**options)


def test_a_beam_wider_than_the_vocabulary():
    with pytest.raises(UserError, match=r"beam_size=8: the vocabulary has 7 words"):
        DecodingConfig(beam_size=8).check_vocabulary(7)
    DecodingConfig(method="greedy", beam_size=8).check_vocabulary(7)
