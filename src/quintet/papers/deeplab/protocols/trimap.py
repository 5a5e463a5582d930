"""How right are the borders? Accuracy within a band around them (Chen et al. 2017, section 4.3, figure "trimap").

Legend: C classes, W band widths, H x W pixels of an image where no W of bands is meant.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from quintet.common.errors import UserError
from quintet.common.tables import write_csv
from quintet.data.segmentation.labels import IGNORED
from quintet.harness.run.second_run import load_run
from quintet.metrics.segmentation import iou_of
from quintet.papers.deeplab.protocols.segmentation import SegmentationProtocol, need_labels, need_segmentation

SHOWN = {"miou": (1, 5, 10, 20, 40), "accuracy": (1, 5, 10, 20, 40)}  # widths whose numbers are returned
OTHERS_SHOWN = {"miou": (1, 5, 20)}


class Curve(NamedTuple):
    """Pooled scores of a run in the bands of width 1, 2, ... (W,) each."""

    run: str
    after_crf: bool
    miou: NDArray[np.float64]
    accuracy: NDArray[np.float64]
    pixels: NDArray[np.int64]


class Trimap(SegmentationProtocol):
    """Mean IoU and pixel accuracy of the pixels at most w rows and columns from one labelled 255, w = 1 .. largest.

    That band is the label 255 dilated with a square of 2w + 1 pixels; pixels labelled 255 do not count. The mean is
    that of the run's mean_over, if it has one. others: directories of runs whose curves are drawn in the same picture;
    all of them see the images of this run's data. For the other settings see SegmentationProtocol.
    Writes trimap/trimap.csv and trimap.png under `run_dir`.
    """

    picture = "trimap/trimap.png"

    def __init__(self, largest: int = 40, others: Sequence[str] = (), **options) -> None:
        super().__init__(**options)
        if largest < 1:
            raise UserError(f"protocol.largest={largest}: give 1 or more")
        self.largest, self.others = largest, list(others)

    def __call__(self, module, datamodule, run_dir: Path) -> dict[str, float]:
        need_segmentation(module, datamodule, "trimap")
        out_dir, indices = Path(run_dir) / "trimap", self.chosen(datamodule)
        names = run_names([str(Path(run_dir).resolve().parent), *self.others])
        curves = self.curves(names[0], module, datamodule, indices)
        for run, name in zip(self.others, names[1:], strict=True):
            other, _ = load_run(run, datamodule.root, module.device, "protocol.others")
            need_segmentation(other, datamodule, "trimap")
            curves += self.curves(name, other, datamodule, indices)
        self._write(out_dir / "trimap.csv", curves)
        chosen = module.hparams["mean_over"]
        draw(
            out_dir / "trimap.png", curves, f"{len(chosen)} classes" if chosen else "the classes present", len(indices)
        )
        return self._numbers(curves, len(indices))

    def curves(self, name: str, module: Any, datamodule: Any, indices: Sequence[int]) -> list[Curve]:
        """Before the CRF and, if there is one, after it."""
        classes, chosen = module.data_info["classes"], module.hparams["mean_over"] or []
        counts = np.zeros((1 + (self.crf is not None), self.largest + 1, len(classes), len(classes)), np.int64)
        for one, marginal_chw in self.refined(self.maps(module, datamodule, indices)):
            need_labels(one, self.split)
            assert one.labels_hw is not None
            distance_hw = border_distance(one.labels_hw, self.largest)
            for place, found in enumerate((one.probability_chw, marginal_chw)[: len(counts)]):
                assert found is not None
                predicted_hw = found.argmax(0).cpu().numpy()
                counts[place] += counts_by_distance(
                    distance_hw, one.labels_hw, predicted_hw, len(classes), self.largest
                )
        if not counts.any():
            raise UserError(
                f"no pixel of {self.split} is labeled 255, so there is no border to measure at: use VOC's own val"
            )
        kept = [classes.index(c) for c in chosen]
        return [curve(name, bool(after), of_one.cumsum(0)[1:], kept) for after, of_one in enumerate(counts)]

    def _numbers(self, curves: list[Curve], images: int) -> dict[str, float]:
        """At some widths: this run's by themselves, others' under their names."""
        found: dict[str, float] = {}
        for one in curves:
            own, end = one.run == curves[0].run, "_crf" if one.after_crf else ""
            stem = "trimap/" if own else f"trimap/{one.run} "
            for key, widths in (SHOWN if own else OTHERS_SHOWN).items():
                values = getattr(one, key)
                found |= {f"{stem}{key}_w{w}{end}": float(values[w - 1]) for w in widths if w <= self.largest}
        return found | {"trimap/images": float(images)}

    @staticmethod
    def _write(path: Path, curves: list[Curve]) -> None:
        rows = [
            (one.run, "after" if one.after_crf else "before", w, float(miou), float(accuracy), int(pixels))
            for one in curves
            for w, (miou, accuracy, pixels) in enumerate(zip(*one[2:], strict=True), 1)
        ]
        write_csv(path, ("run", "crf", "width", "miou", "accuracy", "pixels"), rows)


def run_names(runs: Sequence[str]) -> list[str]:
    """The experiment's name of each run directory, or with its id where two have the same."""
    paths = [Path(run).resolve() for run in runs]
    short = [path.parent.name for path in paths]
    names = [one if short.count(one) == 1 else f"{one}/{p.name}" for one, p in zip(short, paths, strict=True)]
    if len(set(names)) < len(names):
        raise UserError(f"protocol.others: {max(names, key=names.count)} is there twice, or is the run itself")
    return names


