"""Contact sheets of images with their captions."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


def make_media(module: Any, datamodule: Any, out_dir: Path, count: int) -> list[Path]:
    """Write captions.png: images spread over the validation split, each with a generated and a reference caption."""
    total = datamodule.num_examples("val")
    indices = [int(index) for index in np.unique(np.linspace(0, total - 1, min(count, total)).round())]
    cells = []
    for index in indices:
        batch = datamodule.example_batch("val", [index])
        captions = module.generate(type(batch)(*(part if part is None else part.to(module.device) for part in batch)))
        preview = datamodule.preview("val", index)
        cells.append((preview.image, captions[0][0].text, preview.text or ""))
    return [contact_sheet(cells, out_dir / "captions.png")]


def contact_sheet(cells: Sequence[tuple[NDArray, str, str]], path: Path, columns: int = 4) -> Path:
    """Draw images (H, W, 3) in [0, 1], each with a caption above it and a second text in gray below it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(columns, len(cells))
    rows = -(-len(cells) // columns)
    figure = Figure(figsize=(3.4 * columns, 3.5 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes:
        axis.set_axis_off()
    for axis, (image, above, below) in zip(axes, cells, strict=False):
        axis.imshow(image, cmap="gray", vmin=0, vmax=1)
        axis.set_title(textwrap.fill(above or "(no caption)", 34), fontsize=10)
        if below:
            axis.text(0.5, -0.02, textwrap.fill(below, 44), transform=axis.transAxes, ha="center", va="top",
                      fontsize=8, color="0.45")  # fmt: skip
    figure.savefig(path, dpi=90)
    return path
