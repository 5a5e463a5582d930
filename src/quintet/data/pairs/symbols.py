"""The synthetic task of rare symbols: one fixed random function on 16,000 symbols, learnt from sequences of them.

The layout of the paper's instances is not published; ours: symbols are 2..16000, drawn by a power law (the symbol of
rank r has probability ~ r^-exponent; ranks are dealt to symbols at random), a pair is `x1 ... xn` -> `f(x1) ... f(xn)`
with n uniform in min_length..max_length. Train, val and test draw from the same law with different seeds, f is one and
the same. So most symbols of a training set are seen a few times, many once, and some only in the test set.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from quintet.common.errors import UserError
from quintet.data.pairs.source import SPLITS, PairSource
from quintet.data.store import build_once, digest

VERSION = 1  # raise when other sequences are drawn
FIRST = 2  # the smallest symbol


@dataclass
class Symbols(PairSource):
    """Writes `{train,val,test}.{source,target}` (symbols as decimal numbers) under `root` on first use."""

    largest: int = 16000
    exponent: float = 1.0
    min_length: int = 4
    max_length: int = 8
    num_train: int = 20000
    num_val: int = 500
    num_test: int = 2000
    seed: int = 0

    name: ClassVar[str] = "the symbol task"

    def __post_init__(self) -> None:
        if self.largest < FIRST:
            raise UserError(f"data.source.largest={self.largest}: symbols are {FIRST}..largest")
        if not 1 <= self.min_length <= self.max_length:
            raise UserError(
                f"data.source.min_length={self.min_length}, max_length={self.max_length}: give 1 <= min_length"
                " <= max_length"
            )
        if min(self.num_train, self.num_val, self.num_test) < 1:
            raise UserError("data.source.num_train, num_val and num_test must be at least 1")

    def find(self, cache_dir: Path) -> Path:
        sizes = (self.largest, self.exponent, self.min_length, self.max_length)
        counts = (self.num_train, self.num_val, self.num_test)
        key = digest(VERSION, *sizes, *counts, self.seed)
        return build_once(Path(self.root) / key, self.write)

    def files(self, root: Path) -> dict[str, list[tuple[Path, Path]]]:
        return {split: [(root / f"{split}.source", root / f"{split}.target")] for split in SPLITS}

    def write(self, folder: Path) -> None:
        """All three splits and `function.json`, the values f(2), f(3), ..."""
        image = self.function()
        (folder / "function.json").write_text(json.dumps(image.tolist()))
        for split, count in zip(SPLITS, (self.num_train, self.num_val, self.num_test), strict=True):
            rows = list(self.sequences(split, count))
            for side, lines in (("source", rows), ("target", [image[row - FIRST] for row in rows])):
                text = "".join(" ".join(map(str, line.tolist())) + "\n" for line in lines)
                (folder / f"{split}.{side}").write_text(text, encoding="ascii")

    def function(self) -> np.ndarray:
        """f as an array: entry s - 2 is f(s); a random function, not a permutation."""
        rng = np.random.default_rng([self.seed, len(SPLITS)])
        return rng.integers(FIRST, self.largest + 1, self.largest - FIRST + 1)

    def sequences(self, split: str, count: int) -> Iterator[np.ndarray]:
        """The inputs of a split; the ranks of the symbols are the same in every split."""
        ranked = np.random.default_rng([self.seed, len(SPLITS) + 1]).permutation(np.arange(FIRST, self.largest + 1))
        weights = np.arange(1, len(ranked) + 1, dtype=np.float64) ** -self.exponent
        rng = np.random.default_rng([self.seed, SPLITS.index(split)])
        lengths = rng.integers(self.min_length, self.max_length + 1, count)
        drawn = ranked[rng.choice(len(ranked), lengths.sum(), p=weights / weights.sum())]
        yield from np.split(drawn, np.cumsum(lengths)[:-1])
