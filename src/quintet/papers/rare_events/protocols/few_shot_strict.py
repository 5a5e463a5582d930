"""Strict N-way k-shot accuracy, as in Vinyals et al. 2016: first k examples of every class, then only queries."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from quintet.common.errors import UserError
from quintet.papers.rare_events.protocols.few_shot import FewShot, plan_episodes


class FewShotStrict(FewShot):
    """The memory is written with the k examples of every class (k rounds in random order), then frozen.

    queries: number of drawings of each class that are classified, none of them among the examples.
    """

    name = "few_shot_strict"

    def __init__(self, ways: Sequence[int] = (5, 20), shots: Sequence[int] = (1, 5), episodes: int = 1000,
                 embedding: str = "network", store: str = "auto", seed: int = 0, parallel: int = 100,
                 queries: int = 1) -> None:  # fmt: skip
        super().__init__(ways, shots, episodes, embedding, store, seed, parallel)
        self.queries = queries
        if queries < 1:
            raise UserError(f"protocol.queries={queries} must be at least 1")

    def drawings(self) -> int:
        return max(self.shots) + self.queries

    def measure(self, module, keys_cdx: Tensor, way: int) -> dict[int, np.ndarray]:
        return {shot: self._accuracy(module, keys_cdx, way, shot) for shot in self.shots}

    def _accuracy(self, module, keys_cdx: Tensor, way: int, shot: int) -> np.ndarray:
        support = way * shot
        length = support + way * self.queries
        plan = plan_episodes(self.episodes, len(keys_cdx), keys_cdx.shape[1], way, length, self.seed)
        right = []
        for stores, keys_etd, labels_et in self.batches(module, keys_cdx, plan, stored=support):
            for t in range(support):
                stores.write(keys_etd[:, t], labels_et[:, t])
            answers_eq = stores.answer(keys_etd[:, support:])
            right.append((answers_eq == labels_et[:, support:]).float().mean(1).cpu())
        return torch.cat(right).numpy()
