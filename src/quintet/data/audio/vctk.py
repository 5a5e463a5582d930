"""CSTR VCTK Corpus: 0.92 (`wav48_silence_trimmed/p225/p225_001_mic1.flac`) and 0.80 (`wav48/p225/p225_001.wav`)."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from quintet.common.errors import UserError
from quintet.data.audio.recording import Recording, Source, choose_speakers, subfolder


@dataclass
class VCTK(Source):
    """speakers: null for all, or a list such as [p225, p226]; mic: 1 or 2, the microphone (0.92 only)."""

    speakers: Sequence[str] | None = None
    mic: int = 1

    name = "VCTK"
    put = "VCTK-Corpus-0.92 (the folder or its zip; 0.80 works too)"

    def scan(self, root: Path) -> list[Recording]:
        if self.mic not in (1, 2):
            raise UserError(f"data.source.mic={self.mic}: VCTK 0.92 has microphones 1 and 2")
        trimmed = subfolder(root, "wav48_silence_trimmed")
        audio = trimmed or subfolder(root, "wav48")
        if audio is None:
            return []
        suffix = f"_mic{self.mic}.flac" if trimmed else ".wav"
        known = sorted(folder.name for folder in audio.iterdir() if folder.is_dir())
        found, without = [], []
        for speaker in choose_speakers(self.speakers, known):
            files = [path for path in (audio / speaker).iterdir() if path.name.endswith(suffix)]
            found += [Recording(path.name.removesuffix(suffix), path, speaker) for path in files]
            without += [] if files else [speaker]
        if without and found:
            warnings.warn(f"VCTK: no *{suffix} of {', '.join(without)}: {len(without)} speaker(s) left out")
        return found


def speaker_info(root: Path) -> dict[str, dict[str, str]]:
    """`speaker-info.txt` -> {"p225": {"age": "23", "gender": "F", "accent": "English"}}; empty without the file."""
    path = subfolder(root, "speaker-info.txt")
    if path is None:
        return {}
    rows = (line.split() for line in path.read_text(encoding="utf-8").splitlines()[1:])
    ids = ((row[0] if row[0][0].isalpha() else f"p{row[0]}", row) for row in rows if len(row) >= 4)
    return {name: dict(zip(("age", "gender", "accent"), row[1:4], strict=True)) for name, row in ids}
