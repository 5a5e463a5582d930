"""Nearest keys of a memory by cosine: exact over every filled row.

Legend: B queries, N filled rows, d width, k neighbours, R rows of one chunk. Keys and queries are unit vectors.
"""

import torch
from torch import Tensor
from torch.nn import functional as nnf


class ExactSearch:
    """Every key is compared; chunks of `chunk_rows` rows keep the similarities at B x R floats, whatever N is."""

    def __init__(self, chunk_rows: int = 65536) -> None:
        self.chunk_rows = chunk_rows

    def nearest(self, query_bd: Tensor, keys_nd: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Similarities (B, k) and rows (B, k), nearest first; -inf and -1 where there are fewer than k keys."""
        best = None
        for start in range(0, len(keys_nd), self.chunk_rows):
            found = top_k(query_bd @ keys_nd[start : start + self.chunk_rows].T, k)
            found = (found[0], found[1] + start)
            best = found if best is None else merge(best, found, k)
        if best is None:
            best = query_bd.new_empty(len(query_bd), 0), query_bd.new_empty((len(query_bd), 0), dtype=torch.int64)
        return pad(*best, k)


def top_k(similarity_bn: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row, largest first, or all of them where there are fewer."""
    if k == 1 and similarity_bn.shape[1]:
        found = similarity_bn.max(1, keepdim=True)
    else:
        found = similarity_bn.topk(min(k, similarity_bn.shape[1]), dim=1)
    return found.values, found.indices


def merge(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor], k: int) -> tuple[Tensor, Tensor]:
    """The k nearest among two lists of (similarities, rows)."""
    similarity, rows = (torch.cat(pair, 1) for pair in zip(one, other, strict=True))
    kept, order = top_k(similarity, k)
    return kept, rows.gather(1, order)


def pad(similarity_bn: Tensor, rows_bn: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Both widened to k columns with -inf and -1."""
    missing = k - similarity_bn.shape[1]
    if not missing:
        return similarity_bn, rows_bn
    return nnf.pad(similarity_bn, (0, missing), value=-torch.inf), nnf.pad(rows_bn, (0, missing), value=-1)
