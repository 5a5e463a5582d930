"""Log-mel spectrogram as local conditioning, for copy-synthesis."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quintet.data.audio.features.frames import FrameExtractor, hop_of, num_frames
from quintet.data.audio.recording import Recording

FLOOR = np.float32(1e-5)  # amplitude below which everything is silence, and value 0


@dataclass
class MelSpectrogram(FrameExtractor):
    """(log10(max(mel, 1e-5)) + 5) / 5 of the amplitude mel spectrogram: 0 is silence.

    frame_rate in Hz (200 = every 5 ms); n_fft: window in samples; f_min, f_max in Hz (null: half the sample rate).
    Frame f is centered on the middle of the hop samples it conditions.
    """

    n_mels: int = 80
    frame_rate: float = 200
    n_fft: int = 1024
    f_min: float = 0.0
    f_max: float | None = None

    @property
    def channels(self) -> int:
        return self.n_mels

    def hop_length(self, sample_rate: int) -> int:
        return hop_of(self.frame_rate, sample_rate)

    def extract(self, recording: Recording, pcm: NDArray, sample_rate: int, label: Path | None) -> NDArray:
        """(frames, n_mels) float32."""
        import librosa

        hop = self.hop_length(sample_rate)
        frames = num_frames(len(pcm), hop)
        left = (self.n_fft - hop) // 2
        right = frames * hop - len(pcm) + self.n_fft - hop - left
        audio = np.pad(pcm / np.float32(32768), (left, right))
        mel_ft = librosa.feature.melspectrogram(
            y=audio, sr=sample_rate, n_fft=self.n_fft, hop_length=hop, center=False, power=1.0,
            n_mels=self.n_mels, fmin=self.f_min, fmax=self.f_max,
        )  # fmt: skip
        assert mel_ft.shape[1] == frames, (mel_ft.shape, frames)
        # the quotient makes silence exactly 0
        return (np.log10(np.maximum(mel_ft.T, FLOOR) / FLOOR) / 5).astype(np.float32)
