"""Streaming episodes out of a memory-mapped array, a whole batch at a time."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from quintet.data.batches import EpisodeBatch
from quintet.data.episodes.sampling import Plan, plan_episode
from quintet.data.episodes.store import map_images
from quintet.data.order import EpochSampler


class EpisodeDataset(Dataset):
    """`num_episodes` episodes an epoch; index `epoch * num_episodes + i` is episode i of that epoch.

    path: the stored array (classes, drawers, S, S); rows: which of its classes are in this split.
    key: integers that tell this split and seed from others; the episode is a function of (key, epoch, i) alone.
    """

    def __init__(self, path: Path, rows: Sequence[int], num_episodes: int, width: int, length: int,
                 key: Sequence[int]) -> None:  # fmt: skip
        self.path, self.rows = path, np.asarray(rows, np.int64)
        self.num_episodes, self.width, self.length, self.key = num_episodes, width, length, tuple(key)

    @cached_property
    def images(self) -> NDArray[np.uint8]:
        return map_images(self.path)

    def __getstate__(self) -> dict:
        # a spawned worker maps the file again; the pixels are not copied to it
        return {name: value for name, value in self.__dict__.items() if name != "images"}

    def __len__(self) -> int:
        return self.num_episodes

    def plan(self, index: int) -> Plan:
        """The episode without its pixels."""
        epoch, episode = divmod(index, self.num_episodes)
        return plan_episode((*self.key, epoch, episode), len(self.rows), self.images.shape[1], self.width, self.length)

    def __getitem__(self, index: int) -> EpisodeBatch:
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[int]) -> EpisodeBatch:
        """A batch in one go: one gather for all its pixels."""
        plans = Plan(*(np.stack(field) for field in zip(*(self.plan(index) for index in indices), strict=True)))
        ink_bthw = self.images[self.rows[plans.classes], plans.drawers]
        return EpisodeBatch(
            torch.from_numpy(ink_bthw).unsqueeze(2).float() / 255,
            torch.from_numpy(plans.labels),
            torch.from_numpy(plans.showing),
            torch.from_numpy(plans.classes),
        )


class EpisodeSampler(EpochSampler):
    """Batches of `epoch * num_items + i`, so that the index alone tells the dataset which episode is meant."""

    def _items(self) -> list[int]:
        return [self.epoch * self.num_items + item for item in super()._items()]


def as_is(batch: EpisodeBatch) -> EpisodeBatch:
    """The collate function: the dataset returns whole batches."""
    return batch
