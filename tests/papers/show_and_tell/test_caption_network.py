"""The decoder by hand: both LSTMs, the image step, word vectors, scheduled sampling."""

import math

import pytest
import torch
from torch.nn import functional as F

from quintet.common.errors import UserError
from quintet.papers.show_and_tell.lstm import LstmState, PaperLstm, StandardLstm, build_lstm
from quintet.papers.show_and_tell.network import Decoder, DecoderConfig
from quintet.papers.show_and_tell.scheduled_sampling import ScheduledSampling, sampled_outputs

WORDS = ["<pad>", "<bos>", "<eos>", "<unk>", "a", "dog", "Runs", "runs"]


def decoder_of(form="paper", **options):
    torch.manual_seed(0)
    return Decoder(DecoderConfig(**{"embedding": 5, "hidden": 7, "lstm": form, "dropout": 0.0} | options), 6, WORDS)


def test_the_papers_equations_unit_by_unit():
    """Equations 4 to 9 in Python numbers: sigmoid gates, no biases, m = o * c."""
    torch.manual_seed(1)
    lstm = PaperLstm(3, 2).double()
    x_td = torch.randn(4, 3, dtype=torch.float64)
    names = dict(zip("ifco", lstm.weight_ih.detach().split(2), strict=True))
    inner = dict(zip("ifco", lstm.weight_hh.detach().split(2), strict=True))

    def sigmoid(v):
        return 1 / (1 + math.exp(-v))

    m, c = [0.0, 0.0], [0.0, 0.0]
    for t, x in enumerate(x_td.tolist()):

        def gate(name, unit, x=x, m=m):
            return sum(w * v for w, v in zip(names[name][unit].tolist(), x, strict=True)) + sum(
                w * v for w, v in zip(inner[name][unit].tolist(), m, strict=True)
            )

        new_c = [sigmoid(gate("f", u)) * c[u] + sigmoid(gate("i", u)) * math.tanh(gate("c", u)) for u in range(2)]
        m, c = [sigmoid(gate("o", u)) * new_c[u] for u in range(2)], new_c
        assert lstm(x_td[None])[0, t].tolist() == pytest.approx(m, rel=1e-12)


@pytest.mark.parametrize("form", ["paper", "standard"])
def test_step_by_step_is_the_whole_sequence(form):
    torch.manual_seed(2)
    lstm = build_lstm(form, 4, 6)
    for parameter in lstm.parameters():
        torch.nn.init.uniform_(parameter, -0.7, 0.7)  # the biases too
    x_btd, state, said = torch.randn(3, 5, 4), None, []
    for x_bd in x_btd.unbind(1):
        state = lstm.step(lstm.project(x_bd), state)
        said.append(state.m)
    torch.testing.assert_close(torch.stack(said, 1), lstm(x_btd), rtol=1e-4, atol=1e-6)


def test_the_standard_one_is_torchs_with_an_open_forget_gate():
    lstm = StandardLstm(4, 6)
    theirs = torch.nn.LSTM(4, 6, batch_first=True)
    theirs.load_state_dict(lstm.fused.state_dict())
    x_btd = torch.randn(2, 5, 4)
    assert torch.equal(lstm(x_btd), theirs(x_btd)[0])
    bias = lstm.fused.bias_ih_l0 + lstm.fused.bias_hh_l0
    assert bias.tolist() == [0.0] * 6 + [1.0] * 6 + [0.0] * 12
    assert not any("bias" in name for name, _ in PaperLstm(4, 6).named_parameters())


@pytest.mark.parametrize("form", ["paper", "standard"])
def test_the_image_comes_once_before_the_words_and_predicts_nothing(form):
    decoder, features = decoder_of(form), torch.randn(2, 6)
    words, row = torch.tensor([[1, 4, 5], [1, 5, 4], [1, 7, 4]]), torch.tensor([1, 0, 1])
    out = decoder(features, words, row)
    assert out.shape == (3, 3, 7), "as many outputs as words were read: none for the image"
    state = decoder.start(features[row])
    for t in range(3):
        state = decoder.step(words[:, t], state)
        torch.testing.assert_close(out[:, t], state.m, rtol=1e-4, atol=1e-6)
    sequence = torch.cat([decoder.image(features)[row][:, None], decoder.words(words)], 1)
    torch.testing.assert_close(out, decoder.lstm(sequence)[:, 1:])
    assert decoder.image.bias is None
    other = decoder(torch.randn(2, 6), words, row)
    assert (other[:, 0] - out[:, 0]).abs().min() > 0, "the image reaches the first word, through the state alone"


def test_outputs_do_not_see_the_words_to_come():
    decoder, features = decoder_of(), torch.randn(1, 6)
    one = decoder(features, torch.tensor([[1, 4, 5, 7]]), torch.tensor([0]))
    other = decoder(features, torch.tensor([[1, 4, 7, 5]]), torch.tensor([0]))
    assert torch.equal(one[:, :2], other[:, :2]) and not torch.equal(one[:, 2], other[:, 2])


def test_dropout_is_on_inputs_and_outputs_in_training_only():
    decoder = decoder_of(dropout=0.5)
    features, words, row = torch.ones(1, 6), torch.full((400, 2), 4), torch.zeros(400, dtype=torch.int64)
    out = decoder.train()(features, words, row)
    assert (out == 0).float().mean().item() == pytest.approx(0.5, abs=0.05)
    assert len({tuple(line) for line in out[:, 0].tolist()}) > 300, "what the LSTM read differed"
    still = decoder.eval()(features, words, row)
    assert torch.equal(still, still[:1].expand_as(still))


