"""Linguistic features at 200 Hz, the paper's local conditioning for text to speech (section 3.2)."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quintet.common.errors import UserError
from quintet.data.archives import find_root
from quintet.data.audio.features.alignment import ARPABET, BEYOND, Phone, phone_at, read_hts, read_textgrid
from quintet.data.audio.features.frames import FrameExtractor, hop_of, match_labels, num_frames
from quintet.data.audio.features.pitch import log_f0
from quintet.data.audio.recording import Recording

OFFSETS = "label_offsets.json"


@dataclass
class LinguisticFeatures(FrameExtractor):
    """One-hot phones LL, L, C, R, RR; position in the phone (0..1); ln(duration / 0.1 s); optionally ln F0 and voicing.

    root: folder or archive of labels; null looks for `folder_name` beside the audio. on_missing: error | skip.
    phones: the inventory, null for ARPAbet. Frame f takes the phone at the middle of its hop samples.
    """

    root: str | None = None
    f0: bool = False
    frame_rate: float = 200
    phones: Sequence[str] | None = None
    on_missing: str = "error"

    suffix, folder_name = "", ""

    @property
    def inventory(self) -> list[str]:
        return list(self.phones or ARPABET)

    @property
    def channels(self) -> int:
        return 5 * len(self.inventory) + 2 + 2 * self.f0

    def hop_length(self, sample_rate: int) -> int:
        return hop_of(self.frame_rate, sample_rate)

    def label_files(self, recordings: Sequence[Recording], cache_dir: Path) -> dict[str, Path]:
        folder = label_folder(self.root, self.folder_name, recordings, cache_dir)
        return match_labels(
            recordings, {p.stem: p for p in folder.rglob(f"*{self.suffix}")}, self.on_missing, str(folder)
        )

    def read(self, label: Path) -> list[Phone] | None:
        """The phones in seconds of the audio file; None if they cannot be used."""
        raise NotImplementedError

    def extract(self, recording: Recording, pcm: NDArray, sample_rate: int, label: Path | None) -> NDArray | None:
        """(frames, channels) float32; zeros where no phone is."""
        phones = self.read(label) if label else None
        if phones is None:
            return None
        hop = self.hop_length(sample_rate)
        frames = num_frames(len(pcm), hop)
        times = [(frame + 0.5) * hop / sample_rate for frame in range(frames)]
        features = phone_frames(phones, times, self.inventory, str(label))
        return np.hstack([features, log_f0(pcm, sample_rate, hop, frames)]) if self.f0 else features


@dataclass
class HTSLabels(LinguisticFeatures):
    """HTS full-context `.lab` files; `label_offsets.json` (optional, beside them) holds, by utterance,
    `label_minus_wav_offset_s` and `usable`: what it calls unusable, or does not list, is left out."""

    suffix, folder_name = ".lab", "lab"

    def label_files(self, recordings: Sequence[Recording], cache_dir: Path) -> dict[str, Path]:
        files = super().label_files(recordings, cache_dir)
        folder = label_folder(self.root, self.folder_name, recordings, cache_dir)
        table = next((f / OFFSETS for f in (folder, folder.parent) if (f / OFFSETS).is_file()), None)
        table = table or next(iter(sorted(folder.glob(f"*/{OFFSETS}"))), None)
        self._offsets = json.loads(table.read_text()) if table else None
        return files | ({OFFSETS: table} if table else {})  # in the cache key

    def read(self, label: Path) -> list[Phone] | None:
        if self._offsets is None:
            return read_hts(label)
        entry = self._offsets.get(label.stem, {})
        return read_hts(label, entry["label_minus_wav_offset_s"]) if entry.get("usable") else None


@dataclass
class TextGridLabels(LinguisticFeatures):
    """Praat TextGrids, as the Montreal Forced Aligner writes them; tier: the one with the phones."""

    tier: str = "phones"

    suffix, folder_name = ".TextGrid", "TextGrid"

    def read(self, label: Path) -> list[Phone]:
        return read_textgrid(label, self.tier)


def label_folder(root: str | None, name: str, recordings: Sequence[Recording], cache_dir: Path) -> Path:
    """`root`, or the folder `name` beside the audio. Raises UserError if there is none."""
    missing = f"no label files at {root}: put the folder or archive of {name} files there, or set the labels' root"
    if root is not None:
        return find_root(root, cache_dir, missing)
    for folder in recordings[0].path.parents:
        if (folder / name).is_dir():
            return folder / name
    raise UserError(
        f"no folder {name} beside {recordings[0].path}: set the root of the labels, e.g. data.features.root"
    )


def phone_frames(phones: list[Phone], times: list[float], inventory: Sequence[str], label: str) -> NDArray:
    """(frames, 5 * phones + 2) float32. Raises UserError for a phone that is not in the inventory."""
    index = {name: place for place, name in enumerate(inventory)}
    unknown = {name for phone in phones for name in phone.context} - set(index) - {BEYOND}
    if unknown:
        raise UserError(
            f"{label}: phone {', '.join(sorted(unknown))} is not in data.features.phones ({' '.join(inventory)})"
        )
    features = np.zeros((len(times), 5 * len(index) + 2), np.float32)
    for row, time, phone in zip(features, times, phone_at(phones, times), strict=True):
        if phone is None:
            continue
        for place, name in enumerate(phone.context):
            if name != BEYOND:
                row[place * len(index) + index[name]] = 1
        duration = phone.stop - phone.start
        row[-2:] = (time - phone.start) / duration, np.log(duration / 0.1)
    return features
