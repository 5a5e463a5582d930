"""Ranking captions for an image and images for a caption (Vinyals et al. 2015, section 4.3.5, tables 4 and 5).

Legend: I images, C captions.
"""

import logging
import math
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from quintet.common.errors import UserError
from quintet.common.tables import write_csv
from quintet.papers.show_and_tell.protocols.caption_likelihood import PrefixTree, log_likelihoods
from quintet.papers.show_and_tell.protocols.captioning import encoded_once, image_batches, need_captioner, to_device

log = logging.getLogger(__name__)
SCORES = ("raw", "per_token", "prior")
PRECISIONS = ("32", "bf16")


class CaptionRanking:
    """Recall at 1, 5 and 10 and the median rank in both directions, by three scores.

    raw: log p(caption | image). per_token: divided by the number of the caption's words, its end included. prior: minus
    log p(caption), where p(caption) is the mean of p(caption | image) over the split's images; without it, short and
    common captions rank first for every image. annotation: the rank of the best of an image's own captions among all
    captions; search: the rank of a caption's image among all images. Ties count as worse ranks.
    captions_per_image: only the first so many of each; null: all. count: only so many images, evenly spread over the
    split. precision=bf16: twice as fast on processors that support it. batch_size: images in one pass.
    Writes caption_ranking/ranks.csv, and captions.csv with each image's best caption by each score.
    """

    def __init__(self, split: str = "test", count: int | None = None, captions_per_image: int | None = None,
                 batch_size: int = 128, precision: str = "32") -> None:  # fmt: skip
        for key, value in (("captions_per_image", captions_per_image), ("batch_size", batch_size)):
            if value is not None and value < 1:
                raise UserError(f"protocol.{key}={value} must be at least 1")
        if str(precision) not in PRECISIONS:
            raise UserError(f"protocol.precision={precision}: choose {' or '.join(PRECISIONS)}")
        self.split, self.count, self.captions_per_image = split, count, captions_per_image
        self.batch_size, self.precision = batch_size, str(precision)

    def __call__(self, module, datamodule, run_dir: Path) -> dict[str, float]:
        need_captioner(module, "ranking")
        out_dir, start = Path(run_dir) / "caption_ranking", time.perf_counter()
        batches = list(image_batches(datamodule, self.split, torch.device("cpu"), self.batch_size, self.count))
        captions, image_of, rows = self._captions(batches)
        tree = PrefixTree.of(captions)
        images, words = sum(len(b.image_index) for b in batches), sum(map(len, captions))
        text = "%d images x %d captions, %d decoder steps for each image instead of %d"
        log.info(text, images, len(captions), tree.steps, words)
        log_ic = self._likelihoods(module, batches, tree)
        scored = scores_of(log_ic, np.array([len(ids) for ids in captions]))
        result = {"ranking/images": float(len(log_ic)), "ranking/captions": float(len(captions))}
        table = []
        for name, score_ic in scored.items():
            for way, ranks in ranks_of(score_ic, image_of).items():
                measured = summary(ranks)
                result |= {f"ranking/{way}_{key}_{name}": value for key, value in measured.items()}
                table.append((way, name, *measured.values()))
        write_csv(out_dir / "ranks.csv", ("way", "score", "r1", "r5", "r10", "median_rank"), table)
        self._write(out_dir / "captions.csv", datamodule, batches, rows, scored)
        return result | {"ranking/seconds": time.perf_counter() - start}

    def _captions(self, batches: list) -> tuple[list[list[int]], NDArray, list[int]]:
        """Ids of each caption after bos, the index of its image among those ranked, its row in the split."""
        captions: list[list[int]] = []
        image_of: list[int] = []
        rows: list[int] = []
        before = 0
        for batch in batches:
            seen = [0] * len(batch.image_index)
            for ids, length, image, row in zip(batch.words.tolist(), batch.lengths.tolist(), batch.image_row.tolist(),
                                               batch.index.tolist(), strict=True):  # fmt: skip
                seen[image] += 1
                if self.captions_per_image is None or seen[image] <= self.captions_per_image:
                    captions.append(ids[1:length])
                    image_of.append(before + image)
                    rows.append(row)
            before += len(batch.image_index)
        return captions, np.array(image_of), rows

    def _likelihoods(self, module, batches: list, tree: PrefixTree) -> NDArray:
        """log p(caption | image) (I, C), float64."""
        found, device = [], module.device
        for number, batch in enumerate(batches, 1):
            images = len(batch.image_index)
            with torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bf16"), torch.no_grad():
                source = encoded_once(module, to_device(batch, device))
                decoder = module.step_decoder(source, lookups=images * tree.steps)
                found.append(log_likelihoods(decoder, images, tree, device).double().numpy())
            log.info("%d of %d passes", number, len(batches))
        return np.concatenate(found)

    def _write(self, path: Path, datamodule, batches: list, rows: list[int], scored: dict[str, NDArray]) -> None:
        texts, names = datamodule.captions(self.split), datamodule.image_ids(self.split)
        images = [image for batch in batches for image in batch.image_index.tolist()]
        best = {name: score_ic.argmax(1) for name, score_ic in scored.items()}
        table = [(names[image], *(texts[rows[found[n]]] for found in best.values())) for n, image in enumerate(images)]
        write_csv(path, ("image", *(f"best_by_{name}" for name in best)), table)


def scores_of(log_ic: NDArray, length_c: NDArray) -> dict[str, NDArray]:
    """The three scores (I, C) of log p(caption | image)."""
    highest_c = log_ic.max(0)  # subtracted before the exponential, which would be 0 in float64
    prior_c = highest_c + np.log(np.exp(log_ic - highest_c).mean(0))
    return dict(zip(SCORES, (log_ic, log_ic / length_c, log_ic - prior_c), strict=True))


def ranks_of(score_ic: NDArray, image_of: NDArray) -> dict[str, NDArray]:
    """annotation: rank (I,) of each image's best own caption; search: rank (C,) of each caption's image. Best is 1."""
    own_ic = image_of == np.arange(len(score_ic))[:, None]
    best_i = np.where(own_ic, score_ic, -math.inf).max(1)
    above_i = ((score_ic >= best_i[:, None]) & ~own_ic).sum(1)
    right_c = score_ic[image_of, np.arange(len(image_of))]
    above_c = (score_ic >= right_c).sum(0) - 1
    return {"annotation": 1 + above_i, "search": 1 + above_c}


def summary(ranks: NDArray) -> dict[str, float]:
    """Recall at 1, 5 and 10, in [0, 1], and the median rank."""
    return {f"r{k}": float((ranks <= k).mean()) for k in (1, 5, 10)} | {"median_rank": float(np.median(ranks))}
