"""The translator: attention against a loop, padding, one step at a time, and no look ahead."""

import math

import pytest
import torch

from quintet.common.errors import UserError
from quintet.papers.rare_events.translator import AdditiveAttention, Encoded, Translator, TranslatorConfig, run_lstm

SOURCES = [[5, 6, 7, 2], [8, 2], [9, 4, 4, 4, 10, 2]]
TARGETS = [[1, 4, 5], [1, 6, 7, 8, 9], [1, 10]]


def network(**options):
    torch.manual_seed(0)
    return Translator(TranslatorConfig(width=8, encoder_layers=3, decoder_layers=3, **options), 12, 13).eval()


def padded(rows):
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)


def lengths(rows):
    return torch.tensor([len(row) for row in rows])


def test_attention_is_the_formula_position_by_position():
    torch.manual_seed(1)
    attention = AdditiveAttention(4).requires_grad_(False)
    states, keys, query = torch.randn(2, 3, 4), torch.randn(2, 3, 4), torch.randn(2, 2, 4)
    mask = torch.tensor([[True, True, False], [True, True, True]])
    context, weights = attention(query, Encoded(states, keys, mask))
    w, bias, v = attention.to_query.weight, attention.to_query.bias, attention.score.weight[0]
    for b in range(2):
        for t in range(2):
            real = [s for s in range(3) if mask[b, s]]
            energy = [float(v @ torch.tanh(w @ query[b, t] + bias + keys[b, s])) for s in real]
            total = sum(math.exp(e) for e in energy)
            expected = sum(math.exp(e) / total * states[b, s] for e, s in zip(energy, real, strict=True))
            torch.testing.assert_close(context[b, t], expected, rtol=1e-5, atol=1e-6)
    assert weights[0, :, 2].abs().max() == 0


@pytest.mark.parametrize("query", ["context", "context_state"])
def test_a_pair_gets_the_same_outputs_alone_and_in_a_padded_batch(query):
    model = network(query=query)
    top, features = model(padded(SOURCES), lengths(SOURCES), padded(TARGETS))
    assert features.shape[2] == model.query_width
    for row, (source, target) in enumerate(zip(SOURCES, TARGETS, strict=True)):
        alone = model(torch.tensor([source]), torch.tensor([len(source)]), torch.tensor([target]))
        for whole, single in zip((top, features), alone, strict=True):
            torch.testing.assert_close(whole[row, : len(target)], single[0], rtol=1e-5, atol=1e-6)


def test_step_by_step_is_the_same_as_all_at_once():
    model = network()
    source, target = padded(SOURCES), padded(TARGETS)
    encoded = model.encoder(source, lengths(SOURCES))
    whole, features, _ = model.decode(target, encoded)
    state, tops, asked = None, [], []
    for t in range(target.shape[1]):
        top, feature, state = model.decode(target[:, t : t + 1], encoded, state)
        tops.append(top)
        asked.append(feature)
    torch.testing.assert_close(torch.cat(tops, 1), whole, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(torch.cat(asked, 1), features, rtol=1e-5, atol=1e-6)


def test_outputs_see_the_past_of_the_target_only_and_all_of_the_source():
    model = network()
    source, target = padded(SOURCES[:1]), padded(TARGETS[1:2])
    before, _ = model(source, lengths(SOURCES[:1]), target)
    changed = target.clone()
    changed[0, 3] = 12
    after, _ = model(source, lengths(SOURCES[:1]), changed)
    assert torch.equal(after[0, :3], before[0, :3]) and not torch.allclose(after[0, 3], before[0, 3])
    other = source.clone()
    other[0, 2] = 11
    assert not torch.allclose(model(other, lengths(SOURCES[:1]), target)[0][0, 0], before[0, 0])


def test_layers_add_their_input_and_directions_both_count():
    model = network()
    x = torch.randn(1, 4, 8)
    out, _ = model.encoder.upper(x)
    expected = x
    for layer in model.encoder.upper.layers:
        expected = expected + run_lstm(layer, expected, None)[0]
    torch.testing.assert_close(out, expected)
    first = model.encoder(torch.tensor([[5, 6, 7]]), torch.tensor([3])).states_bsd
    later = model.encoder(torch.tensor([[5, 6, 8]]), torch.tensor([3])).states_bsd
    assert not torch.allclose(first[0, 0], later[0, 0])  # the first state knows the last word


def test_logits_are_the_target_embeddings_times_the_output():
    model = network()
    top = torch.randn(2, 8)
    expected = torch.stack([top @ model.embedding.weight[v] + model.bias[v] for v in range(13)], 1)
    torch.testing.assert_close(model.logits(top), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"width": 7}, "width=7 must be even"), ({"query": "state"}, "choose context or context_state"),
     ({"dropout": 1.0}, "dropout=1.0 must be at least 0 and below 1"), ({"decoder_layers": 0}, "decoder_layers=0")],
)  # fmt: skip
def test_bad_sizes_are_user_errors(options, message):
    with pytest.raises(UserError, match=message):
        TranslatorConfig(**options)
