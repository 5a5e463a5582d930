"""Mu-law companding and quantisation, WaveNet section 2.2 (ITU-T G.711 law, mu = Q - 1)."""

from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray


def encode(audio, quantization: int = 256):
    """Amplitudes in [-1, 1] (clipped) -> classes 0..Q-1, f(x) = sign(x) ln(1 + mu|x|) / ln(1 + mu); 0 -> class Q // 2.

    Takes and returns a numpy array or a tensor (int64); computed in float64, so that both agree.
    """
    mu = quantization - 1
    if isinstance(audio, torch.Tensor):
        x_t = audio.double().clamp(-1, 1)
        companded_t = x_t.sign() * torch.log1p(mu * x_t.abs()) / np.log1p(mu)
        return torch.floor((companded_t + 1) / 2 * mu + 0.5).long()
    x = np.clip(np.asarray(audio, np.float64), -1, 1)
    companded = np.sign(x) * np.log1p(mu * np.abs(x)) / np.log1p(mu)
    return np.floor((companded + 1) / 2 * mu + 0.5).astype(np.int64)


def decode(classes, quantization: int = 256):
    """Classes 0..Q-1 -> amplitudes in [-1, 1] (float32): y = 2q / mu - 1, then sign(y) ((1 + mu)^|y| - 1) / mu."""
    mu = quantization - 1
    if isinstance(classes, torch.Tensor):
        y_t = 2 * classes.double() / mu - 1
        return (y_t.sign() * torch.expm1(y_t.abs() * np.log1p(mu)) / mu).float()
    y = 2 * np.asarray(classes, np.float64) / mu - 1
    return (np.sign(y) * np.expm1(np.abs(y) * np.log1p(mu)) / mu).astype(np.float32)


@cache
def pcm16_table(quantization: int = 256) -> NDArray:
    """The class of every 16-bit sample, indexed by `pcm.view(np.uint16)`: companding as one table look-up."""
    pcm = np.arange(65536, dtype=np.uint16).view(np.int16)
    return encode(pcm / 32768, quantization).astype(np.uint8 if quantization <= 256 else np.uint16)
