"""A tiny synthetic corpus in the official VCTK 0.92 layout: `data=vctk_sample`, no download."""

from dataclasses import dataclass
from pathlib import Path

from quintet.data.audio.recording import Recording
from quintet.data.audio.store import build_once, digest
from quintet.data.audio.vctk import VCTK
from quintet.data.samples.voice import utterance


def write_vctk_sample(folder: Path, num_speakers: int = 4, num_utterances: int = 12, seconds: float = 1.5,
                      sample_rate: int = 16000) -> None:  # fmt: skip
    """`folder/wav48_silence_trimmed/p225/p225_001_mic1.flac` ... and speaker-info.txt; the same bytes every time."""
    import soundfile

    lines = ["ID  AGE  GENDER  ACCENTS  REGION COMMENTS"]
    for voice in range(num_speakers):
        speaker = f"p{225 + voice}"
        lines.append(f"{speaker}  20  {'MF'[voice % 2]}    Synthetic    Nowhere")
        target = folder / "wav48_silence_trimmed" / speaker
        target.mkdir(parents=True, exist_ok=True)
        for number in range(1, num_utterances + 1):
            # lengths differ, as in a real corpus
            audio, _ = utterance(voice, number, seconds * (0.8 + 0.04 * (number % 11)), sample_rate)
            soundfile.write(target / f"{speaker}_{number:03d}_mic1.flac", audio, sample_rate, subtype="PCM_16")
    (folder / "speaker-info.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


@dataclass
class SampleVCTK(VCTK):
    """Writes the corpus under `root` at the first use, then reads it as the official one."""

    num_speakers: int = 4
    num_utterances: int = 12
    seconds: float = 1.5
    sample_rate: int = 16000

    name = "the VCTK sample"

    def recordings(self, cache_dir: Path) -> list[Recording]:
        sizes = (self.num_speakers, self.num_utterances, self.seconds, self.sample_rate)
        folder = build_once(Path(self.root) / digest(*sizes), lambda path: write_vctk_sample(path, *sizes))
        return sorted(self.scan(folder), key=lambda recording: recording.id)
