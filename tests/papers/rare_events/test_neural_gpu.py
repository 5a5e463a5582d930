"""The Extended Neural GPU: the gated step against its formula, padding, feeding back, no look ahead."""

import pytest
import torch
from torch.nn import functional as F

from quintet.common.errors import UserError
from quintet.papers.rare_events.neural_gpu import ConvolutionalGRU, ExtendedNeuralGPU, NeuralGPUConfig

SOURCES = [[5, 6, 7, 2], [8, 2], [9, 4, 10, 4, 11, 2]]
TARGETS = [[1, 4, 5, 6], [1, 7], [1, 8, 9, 10, 11, 12]]


def network(**options):
    torch.manual_seed(0)
    return ExtendedNeuralGPU(NeuralGPUConfig(maps=6, columns=2, **options), 12, 13).eval()


def padded(rows):
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)


def lengths(rows):
    return torch.tensor([len(row) for row in rows])


@pytest.mark.parametrize("with_output_tape", [False, True])
def test_the_gated_step_is_its_formula(with_output_tape):
    torch.manual_seed(0)
    cell = ConvolutionalGRU(3, 3, inputs=3 if with_output_tape else 0)
    s, p = torch.randn(2, 3, 5, 2), torch.randn(2, 3, 5, 2) if with_output_tape else None

    def conv(weight, bias, state):  # U * s + W * p + B, written as two convolutions
        result = F.conv2d(state, weight[:, :3], bias, padding=1)
        return result if p is None else result + F.conv2d(p, weight[:, 3:], padding=1)

    u = torch.sigmoid(conv(cell.gates.weight[:3], cell.gates.bias[:3], s))
    r = torch.sigmoid(conv(cell.gates.weight[3:], cell.gates.bias[3:], s))
    new = torch.tanh(conv(cell.candidate.weight, cell.candidate.bias, r * s))
    torch.testing.assert_close(cell(s, p), u * s + (1 - u) * new, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("steps", [None, 2])
def test_a_sequence_gets_the_same_outputs_alone_and_in_a_padded_batch(steps):
    model = network(steps=steps)
    whole = model(padded(SOURCES), lengths(SOURCES), padded(TARGETS))
    assert whole[1].shape[2] == model.query_width == 12
    for row, (source, target) in enumerate(zip(SOURCES, TARGETS, strict=True)):
        alone = model(torch.tensor([source]), torch.tensor([len(source)]), torch.tensor([target]))
        for together, single in zip(whole, alone, strict=True):
            torch.testing.assert_close(together[row, : len(target)], single[0], rtol=1e-5, atol=1e-6)


def test_padding_has_no_derivative_either():
    """Moving the padding's embedding moves no real output: forward mode sees what reverse mode leaves out."""
    model = network(steps=2)
    still = dict(model.named_parameters())
    moved = {name: torch.zeros_like(value) for name, value in still.items()}
    moved["source_embedding.weight"][0] = 1
    call = (padded(SOURCES), lengths(SOURCES), padded(TARGETS))
    _, (tops, _) = torch.func.jvp(lambda p: torch.func.functional_call(model, p, call), (still,), (moved,))
    assert all(not tops[row, : len(target)].any() for row, target in enumerate(TARGETS))


def test_a_target_that_fits_is_not_refused_for_its_eos_in_a_longer_batch():
    told = [[1, 4, 5, 6, 2], [1, 7, 2], [1, 8, 9, 10, 11, 12]]  # what a batch without its last column holds
    outputs, _ = network()(padded(SOURCES), lengths(SOURCES), padded(told))
    assert outputs.shape[:2] == (3, 6) and bool(torch.isfinite(outputs).all())


def test_an_output_sees_earlier_outputs_but_not_itself_or_later_ones():
    model = network(steps=2)
    source, target = padded(SOURCES[2:]), padded(TARGETS[2:])
    before, _ = model(source, lengths(SOURCES[2:]), target)
    changed = target.clone()
    changed[0, 3] = 5  # what output 2 should have said
    after, _ = model(source, lengths(SOURCES[2:]), changed)
    assert torch.equal(after[0, :3], before[0, :3]) and not torch.allclose(after[0, 3], before[0, 3])


def test_feeding_back_what_was_told_gives_the_same_outputs():
    model = network()
    source, target = padded(SOURCES[2:]), padded(TARGETS[2:])
    told, _ = model(source, lengths(SOURCES[2:]), target)
    said = iter(target[:, 1:].unbind(1))
    free, _ = model(source, lengths(SOURCES[2:]), choose=lambda top, features: next(said), steps=target.shape[1])
    torch.testing.assert_close(free, told)


def test_the_query_is_the_slice_at_the_output_position():
    model = network(steps=2)
    source, target = padded(SOURCES[:1]), padded(TARGETS[:1])
    top, features = model(source, lengths(SOURCES[:1]), target)
    tape, mask = model.encode(source, lengths(SOURCES[:1]))
    first = model.decoder(tape, torch.zeros_like(tape)) * mask
    torch.testing.assert_close(features[0, 0], first[0, :, 0].flatten())
    torch.testing.assert_close(top[0, 0], first[0, :, 0, 0])


def test_refusals():
    model = network()
    longer = [TARGETS[0], [*TARGETS[1], 5], TARGETS[2]]  # the second one by one token, hidden in a padded batch
    with pytest.raises(
        UserError,
        match=r"one token for each source token, .* 3 outputs for 2 source tokens: use model=translator",
    ):
        model(padded(SOURCES), lengths(SOURCES), padded(longer))
    with pytest.raises(UserError, match="kernel_size=2 must be odd"):
        NeuralGPUConfig(kernel_size=2)
    with pytest.raises(UserError, match="steps=0 must be at least 1, or null"):
        NeuralGPUConfig(steps=0)
