"""Log F0 with a voicing flag, the F of the paper's "L+F" features (section 3.2)."""

import numpy as np
from numpy.typing import NDArray

REFERENCE_HZ = 100.0
F_MIN, F_MAX = 60.0, 500.0


def log_f0(pcm: NDArray, sample_rate: int, hop: int, frames: int) -> NDArray:
    """(frames, 2) float32: ln(F0 / 100 Hz), interpolated where unvoiced; 1 where voiced. Centred as mel frames are."""
    import librosa

    window = 2 ** int(np.ceil(np.log2(4 * sample_rate / F_MIN / 2)))
    audio = np.pad(pcm / np.float32(32768), (0, frames * hop - len(pcm) + window))[hop // 2 :]
    f0, voiced, _ = librosa.pyin(
        audio, fmin=F_MIN, fmax=F_MAX, sr=sample_rate, frame_length=window, hop_length=hop, resolution=0.2
    )
    return fill_unvoiced(f0[:frames], voiced[:frames])


def fill_unvoiced(f0: NDArray, voiced: NDArray) -> NDArray:
    """Linear interpolation of ln(F0 / 100 Hz) between voiced frames, held at both ends; all unvoiced gives zeros."""
    voiced = voiced & np.isfinite(f0)
    result = np.zeros((len(f0), 2), np.float32)
    if voiced.any():
        (places,) = np.nonzero(voiced)
        result[:, 0] = np.interp(np.arange(len(f0)), places, np.log(f0[places] / REFERENCE_HZ))
        result[:, 1] = voiced
    return result
