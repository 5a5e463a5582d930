"""Shared by the two few-shot protocols: keys of all test drawings, episodes in parallel, means and intervals.

Legend: C classes, D drawings of each, E episodes, T images of one, Q queries, N stored examples, d key width.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from quintet.common.errors import UserError
from quintet.common.tables import write_csv
from quintet.data.episodes.sampling import Plan, plan_episode

EMBEDDINGS = ("network", "pixels")
STORES = ("auto", "memory", "examples")


@torch.no_grad()
def unit_keys(module, images_cdss: np.ndarray, embedding: str = "network", batch: int = 512) -> Tensor:
    """Unit vectors (C, D, d) of all drawings: the memory's queries, or raw pixels with white = 1 and ink = 0.

    The cosine of raw pixels with white = 1 reproduces the baseline of Vinyals et al. 2016 that the paper's table
    repeats; with ink = 1 the baseline is 6 to 10 points better. `module` may be None for pixels.
    """
    flat_nss = images_cdss.reshape(-1, *images_cdss.shape[2:])
    chunks = (torch.from_numpy(np.array(flat_nss[i : i + batch])).float() / 255 for i in range(0, len(flat_nss), batch))
    if embedding == "pixels":
        keys = [F.normalize(1 - ink.flatten(1), dim=1) for ink in chunks]
    else:
        module.eval()
        memory = module.blank_memory(1)
        keys = [memory.query(module.embed(ink.unsqueeze(1).to(module.device))) for ink in chunks]
    return torch.cat(keys).unflatten(0, images_cdss.shape[:2])


def plan_episodes(count: int, num_classes: int, num_drawers: int, way: int, length: int, seed: int) -> Plan:
    """`count` episodes as arrays (E, T), drawn like the data module's, but with other random numbers."""
    plans = (plan_episode((seed, 3, way, e), num_classes, num_drawers, way, length) for e in range(count))
    return Plan(*(np.stack(field) for field in zip(*plans, strict=True)))


class Stores:
    """E independent memories that start empty and are never full, computed in parallel.

    merge: a right answer moves the nearest key, as in the paper's memory (section 3.1); without it every example is
    stored, which makes a nearest-neighbour classifier.
    """

    def __init__(self, episodes: int, room: int, width: int, merge: bool, device: torch.device | str = "cpu") -> None:
        self.keys = torch.zeros(episodes, room, width, device=device)
        self.values = torch.full((episodes, room), -1, device=device)
        self.filled = torch.zeros(episodes, dtype=torch.int64, device=device)
        self.merge = merge

    def nearest(self, query_eqd: Tensor) -> Tensor:
        """Slot (E, Q) of the nearest key; slot 0, whose value is -1, while there is none."""
        used = max(int(self.filled.max()), 1)
        similarity_eqn = query_eqd @ self.keys[:, :used].mT
        empty_en = torch.arange(used, device=self.keys.device) >= self.filled[:, None]
        return similarity_eqn.masked_fill(empty_en[:, None], -torch.inf).argmax(2)

    def answer(self, query_eqd: Tensor) -> Tensor:
        """Value (E, Q) of the nearest key, -1 while there is none."""
        return self.values.gather(1, self.nearest(query_eqd))

    def write(self, query_ed: Tensor, value_e: Tensor) -> None:
        """One example for each of the E memories."""
        episode_e = torch.arange(len(query_ed), device=query_ed.device)
        nearest_e = self.nearest(query_ed[:, None])[:, 0]
        match_e = (self.values[episode_e, nearest_e] == value_e) & self.merge
        slot_e = torch.where(match_e, nearest_e, self.filled)
        moved_ed = F.normalize(self.keys[episode_e, slot_e] + query_ed, dim=1)
        self.keys[episode_e, slot_e] = torch.where(match_e[:, None], moved_ed, query_ed)
        self.values[episode_e, slot_e] = value_e
        self.filled += ~match_e


class OneMemory:
    """As `Stores`, for one episode with a real Memory: for approximate search, or fewer slots than images."""

    def __init__(self, memory) -> None:
        self.memory = memory

    def answer(self, query_eqd: Tensor) -> Tensor:
        return self.memory.read(query_eqd[0]).value[None]

    def write(self, query_ed: Tensor, value_e: Tensor) -> None:
        self.memory.write(query_ed, value_e)


