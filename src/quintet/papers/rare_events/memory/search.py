"""Nearest keys of a memory by cosine: exact search, and the base class of lsh.py and inverted_file.py.

Legend: B queries, N filled rows, d width, k neighbours. Keys and queries are unit vectors.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from quintet.papers.rare_events.memory.config import MemoryConfig

# oneDNN, which torch.compile uses for linear layers: over twice as fast as MKL on AMD processors
_ONEDNN = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None
_EVEN_ROWS = 1024


class ExactSearch(nn.Module):
    """Compares all keys, in chunks, so that the similarities take B x chunk floats of memory for any N."""

    def __init__(self, config: MemoryConfig) -> None:
        super().__init__()
        self.config = config

    def nearest(self, query_bd: Tensor, keys_nd: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Similarities (B, k) and rows (B, k), nearest first; -inf and -1 where there are fewer than k keys."""
        # 4 M similarities stay in a processor's cache while they are searched
        rows = min(self.config.chunk_rows, max(4096, 2**22 // max(1, len(query_bd))))
        best = None
        for start in range(0, len(keys_nd), rows):
            found = top_k(cosines(query_bd, keys_nd[start : start + rows]), k)
            found = (found[0], found[1] + start)
            best = found if best is None else merge(best, found, k)
        if best is None:
            best = query_bd.new_empty(len(query_bd), 0), query_bd.new_empty((len(query_bd), 0), dtype=torch.int64)
        return pad(*best, k)

    def changed(self, slot_b: Tensor) -> None:
        """Called after these rows got new keys."""

    def reset(self) -> None:
        """Called after the memory was cleared."""

    def invalidate(self) -> None:
        """Called after any keys may have changed (a checkpoint was loaded): rebuild the index at the next search."""

    @property
    def index_bytes(self) -> int:
        """Bytes of the index, without the keys themselves."""
        return 0

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """Restore the search's state after the block; the memory restores its keys."""
        yield

    def _load_from_state_dict(self, state_dict, prefix, metadata, strict, *lists) -> None:
        # not strict: a memory that was trained with one search may be used with another
        super()._load_from_state_dict(state_dict, prefix, metadata, False, *lists)


@dataclass
class Index:
    """What `build` of a subclass returned, and the number of rows that it contains by now."""

    body: Any
    rows: int = 0


class IndexedSearch(ExactSearch):
    """Search with an index, which is updated with the changed keys just before the next search.

    Up to `exact_below` keys the search is exact and there is no index. The index may contain rows beyond the N filled
    ones, which `approximate` must leave out. Subclasses implement build, update and approximate.
    """

    def __init__(self, config: MemoryConfig) -> None:
        super().__init__(config)
        self._index: Index | None = None
        self._changed: list[Tensor] = []  # rows with new keys since the index was last updated
        self._logs: list[list[Tensor]] = []  # rows that changed within each `snapshot` block that is open

    def build(self, keys_nd: Tensor) -> Any:
        """A new index without rows; it may learn from the keys, as k-means does."""
        raise NotImplementedError

    def update(self, index: Any, slot_n: Tensor, key_nd: Tensor) -> None:
        """Set the keys of rows `slot_n`; rows that are new in the index come last, and without gaps."""
        raise NotImplementedError

    def approximate(self, index: Any, query_bd: Tensor, keys_nd: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """As `nearest`, among the first N rows of the index."""
        raise NotImplementedError

    def nearest(self, query_bd: Tensor, keys_nd: Tensor, k: int) -> tuple[Tensor, Tensor]:
        if len(keys_nd) <= self.config.exact_below or not len(query_bd):
            return super().nearest(query_bd, keys_nd, k)
        if self._index is None:
            self._index = Index(self.build(keys_nd))
        self._update_index(self._index, keys_nd)
        return self.approximate(self._index.body, query_bd, keys_nd, k)

    def _update_index(self, index: Index, keys_nd: Tensor) -> None:
        known = min(index.rows, len(keys_nd))
        parts = [torch.arange(known, len(keys_nd), device=keys_nd.device)]
        if self._changed:
            slot_n = torch.cat(self._changed).unique()
            parts.insert(0, slot_n[slot_n < known])
        for slot_n in torch.cat(parts).split(self.config.chunk_rows):
            self.update(index.body, slot_n, keys_nd[slot_n])
        index.rows = max(index.rows, len(keys_nd))
        self._changed.clear()

    def changed(self, slot_b: Tensor) -> None:
        for log in (self._changed, *self._logs):
            log.append(slot_b)

    def reset(self) -> None:
        self.invalidate()

    def invalidate(self) -> None:
        self._index = None
        self._changed.clear()

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        index, changed = self._index, list(self._changed)
        log: list[Tensor] = []
        buffers = {name: buffer.clone() for name, buffer in self.named_buffers()}
        self._logs.append(log)
        try:
            yield
        finally:
            self._logs.pop()
            # Rows written in the block are indexed again with their old keys. An index that was built in the block, for
            # example after `clear`, is dropped.
            self._index, self._changed = index, [*changed, *log]
            with torch.no_grad():
                for name, buffer in self.named_buffers():
                    buffer.copy_(buffers[name])

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_index": None, "_changed": [], "_logs": []}  # a copy builds its own index


@torch.no_grad()
def recall(search: ExactSearch, query_bd: Tensor, keys_nd: Tensor, k: int) -> tuple[float, float]:
    """Recall@1 and recall@k: the fraction of the k nearest keys by exact search that were found, ties counted."""
    found_bk = search.nearest(query_bd, keys_nd, k)[0]
    true_bk = ExactSearch(search.config).nearest(query_bd, keys_nd, k)[0]
    wanted_b = (true_bk > -torch.inf).sum(1)
    last_b1 = true_bk.gather(1, (wanted_b - 1).clamp(min=0)[:, None])
    hits_b = (found_bk >= last_b1 - 1e-5).sum(1).minimum(wanted_b)
    return float((found_bk[:, 0] >= true_bk[:, 0] - 1e-5).float().mean()), float((hits_b / wanted_b).mean())


def cosines(query_bd: Tensor, keys_nd: Tensor) -> Tensor:
    """Products (B, N) of unit queries and keys."""
    # oneDNN compiles code for every new shape: worth it for whole chunks and full memories, not while one grows
    even = query_bd.device.type == "cpu" and len(query_bd) > 1 and len(keys_nd) and not len(keys_nd) % _EVEN_ROWS
    if even and _ONEDNN is not None and not torch.is_grad_enabled():
        return _ONEDNN(query_bd, keys_nd, None, "none", [], "")
    return query_bd @ keys_nd.T


def top_k(similarity_bn: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row and their columns, largest first; all of them where there are fewer."""
    n = similarity_bn.shape[1]
    if k == 1 and n:
        best = similarity_bn.max(1, keepdim=True)
        return best.values, best.indices
    if n <= k or similarity_bn.device.type != "cpu":
        found = similarity_bn.topk(min(k, n), dim=1)
        return found.values, found.indices
    # numpy selects with vector instructions: two to four times as fast as torch on a CPU, but in one thread
    threads = torch.get_num_threads() if similarity_bn.numel() >= 2**20 else 1
    parts = [part.numpy() for part in similarity_bn.tensor_split(threads)]
    if threads == 1:
        values, rows = _largest(parts[0], k)
    else:
        with ThreadPoolExecutor(threads) as pool:
            values, rows = map(np.concatenate, zip(*pool.map(_largest, parts, [k] * threads), strict=True))
    return torch.from_numpy(values), torch.from_numpy(rows)


def _largest(similarity_bn: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    rows_bk = np.argpartition(similarity_bn, -k, axis=1)[:, -k:]
    kept_bk = np.take_along_axis(similarity_bn, rows_bk, 1)
    order_bk = np.argsort(kept_bk, axis=1)[:, ::-1]
    return np.take_along_axis(kept_bk, order_bk, 1), np.take_along_axis(rows_bk, order_bk, 1)


def merge(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor], k: int) -> tuple[Tensor, Tensor]:
    """The k nearest among two lists of (similarities, rows)."""
    similarity, rows = (torch.cat(pair, 1) for pair in zip(one, other, strict=True))
    kept, order = top_k(similarity, k)
    return kept, rows.gather(1, order)


def pad(similarity_bn: Tensor, rows_bn: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Both padded to k columns, with -inf and -1."""
    missing = k - similarity_bn.shape[1]
    if not missing:
        return similarity_bn, rows_bn
    return F.pad(similarity_bn, (0, missing), value=-torch.inf), F.pad(rows_bn, (0, missing), value=-1)
