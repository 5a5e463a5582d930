"""LibriSpeech (OpenSLR 12): `LibriSpeech/<subset>/<speaker>/<chapter>/*.flac` and SPEAKERS.TXT."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from quintet.common.errors import UserError
from quintet.data.audio.recording import Recording, Source, choose_speakers, subfolder


@dataclass
class LibriSpeech(Source):
    """subsets: folders to read, such as [train-clean-100]; speakers: null for all of them, or a list of ids."""

    subsets: Sequence[str] = ("train-clean-100",)
    speakers: Sequence[str] | None = None

    name = "LibriSpeech"
    put = "the LibriSpeech folder, or the archive of one subset"

    def scan(self, root: Path) -> list[Recording]:
        folders = [self._subset(root, name) for name in self.subsets]
        speakers = {path.name: path for folder in folders for path in folder.iterdir() if path.is_dir()}
        try:
            chosen = choose_speakers(self.speakers, list(speakers))
        except UserError as error:
            homes = speaker_subsets(root)
            hints = [f"{name} is in {homes[str(name)]}" for name in self.speakers or () if str(name) in homes]
            raise UserError(f"{error}; SPEAKERS.TXT: {', '.join(hints)}" if hints else str(error)) from error
        wanted = set(chosen)
        files = [p for f in folders for s in f.iterdir() if s.name in wanted for p in s.glob("*/*.flac")]
        return [Recording(path.stem, path, path.parent.parent.name) for path in files]

    def _subset(self, root: Path, name: str) -> Path:
        folder = subfolder(root, name)
        if folder is None:
            raise UserError(
                f"no LibriSpeech subset {name} in {root}: unpack {name}.tar.gz there, or set data.source.subsets"
            )
        return folder


def speaker_subsets(root: Path) -> dict[str, str]:
    """SPEAKERS.TXT (`id | sex | subset | minutes | name`, comments start with `;`) -> {"14": "train-clean-360"}."""
    path = subfolder(root, "SPEAKERS.TXT")
    if path is None:
        return {}
    lines = path.read_text(encoding="utf-8").splitlines()
    rows = ([cell.strip() for cell in line.split("|")] for line in lines if line and not line.startswith(";"))
    return {row[0]: row[2] for row in rows if len(row) >= 3}
