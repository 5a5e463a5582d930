"""One phone per 10 ms frame, the targets of the paper's recognition experiment (section 3.4)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quintet.common.errors import UserError
from quintet.data.audio.chunks import IGNORE
from quintet.data.audio.features.alignment import ARPABET, Phone, phone_at, read_phn, read_textgrid
from quintet.data.audio.features.frames import FrameExtractor, match_labels, num_frames
from quintet.data.audio.features.linguistic import label_folder
from quintet.data.audio.recording import Recording

_TIMIT = (
    "aa ae ah ao aw ax ax-h axr ay b bcl ch d dcl dh dx eh el em en eng epi er ey f g gcl h# hh hv ih ix iy jh k kcl l"
    " m n ng nx ow oy p pau pcl q r s sh t tcl th uh uw ux v w y z zh"
)
TIMIT_61 = _TIMIT.split()
_MERGED = (
    "ao:aa ax:ah ax-h:ah axr:er hv:hh ix:ih el:l em:m en:n nx:n eng:ng zh:sh ux:uw pcl:sil tcl:sil kcl:sil bcl:sil"
    " dcl:sil gcl:sil h#:sil pau:sil epi:sil"
)
# Lee & Hon 1989, as every published TIMIT error rate is counted; the glottal stop q is left out (None)
TIMIT_61_TO_39: dict[str, str | None] = (
    {name: name for name in TIMIT_61} | dict(pair.split(":") for pair in _MERGED.split()) | {"q": None}
)
TIMIT_39 = sorted({name for name in TIMIT_61_TO_39.values() if name})


@dataclass
class PhoneLabels(FrameExtractor):
    """frame: samples per label (160 = 10 ms at 16 kHz). A frame takes the phone at its middle; none: ignored (-100)."""

    frame: int = 160
    on_missing: str = "error"

    arrow_type = "int16"

    @property
    def inventory(self) -> list[str]:
        raise NotImplementedError

    def read(self, label: Path) -> list[Phone]:
        raise NotImplementedError

    def extract(self, recording: Recording, pcm: NDArray, sample_rate: int, label: Path | None) -> NDArray | None:
        """(frames,) int16 index into the inventory."""
        if label is None:
            return None
        index = {name: place for place, name in enumerate(self.inventory)}
        times = [(f + 0.5) * self.frame / sample_rate for f in range(num_frames(len(pcm), self.frame))]
        phones = phone_at(self.read(label), times)
        return np.array([index.get(phone.name, IGNORE) if phone else IGNORE for phone in phones], np.int16)


@dataclass
class TimitPhones(PhoneLabels):
    """`.PHN` beside each recording; phone_set: 61 as transcribed, or 39 as scored."""

    phone_set: int = 61

    @property
    def inventory(self) -> list[str]:
        if self.phone_set not in (39, 61):
            raise UserError(f"data.phones.phone_set={self.phone_set}: choose 61 (as transcribed) or 39 (as scored)")
        return TIMIT_61 if self.phone_set == 61 else TIMIT_39

    def label_files(self, recordings: Sequence[Recording], cache_dir: Path) -> dict[str, Path]:
        pairs = ((r.id, r.path.with_suffix(suffix)) for r in recordings for suffix in (".PHN", ".phn"))
        found = {name: path for name, path in pairs if path.is_file()}
        return match_labels(recordings, found, self.on_missing, f"{recordings[0].path.parent} (.PHN)")

    def read(self, label: Path) -> list[Phone]:
        phones = read_phn(label)
        unknown = {phone.name for phone in phones} - set(TIMIT_61)
        if unknown:
            raise UserError(f"{label}: {', '.join(sorted(unknown))} is not one of TIMIT's 61 phones")
        if self.phone_set == 61:
            return phones
        return [p._replace(context=("", "", TIMIT_61_TO_39[p.name] or "", "", "")) for p in phones]


@dataclass
class TextGridPhones(PhoneLabels):
    """TextGrids in the folder or archive `root` (null: a folder TextGrid beside the audio), ARPAbet without stress."""

    root: str | None = None
    tier: str = "phones"

    @property
    def inventory(self) -> list[str]:
        return ARPABET

    def label_files(self, recordings: Sequence[Recording], cache_dir: Path) -> dict[str, Path]:
        folder = label_folder(self.root, "TextGrid", recordings, cache_dir)
        found = {path.stem: path for path in folder.rglob("*.TextGrid")}
        return match_labels(recordings, found, self.on_missing, str(folder))

    def read(self, label: Path) -> list[Phone]:
        phones = read_textgrid(label, self.tier)
        unknown = {phone.name for phone in phones} - set(ARPABET)
        if unknown:
            raise UserError(f"{label}: phone {', '.join(sorted(unknown))} is not ARPAbet")
        return phones
