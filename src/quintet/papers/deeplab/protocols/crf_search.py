"""w1, sa and sb of the CRF by cross-validation on held-out images (Chen et al. 2017, section 4.1), network first."""

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

from quintet.common.checkpoints import weights_digest
from quintet.common.errors import UserError
from quintet.data.store import build_once, digest
from quintet.papers.deeplab.crf.crf import Crf
from quintet.papers.deeplab.protocols.crf_table import FORMAT, OFF, Measured, Setting, Table, draw, write_tables
from quintet.papers.deeplab.protocols.segmentation import SegmentationProtocol, mean_iou, need_labels, need_segmentation

log = logging.getLogger(__name__)
METHODS = ("coarse_to_fine", "full")
SHOWN = 10  # of the best settings in the result


class CrfSearch(SegmentationProtocol):
    """The setting with the best mean IoU (`miou_chosen` where the run has mean_over), and the table of all tried.

    w1, sa, sb: rising values that are tried; those of `crf` do not count, its others do. search: full tries all;
    coarse_to_fine every other value, then the neighbours of the best one until none of them is better.
    max_minutes: begin no further pair of sa and sb after that; a second call goes on from there.
    The network's probabilities are kept as float16 under data.cache_dir.
    Writes under <run_dir>/crf_search: images.txt (the names, for protocol.exclude of other protocols), crf_search.csv,
    crf_search.md, crf_search.png, settings_<key>.csv (what a second call goes on from).
    """

    picture = "crf_search/crf_search.png"

    def __init__(self, w1: Sequence[float] = (3, 4, 5, 6), sa: Sequence[float] = (30, 40, 50, 60, 70, 80, 90, 100),
                 sb: Sequence[float] = (3, 4, 5, 6), search: str = "coarse_to_fine", max_minutes: float | None = None,
                 **options) -> None:  # fmt: skip
        super().__init__(**options)
        self.grid = {"w1": [float(v) for v in w1], "sa": [float(v) for v in sa], "sb": [float(v) for v in sb]}
        for key, values in self.grid.items():
            if not values or values != sorted(set(values)) or values[0] < 0 or (key != "w1" and values[0] == 0):
                raise UserError(f"protocol.{key}={values}: give rising numbers, above 0")
        if search not in METHODS:
            raise UserError(f"protocol.search={search!r}: choose {' or '.join(METHODS)}")
        if self.crf is None:
            raise UserError("protocol.crf=null: the search needs its other settings; leave it as it is")
        if max_minutes is not None and not max_minutes > 0:
            raise UserError(f"protocol.max_minutes={max_minutes}: give more than 0, or null")
        self.search, self.max_minutes = search, max_minutes

    def __call__(self, module, datamodule, run_dir: Path) -> dict[str, float]:
        need_segmentation(module, datamodule, "crf_search")
        started, out_dir = time.perf_counter(), Path(run_dir) / "crf_search"
        indices = self.chosen(datamodule)
        names = datamodule.names(self.split)
        out_dir.mkdir(parents=True, exist_ok=True)
        (out_dir / "images.txt").write_text("\n".join(names[i] for i in indices) + "\n", encoding="utf-8")
        images = Images(self, module, datamodule, indices)
        assert self.crf is not None
        # Our backends give the same numbers; `torch` was once the name of all of them, and old searches go on.
        backend = self.crf.config.backend if self.crf.config.backend == "pydensecrf" else "torch"
        common = replace(self.crf.config, w1=0, sa=1, sb=1, backend=backend, workers=None, batch_size=1)
        key = digest(FORMAT, images.key, asdict(common))
        table = Table(out_dir / f"settings_{key}.csv", self.grid)
        ended = None if self.max_minutes is None else started + 60 * self.max_minutes
        complete = self._search(table, images, ended)
        if not complete:
            log.warning("crf_search: stopped after %g minutes; a second call goes on", self.max_minutes)
        write_tables(out_dir, table)
        draw(out_dir / "crf_search.png", table, len(indices))
        return numbers(table, len(indices), complete)

    def _search(self, table: Table, images: "Images", ended: float | None) -> bool:
        """Fill the table; False if the time was up before the end."""
        if OFF not in table:
            table.append(images.measure(OFF.sa, OFF.sb, [OFF.w1]))
        for settings in self._stages(table):
            new = [one for one in settings if one not in table]
            pairs = list(dict.fromkeys((one.sa, one.sb) for one in new))
            for done, (sa, sb) in enumerate(pairs, 1):
                if ended is not None and time.perf_counter() > ended:
                    return False
                began = time.perf_counter()
                table.append(images.measure(sa, sb, [one.w1 for one in new if (one.sa, one.sb) == (sa, sb)]))
                log.info("crf_search: sa %g, sb %g: %d of %d pairs, best %s, %.0f s", sa, sb, done, len(pairs),
                         table.best().text, time.perf_counter() - began)  # fmt: skip
        return True

    def _stages(self, table: Table) -> Iterator[list[Setting]]:
        """Settings to try next, each time given what the table has by then."""
        if self.search == "full":
            yield [Setting(*values) for values in product(*self.grid.values())]
            return
        yield [Setting(*values) for values in product(*(values[::2] for values in self.grid.values()))]
        while True:
            around = self._around(table.best().setting)
            if all(one in table for one in around):
                return
            yield around

    def _around(self, setting: Setting) -> list[Setting]:
        """A setting's neighbours in the grid, and itself."""
        near = []
        for values, value in zip(self.grid.values(), setting, strict=True):
            place = values.index(value)
            near.append(values[max(0, place - 1) : place + 2])
        return [Setting(*values) for values in product(*near)]


