"""Pictures of predictions in PASCAL VOC's colors."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from quintet.data.segmentation.labels import IGNORED, colour_picture, voc_colours

TRUTH = "labelled (white: not scored)"  # over a column of pictures


def overlay(image_hwc: NDArray, labels_hw: NDArray, opacity: float = 0.6) -> NDArray[np.float32]:
    """The image (H, W, 3) in [0, 1] with every class but background in its color and ignored pixels in white."""
    colours = colour_picture(labels_hw) / 255.0
    colours[labels_hw == IGNORED] = 1.0
    strength = opacity * (labels_hw != 0)[..., None]
    return ((1 - strength) * image_hwc + strength * colours).astype(np.float32)


def make_media(module: Any, datamodule: Any, out_dir: Path, count: int) -> list[Path]:
    """`predictions.png`: a row for each of `count` images spread over the validation split."""
    total = datamodule.num_examples("val")
    indices = np.unique(np.linspace(0, total - 1, min(count, total)).round().astype(int))
    rows = []
    for index in indices:
        batch = datamodule.example_batch("val", [int(index)])
        with torch.inference_mode():
            predicted = module.predict(batch._replace(images=batch.images.to(module.device)))[0].cpu().numpy()
        height, width = batch.sizes[0].tolist()
        image = batch.images[0, :, :height, :width].permute(1, 2, 0).numpy()
        rows.append((image, batch.labels[0, :height, :width].numpy(), predicted[:height, :width]))
    return [draw(rows, (TRUTH, "predicted"), module.data_info["classes"], out_dir / "predictions.png")]


def draw(rows: Sequence[Sequence[NDArray]], titles: Sequence[str], classes: Sequence[str], path: Path) -> Path:
    """Each row an image (H, W, 3) in [0, 1] and label maps (H, W), `titles`; the legend names the classes in them."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    columns = 1 + len(titles)
    figure = Figure(figsize=(3 * columns, 2.6 * len(rows) + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for line, (image, *maps) in zip(axes, rows, strict=True):
        for axis, shown in zip(line, (image, *(overlay(image, labels) for labels in maps)), strict=True):
            axis.imshow(shown)
            axis.set_axis_off()
    for axis, title in zip(axes[0], ("image", *titles), strict=True):
        axis.set_title(title)
    occurring = np.unique(np.concatenate([part.ravel() for row in rows for part in row[1:]]))
    patches = [Patch(color=voc_colours()[c] / 255, label=classes[c]) for c in occurring if 0 < c < len(classes)]
    if patches:
        figure.legend(handles=patches, loc="outside lower center", ncols=min(6, len(patches)))
    figure.savefig(path, dpi=100)
    return path
