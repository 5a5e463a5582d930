"""LJ Speech 1.1, one speaker: `metadata.csv` (id|text|normalized text) and `wavs/<id>.wav`."""

from dataclasses import dataclass
from pathlib import Path

from quintet.common.errors import UserError
from quintet.data.audio.recording import Recording, Source, subfolder


@dataclass
class LJSpeech(Source):
    """22.05 kHz, 24 h."""

    name = "LJ Speech"
    put = "LJSpeech-1.1 (the folder or its tar.bz2)"

    def scan(self, root: Path) -> list[Recording]:
        metadata = subfolder(root, "metadata.csv")
        if metadata is None:
            return []
        lines = metadata.read_text(encoding="utf-8").splitlines()
        ids = [line.split("|", 1)[0] for line in lines if line.strip()]
        wavs = metadata.parent / "wavs"
        there = {path.stem for path in wavs.glob("*.wav")} if wavs.is_dir() else set()
        for number, name in enumerate(ids, 1):
            if name not in there:
                raise UserError(f"{metadata} row {number} names {name}, but {wavs / name}.wav is missing: unpack again")
        return [Recording(name, wavs / f"{name}.wav") for name in ids]
