"""WMT14 English-German in the layout of statmt.org: bitexts to train on, newstest2013 and newstest2014 (SGML)."""

import html
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from quintet.common.errors import UserError
from quintet.data.pairs.source import PairSource, content_key, read_lines
from quintet.data.store import build_once, digest

CORPORA = ("europarl-v7", "commoncrawl", "news-commentary-v9")
SEGMENT = re.compile(r"<seg[^>]*>(.*?)</seg>", re.IGNORECASE)
FOLDERS = ("training", ".", "dev", "test-full", "test")


@dataclass
class WMT14(PairSource):
    """corpora: bitexts `<name>.de-en.{de,en}` under root or root/training, 4.5M pairs together.

    val and test are newstest2013 and newstest2014, as plain text (`newstest2013.en`) or as
    `newstest2014-deen-src.en.sgm` and `-ref.de.sgm`.
    """

    source_language: str = "en"
    target_language: str = "de"
    corpora: tuple[str, ...] = CORPORA

    name: ClassVar[str] = "WMT14"
    put: ClassVar[str] = "the folder with training/europarl-v7.de-en.de, dev/ and test-full/"

    def files(self, root: Path) -> dict[str, list[tuple[Path, Path]]]:
        train = [self._pair(root, [f"{name}.de-en.{{language}}"]) for name in self.corpora]
        return {"train": train, "val": [self._news(root, 2013)], "test": [self._news(root, 2014)]}

    def _news(self, root: Path, year: int) -> tuple[Path, Path]:
        plain, marked = f"newstest{year}.{{language}}", f"newstest{year}-{{side}}.{{language}}.sgm"
        names = [plain, marked, marked.replace("-{side}", "-deen-{side}"), marked.replace("-{side}", "-ende-{side}")]
        source, target = self._pair(root, names)
        cache = Path(self.cache) / "pairs"
        return _as_text(source, cache), _as_text(target, cache)

    def find(self, cache_dir: Path) -> Path:
        self.cache = cache_dir  # where the text of the SGML files goes
        return super().find(cache_dir)

    def _pair(self, root: Path, names: list[str]) -> tuple[Path, Path]:
        """The first of the names that exists in both languages; raises UserError naming what was looked for."""
        sides = (("src", self.source_language), ("ref", self.target_language))
        for folder in FOLDERS:
            for name in names:
                source, target = (root / folder / name.format(side=side, language=language) for side, language in sides)
                if source.is_file() and target.is_file():
                    return source, target
        wanted = ", ".join(name.format(side="src", language=self.source_language) for name in names)
        raise UserError(f"{self.name}: none of {wanted} (and its {self.target_language} twin) in {root}: see data.root")


def _as_text(path: Path, cache: Path) -> Path:
    """A plain file as it is; the segments of an SGML file as lines of a text file in the cache."""
    if path.suffix != ".sgm":
        return path
    folder = build_once(cache / f"sgm-{digest(content_key(path))}", lambda target: _write_segments(path, target))
    return folder / path.with_suffix(".txt").name


def _write_segments(path: Path, folder: Path) -> None:
    lines = list(segments(path))
    if not lines:
        raise UserError(f"{path} has no <seg> lines: it is not a WMT test set")
    (folder / path.with_suffix(".txt").name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def segments(path: Path) -> Iterator[str]:
    """The text of every <seg>, one a line in the official files, entities resolved."""
    for line in read_lines(path):
        found = SEGMENT.search(line)
        if found:
            yield " ".join(html.unescape(found.group(1)).split())
