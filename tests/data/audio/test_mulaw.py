import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quintet.data.audio.mulaw import decode, encode, pcm16_table


def by_hand(x, q):
    """The formula of the paper, one number at a time."""
    mu = q - 1
    f = np.sign(x) * np.log(1 + mu * abs(x)) / np.log(1 + mu)
    return int(np.floor((f + 1) / 2 * mu + 0.5))


@pytest.mark.parametrize(("x", "expected"), [(0.0, 128), (1.0, 255), (-1.0, 0), (2.0, 255), (-7.0, 0)])
def test_landmarks(x, expected):
    assert encode(np.array([x]))[0] == expected
    assert encode(torch.tensor([x]))[0] == expected


@pytest.mark.parametrize("q", [2, 6, 16, 255, 256, 1024])
def test_silence_is_the_middle_class(q):
    assert encode(np.zeros(1), q)[0] == q // 2


@pytest.mark.parametrize("q", [2, 16, 256, 1024])
def test_every_class_survives_a_round_trip(q):
    classes = np.arange(q)
    assert (encode(decode(classes, q), q) == classes).all()
    assert (encode(decode(torch.arange(q), q), q) == torch.arange(q)).all()
    assert (np.diff(decode(classes, q)) > 0).all()


@given(st.floats(-1, 1), st.sampled_from([16, 256]))
def test_numpy_torch_and_the_formula_agree(x, q):
    assert encode(np.array([x]), q)[0] == encode(torch.tensor([x], dtype=torch.float64), q)[0] == by_hand(x, q)


@given(st.floats(-1, 1))
def test_quantisation_error_is_at_most_half_a_step(x):
    """One class spans (1 + mu |x|) ln(256) / mu * 2 / 255 around x."""
    step = (1 + 255 * abs(x)) / 255 * np.log(256) * 2 / 255
    assert abs(float(decode(encode(np.array([x])))[0]) - x) <= 0.52 * step + 1e-6


def test_decode_known_values():
    assert decode(np.array([0, 255])).tolist() == [-1.0, 1.0]
    assert decode(np.array([128]))[0] == pytest.approx((256 ** (1 / 255) - 1) / 255)


def test_table_agrees_with_encode_on_every_sample():
    pcm = np.arange(-32768, 32768).astype(np.int16)
    assert (pcm16_table(256)[pcm.view(np.uint16)] == encode(pcm / 32768)).all()
