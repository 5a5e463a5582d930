"""Mean field of the dense CRF in compiled loops on the CPU: equal to mean_field.py up to rounding, and faster.

Each of T threads takes a band of the image. A band splats into rows of its own, so that threads never write the same
row; where several bands touch a vertex, the first one's row owns it and the others are its ghosts. Between splat and
blur ghosts are added to their owners, and after the blur owners are copied to their ghosts. The number of bands changes
the order of a sum, hence marginals by about 1e-6. Legend: n pixel, k vertex of its simplex, r row, w padded classes.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from quintet.common.errors import UserError
from quintet.papers.deeplab.crf import kernels
from quintet.papers.deeplab.crf import lattice_kernels as building
from quintet.papers.deeplab.crf.config import CLIP, CrfConfig
from quintet.papers.deeplab.crf.mean_field import appearance, positions
from quintet.papers.deeplab.crf.permutohedral import TOO_FINE, key_bits, scales, slice_scale

PADDING = -1e4  # log P of the classes that pad a row: their marginal is exactly 0
Run = Callable[[Callable, list[tuple]], list]  # calls a kernel with each of some arguments, at once


@contextmanager
def threads(count: int) -> Iterator[Run]:
    """What runs compiled kernels side by side."""
    if count == 1:
        yield lambda kernel, arguments: [kernel(*one) for one in arguments]
        return
    with ThreadPoolExecutor(count) as pool:
        yield lambda kernel, arguments: list(pool.map(lambda one: kernel(*one), arguments))


def cuts(total: int, parts: int) -> list[tuple[int, int]]:
    """Equal ranges that cover 0..total."""
    return [(total * part // parts, total * (part + 1) // parts) for part in range(parts)]


class CompiledLattice:
    """A permutohedral lattice in bands; `vertex_nk` numbers rows, ghosts included."""

    def __init__(self, feature_nd: np.ndarray, bands: int, run: Run) -> None:
        count, dimensions = feature_nd.shape
        bits, self.scale = key_bits(dimensions), slice_scale(dimensions)
        self.bands = cuts(count, bands)
        self.vertex_nk = np.empty((count, dimensions + 1), np.int32)
        self.weight_nk = np.empty((count, dimensions + 1), np.float32)
        filled = (self.vertex_nk, self.weight_nk)
        found = run(building.simplices, [(feature_nd, scales(dimensions), bits, *band, *filled) for band in self.bands])
        if any(stop > start and not len(keys) for (start, stop), keys in zip(self.bands, found, strict=True)):
            raise UserError(TOO_FINE)
        ends = np.cumsum([len(keys) for keys in found]).tolist()
        self.rows = list(zip([0, *ends[:-1]], ends, strict=True))  # of each band
        run(
            building.shift, [(self.vertex_nk, *band, row) for band, (row, _) in zip(self.bands, self.rows, strict=True)]
        )
        keys_r = np.concatenate(found)
        table, owner_r = building.merge(keys_r)
        self.ghosts = np.flatnonzero(owner_r != np.arange(len(owner_r), dtype=np.int32))
        self.owners = owner_r[self.ghosts]
        depth = dimensions + 1
        self.chains = run(building.chains, [(keys_r, owner_r, table, bits, depth, j) for j in range(depth)])

    @property
    def size(self) -> int:
        """Rows, ghosts included."""
        return self.rows[-1][1]

    def blur(self, rows_rw: np.ndarray, lanes: tuple, run: Run) -> None:
        """Splatted rows to blurred ones, in place."""
        kernels.add_ghosts(rows_rw, self.ghosts, self.owners)
        for chains, starts in self.chains:
            ranges = cuts(len(starts) - 1, len(self.bands))
            run(kernels.blur, [(lanes, rows_rw, chains, starts, *one) for one in ranges])
        kernels.copy_ghosts(rows_rw, self.ghosts, self.owners)

    def filter(self, x_nw: np.ndarray, run: Run) -> np.ndarray:
        """Splat, blur, slice, as `permutohedral.Lattice.filter`."""
        lanes, out_nw = (0,) * x_nw.shape[1], np.zeros_like(x_nw)
        rows_rw = np.zeros((self.size, x_nw.shape[1]), np.float32)
        places = (self.vertex_nk, self.weight_nk)
        run(kernels.splat, [(lanes, x_nw, rows_rw, *places, *band) for band in self.bands])
        self.blur(rows_rw, lanes, run)
        run(kernels.slice_, [(lanes, rows_rw, out_nw, *places, *band) for band in self.bands])
        out_nw *= np.float32(self.scale)
        return out_nw

    def normaliser(self, run: Run) -> np.ndarray:
        """(N, 1) what the filter gives for ones."""
        return self.filter(np.ones((len(self.vertex_nk), 1), np.float32), run) + np.float32(1e-20)

    def messages(self, weight: float, normaliser_n1: np.ndarray) -> np.ndarray:
        """(N, K) slice weights that also divide by the normalizer and multiply by the kernel's weight."""
        return self.weight_nk * (np.float32(weight * self.scale) / normaliser_n1)


