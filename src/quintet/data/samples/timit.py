"""A tiny synthetic corpus in TIMIT's layout: NIST sphere audio and .PHN, `data=timit_sample`."""

from dataclasses import dataclass
from pathlib import Path

from quintet.data.audio.recording import Recording
from quintet.data.audio.timit import TIMIT
from quintet.data.samples.voice import utterance
from quintet.data.store import build_once, digest

# real speaker codes, so that the development and core test speakers are recognized
SPEAKERS = {"TRAIN": ("FCJF0", "MDAC0", "FDAW0"), "TEST": ("FAKS0", "FELC0")}


def write_timit_sample(folder: Path, num_utterances: int = 4, seconds: float = 1.5) -> None:
    """`TRAIN/DR1/FCJF0/SX1.WAV` with `SX1.PHN`, and one SA sentence a speaker; 16 kHz."""
    import soundfile

    people = [(part, name) for part, names in SPEAKERS.items() for name in names]
    for voice, (part, name) in enumerate(people):
        target = folder / part / "DR1" / name
        target.mkdir(parents=True, exist_ok=True)
        for number in range(num_utterances + 1):
            stem = f"SX{number}" if number else "SA1"
            audio, segments = utterance(voice, number, seconds, 16000)
            soundfile.write(target / f"{stem}.WAV", audio, 16000, format="NIST", subtype="PCM_16")
            edges = (0, len(segments) - 1)
            names = ["h#" if i in edges else s.phone for i, s in enumerate(segments)]
            lines = [f"{s.start} {s.stop} {phone}\n" for s, phone in zip(segments, names, strict=True)]
            (target / f"{stem}.PHN").write_text("".join(lines), encoding="ascii")


@dataclass
class SampleTIMIT(TIMIT):
    """Writes the corpus under `root` on first use, then reads it as the official one."""

    num_utterances: int = 4
    seconds: float = 1.5

    name = "the TIMIT sample"

    def recordings(self, cache_dir: Path) -> list[Recording]:
        sizes = (self.num_utterances, self.seconds)
        folder = build_once(Path(self.root) / digest(*sizes), lambda path: write_timit_sample(path, *sizes))
        return sorted(self.scan(folder), key=lambda recording: recording.id)
