"""The picture of section 5.1: influence against distance for two models, and the images that each of them goes by."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from quintet.data.preview import Preview

SAME, OTHER = "#2166ac", "#d6604d"


class Half(NamedTuple):
    """One model's part of the picture."""

    title: str
    delta_n: NDArray  # influence of every training example
    spearman: float  # of its size with the distance, of the examples that have a loss
    tops: list[tuple[Preview, float]]  # the most helpful, with their influence


def draw_halves(path: Path, query: Preview, halves: Sequence[Half], distance_n: NDArray, like_n: NDArray) -> Path:
    """A row for each model: its cloud by class, the test image, its most helpful training images."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = -(-(1 + max(len(half.tops) for half in halves)) // 2)
    figure = Figure(figsize=(5.2 + 1.9 * columns, 4.6 * len(halves)), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(2 * len(halves), 1 + columns, width_ratios=[2.6, *[1.0] * columns])
    for row, half in enumerate(halves):
        _draw_cloud(figure.add_subplot(grid[2 * row : 2 * row + 2, 0]), half, distance_n, like_n, query)
        _draw_image(figure.add_subplot(grid[2 * row, 1]), query, f"test image\n{query.title}", "black")
        for place, (preview, score) in enumerate(half.tops, 1):
            color = SAME if preview.label == query.label else OTHER
            said = f"helpful {place}: {score:+.2g}\n{preview.title}"
            spot = grid[2 * row + place // columns, 1 + place % columns]
            _draw_image(figure.add_subplot(spot), preview, said, color)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    return path


def _draw_cloud(axis, half: Half, distance_n: NDArray, like_n: NDArray, query: Preview) -> None:
    order = np.random.default_rng(0).permutation(len(like_n))  # neither color covers the other
    axis.axhline(0, color="0.8", linewidth=0.8, zorder=0)
    colors = np.where(like_n[order], SAME, OTHER)
    axis.scatter(distance_n[order], half.delta_n[order], s=7, c=colors, alpha=0.6, linewidths=0, rasterized=True)
    for name, color in ((f"{query.label}, as the test image", SAME), ("the other class", OTHER)):
        axis.scatter([], [], s=24, c=color, linewidths=0, label=name)
    axis.set_title(half.title, fontsize=9.5, weight="bold")
    axis.set(xlabel="Euclidean distance of the pixels", ylabel="change of the test loss if removed")
    said = f"|influence| and distance, of those\nwith a loss: Spearman {half.spearman:+.3f}"
    axis.text(0.97, 0.04, said, transform=axis.transAxes, ha="right", fontsize=8)
    axis.legend(fontsize=7.5, frameon=False, loc="upper right")
    axis.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    axis.tick_params(labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)


def _draw_image(axis, preview: Preview, title: str, color: str) -> None:
    axis.imshow(preview.image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axis.set(xticks=[], yticks=[])
    axis.set_title(title, fontsize=7, color=color, parse_math=False)
    for spine in axis.spines.values():
        spine.set(color=color, linewidth=1.6)