@lru_cache(maxsize=8)
def _near(height: int, width: int, sg: float, weight: float, bands: int) -> tuple[CompiledLattice, np.ndarray]:
    """The smoothness kernel, which is the same for all images of a size."""
    with threads(bands) as run:
        lattice = CompiledLattice(positions(height, width, sg).numpy(), bands, run)
        return lattice, lattice.messages(weight, lattice.normaliser(run))


def mean_field(probability_chw: Tensor, image_hwc: Tensor, config: CrfConfig) -> Tensor:
    """Marginals (C, H, W) on torch.get_num_threads() threads."""
    (marginals,) = mean_fields(probability_chw, image_hwc, config, [config.w1])
    return marginals


def mean_fields(probability_chw: Tensor, image_hwc: Tensor, config: CrfConfig,
                weights: Sequence[float]) -> Iterator[Tensor]:  # fmt: skip
    """`mean_field` with each of these w1 in turn: what does not depend on it is done once."""
    height, width, _ = image_hwc.shape
    classes = len(probability_chw)
    bands = max(1, min(torch.get_num_threads(), height * width))
    near = _near(height, width, config.sg, config.w2, bands)
    with threads(bands) as run:
        far = CompiledLattice(appearance(image_hwc, config.sa, config.sb).numpy(), bands, run)
        normaliser_n1, log_p_nw = far.normaliser(run), _log_probabilities(probability_chw)
        for w1 in weights:
            pairs = [near, (far, far.messages(w1, normaliser_n1))]
            q_nw = _iterate(log_p_nw, pairs, config.iterations, run)
            yield torch.from_numpy(q_nw)[:, :classes].T.reshape(classes, height, width)


def _log_probabilities(probability_chw: Tensor) -> np.ndarray:
    classes = len(probability_chw)
    padded = -(-classes // kernels.LANES) * kernels.LANES
    log_p_nw = torch.full((probability_chw[0].numel(), padded), PADDING)
    log_p_nw[:, :classes] = probability_chw.float().clamp(min=CLIP).log_().flatten(1).T
    return log_p_nw.numpy()


def _iterate(log_p_nw: np.ndarray, pairs: list[tuple[CompiledLattice, np.ndarray]], iterations: int, run: Run):
    """`mean_field.iterate`: softmax, then so many updates; each pass over the pixels slices, normalizes and splats."""
    lanes, q_nw = (0,) * log_p_nw.shape[1], np.empty_like(log_p_nw)
    nothing = q_nw[:0]
    shapes = [(lattice.size, len(lanes)) for lattice, _ in pairs]
    old, new = ([np.zeros(shape, np.float32) for shape in shapes] for _ in range(2))
    for done in range(iterations + 1):
        out_nw = q_nw if done == iterations else nothing

        def band(t: int, first: bool = done == 0, out_nw=out_nw, old=old, new=new) -> None:
            sides = []
            for (lattice, slice_nk), blurred, splatted in zip(pairs, old, new, strict=True):
                splatted[slice(*lattice.rows[t])] = 0
                sides.append((blurred, splatted, lattice.vertex_nk, lattice.weight_nk, slice_nk))
            kernels.step(lanes, log_p_nw, out_nw, first, *sides, *pairs[0][0].bands[t])

        run(band, [(t,) for t in range(len(pairs[0][0].bands))])
        if done < iterations:
            for (lattice, _), splatted in zip(pairs, new, strict=True):
                lattice.blur(splatted, lanes, run)
        old, new = new, old
    return q_nw
