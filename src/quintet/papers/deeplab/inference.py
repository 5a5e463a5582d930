"""Class probabilities of a whole image at test time: several scales, mirrored, in overlapping tiles (section 4.4).

Legend: C classes, H x W pixels of the image, h x w of it at a scale.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quintet.common.errors import UserError
from quintet.data.segmentation.augment import padded, to_view
from quintet.data.segmentation.dataset import grid_size
from quintet.data.segmentation.labels import IGNORED
from quintet.papers.deeplab.multi_scale import resize, scaled_size

AVERAGES = ("probabilities", "scores")


@dataclass(frozen=True)
class Inference:
    """How an image becomes probabilities; with one scale and no mirror image it is what the test loop does.

    average: of scales, mirror images and overlapping tiles. Probabilities: their mean is a mixture, and what the CRF's
    unary wants; no view outvotes the others by the size of its scores, as one can in the mean of scores.
    canvas: the image is padded with pad_colour to so many pixels a side (null, or a larger image: the next 8k + 1).
    tile_size: sides of tiles, null = the whole image at once; tile_overlap: pixels that neighbours share at least.
    """

    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    average: str = "probabilities"
    canvas: int | None = None
    pad_colour: tuple[float, ...] = (0.0, 0.0, 0.0)
    tile_size: int | None = None
    tile_overlap: int = 0

    def __post_init__(self) -> None:
        if not self.scales or not all(0 < scale < 16 for scale in self.scales):
            raise UserError(f"protocol.scales={list(self.scales)}: give factors above 0, such as [0.75, 1, 1.25]")
        if self.average not in AVERAGES:
            raise UserError(f"protocol.average={self.average!r}: choose {' or '.join(AVERAGES)}")

    @torch.inference_mode()
    def probabilities(self, module: Any, image_hwc: NDArray[np.uint8],
                      precision: Callable[[], AbstractContextManager] = nullcontext) -> Tensor:  # fmt: skip
        """(C, H, W) float32 on the module's device; `precision` makes the context that the network runs in."""
        height, width = image_hwc.shape[:2]
        image_bchw = self._on_canvas(image_hwc).to(module.device)
        size, views, total_bchw = image_bchw.shape[-2:], 0, torch.zeros((), device=module.device)
        for view_bchw, mirrored in self._views(image_bchw):
            with precision():
                values_bchw = self._in_tiles(module, view_bchw)
            values_bchw = values_bchw.flip(-1) if mirrored else values_bchw
            total_bchw, views = total_bchw + resize(values_bchw, size), views + 1
        mean_chw = (total_bchw / views)[0]
        if self.average == "scores":
            mean_chw = mean_chw.softmax(0)
        return mean_chw[:, :height, :width].contiguous()

    def _on_canvas(self, image_hwc: NDArray[np.uint8]) -> Tensor:
        sides = image_hwc.shape[:2]
        fits = self.canvas is not None and max(sides) <= self.canvas
        high, wide = (self.canvas if fits and self.canvas else grid_size(side) for side in sides)
        nothing = np.full(sides, IGNORED, np.uint8)
        return padded([to_view(np.ascontiguousarray(image_hwc), nothing)], high, wide, self.pad_colour, IGNORED)[0]

    def _views(self, image_bchw: Tensor) -> Iterator[tuple[Tensor, bool]]:
        for scale in self.scales:
            scaled_bchw = resize(image_bchw, scaled_size(image_bchw.shape[-2:], scale))
            yield scaled_bchw, False
            if self.flip:
                yield scaled_bchw.flip(-1), True

    def _in_tiles(self, module: Any, image_bchw: Tensor) -> Tensor:
        """Scores or probabilities (1, C, h, w), averaged where tiles overlap."""
        rows, columns = (tile_starts(side, self.tile_size, self.tile_overlap) for side in image_bchw.shape[-2:])
        total_bchw: Tensor | None = None
        times_hw = image_bchw.new_zeros(image_bchw.shape[-2:])
        for top in rows:
            for left in columns:
                place = (
                    (slice(top, top + self.tile_size), slice(left, left + self.tile_size))
                    if self.tile_size
                    else (slice(None), slice(None))
                )
                values_bchw = self._values(module.scores(image_bchw[..., *place]))
                if total_bchw is None:
                    total_bchw = values_bchw.new_zeros(*values_bchw.shape[:2], *image_bchw.shape[-2:])
                total_bchw[..., *place] += values_bchw
                times_hw[place] += 1
        assert total_bchw is not None
        return total_bchw / times_hw

    def _values(self, scores_bchw: Tensor) -> Tensor:
        return scores_bchw.float().softmax(1) if self.average == "probabilities" else scores_bchw.float()


def tile_starts(side: int, tile: int | None, overlap: int) -> Sequence[int]:
    """Where tiles begin along a side: as few as cover it with `overlap` shared pixels, evenly spread."""
    if tile is None or side <= tile:
        return [0]
    count = -(-(side - overlap) // (tile - overlap))
    return np.linspace(0, side - tile, count).round().astype(int).tolist()
