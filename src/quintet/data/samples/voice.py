"""Synthetic voices: a harmonic buzz through formants, with glides and pauses; deterministic, quick to learn."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

# phone: first three formants (Hz) and whether the vocal folds vibrate; "pau" is a pause
PHONES = {
    "iy": ((280, 2250, 2900), True),
    "aa": ((710, 1100, 2540), True),
    "uw": ((310, 870, 2250), True),
    "eh": ((550, 1770, 2490), True),
    "s": ((3500, 4500, 5500), False),
    "sh": ((2200, 3200, 4300), False),
    "pau": ((0, 0, 0), False),
}


class Segment(NamedTuple):
    start: int  # samples
    stop: int
    phone: str


def voice_pitch(index: int) -> float:
    """Mean pitch in Hz of the index-th voice: from low to high, no two close together."""
    return 90.0 * 1.25 ** (index % 8)


def utterance(voice: int, seed: int, seconds: float, sample_rate: int) -> tuple[NDArray, list[Segment]]:
    """Audio in [-1, 1] (n,) and its phones, which start and end with a pause."""
    rng = np.random.default_rng([voice, seed])
    segments = _segments(rng, round(seconds * sample_rate), sample_rate)
    audio = np.zeros(segments[-1].stop)
    pitch = voice_pitch(voice) * np.exp(0.08 * np.sin(np.linspace(0, 3 + rng.random(), len(audio))))
    phase = 2 * np.pi * np.cumsum(pitch) / sample_rate
    for segment in segments:
        piece = slice(segment.start, segment.stop)
        audio[piece] = _phone(segment.phone, phase[piece], pitch[piece], voice, sample_rate, rng)
    return (audio * 0.5 / max(np.abs(audio).max(), 1e-9)).astype(np.float32), segments


def _segments(rng: np.random.Generator, length: int, sample_rate: int) -> list[Segment]:
    edges = [0]
    phones: list[str] = []
    sounding = [phone for phone in PHONES if phone != "pau"]
    while edges[-1] < length:
        first_or_some = len(phones) == 0 or rng.random() < 0.1
        phones.append("pau" if first_or_some else sounding[rng.integers(len(sounding))])
        edges.append(edges[-1] + round((0.06 + 0.1 * rng.random()) * sample_rate))
    edges[-1], phones[-1] = length, "pau"
    return [Segment(a, b, p) for a, b, p in zip(edges[:-1], edges[1:], phones, strict=True)]


def _phone(phone: str, phase: NDArray, pitch: NDArray, voice: int, sample_rate: int, rng) -> NDArray:
    formants, voiced = PHONES[phone]
    n = len(phase)
    fade = np.minimum(1, np.minimum(np.arange(n) + 1, np.arange(n)[::-1] + 1) / (0.008 * sample_rate))
    if phone == "pau":
        return 1e-4 * rng.standard_normal(n)
    tract = 1.0 + 0.06 * (voice % 5)  # a shorter vocal tract raises all formants
    if not voiced:
        centre = min(formants[0] * tract, 0.4 * sample_rate)
        noise = rng.standard_normal(n)
        return 0.15 * fade * noise * np.cos(2 * np.pi * centre * np.arange(n) / sample_rate)
    audio = np.zeros(n)
    for k in range(1, int(0.45 * sample_rate / pitch.max()) + 1):
        gain = sum(1 / (1 + ((k * pitch.mean() - f * tract) / 90) ** 2) for f in formants)
        audio += (gain + 0.02) / k**0.5 * np.sin(k * phase)
    return fade * audio
