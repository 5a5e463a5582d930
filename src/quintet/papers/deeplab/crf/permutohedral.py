"""Gaussian filtering of many values in high dimensions on the permutohedral lattice (Adams, Baek & Davis 2010).

Plain tensor operations, CPU and GPU; the rounding, the blur and the scale are those of Krähenbühl & Koltun's code,
which pydensecrf wraps. Legend: n point, d feature, k vertex of its simplex (d + 1 of them), v vertex of the lattice,
j direction of the blur (d + 1 of them), e entry (a point's share in a vertex), c value.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from quintet.common.errors import UserError

REMAINDER_BITS = 3  # of a key: which of the d + 1 kinds of vertex; above them the coordinates
TOO_FINE = "the CRF's standard deviations are too small for an image of this size: raise crf.sa, crf.sb or crf.sg"


def key_bits(dimensions: int) -> int:
    """How many bits of a 63-bit key each coordinate has."""
    return (63 - REMAINDER_BITS) // dimensions


def scales(dimensions: int) -> np.ndarray:
    """What features are multiplied by, so that the lattice's own blur has standard deviation 1 (section 3.1)."""
    deviation = np.float32(np.sqrt(2.0 / 3.0) * (dimensions + 1))
    return np.array([1 / np.sqrt((i + 2) * (i + 1)) * float(deviation) for i in range(dimensions)], np.float32)


def slice_scale(dimensions: int) -> float:
    """The constant that the authors' slicing multiplies by; normalized filters do not depend on it."""
    return 1 / (1 + 2.0**-dimensions)


@dataclass(frozen=True)
class Lattice:
    """A lattice with the points it was built for; row V of the values stands for all absent vertices and is 0."""

    vertex_nk: Tensor  # int64
    weight_nk: Tensor  # float32 barycentric
    point_e: Tensor  # the same entries by vertex
    share_e: Tensor
    start_v: Tensor  # (V + 1,) first entry of each vertex
    around_jv3: Tensor  # (d + 1, V + 1, 3) the vertex itself, the one after and the one before it

    def filter(self, x_nc: Tensor) -> Tensor:
        """Splat, blur, slice: sum of exp(-|f_n - f_m|^2 / 2) x_m, up to a constant and the lattice's approximation."""
        v_vc = _weighted(x_nc, self.point_e, self.share_e, self.start_v)
        half_v3 = x_nc.new_tensor([1.0, 0.5, 0.5]).repeat(len(v_vc), 1)
        for around_v3 in self.around_jv3:
            v_vc = _weighted(v_vc, around_v3, half_v3)
        return _weighted(v_vc, self.vertex_nk, self.weight_nk * slice_scale(self.vertex_nk.shape[1] - 1))

    def normaliser(self) -> Tensor:
        """(N,) what the filter gives for ones: dividing by it is the authors' NORMALIZE_AFTER."""
        return self.filter(self.weight_nk.new_ones(len(self.vertex_nk), 1))[:, 0] + 1e-20


def _weighted(rows_rc: Tensor, index: Tensor, weight: Tensor, start: Tensor | None = None) -> Tensor:
    """Weighted sums of rows, those of bag i being index[i] or, in one list, index[start[i] : start[i + 1]]."""
    # One kernel without a copy of the gathered rows, in a fixed order: the same result at every call, also on a GPU.
    return F.embedding_bag(index, rows_rc, start, mode="sum", per_sample_weights=weight.to(rows_rc.dtype))


def build(feature_nd: Tensor) -> Lattice:
    """The lattice of points with float32 features in units of the filter's standard deviation.

    UserError: coordinates so far out that a vertex has no 63-bit key.
    """
    base_nk, rank_nk, weight_nk = _simplex(feature_nd)
    keys_v, vertex_nk = torch.unique(_keys(base_nk, rank_nk), return_inverse=True)
    return _assemble(vertex_nk, weight_nk, _around(keys_v, feature_nd.shape[1]))


def join(lattices: Sequence[Lattice]) -> Lattice:
    """One lattice for the points of all, which do not see each other."""
    sizes = [lattice.around_jv3.shape[1] - 1 for lattice in lattices]
    total, offset, vertices, around = sum(sizes), 0, [], []
    for lattice, size in zip(lattices, sizes, strict=True):
        vertices.append(lattice.vertex_nk + offset)
        moved_jv3 = lattice.around_jv3[:, :size]
        around.append(torch.where(moved_jv3 < size, moved_jv3 + offset, total))
        offset += size
    around.append(torch.full_like(around[0][:, :1], total))
    return _assemble(torch.cat(vertices), torch.cat([one.weight_nk for one in lattices]), torch.cat(around, 1))


