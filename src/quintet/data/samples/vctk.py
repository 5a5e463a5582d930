"""A tiny synthetic corpus in the official VCTK 0.92 layout: `data=vctk_sample`, no download."""

from dataclasses import dataclass
from pathlib import Path

from quintet.data.audio.features.alignment import with_context
from quintet.data.audio.recording import Recording
from quintet.data.audio.vctk import VCTK
from quintet.data.samples.voice import Segment, utterance
from quintet.data.store import build_once, digest

VERSION = 2  # raise when other files are written


def write_vctk_sample(folder: Path, num_speakers: int = 4, num_utterances: int = 12, seconds: float = 1.5,
                      sample_rate: int = 16000) -> None:  # fmt: skip
    """`folder/wav48_silence_trimmed/p225/p225_001_mic1.flac` ..., speaker-info.txt, HTS labels under `lab`."""
    import soundfile

    lines = ["ID  AGE  GENDER  ACCENTS  REGION COMMENTS"]
    for voice in range(num_speakers):
        speaker = f"p{225 + voice}"
        lines.append(f"{speaker}  20  {'MF'[voice % 2]}    Synthetic    Nowhere")
        target = folder / "wav48_silence_trimmed" / speaker
        target.mkdir(parents=True, exist_ok=True)
        for number in range(1, num_utterances + 1):
            # lengths differ, as in a real corpus
            audio, segments = utterance(voice, number, seconds * (0.8 + 0.04 * (number % 11)), sample_rate)
            soundfile.write(target / f"{speaker}_{number:03d}_mic1.flac", audio, sample_rate, subtype="PCM_16")
            _write_label(folder / "lab" / speaker / f"{speaker}_{number:03d}.lab", segments, sample_rate)
    (folder / "speaker-info.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _write_label(path: Path, segments: list[Segment], sample_rate: int) -> None:
    """HTS full-context label, times in 100 ns; only the part of the context that names the phones."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = []
    for phone in with_context([(s.start, s.stop, s.phone) for s in segments]):
        ll, left, centre, right, rr = phone.context
        start, stop = (round(edge * 1e7 / sample_rate) for edge in phone[:2])
        lines.append(f"{start} {stop} {ll}^{left}-{centre}+{right}={rr}@x_x/A:0_0_0\n")
    path.write_text("".join(lines), encoding="ascii")


@dataclass
class SampleVCTK(VCTK):
    """Writes the corpus under `root` on first use, then reads it as the official one."""

    num_speakers: int = 4
    num_utterances: int = 12
    seconds: float = 1.5
    sample_rate: int = 16000

    name = "the VCTK sample"

    def recordings(self, cache_dir: Path) -> list[Recording]:
        sizes = (self.num_speakers, self.num_utterances, self.seconds, self.sample_rate)
        folder = build_once(Path(self.root) / digest(VERSION, *sizes), lambda path: write_vctk_sample(path, *sizes))
        return sorted(self.scan(folder), key=lambda recording: recording.id)
