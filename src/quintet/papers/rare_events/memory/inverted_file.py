"""faiss' inverted file as a memory's search: keys in lists by their nearest centroid, a query scans a few lists.

Legend: B queries, N filled rows, d width, k neighbours.
"""

import numpy as np
import torch
from torch import Tensor

from quintet.papers.rare_events.memory.index import IndexedSearch
from quintet.papers.rare_events.memory.memory_config import MemoryConfig

RETRAIN_AFTER = 4  # times the keys that the centroids were learned from
POINTS_PER_LIST = 39  # what faiss asks for at least


class InvertedFileSearch(IndexedSearch):
    """IndexIVFFlat, whose rows can be changed in place; HNSW, which cannot forget, would have to be built anew.

    The centroids are learned again each time four times as many keys as they were learned from have been written,
    because a memory grows and its keys move while the network learns. They are buffers, so that a resumed run searches
    the same lists. On a GPU the queries and the changed keys travel to the CPU.
    """

    def __init__(self, config: MemoryConfig) -> None:
        super().__init__(config)
        self.register_buffer("centroids", torch.zeros(config.lists, config.width))
        # How many centroids there are, how many keys they were learned from, how many were written since.
        self.register_buffer("learned", torch.zeros(3, dtype=torch.int64))

    def build(self, keys_nd: Tensor) -> object:
        import faiss

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
        some = torch.arange(count) * len(keys_nd) // count  # from all over the memory
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

    def update(self, index: object, slot_n: Tensor, key_nd: Tensor) -> None:
        old = int((slot_n < index.ntotal).sum())
        if old:
            index.update_vectors(_array(slot_n[:old]), _array(key_nd[:old]))
        if old < len(slot_n):
            index.add(_array(key_nd[old:]))

    def approximate(self, index: object, query_bd: Tensor, keys_nd: Tensor, k: int) -> tuple[Tensor, Tensor]:
        import faiss

        faiss.omp_set_num_threads(torch.get_num_threads())
        only = {"nprobe": min(self.config.faiss_probes, index.nlist)}
        if index.ntotal > len(keys_nd):  # rows that are no longer filled must not take the places of others
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
        """Keys, their numbers and where each lies (faiss' direct map), and the centroids."""
        if self._index is None:
            return 0
        return self._index.rows * (4 * self.config.width + 16) + 4 * self.config.width * self._index.body.nlist

    def _load_from_state_dict(self, state_dict, prefix, *rest) -> None:
        given = state_dict.get(prefix + "centroids")
        if given is None or given.shape != self.centroids.shape:  # of another search, or of other settings of this one
            self.reset()
            return
        super()._load_from_state_dict(state_dict, prefix, *rest)


def _array(tensor: Tensor) -> np.ndarray:
    return np.ascontiguousarray(tensor.detach().cpu().numpy())
