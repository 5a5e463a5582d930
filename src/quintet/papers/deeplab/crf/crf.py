"""The fully connected CRF after the network (Chen et al. 2017, section 3.3), computed by the backend of the settings.

The definition is mean_field.py (backend `torch`), its fast path on the CPU compiled.py (`compiled`), and the reference
the authors' C++ code (`pydensecrf`, one image per process). torch is imported inside of functions, because the
processes of the pool start faster without it.
"""

import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any

import numpy as np

from quintet.common.errors import UserError
from quintet.papers.deeplab.crf.config import CLIP, CrfConfig

if TYPE_CHECKING:
    from torch import Tensor

    Array = np.ndarray | Tensor

SUM_TOLERANCE = 1e-3  # of the classes of a pixel
HALF_TOLERANCE = 2e-2  # in half precision


class Crf:
    """Refines a network's class probabilities with the image."""

    def __init__(self, config: CrfConfig | Mapping | None = None) -> None:
        from quintet.common.optim import from_mapping

        self.config: CrfConfig = from_mapping(CrfConfig, config or {}, "crf.config")  # type: ignore[assignment]

    def refine(self, probabilities: "Array", image: "Array") -> "Array":
        """Marginals (C, H, W) float32 from probabilities (C, H, W) and the image, uint8 (H, W, 3).

        The result is an array or a tensor, like the probabilities.
        The backend `torch` runs on the device of the probabilities. UserError: shapes that do not match, probabilities
        that are NaN or negative, or that do not sum to 1 over the classes; zeros are allowed.
        """
        return next(self.refine_many([(probabilities, image)], workers=0))

    def refine_many(self, pairs: Iterable[tuple["Array", "Array"]], workers: int | None = None) -> Iterator["Array"]:
        """Marginals of each (probabilities, image) in order; `pairs` is read only as far as needed."""
        checked = ((probabilities, *check(probabilities, image, n)) for n, (probabilities, image) in enumerate(pairs))
        if self.config.backend == "pydensecrf":
            return self._by_pydensecrf(checked, self.config.workers if workers is None else workers)
        return self._by_torch(checked)

    def refine_with(self, probabilities: "Array", image: "Array", weights: Sequence[float]) -> Iterator["Array"]:
        """`refine` with each of these w1 in turn; `compiled` builds its lattices once for all of them."""
        if self._compiles(probabilities):
            checked = check(probabilities, image)
            yield from _compiled(probabilities, checked[0], checked[1], self.config, weights)
            return
        for w1 in weights:
            yield Crf(replace(self.config, w1=w1)).refine(probabilities, image)

    def _compiles(self, probabilities: "Array") -> bool:
        """Whether compiled loops refine these probabilities."""
        backend = self.config.backend
        return backend == "compiled" or (backend == "auto" and not _on_gpu(probabilities))

    def _by_pydensecrf(self, checked: Iterable[tuple], workers: int | None) -> Iterator["Array"]:
        if workers == 0:
            for like, probabilities_chw, image_hwc in checked:
                yield _as(like, infer(probabilities_chw, image_hwc, self.config))
            return
        workers = min(workers or usable_cores(), 61)  # more than Windows can wait for
        # Not fork: torch's and numba's threads would be copied in whatever state they are.
        pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"))
        try:
            yield from _in_order(pool, checked, self.config, 2 * workers)
        except BrokenProcessPool as error:
            raise UserError("a worker process of the CRF died (out of memory?): lower crf.workers") from error
        finally:
            pool.shutdown(cancel_futures=True)

    def _by_torch(self, checked: Iterable[tuple[Any, Any, Any]]) -> Iterator["Array"]:
        batch: list[tuple] = []
        for one in checked:
            compiles = self._compiles(one[0])
            if not compiles:
                batch.append(one)
            if batch and (compiles or len(batch) == self.config.batch_size):
                yield from _torch_batch(batch, self.config)
                batch = []
            if compiles:  # one image at a time: all threads share an image
                yield from _compiled(*one, self.config, [self.config.w1])
        if batch:
            yield from _torch_batch(batch, self.config)


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check(probabilities: "Array", image: "Array", number: int = 0) -> tuple["Array", "Array"]:
    """Both as float32 (C, H, W) and uint8 (H, W, 3), of one kind; for the errors see `Crf.refine`."""
    where = f"CRF: map {number}"
    shape, picture = tuple(probabilities.shape), tuple(image.shape)
    if len(shape) != 3 or shape[0] < 2 or 0 in shape:
        raise UserError(f"{where} has shape {shape}: give probabilities (classes, height, width) of 2 classes or more")
    if len(picture) != 3 or picture[2] != 3 or "uint8" not in str(image.dtype):
        raise UserError(f"{where}: the image is {image.dtype} {picture}: give the raw image, uint8 (height, width, 3)")
    if shape[1:] != picture[:2]:
        sizes = f"{shape[1]} x {shape[2]}, the image {picture[0]} x {picture[1]}"
        raise UserError(f"{where} is {sizes}: upsample the scores to the image's size first")
    if "float" not in str(probabilities.dtype):
        raise UserError(f"{where} has type {probabilities.dtype}: give probabilities as floating-point numbers")
    least, apart = float(probabilities.min()), float(abs(probabilities.sum(0) - 1).max())
    if least != least or apart != apart:
        raise UserError(f"{where} contains NaN: look at the network's scores, training may have diverged")
    if least < 0:
        raise UserError(f"{where} contains negative numbers (down to {least:.3g}): give softmax(scores), not scores")
    if apart > (HALF_TOLERANCE if probabilities.dtype.itemsize == 2 else SUM_TOLERANCE):
        raise UserError(f"{where}: the classes of a pixel do not sum to 1 (off by {apart:.3g}): give softmax(scores)")
    if isinstance(image, np.ndarray) or isinstance(probabilities, np.ndarray):
        image = np.require(_numpy(image), requirements=["C", "W"])  # as torch needs for arrays that it shares
    if isinstance(probabilities, np.ndarray):
        return np.require(probabilities, np.float32, ["C", "W"]), image
    import torch

    return probabilities.float(), torch.as_tensor(image, device=probabilities.device)


