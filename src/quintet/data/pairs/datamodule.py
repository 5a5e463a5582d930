"""Pairs of token sequences of any source, with the vocabularies and the training counts that models need."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from quintet.common.errors import UserError
from quintet.data.batches import SequencePairBatch
from quintet.data.order import LengthSampler
from quintet.data.pairs.source import SPLITS, PairSource
from quintet.data.pairs.vocabulary import SIDES, Codec
from quintet.data.preview import Preview
from quintet.data.resumable import ResumableDataModule, ResumableLoader
from quintet.data.special_ids import BOS, EOS, PAD
from quintet.data.store import ListColumn, build_once, digest, write_rows

log = logging.getLogger(__name__)
FORMAT = 1  # raise when the stored tokens change


class PairDataset(Dataset):
    """(source ids, target ids, index) without bos and eos, as views of memory-mapped Arrow columns."""

    def __init__(self, path: Path, rows: NDArray | None = None) -> None:
        self.source, self.target = (ListColumn(path, side) for side in SIDES)
        self.rows = np.arange(len(self.source)) if rows is None else rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[NDArray, NDArray, int]:
        row = int(self.rows[index])
        return self.source[row], self.target[row], row

    def counts(self, side: str, size: int) -> list[int]:
        """Count of each id in these rows (size,)."""
        column, total = getattr(self, side), np.zeros(size, np.int64)
        for start in range(0, len(self.rows), 10_000):
            block = [column[int(row)] for row in self.rows[start : start + 10_000]]
            total += np.bincount(np.concatenate(block), minlength=size)
        return total.tolist()


def collate(items: Sequence[tuple[NDArray, NDArray, int]]) -> SequencePairBatch:
    """Pad with zeros; adds eos to sources, bos and eos to targets."""
    sources = [np.append(source, EOS) for source, _, _ in items]
    targets = [np.concatenate([[BOS], target, [EOS]]) for _, target, _ in items]
    source_length, target_length = (torch.tensor([len(row) for row in side]) for side in (sources, targets))
    return SequencePairBatch(
        _padded(sources), _padded(targets), source_length, target_length, torch.tensor([row for _, _, row in items])
    )


def _padded(rows: Sequence[NDArray]) -> torch.Tensor:
    table = torch.full((len(rows), max(map(len, rows))), PAD, dtype=torch.int64)
    for line, row in zip(table, rows, strict=True):
        line[: len(row)] = torch.from_numpy(row.astype(np.int64))
    return table


class PairsDataModule(ResumableDataModule):
    """Batches of `batch_size` pairs, see SequencePairBatch.

    source: a quintet.data.pairs source. vocabulary: Subwords or SymbolIds, built from the training split only.
    max_tokens: longer pairs are left out of training (never out of val and test). max_pairs: at most that many
    training pairs. length_window: batches sorted by length within so many; 1 = no sorting.
    """

    batch_type = SequencePairBatch

    def __init__(self, source: PairSource, vocabulary: Any, batch_size: int, cache_dir: str, root: str | None = None,
                 max_tokens: int = 100, max_pairs: int | None = None, length_window: int = 50,
                 eval_batch_size: int = 64, num_workers: int = 0, pin_memory: bool = False,
                 seed: int = 0) -> None:  # fmt: skip
        super().__init__()
        self.source, self.vocabulary, self.root = source, vocabulary, root
        self.batch_size, self.eval_batch_size, self.length_window = batch_size, eval_batch_size, length_window
        self.max_tokens, self.max_pairs, self.seed = max_tokens, max_pairs, seed
        self.cache_dir, self.num_workers, self.pin_memory = Path(cache_dir), num_workers, pin_memory
        self.sets: dict[str, PairDataset] = {}
        self._check()

    def _check(self) -> None:
        limits = {"max_tokens": self.max_tokens, "length_window": self.length_window, "max_pairs": self.max_pairs}
        for key, value in (limits | {"eval_batch_size": self.eval_batch_size}).items():
            if value is not None and value < 1:
                raise UserError(f"data.{key}={value}: give 1 or more" + (" or null" if key == "max_pairs" else ""))

    def prepare_data(self) -> None:
        """Read, learn the vocabulary and encode once; safe when several processes do it at the same time."""
        self._texts = self.source.splits(self.cache_dir)
        sizes = [len(self._texts[split]) for split in SPLITS]
        if not all(sizes):
            raise UserError(f"{self.source.name}: the splits have {sizes} pairs, none may be empty")
        key = digest(FORMAT, self.source.content, self.vocabulary.key())
        self._folder = build_once(self.cache_dir / "pairs" / f"tokens-{key}", self._encode)

    def _encode(self, folder: Path) -> None:
        from datasets import List, Value

        log.info("%s: building the vocabulary and encoding, once", self.source.name)
        self.vocabulary.build(self._texts["train"], folder)
        codecs = self.vocabulary.open(folder)
        features = {side: List(Value("int32")) for side in SIDES}
        for split in SPLITS:
            batches = self._texts[split].iter(batch_size=1000)
            encoded = (zip(*(codecs[side].encode(batch[side]) for side in SIDES), strict=True) for batch in batches)
            rows = (dict(zip(SIDES, pair, strict=True)) for pairs in encoded for pair in pairs)
            write_rows(folder / f"{split}.arrow", features, rows)
        train = PairDataset(folder / "train.arrow")
        np.save(folder / "lengths.npy", [max(len(train.source[i]), len(train.target[i])) for i in range(len(train))])
        counts = {side: train.counts(side, codecs[side].size) for side in SIDES}
        (folder / "counts.json").write_text(json.dumps(counts))

    def setup(self, stage: str | None = None) -> None:
        if self.sets:
            return
        self.prepare_data()  # cheap by now; makes setup() enough on a rank that did not prepare
        self.codecs: dict[str, Codec] = self.vocabulary.open(self._folder)
        self.counts: dict[str, list[int]] = json.loads((self._folder / "counts.json").read_text())
        self.sets = {split: PairDataset(self._folder / f"{split}.arrow") for split in SPLITS}
        lengths = np.load(self._folder / "lengths.npy")
        kept = np.flatnonzero(lengths <= self.max_tokens)[: self.max_pairs]
        if not len(kept):
            raise UserError(f"data.max_tokens={self.max_tokens}: the shortest training pair has {lengths.min()} tokens")
        self._lengths = lengths[kept]
        if len(kept) < len(lengths):
            train = self.sets["train"] = PairDataset(self._folder / "train.arrow", kept)
            self.counts = {side: train.counts(side, self.codecs[side].size) for side in SIDES}
        sizes = ", ".join(f"{len(self.sets[split])} {split}" for split in SPLITS)
        log.info("%s: %s pairs, %d left out as longer than %d tokens", self.source.name, sizes,
                 int((lengths > self.max_tokens).sum()), self.max_tokens)  # fmt: skip

    @property
    def data_info(self) -> dict[str, Any]:
        """Plain values that a model needs; call after setup(). Counts are of the training split, by target id."""
        assert self.sets, "call prepare_data() and setup() first"
        return {
            "source_size": self.codecs["source"].size,
            "target_size": self.codecs["target"].size,
            "target_counts": self.counts["target"],
        }

    def texts(self, split: str, side: str) -> list[str]:
        """The raw lines of a split, in order of `SequencePairBatch.index`."""
        self.setup()
        return list(self._texts[split][side])

    def decode(self, ids: Sequence[int]) -> str:
        """A target's ids as text, up to the first eos."""
        ids = list(ids)
        return self.codecs["target"].decode(ids[: ids.index(EOS)] if EOS in ids else ids)

    def batch(self, split: str, rows: Sequence[int]) -> SequencePairBatch:
        """These rows of a split as one batch."""
        dataset = self._set(split)
        return collate([dataset[row] for row in rows])

    def num_examples(self, split: str) -> int:
        """Pairs in use: without those that are too long to train on."""
        return len(self._set(split))

    def example_batch(self, split: str, indices: Sequence[int]) -> SequencePairBatch:
        return self.batch(split, indices)

    def preview(self, split: str, index: int) -> Preview:
        """The raw lines of both sides."""
        row = int(self._set(split).rows[index])
        text = self._texts[split][row]
        return Preview(title=f"pair {row}", text=f"{text['source']} -> {text['target']}")

    def _set(self, split: str) -> PairDataset:
        self.setup()
        if split not in SPLITS:
            raise UserError(f"unknown split {split!r}: choose {', '.join(SPLITS)}")
        return self.sets[split]

    def train_dataloader(self) -> DataLoader:
        rank, world = self.rank_and_world()
        sampler = LengthSampler(self._lengths, self.batch_size, self.seed, self.length_window, rank, world,
                                position=self.position)  # fmt: skip
        generator = torch.Generator().manual_seed(self.seed)  # not the training's: making an iterator draws a number
        return ResumableLoader(self.sets["train"], batch_sampler=sampler, generator=generator, **self._loader_args())

    def val_dataloader(self) -> DataLoader:
        return self._eval_loader("val")

    def test_dataloader(self) -> DataLoader:
        return self._eval_loader("test")

    def _eval_loader(self, split: str) -> DataLoader:
        return self.eval_loader(self.sets[split], self.eval_batch_size, **self._loader_args())

    def _loader_args(self) -> dict[str, Any]:
        return {"num_workers": self.num_workers, "pin_memory": self.pin_memory, "collate_fn": collate}
