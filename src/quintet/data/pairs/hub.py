"""Sentence pairs that `datasets.load_dataset` reads: a Hub id such as wmt/wmt14, or a local copy of one."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from quintet.common.errors import UserError
from quintet.data.hub import load_split
from quintet.data.pairs.source import SPLITS, PairSource


@dataclass
class HubPairs(PairSource):
    """root: the Hub id or a folder. subset: its configuration (de-en for wmt/wmt14).

    column: a mapping from language to text, as translation data sets have it.
    """

    subset: str | None = None
    source_language: str = "en"
    target_language: str = "de"
    column: str = "translation"
    names: Mapping[str, str] = field(default_factory=lambda: {"train": "train", "val": "validation", "test": "test"})

    name: ClassVar[str] = "Hub data set"

    def splits(self, cache_dir: Path) -> dict[str, Any]:
        loaded = {split: self._load(self.names[split], cache_dir) for split in SPLITS}
        self.content = [dataset._fingerprint for dataset in loaded.values()]
        return loaded

    def _load(self, name: str, cache_dir: Path) -> Any:
        missing = f"no {self.name} at data.root={self.root}: put a Hub id, or a local copy, there"
        loaded = load_split(str(self.root), self.subset, name, {"column": self.column}, cache_dir, missing)
        languages = list(loaded[0][self.column])
        for language in (self.source_language, self.target_language):
            if language not in languages:
                raise UserError(f"data.source: {self.root} has no language {language}, only {', '.join(languages)}")
        return loaded.map(self._columns, remove_columns=loaded.column_names)

    def _columns(self, row: Mapping[str, Any]) -> dict[str, str]:
        texts = row[self.column]
        return {"source": texts[self.source_language].strip(), "target": texts[self.target_language].strip()}