def _simplex(feature_nd: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Nearest remainder-0 point (as multiples of d + 1), ranks and barycentric weights of each point (section 3)."""
    depth = feature_nd.shape[1] + 1
    down = float(np.float32(1) / np.float32(depth))
    scaled_nd = feature_nd * torch.from_numpy(scales(depth - 1)).to(feature_nd.device)
    total_n, elevated = torch.zeros_like(scaled_nd[:, 0]), []
    for j in range(depth - 1, 0, -1):
        elevated.append(total_n - scaled_nd[:, j - 1] * j)
        total_n = total_n + scaled_nd[:, j - 1]
    elevated_nk = torch.stack([total_n, *reversed(elevated)], 1)
    base_nk = (elevated_nk * down).round()
    apart_nk = elevated_nk - base_nk * depth
    # The largest difference has rank 0; equal ones keep their order.
    rank_nk = apart_nk.argsort(dim=1, descending=True, stable=True).argsort(dim=1) + base_nk.sum(1, keepdim=True).long()
    wrap_nk = (rank_nk < 0).long() - (rank_nk >= depth).long()
    rank_nk, base_nk = rank_nk + wrap_nk * depth, base_nk + wrap_nk
    share_nk = (elevated_nk - base_nk * depth) * down
    ordered_nk = torch.empty_like(share_nk).scatter_(1, depth - 1 - rank_nk, share_nk)
    before_nk = torch.cat([ordered_nk[:, -1:] - 1, ordered_nk[:, :-1]], 1)
    return base_nk.long(), rank_nk, ordered_nk - before_nk


def _keys(base_nk: Tensor, rank_nk: Tensor) -> Tensor:
    """(N, K) keys of the vertices: remainder k, above it each coordinate but the last as a multiple of d + 1."""
    depth = base_nk.shape[1]
    bits, remainder_k = key_bits(depth - 1), torch.arange(depth, device=base_nk.device)
    half = 1 << (bits - 1)
    if base_nk.numel() and int(base_nk.abs().max()) > half - 4:
        raise UserError(TOO_FINE)
    keys_nk = remainder_k.expand(len(base_nk), depth).clone()
    for i in range(depth - 1):
        q_nk = base_nk[:, i, None] + half - (rank_nk[:, i, None] >= depth - remainder_k).long()
        keys_nk += q_nk << (REMAINDER_BITS + bits * i)
    return keys_nk


def _around(keys_v: Tensor, dimensions: int) -> Tensor:
    """(J, V + 1, 3): per direction each vertex with those on both sides; V where there is none.

    The vertex after it has every coordinate 1 lower and coordinate j of d + 1 higher by d.
    """
    size, ones = len(keys_v), sum(1 << (REMAINDER_BITS + key_bits(dimensions) * i) for i in range(dimensions))
    all_v = torch.arange(size + 1, device=keys_v.device)
    wraps_v = (keys_v & 7) == 0
    lower_v = torch.where(wraps_v, keys_v + dimensions - ones, keys_v - 1)
    around = []
    for j in range(dimensions + 1):
        wanted_v = lower_v + (1 << (REMAINDER_BITS + key_bits(dimensions) * j) if j < dimensions else 0)
        place_v = torch.searchsorted(keys_v, wanted_v).clamp(max=size - 1)
        after_v, before_v = torch.full_like(all_v, size), torch.full_like(all_v, size)
        after_v[:-1] = torch.where(keys_v[place_v] == wanted_v, place_v, size)
        before_v[after_v] = all_v
        before_v[size] = size
        around.append(torch.stack([all_v, after_v, before_v], 1))
    return torch.stack(around)


def _assemble(vertex_nk: Tensor, weight_nk: Tensor, around_jv3: Tensor) -> Lattice:
    vertex_e, order_e = vertex_nk.flatten().sort(stable=True)
    start_v = torch.searchsorted(vertex_e, torch.arange(around_jv3.shape[1], device=vertex_e.device))
    point_e = order_e // vertex_nk.shape[1]
    return Lattice(vertex_nk, weight_nk, point_e, weight_nk.flatten()[order_e], start_v, around_jv3)
