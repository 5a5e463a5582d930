"""Streaming few-shot episodes of characters: the data side of Kaiser et al. 2017."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from quintet.common.errors import UserError
from quintet.data.batches import EpisodeBatch
from quintet.data.episodes.dataset import EpisodeDataset, EpisodeSampler, as_is
from quintet.data.episodes.omniglot import SIDE, Omniglot
from quintet.data.episodes.sampling import check_length
from quintet.data.episodes.split import split_background
from quintet.data.episodes.store import ROTATIONS, Stored, map_images, open_store
from quintet.data.preview import Preview
from quintet.data.resumable import ResumableDataModule, ResumableLoader

log = logging.getLogger(__name__)
SPLITS = ("train", "val", "test")


class EpisodeDataModule(ResumableDataModule):
    """Episodes of `width` classes and `length` images, see EpisodeBatch; training ones are new in every epoch.

    Training: the background alphabets but for `val_alphabets` of them, in four rotations. Test: the evaluation part.
    shots: the k of the k-shot accuracies that `length` has to allow. Validation and test episodes are fixed by `seed`.
    """

    batch_type = EpisodeBatch

    def __init__(self, source: Omniglot, cache_dir: str, width: int = 5, length: int = 30,
                 shots: Sequence[int] = (1, 5), batch_size: int = 16, episodes_per_epoch: int = 16000,
                 val_episodes: int = 400, test_episodes: int = 1000, val_alphabets: int = 5, rotations: bool = True,
                 image_size: int = 28, seed: int = 1, num_workers: int = 0, pin_memory: bool = False,
                 root: str | None = None) -> None:  # fmt: skip
        super().__init__()
        self.source, self.root, self.cache_dir = source, root, Path(cache_dir)
        self.width, self.length, self.shots, self.batch_size = width, length, tuple(shots), batch_size
        self.num_episodes = {"train": episodes_per_epoch, "val": val_episodes, "test": test_episodes}
        self.val_alphabets, self.rotations, self.image_size = val_alphabets, rotations, image_size
        self.seed, self.num_workers, self.pin_memory = seed, num_workers, pin_memory
        self._parts: dict[str, Stored] = {}
        self._rows: dict[str, list[int]] = {}
        self._check()

    def _check(self) -> None:
        check_length(self.width, self.length, self.shots)
        if not 4 <= self.image_size <= SIDE:
            raise UserError(f"data.image_size={self.image_size}: give 4 to {SIDE} pixels")
        if self.seed < 0:
            raise UserError(f"data.seed={self.seed}: give 0 or more")
        if not 1 <= self.batch_size <= self.num_episodes["train"]:
            raise UserError(
                f"data.batch_size={self.batch_size}: give 1 to data.episodes_per_epoch={self.num_episodes['train']}"
            )
        for split in ("val", "test"):
            if self.num_episodes[split] < 1:
                raise UserError(f"data.{split}_episodes={self.num_episodes[split]}: give 1 or more")

    def prepare_data(self) -> None:
        """Decode the images once; safe when several processes do it at the same time."""
        open_store(self.source, self.image_size, self.cache_dir)

    def setup(self, stage: str | None = None) -> None:
        if self._rows:
            return
        self._parts = open_store(self.source, self.image_size, self.cache_dir)
        background, evaluation = self._parts["background"], self._parts["evaluation"]
        train, val = split_background(background.alphabets, self.val_alphabets, self.rotations, self.seed)
        rows = {"train": train, "val": val, "test": list(range(len(evaluation.names)))}
        for split in SPLITS:
            if len(rows[split]) < self.width and not (split == "val" and not val):
                raise UserError(
                    f"data.width={self.width} classes an episode, but the {split} split of {self.source.name} has "
                    f"{len(rows[split])}: lower data.width"
                )
        self._rows = rows
        log.info("%s: %s classes", self.source.name, ", ".join(f"{len(rows[split])} {split}" for split in SPLITS))

    @property
    def data_info(self) -> dict[str, Any]:
        """Plain values that a model needs; call after setup()."""
        assert self._rows, "call prepare_data() and setup() first"
        return {
            "num_labels": self.width,
            "batch_size": self.batch_size,
            "image_size": self.image_size,
            "num_classes_train": len(self._rows["train"]),
        }

    def _stored(self, split: str) -> Stored:
        self.setup()
        if split not in SPLITS:
            raise UserError(f"unknown split {split!r}: choose {', '.join(SPLITS)}")
        return self._parts["evaluation" if split == "test" else "background"]

    def images(self, split: str) -> NDArray[np.uint8]:
        """Every drawing of a split, (C, D, S, S) ink 0..255; memory-mapped for the test split, else a copy."""
        array = map_images(self._stored(split).path)
        return array if split == "test" else array[self._rows[split]]

    def classes(self, split: str) -> list[str]:
        """Names of a split's classes in the order of `images`: "Greek/character03", turned ones with "@90"."""
        names = self._stored(split).names
        turns = ["", *(f"@{90 * turn}" for turn in range(1, ROTATIONS))]
        return [names[row % len(names)] + turns[row // len(names)] for row in self._rows[split]]

    def episodes(self, split: str) -> EpisodeDataset:
        """The episodes of a split: those of the current data.width and data.length."""
        path = self._stored(split).path
        key = (self.seed, SPLITS.index(split))
        return EpisodeDataset(path, self._rows[split], self.num_episodes[split], self.width, self.length, key)

    def num_examples(self, split: str) -> int:
        """Episodes; of training ones, which go on without end, those of the first epoch."""
        return len(self.episodes(split))

    def example_batch(self, split: str, indices: Sequence[int]) -> EpisodeBatch:
        return self.episodes(split).__getitems__(indices)

    def preview(self, split: str, index: int) -> Preview:
        """The drawings in the order in which they are shown, a row for each round, and the classes they are of."""
        episodes = self.episodes(split)
        plan, (batch,) = episodes.plan(index), episodes.__getitems__([index]).images
        names = self.classes(split)
        shown = dict.fromkeys(names[c] for c in plan.classes.tolist())
        return Preview(
            title=f"episode {index}", text=", ".join(shown), image=contact_sheet(batch[:, 0].numpy(), self.width)
        )

    def _loader_args(self) -> dict[str, Any]:
        # its own generator: making an iterator draws a number, which must not come from the training's random state
        generator = torch.Generator().manual_seed(self.seed)
        return {"num_workers": self.num_workers, "pin_memory": self.pin_memory, "collate_fn": as_is,
                "generator": generator}  # fmt: skip

    def train_dataloader(self) -> DataLoader:
        """This rank's batches, all of them full, standing where the checkpoint left them."""
        rank, world = self.rank_and_world()
        if self.batch_size * world > self.num_episodes["train"]:
            raise UserError(
                f"data.batch_size={self.batch_size} on {world} devices is more than data.episodes_per_epoch"
            )
        # episodes are random as they are: nothing to shuffle
        sampler = EpisodeSampler(self.num_episodes["train"], self.batch_size, shuffle=False, drop_last=True, rank=rank,
                                 world_size=world, position=self.position)  # fmt: skip
        return ResumableLoader(self.episodes("train"), batch_sampler=sampler, **self._loader_args())

    def val_dataloader(self) -> DataLoader | list:
        return self._eval_loader("val") if self.val_alphabets else []

    def test_dataloader(self) -> DataLoader:
        return self._eval_loader("test")

    def _eval_loader(self, split: str) -> DataLoader:
        episodes = self.episodes(split)
        return self.eval_loader(episodes, self.batch_size, "data.batch_size", **self._loader_args())


def contact_sheet(ink_tss: NDArray, columns: int) -> NDArray[np.float32]:
    """Drawings (T, S, S) with ink 1 as dark lines on white, row by row, thin grey lines between them."""
    side = ink_tss.shape[1] + 1
    sheet = np.full((-(-len(ink_tss) // columns) * side - 1, columns * side - 1), 0.8, np.float32)
    for t, ink_ss in enumerate(ink_tss):
        top, left = t // columns * side, t % columns * side
        sheet[top : top + side - 1, left : left + side - 1] = 1 - ink_ss
    return sheet
