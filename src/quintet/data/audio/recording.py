"""What every audio source returns, and what all of them share."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from numpy.typing import NDArray

from quintet.common.errors import UserError
from quintet.data.archives import find_root
from quintet.data.audio.decode import read_file


class Recording(NamedTuple):
    """One audio file, not decoded yet."""

    id: str  # unique in its corpus; label files carry it as their name
    path: Path
    speaker: str | None = None
    tags: tuple[str, ...] = ()
    split: str | None = None  # "train", "val" or "test" where the corpus defines it, "unused" where it leaves it out


@dataclass
class Source:
    """A corpus on disk; a subclass knows its layout and nothing else.

    root: the unpacked folder, or the official archive (.zip, .tar, .tar.gz, ...), which is unpacked into the cache.
    """

    root: str

    name = "audio"  # in messages
    put = "the unpacked folder or its archive"  # what belongs at root
    sample_config = "vctk_sample"  # the config that needs no download

    def recordings(self, cache_dir: Path) -> list[Recording]:
        """All recordings, sorted by id. Raises UserError when the corpus is not there, or nothing is left of it."""
        root = find_root(self.root, cache_dir, self.missing())
        found = sorted(self.scan(root), key=lambda recording: recording.id)
        if not found:
            raise UserError(f"{self.missing()} (found {root}, but no recordings in the expected layout)")
        return found

    def scan(self, root: Path) -> list[Recording]:
        raise NotImplementedError

    def read(self, recording: Recording) -> tuple[NDArray, int]:
        """16-bit samples (n,) or (n, channels), and their rate in Hz."""
        return read_file(recording.path)

    def missing(self) -> str:
        where = f"no {self.name} at {self.root}: put {self.put} there"
        return f"{where}, or set data.root=<path>, or try data={self.sample_config}"

    def fingerprint(self, recordings: Sequence[Recording]) -> list:
        """What the cache key holds of the source files: path, size and time of change of each."""
        stats = ((r, r.path.stat()) for r in recordings)
        return [[r.id, str(r.path), s.st_size, s.st_mtime_ns, r.speaker, r.tags, r.split] for r, s in stats]


def subfolder(root: Path, *names: str) -> Path | None:
    """The first of `names` that exists in root, or in a folder just inside it (archives often add one level)."""
    for folder in (root, *sorted(p for p in root.iterdir() if p.is_dir())):
        for name in names:
            if (folder / name).exists():
                return folder / name
    return None


def choose_speakers(wanted: Sequence[str] | None, known: Sequence[str], key: str = "data.source.speakers") -> list[str]:
    """`wanted` (null = all). Raises UserError that lists the known speakers for an unknown one."""
    if wanted is None:
        return sorted(known)
    unknown = [str(name) for name in wanted if str(name) not in known]
    if unknown:
        raise UserError(f"{key}: unknown speaker {', '.join(unknown)}; known: {', '.join(sorted(known))}")
    return sorted(str(name) for name in wanted)
