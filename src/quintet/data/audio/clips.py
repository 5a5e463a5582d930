"""A folder of clips or notes; tags come from the file names or from a CSV file."""

import csv
import re
from dataclasses import dataclass
from pathlib import Path

from quintet.common.errors import UserError
from quintet.data.audio.recording import Recording, Source

SUFFIXES = {".wav", ".flac", ".ogg", ".mp3", ".aiff", ".aif"}


@dataclass
class Clips(Source):
    r"""pattern: a regular expression for the file's stem; each named group becomes a tag `group=VALUE`.

    Values are upper-cased, so that "Mf A4" and "MF A4" agree. tags_csv: a file, relative to root, with the columns
    `file` and `tags` (separated by `;`) and optionally `speaker`. Neither: clips without tags.
    """

    pattern: str | None = None
    tags_csv: str | None = None

    name = "audio clips"
    put = "a folder (or archive) of .wav, .flac, .ogg or .mp3 files"
    sample_config = "clips_sample"

    def scan(self, root: Path) -> list[Recording]:
        if self.pattern and self.tags_csv:
            raise UserError("data.source: give pattern or tags_csv, not both")
        if self.tags_csv:
            return self._from_csv(root)
        files = sorted(path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES)
        return [Recording(_id(root, path), path, tags=self._tags(path)) for path in files]

    def _tags(self, path: Path) -> tuple[str, ...]:
        if self.pattern is None:
            return ()
        match = re.fullmatch(self.pattern, path.stem)
        if match is None:
            raise UserError(
                f"{path}: the name does not match data.source.pattern={self.pattern}: rename it or change that"
            )
        return tuple(f"{name}={value.upper()}" for name, value in match.groupdict().items() if value)

    def _from_csv(self, root: Path) -> list[Recording]:
        assert self.tags_csv is not None, "called only with data.source.tags_csv"
        table = root / self.tags_csv
        if not table.is_file():
            raise UserError(f"data.source.tags_csv={self.tags_csv}: no such file in {root}")
        with table.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            if not {"file", "tags"} <= set(reader.fieldnames or ()):
                raise UserError(f"{table}: row 1 must name the columns file and tags, it has {reader.fieldnames}")
            return [self._row(root, table, number, row) for number, row in enumerate(reader, 2)]

    def _row(self, root: Path, table: Path, number: int, row: dict[str, str]) -> Recording:
        path = root / row["file"]
        if not path.is_file():
            raise UserError(f"{table} row {number}: {row['file']} is missing in {root}")
        tags = tuple(tag.strip() for tag in (row["tags"] or "").split(";") if tag.strip())
        return Recording(_id(root, path), path, row.get("speaker") or None, tags)


def _id(root: Path, path: Path) -> str:
    return path.relative_to(root).with_suffix("").as_posix()
