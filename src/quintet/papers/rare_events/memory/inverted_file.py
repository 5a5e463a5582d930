"""Search with an inverted file of faiss: keys in lists by their nearest centroid, of which a query scans a few.

Legend: B queries, N filled rows, d width, k neighbours.
"""

from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor

from quintet.papers.rare_events.memory.config import MemoryConfig
from quintet.papers.rare_events.memory.search import IndexedSearch

RETRAIN_AFTER = 4  # so many times the number of keys that the centroids were learned from have been written
POINTS_PER_LIST = 39  # the least that faiss recommends


class InvertedFileSearch(IndexedSearch):
    """faiss' IndexIVFFlat, whose rows can be changed in place (HNSW cannot remove keys).

    The centroids are learned again after RETRAIN_AFTER times as many writes as they were learned from, because a memory
    grows and its keys move while the network is trained. They are buffers, so that a resumed run searches the same
    lists. Queries and changed keys on a GPU are copied to the CPU.
    """

    centroids: Tensor  # (lists, d)
    learned: Tensor  # (3,) int64: number of centroids, number of keys they were learned from, writes since then

    def __init__(self, config: MemoryConfig) -> None:
        super().__init__(config)
        self.register_buffer("centroids", torch.zeros(config.lists, config.width))
        self.register_buffer("learned", torch.zeros(3, dtype=torch.int64))

    def build(self, keys_nd: Tensor) -> Any:
        faiss: Any = import_module("faiss")  # its generated names are unknown to the type checker

        lists = int(self.learned[0])
        if not lists:
            lists = self._learn(keys_nd)
        quantizer = faiss.IndexFlatIP(self.config.width)
        index = faiss.IndexIVFFlat(quantizer, self.config.width, lists, faiss.METRIC_INNER_PRODUCT)
        quantizer.add(_array(self.centroids[:lists]))
        index.is_trained = True
        index.set_direct_map_type(faiss.DirectMap.Array)
        return index

    def _learn(self, keys_nd: Tensor) -> int:
        import faiss

        lists = max(1, min(self.config.lists, len(keys_nd) // POINTS_PER_LIST))
        count = min(len(keys_nd), lists * POINTS_PER_LIST)
        some = torch.arange(count) * len(keys_nd) // count  # spread over the memory
        settings = {"niter": 8, "spherical": True, "seed": self.config.seed + 1, "min_points_per_centroid": 1}
        kmeans = faiss.Kmeans(self.config.width, lists, **settings)
        kmeans.train(_array(keys_nd[some.to(keys_nd.device)]))
        with torch.no_grad():
            self.centroids[:lists] = torch.from_numpy(kmeans.centroids).to(self.centroids.device)
            self.learned.copy_(torch.tensor([lists, len(keys_nd), 0]))
        return lists

    def nearest(self, query_bd: Tensor, keys_nd: Tensor, k: int) -> tuple[Tensor, Tensor]:
        lists, known, written = self.learned.tolist()
        if lists and written >= RETRAIN_AFTER * known:
            self.reset()
        return super().nearest(query_bd, keys_nd, k)

    def update(self, index: Any, slot_n: Tensor, key_nd: Tensor) -> None:
        old = int((slot_n < index.ntotal).sum())
        if old:
            index.update_vectors(_array(slot_n[:old]), _array(key_nd[:old]))
        if old < len(slot_n):
            index.add(_array(key_nd[old:]))

    def approximate(self, index: Any, query_bd: Tensor, keys_nd: Tensor, k: int) -> tuple[Tensor, Tensor]:
        import faiss

        faiss.omp_set_num_threads(torch.get_num_threads())
        only: dict[str, Any] = {"nprobe": min(self.config.faiss_probes, index.nlist)}
        if index.ntotal > len(keys_nd):  # exclude rows that are not filled any more
            only["sel"] = faiss.IDSelectorRange(0, len(keys_nd))
        found = index.search(_array(query_bd), k, params=faiss.SearchParametersIVF(**only))
        similarity_bk, slot_bk = (torch.from_numpy(part).to(query_bd.device) for part in found)
        return similarity_bk.masked_fill(slot_bk < 0, -torch.inf), slot_bk

    def changed(self, slot_b: Tensor) -> None:
        super().changed(slot_b)
        self.learned[2] += len(slot_b)

    def reset(self) -> None:
        super().reset()
        self.learned.zero_()

    @property
    def index_bytes(self) -> int:
        """Bytes of faiss' copy of the keys, their numbers and the direct map, and the centroids."""
        if self._index is None:
            return 0
        return self._index.rows * (4 * self.config.width + 16) + 4 * self.config.width * self._index.body.nlist

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *rest: Any) -> None:
        given = state_dict.get(prefix + "centroids")
        if given is None or given.shape != self.centroids.shape:  # trained with another search, or with other settings
            self.reset()
            return
        super()._load_from_state_dict(state_dict, prefix, *rest)


def _array(tensor: Tensor) -> np.ndarray:
    return np.ascontiguousarray(tensor.detach().cpu().numpy())
