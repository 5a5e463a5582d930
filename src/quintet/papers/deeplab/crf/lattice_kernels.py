"""Compiled building of a permutohedral lattice on the CPU: the simplex of each pixel, its vertices, their neighbours.

The same numbers as `permutohedral.build` (keys, weights), by hashing instead of sorting. Parts of an image are done by
threads, each with rows of its own; a vertex that several parts touch is owned by the first, and its other rows are
ghosts. Legend: n pixel, d feature, k vertex of a simplex (d + 1 of them), r row, j direction (d + 1 of them).
"""

import numpy as np
from numba import njit

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_EMPTY = np.int64(-1)
REMAINDER_BITS = 3  # of a key: which of the d + 1 kinds of vertex; above them the coordinates


@njit(cache=True, nogil=True)
def _find(table, key):
    """Where key is in the hash table, or the empty place where it belongs; its size is a power of two."""
    mask = table.shape[0] - 1
    mixed = np.uint64(key ^ (key >> 31)) * _GOLDEN  # or the last coordinates would not reach the bits that are used
    place = np.int64(mixed >> np.uint64(32)) & mask
    while table[place, 0] != key and table[place, 0] != _EMPTY:
        place = (place + 1) & mask
    return place


@njit(cache=True, nogil=True)
def _table(keys_r, size, capacity):
    """Hash table (capacity, 2) of key and row."""
    table = np.empty((capacity, 2), np.int64)
    table[:, 0] = _EMPTY
    for r in range(size):
        place = _find(table, keys_r[r])
        if table[place, 0] == _EMPTY:
            table[place, 0], table[place, 1] = keys_r[r], r
    return table


@njit(cache=True, nogil=True, error_model="numpy")
def _simplex(feature_d, scale_d, elevated_k, base_k, rank_k, weight_k):
    """The simplex around one point and its barycentric weights (Adams et al. 2010, section 3), as pydensecrf rounds.

    base: multiples of d + 1 of the nearest remainder-0 point; rank: place of each coordinate's difference from it.
    """
    depth = scale_d.size + 1
    up, down = np.float32(depth), np.float32(1) / np.float32(depth)
    total = np.float32(0)
    for j in range(depth - 1, 0, -1):
        x = feature_d[j - 1] * scale_d[j - 1]
        elevated_k[j] = total - np.float32(j) * x
        total += x
    elevated_k[0] = total
    excess = 0
    for i in range(depth):
        base_k[i] = np.int64(np.rint(down * elevated_k[i]))
        excess += base_k[i]
        rank_k[i] = 0
    for i in range(depth - 1):
        here = elevated_k[i] - np.float32(base_k[i]) * up
        for j in range(i + 1, depth):
            lower = here < elevated_k[j] - np.float32(base_k[j]) * up
            rank_k[i] += lower
            rank_k[j] += not lower
    for i in range(depth):
        rank_k[i] += excess
        wrap = 1 if rank_k[i] < 0 else (-1 if rank_k[i] >= depth else 0)
        rank_k[i] += wrap * depth
        base_k[i] += wrap
    weight_k[:] = 0
    for i in range(depth):
        x = (elevated_k[i] - np.float32(base_k[i]) * up) * down
        weight_k[depth - 1 - rank_k[i]] += x
        if rank_k[i] > 0:
            weight_k[depth - rank_k[i]] -= x
        else:
            weight_k[0] += np.float32(1) - x


@njit(cache=True, nogil=True)
def simplices(feature_nd, scale_d, bits, start, stop, vertex_nk, weight_nk):
    """Fill vertex (rows of this part, from 0) and weight of pixels start..stop; returns the keys of the rows.

    No keys at all: a coordinate does not fit into its `bits`.
    """
    depth, half = scale_d.size + 1, np.int64(1) << (bits - 1)
    elevated_k = np.empty(depth, np.float32)
    base_k, rank_k = np.empty(depth, np.int64), np.empty(depth, np.int64)
    base_before_k, rank_before_k = np.full(depth, half), np.zeros(depth, np.int64)
    keys, size = np.empty(1 << 14, np.int64), 0
    table = _table(keys, 0, 2 * keys.size)
    for n in range(start, stop):
        _simplex(feature_nd[n], scale_d, elevated_k, base_k, rank_k, weight_nk[n])
        same = True
        for i in range(depth):
            same &= base_k[i] == base_before_k[i] and rank_k[i] == rank_before_k[i]
            base_before_k[i], rank_before_k[i] = base_k[i], rank_k[i]
            if abs(base_k[i]) > half - 4:
                return keys[:0]
        if same:  # as neighbouring pixels often are
            vertex_nk[n] = vertex_nk[n - 1]
            continue
        if size + depth > keys.size:
            grown = np.empty(2 * keys.size, np.int64)
            grown[:size] = keys[:size]
            keys, table = grown, _table(grown, size, 2 * grown.size)
        for k in range(depth):
            key = np.int64(k)
            for i in range(depth - 1):
                q = base_k[i] + half - (rank_k[i] >= depth - k)
                key += q << (REMAINDER_BITS + bits * i)
            place = _find(table, key)
            if table[place, 0] == _EMPTY:
                table[place, 0], table[place, 1], keys[size] = key, size, key
                size += 1
            vertex_nk[n, k] = table[place, 1]
    return keys[:size].copy()


@njit(cache=True, nogil=True)
def shift(vertex_nk, start, stop, offset):
    """Number the rows of a part from `offset` on."""
    for n in range(start, stop):
        for k in range(vertex_nk.shape[1]):
            vertex_nk[n, k] += offset


@njit(cache=True, nogil=True)
def merge(keys_r):
    """Hash table of all parts' keys, the owner of each row, and the rows that own no vertex."""
    capacity = 1 << 15
    while capacity < 2 * keys_r.size:
        capacity *= 2
    table = _table(keys_r, keys_r.size, capacity)
    owner_r = np.empty(keys_r.size, np.int32)
    for r in range(keys_r.size):
        owner_r[r] = table[_find(table, keys_r[r]), 1]
    return table, owner_r


@njit(cache=True, nogil=True)
def chains(keys_r, owner_r, table, bits, depth, j):
    """All maximal runs of two or more vertices in direction j, one after the other, and where each starts.

    The next vertex in direction j has every coordinate 1 lower and coordinate j `depth` higher. A vertex alone in its
    run is left out: blurring does not change it.
    """
    ones = np.int64(0)
    for i in range(depth - 1):
        ones += np.int64(1) << (REMAINDER_BITS + bits * i)
    further = np.int64(1) << (REMAINDER_BITS + bits * j) if j < depth - 1 else np.int64(0)
    size = keys_r.size
    next_r, inner_r = np.full(size, -1, np.int32), np.zeros(size, np.bool_)
    for r in range(size):
        if owner_r[r] == r:
            wrap = (keys_r[r] & 7) == 0  # the remainder falls from 0 to depth - 1, the multiples by one
            key = keys_r[r] + (depth - 1 - ones if wrap else -1) + further
            place = _find(table, key)
            if table[place, 0] == key:
                next_r[r] = table[place, 1]
                inner_r[next_r[r]] = True
    out, starts = np.empty(size, np.int32), np.empty(size // 2 + 1, np.int64)
    filled, count = 0, 0
    for r in range(size):
        if next_r[r] >= 0 and not inner_r[r]:
            starts[count] = filled
            count += 1
            row = r
            while row >= 0:
                out[filled] = row
                filled, row = filled + 1, next_r[row]
    starts[count] = filled
    return out[:filled].copy(), starts[: count + 1].copy()
