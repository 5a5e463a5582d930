"""What the two few-shot protocols share: unit keys of all test drawings, episodes in parallel, means and intervals.

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
    """Unit vectors (C, D, d) of all drawings: the memory's queries, or raw pixels with their white background.

    Cosine between raw pixels (white = 1, ink = 0) is the baseline of Vinyals et al. 2016, which the paper's table
    repeats; on ink = 1 instead it is 6 to 10 points better. `module` may be None for pixels.
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
    """`count` episodes as arrays (E, T): the data module's kind of episode, with keys of the protocols' own."""
    plans = (plan_episode((seed, 3, way, e), num_classes, num_drawers, way, length) for e in range(count))
    return Plan(*(np.stack(field) for field in zip(*plans, strict=True)))


class Stores:
    """E memories side by side that start empty and never get full; each answers and learns as if it were alone.

    merge: a right answer moves the nearest key to the middle, as the memory does (section 3.1 of the paper); without
    it every example is kept, which makes it a nearest-neighbour classifier.
    """

    def __init__(self, episodes: int, room: int, width: int, merge: bool, device: torch.device | str = "cpu") -> None:
        self.keys = torch.zeros(episodes, room, width, device=device)
        self.values = torch.full((episodes, room), -1, device=device)
        self.filled = torch.zeros(episodes, dtype=torch.int64, device=device)
        self.merge = merge

    def nearest(self, query_eqd: Tensor) -> Tensor:
        """Index (E, Q) of the nearest stored key; slot 0, whose value is -1, while there is none."""
        used = max(int(self.filled.max()), 1)
        similarity_eqn = query_eqd @ self.keys[:, :used].mT
        empty_en = torch.arange(used, device=self.keys.device) >= self.filled[:, None]
        return similarity_eqn.masked_fill(empty_en[:, None], -torch.inf).argmax(2)

    def answer(self, query_eqd: Tensor) -> Tensor:
        """Value (E, Q) of the nearest key, -1 while there is none."""
        return self.values.gather(1, self.nearest(query_eqd))

    def write(self, query_ed: Tensor, value_e: Tensor) -> None:
        """One example for each of the E memories."""
        everyone = torch.arange(len(query_ed), device=query_ed.device)
        nearest_e = self.nearest(query_ed[:, None])[:, 0]
        hit_e = (self.values[everyone, nearest_e] == value_e) & self.merge
        slot_e = torch.where(hit_e, nearest_e, self.filled)
        moved_ed = F.normalize(self.keys[everyone, slot_e] + query_ed, dim=1)
        self.keys[everyone, slot_e] = torch.where(hit_e[:, None], moved_ed, query_ed)
        self.values[everyone, slot_e] = value_e
        self.filled += ~hit_e


class OneMemory:
    """As `Stores`, one episode in a real Memory: for approximate search, or fewer slots than images."""

    def __init__(self, memory) -> None:
        self.memory = memory

    def answer(self, query_eqd: Tensor) -> Tensor:
        return self.memory.read(query_eqd[0]).value[None]

    def write(self, query_ed: Tensor, value_e: Tensor) -> None:
        self.memory.write(query_ed, value_e)


class FewShot:
    """Accuracy on test classes for every number of `ways` and `shots`, over `episodes` episodes of each number of ways.

    embedding: `network`, or `pixels` for the baseline. store: how examples are kept; `memory` by the memory's rules,
    `examples` every one of them; `auto` is the first for a network and the second for pixels.
    Writes `<run_dir>/<name>/accuracy.csv`. Intervals are 1.96 standard errors of the mean over episodes.
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
                raise UserError(f"protocol.{key}={list(numbers)}: give a list of numbers from 1")
        if episodes < 2 or parallel < 1:
            raise UserError(f"protocol.episodes={episodes}, parallel={parallel}: give 2 or more, and 1 or more")

    @torch.no_grad()
    def __call__(self, module, datamodule, run_dir: Path) -> dict[str, float]:
        images_cdss = datamodule.images("test")
        self._check(*images_cdss.shape[:2])
        keys_cdx = unit_keys(module, images_cdss, self.embedding)
        name = self.name + ("_pixels" if self.embedding == "pixels" else "")
        metrics, rows = {}, []
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
        """How many different drawings of a class an episode needs."""
        raise NotImplementedError

    def measure(self, module, keys_cdx: Tensor, way: int) -> dict[int, np.ndarray]:
        """Accuracy of every episode (E,), by number of shots."""
        raise NotImplementedError

    def _check(self, classes: int, drawers: int) -> None:
        if max(self.ways) > classes:
            raise UserError(f"protocol.ways={list(self.ways)}: the test split has {classes} classes")
        if self.drawings() > drawers:
            raise UserError(
                f"protocol.shots={list(self.shots)} needs {self.drawings()} drawings of a class, the data has {drawers}"
            )

    def batches(self, module, keys_cdx: Tensor, plan: Plan, stored: int):
        """(stores, keys (E, T, d), labels (E, T)) of some episodes at a time; `stored` images of each are written."""
        merge = self.store == "memory" or (self.store == "auto" and self.embedding == "network")
        memory = None
        if merge and self.embedding == "network":
            memory = module.blank_memory(int(plan.labels.max()) + 1)
            if memory.config.search == "exact" and memory.config.slots >= stored:
                memory = None  # its answers are those of `Stores`
        size = self.parallel if memory is None else 1
        device = keys_cdx.device
        classes, drawers, labels = (torch.from_numpy(a).to(device) for a in (plan.classes, plan.drawers, plan.labels))
        for e in range(0, len(labels), size):
            some = slice(e, e + size)
            keys_etd = keys_cdx[classes[some], drawers[some]]
            episodes, _, width = keys_etd.shape
            if memory is None:
                yield Stores(episodes, stored, width, merge, device), keys_etd, labels[some]
            else:  # a new one: a cleared memory would go on with its random numbers where the last episode stopped
                yield OneMemory(module.blank_memory(memory.num_values)), keys_etd, labels[some]


def mean_and_interval(accuracy_e: np.ndarray) -> tuple[float, float]:
    """Mean over episodes and half of its 95% interval."""
    return float(accuracy_e.mean()), float(1.96 * accuracy_e.std(ddof=1) / math.sqrt(len(accuracy_e)))