class Images:
    """The chosen images with the network's probabilities, which are stored as float16."""

    def __init__(self, protocol: CrfSearch, module: Any, datamodule: Any, indices: Sequence[int]) -> None:
        self.protocol, self.module, self.datamodule, self.indices = protocol, module, datamodule, indices
        precision = getattr(getattr(datamodule, "trainer", None), "precision", None)
        names = [datamodule.names(protocol.split)[index] for index in indices]
        self.key = digest(FORMAT, weights_digest(module), asdict(protocol.inference(datamodule)), str(precision),
                          protocol.split, names, str(datamodule.root))  # fmt: skip
        self.folder = build_once(Path(datamodule.cache_dir) / "probabilities" / self.key, self._write)

    def _write(self, folder: Path) -> None:
        log.info("crf_search: the network's probabilities of %d images, once", len(self.indices))
        for index, one in zip(self.indices, self._maps(), strict=True):
            need_labels(one, self.protocol.split)
            np.save(folder / f"{index}.npy", one.probability_chw.half().cpu().numpy())

    def _maps(self) -> Iterator:
        return self.protocol.maps(self.module, self.datamodule, self.indices)

    def measure(self, sa: float, sb: float, weights: Sequence[float]) -> list[Measured]:
        """Scores of (w1, sa, sb) for each w1; weight 0 without any CRF is `OFF`."""
        assert self.protocol.crf is not None
        off = (weights[0], sa, sb) == OFF
        crf = Crf(replace(self.protocol.crf.config, sa=sa, sb=sb)) if not off else self.protocol.crf
        metrics = [mean_iou(self.module) for _ in weights]
        for index in self.indices:
            image_hwc, labels_hw, _ = self.datamodule.raw(self.protocol.split, index)
            probability_chw = torch.from_numpy(np.load(self.folder / f"{index}.npy")).to(self.module.device)
            labels_bhw = torch.from_numpy(labels_hw).long()[None].to(probability_chw.device)
            refined = [probability_chw] if off else crf.refine_with(probability_chw, image_hwc, weights)
            for metric, marginal_chw in zip(metrics, refined, strict=True):
                metric.update(marginal_chw.argmax(0)[None], labels_bhw)
        return [Measured.of(Setting(w1, sa, sb), m.compute()) for w1, m in zip(weights, metrics, strict=True)]


def numbers(table: Table, images: int, complete: bool) -> dict[str, float]:
    """What the search found; then the best settings with their scores."""
    off, best = table[OFF], table.best()
    found = {f"crf_search/{name}_off": value for name, value in off.scores.items()}
    found |= {f"crf_search/{name}_best": value for name, value in best.scores.items()}
    found |= {f"crf_search/best_{key}": value for key, value in best.setting._asdict().items()}
    found |= {"crf_search/settings": float(len(table.ranked())), "crf_search/images": float(images)}
    found |= {} if complete else {"crf_search/complete": 0.0}
    return found | {f"crf_search/{one.chosen_by} at {one.text}": one.score for one in table.ranked()[:SHOWN]}