def border_distance(labels_hw: NDArray[np.uint8], largest: int) -> NDArray[np.int64]:
    """Rows or columns, whichever are more, to the nearest pixel labelled 255; largest + 1: further than that."""
    from scipy.ndimage import distance_transform_cdt

    border_hw = labels_hw == IGNORED
    if not border_hw.any():
        return np.full(labels_hw.shape, largest + 1)
    return np.minimum(distance_transform_cdt(~border_hw, metric="chessboard"), largest + 1).astype(np.int64)


def counts_by_distance(distance_hw: NDArray, labels_hw: NDArray, predicted_hw: NDArray, classes: int,
                       largest: int) -> NDArray[np.int64]:  # fmt: skip
    """(largest + 1, C, C): confusion matrices (truth, prediction) of the pixels at each distance from a border."""
    kept_hw = (labels_hw != IGNORED) & (distance_hw <= largest)
    cells = (distance_hw[kept_hw] * classes + labels_hw[kept_hw]) * classes + predicted_hw[kept_hw]
    return np.bincount(cells, minlength=(largest + 1) * classes**2).reshape(-1, classes, classes)


def curve(name: str, after_crf: bool, counts_wcc: NDArray[np.int64], chosen: Sequence[int]) -> Curve:
    """Scores of each band from its own confusion matrix."""
    iou_wc = np.stack([iou_of(counts_cc).numpy() for counts_cc in torch.from_numpy(counts_wcc)])
    iou_wc = iou_wc[:, list(chosen)] if chosen else iou_wc
    pixels_w = counts_wcc.sum((1, 2))
    accuracy_w = counts_wcc.diagonal(axis1=1, axis2=2).sum(1) / np.maximum(pixels_w, 1)
    return Curve(name, after_crf, np.nanmean(iou_wc, 1), accuracy_w, pixels_w)


def draw(path: Path, curves: Sequence[Curve], averaged: str, images: int) -> None:
    """Mean IoU and pixel accuracy against the width; a color for each run, solid after the CRF."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.5, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    colours = {run: f"C{place % 10}" for place, run in enumerate(dict.fromkeys(one.run for one in curves))}
    for one in curves:
        widths = np.arange(1, len(one.miou) + 1)
        style = {"color": colours[one.run], "linestyle": "-" if one.after_crf else "--", "linewidth": 1.5}
        label = f"{one.run}, CRF" if one.after_crf else one.run
        left.plot(widths, 100 * one.miou, label=label, **style)
        right.plot(widths, 100 * one.accuracy, **style)
    left.set(ylabel=f"mean IoU of {averaged}, %", xlabel="width of the band, pixels")
    right.set(ylabel="pixel accuracy, %", xlabel="width of the band, pixels")
    for axis in (left, right):
        axis.set_xlim(0, len(curves[0].miou))
        axis.grid(color="0.92")
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    figure.suptitle(f"Around the borders of {images} images", fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=140)
