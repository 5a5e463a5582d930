"""Captions by beam search over the real decoder, against a plain beam over whole prefixes; ensembles, settings."""

import pytest
import torch
from plain_beam import plain_beam

from quintet.common.beam_search import BeamSearchOutput
from quintet.common.errors import UserError
from quintet.papers.show_and_tell.decoding import (
    CaptionStepDecoder,
    DecodingConfig,
    EnsembleStepDecoder,
    decode,
    to_captions,
)
from quintet.papers.show_and_tell.network import Decoder, DecoderConfig

BOS, EOS = 1, 2


def ids(row):
    row = row.tolist()
    return row[: row.index(EOS) + 1] if EOS in row else [word for word in row if word]


def captions_of(found, image):
    rows = zip(found.tokens[image], found.log_probs[image], strict=True)
    return [ids(row) for row, log in rows if log > -torch.inf]


def test_the_size_of_the_batch_changes_nothing():
    torch.manual_seed(0)
    decoder, features = decoder_of("paper"), torch.randn(7, 6)
    config = DecodingConfig(beam_size=4, captions=3, max_length=9)
    whole = decode(CaptionStepDecoder(decoder, features, 0), 7, config, "cpu")
    parts = [
        decode(CaptionStepDecoder(decoder, part, 0), len(part), config, "cpu") for part in features.split([1, 4, 2])
    ]
    assert torch.equal(whole.tokens, torch.cat([part.tokens for part in parts]))


def decoder_of(form, seed=0, words=30):
    torch.manual_seed(seed)
    made = Decoder(DecoderConfig(8, 12, form, init=1.5), 6, [f"w{n}" for n in range(words)]).eval()
    made.output.bias.data[EOS] = -2.0  # so that captions are a few words long
    return made


@pytest.mark.parametrize("form", ["paper", "standard"])
@pytest.mark.parametrize("lookups", [0, 1000])
def test_a_decoders_captions_are_those_of_a_plain_beam_over_whole_prefixes(form, lookups):
    """The plain one reads every prefix from the start, through the training pass."""
    decoder = decoder_of(form)
    features = torch.randn(9, 6)
    config = DecodingConfig(beam_size=5, captions=4, max_length=8, min_length=1)
    found = decode(CaptionStepDecoder(decoder, features, lookups), 9, config, "cpu")
    for image in range(9):

        def log_probs(prefixes, image=image):
            told = torch.tensor([[BOS, *prefix] for prefix in prefixes])
            with torch.no_grad():
                top = decoder(features[image : image + 1], told, torch.zeros(len(told), dtype=torch.int64))
                return decoder.logits(top[:, -1]).log_softmax(1)

        best = plain_beam(log_probs, eos=EOS, beam=5, max_length=8, n_best=4, min_length=1, banned=(0, 1, 3))
        assert captions_of(found, image) == [words for _, words in best]


def test_an_ensemble_says_what_the_normalised_mean_of_log_probabilities_says():
    decoders, features = [decoder_of("paper", seed) for seed in range(3)], torch.randn(5, 6)
    members = [CaptionStepDecoder(decoder, features, 0) for decoder in decoders]
    config = DecodingConfig(beam_size=4, max_length=8)
    found = decode(EnsembleStepDecoder(members), 5, config, "cpu")
    for image in range(5):

        def log_probs(prefixes, image=image):
            told, row = torch.tensor([[BOS, *p] for p in prefixes]), torch.zeros(len(prefixes), dtype=torch.int64)
            with torch.no_grad():
                each = [d.logits(d(features[image : image + 1], told, row)[:, -1]).log_softmax(1) for d in decoders]
            return (sum(each) / 3).log_softmax(1)

        (total, words), *_ = plain_beam(log_probs, eos=EOS, beam=4, max_length=8, banned=(0, 1, 3))
        assert ids(found.tokens[image, 0]) == words
        assert found.log_probs[image, 0].item() == pytest.approx(total, rel=1e-4)


def test_captions_in_words():
    tokens = torch.tensor([[[3, 4, 2, 0], [4, 2, 0, 0]], [[4, 4, 3, 4], [0, 0, 0, 0]]])
    logs = torch.tensor([[-1.0, -2.0], [-3.0, -torch.inf]])
    found = BeamSearchOutput(tokens, logs, logs, torch.tensor([True, False]))
    captions = to_captions(found, ["<pad>", "<bos>", "<eos>", "a", "dog"])
    assert [[c.text for c in row] for row in captions] == [["a dog", "dog"], ["dog dog a dog"]]
    assert [[c.finished for c in row] for row in captions] == [[True, True], [False]]
    assert captions[0][1].words == ["dog"] and captions[0][1].log_probability == -2.0


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
        ({"captions": 4, "beam_size": 3}, "captions=4: method=beam finds at most 3"),
        ({"captions": 2, "method": "greedy"}, "captions=2: method=greedy finds at most 1"),
        ({"min_length": 20}, "min_length=20"),
        ({"temperature": 0.0}, "temperature=0"),
        ({"length_normalisation": -1.0}, "length_normalisation=-1"),
    ],
)
def test_impossible_settings(options, message):
    with pytest.raises(UserError, match=message):
        DecodingConfig(**options)


def test_a_beam_wider_than_the_vocabulary():
    with pytest.raises(UserError, match=r"beam_size=8 must be at most 7"):
        DecodingConfig(beam_size=8).check_vocabulary(7)
    DecodingConfig(method="greedy", beam_size=8).check_vocabulary(7)
