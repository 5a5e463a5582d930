"""What the protocols of segmentation share: which images, the network's probabilities, the CRF after it."""

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quintet.common.errors import UserError
from quintet.data.examples.select import draw
from quintet.metrics.segmentation import MeanIoU
from quintet.papers.deeplab.crf.crf import Crf, CrfConfig
from quintet.papers.deeplab.inference import Inference

log = logging.getLogger(__name__)
AHEAD = 4  # images that are read while the network is busy
TOLD = 50  # images between two lines in the log


class Mapped(NamedTuple):
    """An image with the network's probabilities."""

    name: str
    image_hwc: NDArray[np.uint8]  # as it is in the file, which the CRF needs
    labels_hw: NDArray[np.uint8] | None
    probability_chw: Tensor
    whole_hwc: NDArray[np.uint8] | None = None  # the picture before it was shrunk


class SegmentationProtocol:
    """Base of the protocols that look at whole images of a run.

    count: so many images of `split`, drawn by `seed`; null: all. exclude: a file of names that are left out, such as
    the images.txt of protocol=crf_search. scales, flip, average: see Inference. tiled: cut into the data's tiles
    (data.tile_size) where it has any. crf: null for none.
    """

    def __init__(self, split: str = "test", count: int | None = None, seed: int = 0, exclude: str | None = None,
                 scales: Sequence[float] = (1.0,), flip: bool = False, average: str = "probabilities",
                 tiled: bool = True, crf: CrfConfig | None = None) -> None:  # fmt: skip
        if count is not None and count < 1:
            raise UserError(f"protocol.count={count}: give 1 or more, or null for all")
        self.split, self.count, self.seed, self.exclude, self.tiled = split, count, seed, exclude, tiled
        self.views: dict[str, Any] = {"scales": tuple(scales), "flip": flip, "average": average}
        Inference(**self.views)  # raises for wrong settings before anything is read
        self.crf = None if crf is None else Crf(crf)

    def chosen(self, datamodule: Any) -> list[int]:
        """Positions in the split. Errors: UserError for more than there are, and names that are unknown."""
        names, left_out = datamodule.names(self.split), _read_names(self.exclude)
        strangers = left_out - set(names)
        if strangers:
            raise UserError(
                f"protocol.exclude={self.exclude} names {min(strangers)}, which {self.split} does not have:"
                f" {len(strangers)} of {len(left_out)} names are unknown"
            )
        left = [index for index, name in enumerate(names) if name not in left_out]
        if not left:
            raise UserError(f"protocol.exclude={self.exclude} leaves no image of {self.split}")
        if self.count is None:
            return left
        if self.count > len(left):
            raise UserError(f"protocol.count={self.count}: {self.split} has {len(left)} images, or give null for all")
        return [left[place] for place in draw(len(left), self.count, self.seed)[1]]

    def inference(self, datamodule: Any) -> Inference:
        """How this run's images become probabilities."""
        tiles = {"tile_size": datamodule.tile_size, "tile_overlap": datamodule.tile_overlap} if self.tiled else {}
        return Inference(canvas=datamodule.eval_size, pad_colour=datamodule.pad_colour, **tiles, **self.views)

    def maps(self, module: Any, datamodule: Any, indices: Sequence[int]) -> Iterator[Mapped]:
        """The images in their order, each with its probabilities."""
        inference, precision = self.inference(datamodule), precision_of(datamodule)
        for done, (image_hwc, labels_hw, name) in enumerate(_read_ahead(datamodule, self.split, indices), 1):
            yield Mapped(name, image_hwc, labels_hw, inference.probabilities(module, image_hwc, precision))
            if done % TOLD == 0:
                log.info("%s: %d of %d images", type(self).__name__, done, len(indices))

    def refined(self, maps: Iterable[Mapped]) -> Iterator[tuple[Mapped, Tensor | None]]:
        """Each image with its probabilities after the CRF; None without one."""
        if self.crf is None:
            yield from ((one, None) for one in maps)
            return
        waiting: deque[Mapped] = deque()  # the CRF may hold a batch

        def pairs() -> Iterator[tuple[Tensor, NDArray]]:
            for one in maps:
                waiting.append(one)
                yield one.probability_chw, one.image_hwc

        for marginal_chw in self.crf.refine_many(pairs()):
            assert isinstance(marginal_chw, Tensor)  # as the probabilities are
            yield waiting.popleft(), marginal_chw


def precision_of(datamodule: Any) -> Callable[[], AbstractContextManager]:
    """The context of eval.py's trainer.precision: bf16-mixed runs the network in bfloat16, what follows in float32."""
    trainer = getattr(datamodule, "trainer", None)
    return nullcontext if trainer is None else trainer.precision_plugin.forward_context


def mean_iou(module: Any) -> MeanIoU:
    """An empty pooled confusion matrix with the names and the chosen classes of the run, on its device."""
    data_info = {"num_classes": module.data_info["num_classes"], "classes": module.data_info["classes"]}
    return MeanIoU(**data_info, chosen=module.hparams["mean_over"]).to(module.device)


def need_segmentation(module: Any, datamodule: Any, protocol: str) -> None:
    """UserError where the run is of another task."""
    if not hasattr(module, "scores") or not hasattr(datamodule, "raw"):
        raise UserError(f"protocol={protocol} is for runs of model=deeplab, not of {type(module).__name__}")


def need_labels(one: Mapped, split: str) -> Tensor:
    """(1, H, W) int64. UserError: the labels are not public."""
    if one.labels_hw is None:
        raise UserError(f"{one.name} of split {split} has no public labels: protocol=voc_submission is for such images")
    return torch.from_numpy(one.labels_hw).long()[None].to(one.probability_chw.device)


def _read_names(path: str | None) -> set[str]:
    if path is None:
        return set()
    if not Path(path).is_file():
        raise UserError(f"protocol.exclude={path}: no such file; give one with one image name per line")
    return set(Path(path).read_text(encoding="utf-8").split())


def _read_ahead(datamodule: Any, split: str, indices: Sequence[int]) -> Iterator[tuple]:
    """`datamodule.raw` of each, a few images in advance."""
    pool, waiting = ThreadPoolExecutor(2), deque[Any]()
    try:
        for index in indices:
            waiting.append(pool.submit(datamodule.raw, split, index))
            if len(waiting) > AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
