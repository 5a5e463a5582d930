"""Clouds of points with what they should be: agreement of two accounts of the same numbers, panel by panel."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

SAME, OTHER = "#2166ac", "#d6604d"
COMPARABLE = 3.0  # both axes get the same limits unless the spreads differ by more
LETTERS = 12  # of a headline for an inch


class Cloud(NamedTuple):
    """A panel with `notes` in its corner."""

    title: str
    x: NDArray
    y: NDArray
    notes: str
    x_label: str
    y_label: str


def draw_clouds(path: Path, rows: Sequence[Sequence[Cloud]], same: Sequence[NDArray], names: tuple[str, str],
                headline: str) -> Path:  # fmt: skip
    """Rows of panels with their diagonals. same: of each row, which points have the first color and name."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = max(len(row) for row in rows)
    figure = Figure(figsize=(3.7 * columns + 0.3, 4.2 * len(rows) + 0.7), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for line, row, of_row in zip(axes, rows, same, strict=True):
        for axis, cloud in zip(line, row, strict=False):
            _draw(axis, cloud, of_row, names)
        for axis in line[len(row) :]:
            axis.set_axis_off()
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    figure.suptitle(_broken(headline, figure.get_figwidth()), fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    return path


def draw_row(path: Path, row: Sequence[Cloud], same: NDArray, names: tuple[str, str], headline: str,
             pictures: Sequence[tuple[NDArray, str]] = ()) -> Path:  # fmt: skip
    """Panels in a row and, last, some pictures with their titles, one below the other."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.5 * len(row) + 2.0 * bool(pictures), 5.0), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(
        max(1, len(pictures)), len(row) + 1, width_ratios=[1] * len(row) + [0.5 * bool(pictures)]
    )
    for place, cloud in enumerate(row):
        _draw(figure.add_subplot(grid[:, place]), cloud, same, names)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    for place, (image, title) in enumerate(pictures):
        axis = figure.add_subplot(grid[place, -1])
        axis.imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axis.set_title(title, fontsize=8.5)
        axis.set_axis_off()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    figure.suptitle(_broken(headline, figure.get_figwidth()), fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    return path


def _draw(axis, cloud: Cloud, same: NDArray, names: tuple[str, str]) -> None:
    size, alpha = (16, 0.75) if len(same) <= 1000 else (4, 0.35)
    order = np.random.default_rng(0).permutation(len(same))  # neither color covers the other
    colors = np.where(same[order], SAME, OTHER)
    axis.axhline(0, color="0.9", linewidth=0.8, zorder=0)
    axis.axvline(0, color="0.9", linewidth=0.8, zorder=0)
    axis.scatter(cloud.x[order], cloud.y[order], s=size, c=colors, alpha=alpha, linewidths=0, rasterized=True)
    for name, color in zip(names, (SAME, OTHER), strict=True):
        axis.scatter([], [], s=24, c=color, linewidths=0, label=name)
    low_x, high_x = _limits(cloud.x)
    low_y, high_y = _limits(cloud.y)
    ends = [min(low_x, low_y), max(high_x, high_y)]
    axis.plot(ends, ends, "--", color="0.35", linewidth=1, zorder=1, label="equal")
    if 1 / COMPARABLE <= (high_y - low_y) / (high_x - low_x) <= COMPARABLE:
        low_x, high_x = low_y, high_y = ends
    axis.set(xlim=(low_x, high_x), ylim=(low_y, high_y), xlabel=cloud.x_label, ylabel=cloud.y_label)
    axis.set_box_aspect(1)
    axis.set_title(cloud.title, fontsize=10, weight="bold", pad=14)  # above the power of ten
    behind = {"facecolor": "white", "alpha": 0.7, "linewidth": 0, "pad": 2}
    low = {"x": 0.97, "y": 0.04, "ha": "right", "va": "bottom"}  # where a cloud along the diagonal leaves room
    axis.text(s=cloud.notes, transform=axis.transAxes, fontsize=8.5, linespacing=1.4, bbox=behind, zorder=0.5, **low)
    axis.ticklabel_format(style="sci", scilimits=(-2, 3))
    axis.tick_params(labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)


def _limits(values: NDArray) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    room = 0.07 * (high - low) or 1e-12
    return low - room, high + room


def shown(correlation: float) -> str:
    """Four digits, or how far from 1."""
    return f"1 - {1 - correlation:.1e}" if 0.99995 < correlation < 1 else f"{correlation:.4f}"


def agreement(predicted: NDArray, actual: NDArray) -> dict[str, float]:
    """Pearson's R, Spearman's rank correlation, and by what factor the predictions are too large (their RMS ratio).

    nan where one of them does not vary.
    """
    from scipy.stats import rankdata

    size = np.sqrt(np.square(actual).mean())
    return {
        "pearson": _correlation(predicted, actual),
        "spearman": _correlation(rankdata(predicted), rankdata(actual)),
        "rms_ratio": float(np.sqrt(np.square(predicted).mean()) / size) if size else float("nan"),
    }


def _correlation(x: NDArray, y: NDArray) -> float:
    x, y = x - x.mean(), y - y.mean()
    size = np.linalg.norm(x) * np.linalg.norm(y)
    return float(x @ y / size) if size else float("nan")


def _broken(headline: str, inches: float) -> str:
    """The headline in lines that a figure so wide has room for."""
    return textwrap.fill(headline, max(20, int(LETTERS * inches)))
