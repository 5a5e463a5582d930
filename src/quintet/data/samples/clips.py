"""Tiny plucked notes named as the piano notes are ("FF A#2.wav"), `data=clips_sample`."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from quintet.data.audio.clips import Clips
from quintet.data.audio.recording import Recording
from quintet.data.store import build_once, digest

NOTES = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")
VELOCITIES = {"FF": 0.8, "Mf": 0.4, "PP": 0.1}


def write_clips_sample(folder: Path, num_notes: int = 8, seconds: float = 1.0, sample_rate: int = 16000) -> None:
    """`num_notes` notes at three velocities each."""
    import soundfile

    folder.mkdir(parents=True, exist_ok=True)
    time = np.arange(round(seconds * sample_rate)) / sample_rate
    for number in range(num_notes):
        pitch = 261.63 * 2 ** (number / 12)
        partials = [np.sin(2 * np.pi * k * pitch * time) * np.exp(-3 * k * time) / k for k in range(1, 6)]
        for velocity, gain in VELOCITIES.items():
            path = folder / f"{velocity} {NOTES[number % 12]}{4 + number // 12}.wav"
            soundfile.write(path, gain * sum(partials) / 2, sample_rate, subtype="PCM_16")


@dataclass
class SampleClips(Clips):
    """Writes the notes under `root` on first use, then reads them as any folder of clips."""

    num_notes: int = 8
    seconds: float = 1.0
    sample_rate: int = 16000

    name = "the clips sample"

    def recordings(self, cache_dir: Path) -> list[Recording]:
        sizes = (self.num_notes, self.seconds, self.sample_rate)
        folder = build_once(Path(self.root) / digest(*sizes), lambda path: write_clips_sample(path, *sizes))
        return sorted(self.scan(folder), key=lambda recording: recording.id)
