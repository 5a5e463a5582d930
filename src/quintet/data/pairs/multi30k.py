"""Multi30k, task 1 (Elliott et al. 2016): `raw/{train,val,test_2016_flickr}.{en,de,fr,cs}.gz`, one sentence a line."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from quintet.common.errors import UserError
from quintet.data.pairs.source import PairSource

FOLDERS = (".", "raw", "data/task1/raw")


@dataclass
class Multi30k(PairSource):
    """29,000 / 1,014 / 1,000 image descriptions; `test` names the official test set to read."""

    source_language: str = "en"
    target_language: str = "de"
    test: str = "test_2016_flickr"

    name: ClassVar[str] = "Multi30k"
    put: ClassVar[str] = "the folder with raw/train.en.gz and its like"

    def files(self, root: Path) -> dict[str, list[tuple[Path, Path]]]:
        folder = next((root / f for f in FOLDERS if list((root / f).glob("train.*.gz"))), None)
        if folder is None:
            raise UserError(f"no train.<language>.gz in {root}, {root}/raw or {root}/data/task1/raw: see data.root")
        found = sorted(path.name.split(".")[1] for path in folder.glob("train.*.gz"))
        for key in ("source_language", "target_language"):
            if getattr(self, key) not in found:
                raise UserError(f"data.source.{key}={getattr(self, key)}: {folder} has {', '.join(found)}")
        names = {"train": "train", "val": "val", "test": self.test}
        return {split: [self._pair(folder, name)] for split, name in names.items()}

    def _pair(self, folder: Path, name: str) -> tuple[Path, Path]:
        return folder / f"{name}.{self.source_language}.gz", folder / f"{name}.{self.target_language}.gz"