def test_weights_start_uniform_and_the_softmax_may_be_tied():
    decoder = decoder_of(embedding=64, hidden=64, init=0.08)
    for name, parameter in decoder.named_parameters():
        limit = parameter.abs().max().item()
        assert limit == 0 if "bias" in name else 0.07 < limit <= 0.08, name
    tied = decoder_of(embedding=7, tied=True)
    assert tied.output.weight is tied.words.weight
    with pytest.raises(UserError, match="tied=true needs"):
        decoder_of(tied=True)


def test_word_vectors_of_both_formats(tmp_path):
    glove = tmp_path / "glove.txt"
    glove.write_text("a 1 2 3 4 5\nDOG 2 2 2 2 2\ndog 5 4 3 2 1\nRuns 0 1 0 1 0\nunheard 9 9 9 9 9\n")
    vectors = decoder_of(word_vectors=str(glove)).words.weight.detach()
    plain = decoder_of().words.weight.detach()
    kept = torch.tensor([[1.0, 2, 3, 4, 5], [5, 4, 3, 2, 1], [0, 1, 0, 1, 0], [0, 1, 0, 1, 0]])
    torch.testing.assert_close(vectors[[4, 5, 6]] / vectors[4, 0], kept[:3])
    # "Runs" is an exact word of the vocabulary; the lower-case one is not in the file
    assert torch.equal(vectors[:4], plain[:4]) and torch.equal(vectors[7], plain[7])
    assert vectors[[4, 5, 6]].square().mean().sqrt().item() == pytest.approx(0.08 / 3**0.5, rel=1e-4)
    word2vec = tmp_path / "w2v.txt"
    word2vec.write_text("3 5\n" + "".join(glove.read_text().splitlines(True)[i] for i in (0, 2, 3)))
    torch.testing.assert_close(decoder_of(word_vectors=str(word2vec)).words.weight, vectors)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"word_vectors=\S+: no such file"),
        ("a 1 2 3\n", r"line 1 has 3 numbers: set model\.network\.embedding=3, not 5"),
        ("x 1 2 3 4 5\na 1 2 3 4 b\n", r"line 2 is not a vector"),
        ("a 1 2 3 4 nan\n", r"line 1 is not a vector: it contains nan"),
        ("x 1 2 3 4 5\n", r"none of its words"),
    ],
)
def test_word_vectors_that_do_not_fit(tmp_path, text, message):
    path = tmp_path / "vectors.txt"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=message):
        decoder_of(word_vectors=str(path))


def test_schedules_of_the_true_word():
    def prob(step, **options):
        return ScheduledSampling(**{"start": 10, "steps": 100, "floor": 0.5} | options).teacher_forcing_prob(step)

    assert [prob(s, schedule="linear") for s in (0, 10, 60, 110, 500)] == [1, 1, 0.75, 0.5, 0.5]
    assert [prob(s, schedule="exponential") for s in (10, 110, 210)] == [1, 0.75, 0.625]
    expected = 0.5 + 0.5 * 100 / (100 + math.exp(3.0))
    assert prob(310, schedule="inverse_sigmoid") == pytest.approx(expected)
    assert prob(10**9, schedule="inverse_sigmoid") == pytest.approx(0.5) and prob(10**6, schedule="none") == 1


@pytest.mark.parametrize("form", ["paper", "standard"])
def test_scheduled_sampling_reads_the_truth_or_its_own_words(form):
    decoder, features = decoder_of(form), torch.randn(2, 6)
    words, row = torch.tensor([[1, 4, 5], [1, 5, 4]]), torch.tensor([0, 1])
    told = sampled_outputs(decoder, features, words, row, teacher_forcing_prob=1.0)
    torch.testing.assert_close(told, decoder(features, words, row), rtol=1e-4, atol=1e-6)
    decoder.output.bias.data[6] = 50.0  # it would always say this word
    own = sampled_outputs(decoder, features, words, row, teacher_forcing_prob=0.0)
    heard = decoder(features, torch.tensor([[1, 6, 6]] * 2), row)
    torch.testing.assert_close(own, heard, rtol=1e-4, atol=1e-6)
    mixed = sampled_outputs(
        decoder, features.repeat(2000, 1), words.repeat(2000, 1), torch.arange(4000), teacher_forcing_prob=0.7
    )
    as_told = (mixed[:, 1] - decoder(features, words, row)[:, 1].repeat(2000, 1)).abs().amax(1) < 1e-5
    assert as_told.float().mean().item() == pytest.approx(0.7, abs=0.03)
    F.mse_loss(mixed, torch.zeros_like(mixed)).backward()
    assert decoder.words.weight.grad[6].abs().sum() > 0 and decoder.output.weight.grad is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lstm": "gru"}, "lstm='gru': choose paper or standard"),
        ({"dropout": 1.0}, "dropout=1.0"),
        ({"init": 0.0}, "init=0"),
        ({"hidden": 0}, "hidden=0"),
    ],
)
def test_impossible_settings(options, message):
    with pytest.raises(UserError, match=message):
        DecoderConfig(**options)
    for wrong in ({"schedule": "cosine"}, {"steps": 0}, {"floor": 2.0}):
        with pytest.raises(UserError, match="scheduled_sampling"):
            ScheduledSampling(**wrong)


def test_states_are_named():
    state = build_lstm("paper", 2, 3).step(torch.zeros(1, 12), None)
    assert isinstance(state, LstmState) and state.m.shape == state.c.shape == (1, 3)
