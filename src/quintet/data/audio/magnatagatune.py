"""MagnaTagATune: `annotations_final.csv` (clip_id, 188 tags, mp3_path) and the folders 0 ... f of 29 s mp3 clips."""

import csv
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from quintet.common.errors import UserError
from quintet.data.audio.recording import Recording, Source, subfolder

# the split that the field uses: folders 0-b train, c validation, d-f test
SPLIT_OF_FOLDER = {**dict.fromkeys("0123456789ab", "train"), "c": "val", **dict.fromkeys("def", "test")}


@dataclass
class MagnaTagATune(Source):
    """top_tags: keep only that many of the most frequent tags; null keeps all 188. The folder decides the split."""

    top_tags: int | None = None

    name = "MagnaTagATune"
    put = "annotations_final.csv and the folders 0 ... f of the joined mp3.zip"
    sample_config = "clips_sample"

    def scan(self, root: Path) -> list[Recording]:
        table = subfolder(root, "annotations_final.csv")
        if table is None:
            return []
        with table.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file, delimiter="\t"))
        tagged = [(row["mp3_path"], self._tags(row)) for row in rows]
        counts = Counter(tag for _, tags in tagged for tag in tags)
        kept = {tag for tag, _ in counts.most_common(self.top_tags)}
        return [self._recording(table, path, tuple(tag for tag in tags if tag in kept)) for path, tags in tagged]

    @staticmethod
    def _tags(row: dict[str, str]) -> tuple[str, ...]:
        return tuple(name for name, value in row.items() if value == "1" and name not in ("clip_id", "mp3_path"))

    def _recording(self, table: Path, mp3_path: str, tags: tuple[str, ...]) -> Recording:
        for folder in (table.parent, table.parent / "mp3"):
            if (folder / mp3_path).is_file():
                return Recording(
                    mp3_path.removesuffix(".mp3"), folder / mp3_path, None, tags, SPLIT_OF_FOLDER[mp3_path[0]]
                )
        raise UserError(
            f"{table} names {mp3_path}, which is missing in {table.parent}: join and unpack mp3.zip.001-003"
        )