def infer(probabilities_chw: "Array", image_hwc: "Array", config: CrfConfig) -> np.ndarray:
    """pydensecrf's marginals (C, H, W), normalized after filtering as in the authors' code."""
    from pydensecrf import densecrf

    classes, height, width = probabilities_chw.shape
    unary = -np.log(np.maximum(_numpy(probabilities_chw), CLIP)).reshape(classes, -1)
    crf = densecrf.DenseCRF2D(width, height, classes)
    crf.setUnaryEnergy(np.ascontiguousarray(unary, np.float32))
    after = {"normalization": densecrf.NORMALIZE_AFTER}
    crf.addPairwiseGaussian(sxy=config.sg, compat=config.w2, **after)
    raw = np.ascontiguousarray(_numpy(image_hwc))
    crf.addPairwiseBilateral(sxy=config.sa, srgb=config.sb, rgbim=raw, compat=config.w1, **after)
    return np.array(crf.inference(config.iterations), np.float32).reshape(classes, height, width)


def _in_order(pool: ProcessPoolExecutor, checked: Iterable[tuple], config: CrfConfig, most: int) -> Iterator["Array"]:
    """Results in the order of the inputs, with at most `most` images being processed."""
    waiting: deque = deque()
    for like, probabilities_chw, image_hwc in checked:
        if len(waiting) == most:
            first, future = waiting.popleft()
            yield _as(first, future.result())
        arrays = (_numpy(probabilities_chw), _numpy(image_hwc))
        waiting.append((like, pool.submit(infer, *arrays, config)))
    for like, future in waiting:
        yield _as(like, future.result())


def _compiled(like: "Array", probabilities: "Array", image: "Array", config: CrfConfig,
              weights: Sequence[float]) -> Iterator["Array"]:  # fmt: skip
    import torch

    from quintet.papers.deeplab.crf import compiled as crf_compiled

    pair = torch.as_tensor(probabilities).detach().cpu(), torch.as_tensor(image).cpu()
    for marginals in crf_compiled.mean_fields(*pair, config, weights):
        yield _as(like, marginals)


def _torch_batch(batch: list[tuple], config: CrfConfig) -> Iterator["Array"]:
    import torch

    from quintet.papers.deeplab.crf import mean_field

    maps = [torch.as_tensor(probabilities) for _, probabilities, _ in batch]
    images = [torch.as_tensor(image) for *_, image in batch]
    with torch.no_grad():
        refined = mean_field.mean_field(maps, images, config)
    for (like, *_), marginals in zip(batch, refined, strict=True):
        yield _as(like, marginals)


def _on_gpu(array: "Array") -> bool:
    return not isinstance(array, np.ndarray) and array.device.type != "cpu"


def _numpy(array: "Array") -> np.ndarray:
    return array if isinstance(array, np.ndarray) else array.detach().cpu().numpy()


def _as(like: "Array", marginals: "Array") -> "Array":
    """Marginals as an array where `like` is one, else as a tensor on its device."""
    if isinstance(like, np.ndarray):
        return np.ascontiguousarray(_numpy(marginals))
    import torch

    return torch.as_tensor(marginals, device=like.device).contiguous()