class FewShot:
    """Accuracy on test classes for each number of `ways` and `shots`, with `episodes` episodes for each number of ways.

    embedding: `network`, or `pixels` for the baseline. store: `memory` = by the memory's update rules, `examples` =
    every example is stored, `auto` = the first for a network and the second for pixels.
    Writes `<run_dir>/<name>/accuracy_<embedding>.csv`. ci95 is 1.96 standard errors of the mean over episodes.
    """

    name = "few_shot"

    def __init__(self, ways: Sequence[int] = (5, 20), shots: Sequence[int] = (1, 5), episodes: int = 1000,
                 embedding: str = "network", store: str = "auto", seed: int = 0,
                 parallel: int = 100) -> None:  # fmt: skip
        self.ways, self.shots, self.episodes, self.seed, self.parallel = ways, shots, episodes, seed, parallel
        self.embedding, self.store = embedding, store
        for key, value, legal in (("embedding", embedding, EMBEDDINGS), ("store", store, STORES)):
            if value not in legal:
                raise UserError(f"protocol.{key}={value}: choose {', '.join(legal)}")
        for key in ("ways", "shots"):
            numbers = getattr(self, key)
            if not numbers or min(numbers) < 1:
                raise UserError(f"protocol.{key}={list(numbers)} must be a list of numbers from 1")
        if episodes < 2 or parallel < 1:
            raise UserError(
                f"protocol.episodes={episodes}, parallel={parallel}: give at least 2 episodes, and parallel at least 1"
            )

    @torch.no_grad()
    def __call__(self, module, datamodule, run_dir: Path) -> dict[str, float]:
        images_cdss = datamodule.images("test")
        self._check(*images_cdss.shape[:2])
        keys_cdx = unit_keys(module, images_cdss, self.embedding)
        name = self.name + ("_pixels" if self.embedding == "pixels" else "")
        metrics: dict[str, float] = {}
        rows: list[tuple] = []
        for way in self.ways:
            for shot, accuracy_e in self.measure(module, keys_cdx, way).items():
                mean, interval = mean_and_interval(accuracy_e)
                metrics[f"{name}/{way}way_{shot}shot"] = mean
                metrics[f"{name}/{way}way_{shot}shot_ci95"] = interval
                rows.append((way, shot, mean, interval, self.episodes, self.embedding))
        header = ("ways", "shots", "accuracy", "ci95", "episodes", "embedding")
        write_csv(Path(run_dir) / self.name / f"accuracy_{self.embedding}.csv", header, rows)
        return metrics

    def drawings(self) -> int:
        """The number of different drawings of a class that an episode needs."""
        raise NotImplementedError

    def measure(self, module, keys_cdx: Tensor, way: int) -> dict[int, np.ndarray]:
        """Accuracy (E,) of every episode, by number of shots."""
        raise NotImplementedError

    def _check(self, classes: int, drawers: int) -> None:
        if max(self.ways) > classes:
            raise UserError(f"protocol.ways={list(self.ways)} must be at most {classes}, the classes of the test split")
        if self.drawings() > drawers:
            raise UserError(
                f"protocol.shots={list(self.shots)} needs {self.drawings()} drawings of a class, the data has {drawers}"
            )

    def batches(self, module, keys_cdx: Tensor, plan: Plan, stored: int):
        """(store, keys (E, T, d), labels (E, T)) of several episodes at a time; `stored` images of each are written."""
        merge = self.store == "memory" or (self.store == "auto" and self.embedding == "network")
        memory = None
        if merge and self.embedding == "network":
            memory = module.blank_memory(int(plan.labels.max()) + 1)
            if memory.config.search == "exact" and memory.config.slots >= stored:
                memory = None  # `Stores` has the same answers, and is faster
        size = self.parallel if memory is None else 1
        device = keys_cdx.device
        classes, drawers, labels = (torch.from_numpy(a).to(device) for a in (plan.classes, plan.drawers, plan.labels))
        for e in range(0, len(labels), size):
            some = slice(e, e + size)
            keys_etd = keys_cdx[classes[some], drawers[some]]
            episodes, _, width = keys_etd.shape
            if memory is None:
                yield Stores(episodes, stored, width, merge, device), keys_etd, labels[some]
            else:  # a new memory for each, since in a cleared one the age noise would depend on the episodes before
                yield OneMemory(module.blank_memory(memory.num_values)), keys_etd, labels[some]


def mean_and_interval(accuracy_e: np.ndarray) -> tuple[float, float]:
    """Mean over episodes and half the width of its 95% confidence interval."""
    return float(accuracy_e.mean()), float(1.96 * accuracy_e.std(ddof=1) / math.sqrt(len(accuracy_e)))
