"""The picture of section 5.1: influence against distance for two models, and the images that each of them goes by."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from quintet.data.exhibit import Exhibit

SAME, OTHER = "#2166ac", "#d6604d"


class Half(NamedTuple):
    """One model's part of the picture."""

    title: str
    delta_n: NDArray  # influence of every training example
    spearman: float  # of its size with the distance
    tops: list[tuple[Exhibit, float]]  # the most helpful, with their influence


def draw_halves(path: Path, query: Exhibit, halves: Sequence[Half], distance_n: NDArray, like_n: NDArray) -> Path:
    """A row for each model: its cloud by class, the test image, its most helpful training images."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = max(len(half.tops) for half in halves)
    figure = Figure(figsize=(4.6 + 1.7 * (columns + 1), 3.5 * len(halves)), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(len(halves), columns + 2, width_ratios=[2.6, 1.0, *[1.0] * columns])
    _draw_image(figure.add_subplot(grid[:, 1]), query, f"test image\n{query.title}", "black")
    for row, half in enumerate(halves):
        _draw_cloud(figure.add_subplot(grid[row, 0]), half, distance_n, like_n, query)
        for column, (exhibit, score) in enumerate(half.tops):
            colour = SAME if exhibit.label == query.label else OTHER
            said = f"helpful {column + 1}: {score:+.2g}\n{exhibit.title}"
            _draw_image(figure.add_subplot(grid[row, 2 + column]), exhibit, said, colour)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    return path


def _draw_cloud(axis, half: Half, distance_n: NDArray, like_n: NDArray, query: Exhibit) -> None:
    order = np.random.default_rng(0).permutation(len(like_n))  # neither colour lies over the other
    axis.axhline(0, color="0.8", linewidth=0.8, zorder=0)
    colours = np.where(like_n[order], SAME, OTHER)
    axis.scatter(distance_n[order], half.delta_n[order], s=7, c=colours, alpha=0.6, linewidths=0, rasterized=True)
    for name, colour in ((f"{query.label}, as the test image", SAME), ("the other class", OTHER)):
        axis.scatter([], [], s=24, c=colour, linewidths=0, label=name)
    axis.set_title(half.title, fontsize=9.5, weight="bold")
    axis.set(xlabel="Euclidean distance of the pixels", ylabel="change of the test loss if removed")
    axis.text(0.97, 0.04, f"|influence| and distance:\nSpearman {half.spearman:+.3f}", transform=axis.transAxes,
              ha="right", fontsize=8)  # fmt: skip
    axis.legend(fontsize=7.5, frameon=False, loc="upper right")
    axis.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    axis.tick_params(labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)


def _draw_image(axis, exhibit: Exhibit, title: str, colour: str) -> None:
    axis.imshow(exhibit.image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axis.set(xticks=[], yticks=[])
    axis.set_title(title, fontsize=7, color=colour, parse_math=False)
    for spine in axis.spines.values():
        spine.set(color=colour, linewidth=1.6)
