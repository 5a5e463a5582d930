"""Locality-sensitive hashing with random hyperplanes and multi-probing, for large memories (section 3).

Legend: B queries, T tables, H bits of a table, k neighbours, m slots, N filled rows.
"""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numba import njit
from torch import Tensor

from quintet.common.errors import UserError
from quintet.papers.rare_events.memory.config import MemoryConfig
from quintet.papers.rare_events.memory.search import IndexedSearch

# allows reordering the sum of a dot product, which vector instructions need
_FAST = {"reassoc", "contract", "nsz", "arcp"}


class LshSearch(IndexedSearch):
    """T tables of 2^H buckets. A query is compared with all keys of its own and the nearest other buckets.

    Buckets are linked lists of slots, so that a changed key moves in constant time. The result depends on the keys
    only, not on the order in which they were written. On the CPU only.
    """

    planes: Tensor  # (T * H, d) normals of the hyperplanes

    def __init__(self, config: MemoryConfig) -> None:
        super().__init__(config)
        random = torch.Generator().manual_seed(config.seed)
        planes = torch.randn(config.lsh_tables * config.hash_bits, config.width, generator=random)
        self.register_buffer("planes", planes, persistent=False)

    def build(self, keys_nd: Tensor) -> "Buckets":
        if keys_nd.device.type != "cpu":
            raise UserError("model.memory.search=lsh works on the CPU only: use search=exact on a GPU")
        return Buckets(self.config.lsh_tables, self.config.hash_bits, self.config.slots)

    def update(self, index: "Buckets", slot_n: Tensor, key_nd: Tensor) -> None:
        code_nt = self._hash(key_nd)[0]
        relink(index.head_tc, index.next_tm, index.before_tm, index.code_tm, slot_n.numpy(), code_nt.numpy())

    def approximate(self, index: "Buckets", query_bd: Tensor, keys_nd: Tensor, k: int) -> tuple[Tensor, Tensor]:
        code_bt, distance_bth = self._hash(query_bd)
        flips = (self.config.lsh_probes - 1).bit_length()  # so many least certain bits are tried with both values
        mask_btf = 1 << distance_bth.argsort(dim=2)[:, :, :flips].contiguous().numpy()
        similarity_bk = np.full((len(query_bd), k), -np.inf, np.float32)
        slot_bk = np.full((len(query_bd), k), -1, np.int64)
        query, keys, code = (part.contiguous().numpy() for part in (query_bd, keys_nd, code_bt))

        def part(rows: slice) -> None:
            out = similarity_bk[rows], slot_bk[rows]
            probe(query[rows], keys, code[rows], mask_btf[rows], index.head_tc, index.next_tm, *out)

        threads = min(torch.get_num_threads(), len(query_bd))
        bounds = np.linspace(0, len(query_bd), threads + 1).astype(int)
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(lambda i: part(slice(bounds[i], bounds[i + 1])), range(threads)))
        found = torch.from_numpy(similarity_bk).sort(dim=1, descending=True)
        return found.values, torch.from_numpy(slot_bk).gather(1, found.indices)

    def _hash(self, x_bd: Tensor) -> tuple[Tensor, Tensor]:
        """Bucket (B, T) and distance from each of its hyperplanes (B, T, H)."""
        side_bth = (x_bd @ self.planes.T).unflatten(1, (self.config.lsh_tables, -1))
        weight_h = 1 << torch.arange(side_bth.shape[2])
        return ((side_bth > 0) * weight_h).sum(2), side_bth.abs()

    @property
    def index_bytes(self) -> int:
        return 0 if self._index is None else self._index.body.nbytes


class Buckets:
    """Doubly linked lists: the first slot of each bucket; the next and previous slot and the bucket of each slot."""

    def __init__(self, tables: int, bits: int, slots: int) -> None:
        self.head_tc = np.full((tables, 2**bits), -1, np.int32)
        self.next_tm, self.before_tm, self.code_tm = (np.full((tables, slots), -1, np.int32) for _ in range(3))

    @property
    def nbytes(self) -> int:
        return self.head_tc.nbytes + 3 * self.next_tm.nbytes


@njit(cache=True, nogil=True)
def relink(head_tc, next_tm, before_tm, code_tm, slot_n, code_nt):
    """Move every slot from its old bucket, if it has one, to its new bucket."""
    for t in range(head_tc.shape[0]):
        for n in range(slot_n.size):
            slot, old, new = slot_n[n], code_tm[t, slot_n[n]], code_nt[n, t]
            if old == new:
                continue
            if old >= 0:
                before, after = before_tm[t, slot], next_tm[t, slot]
                if before >= 0:
                    next_tm[t, before] = after
                else:
                    head_tc[t, old] = after
                if after >= 0:
                    before_tm[t, after] = before
            first = head_tc[t, new]
            if first >= 0:
                before_tm[t, first] = slot
            next_tm[t, slot], before_tm[t, slot] = first, -1
            head_tc[t, new], code_tm[t, slot] = slot, new


@njit(cache=True, nogil=True, fastmath=_FAST)
def _dot(a_d, b_d):
    total = np.float32(0)
    for i in range(a_d.size):
        total += a_d[i] * b_d[i]
    return total


@njit(cache=True, nogil=True)
def probe(query_bd, keys_nd, code_bt, mask_btf, head_tc, next_tm, similarity_bk, slot_bk):
    """Keep the k best of all keys in each query's buckets, in a heap whose root is the worst of them."""
    seen_n = np.full(keys_nd.shape[0], -1, np.int32)
    for b in range(query_bd.shape[0]):
        for t in range(code_bt.shape[1]):
            for combination in range(1 << mask_btf.shape[2]):
                bucket = code_bt[b, t]
                for f in range(mask_btf.shape[2]):
                    if combination >> f & 1:
                        bucket ^= mask_btf[b, t, f]
                slot = head_tc[t, bucket]
                while slot >= 0:
                    if slot < seen_n.size and seen_n[slot] != b:  # beyond: a row that is not filled any more
                        seen_n[slot] = b
                        similarity = _dot(query_bd[b], keys_nd[slot])
                        if similarity > similarity_bk[b, 0]:
                            _replace_worst(similarity_bk[b], slot_bk[b], similarity, slot)
                    slot = next_tm[t, slot]


@njit(cache=True, nogil=True)
def _replace_worst(similarity_k, slot_k, similarity, slot):
    at, k = 0, similarity_k.size
    while True:
        child = 2 * at + 1
        if child >= k:
            break
        if child + 1 < k and similarity_k[child + 1] < similarity_k[child]:
            child += 1
        if similarity_k[child] >= similarity:
            break
        similarity_k[at], slot_k[at] = similarity_k[child], slot_k[child]
        at = child
    similarity_k[at], slot_k[at] = similarity, slot
