"""The pictures of the training-set attack: what was moved and by what (figure 5), and how the margins fell."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from quintet.data.preview import Preview

COLORS = ("#2166ac", "#d6604d", "#1b7837", "#762a83")
CELL = 2.1  # inches


class Shown(NamedTuple):
    """A test image that was flipped, and the training images that did it."""

    query: Preview
    before: float  # probability of its class
    after: float
    trained: list[Preview]
    images_rhwc: NDArray  # in [0, 1]
    moves_rhwc: NDArray  # in 8-bit levels


def draw_attacks(path: Path, shown: Sequence[Shown], radius: float) -> Path:
    """A row for each moved training image: original, moved, their difference on a scale of its own; the test image."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = sum(len(one.trained) for one in shown)
    figure = Figure(figsize=(4 * CELL + 0.4, rows * (CELL + 0.55) + 0.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, 4, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    row = 0
    for one in shown:
        _draw_query(axes[row, 3], one)
        for trained, image_hwc, move_hwc in zip(one.trained, one.images_rhwc, one.moves_rhwc, strict=True):
            _draw_row(axes[row], trained, image_hwc, move_hwc, radius)
            row += 1
    said = f"no pixel moved by more than {radius:g} of 255 levels: rounded to 8 bits, original and moved are the same"
    figure.suptitle(said, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    return path


def _draw_row(axes: Sequence, trained: Preview, image_hwc: NDArray, move_hwc: NDArray, radius: float) -> None:
    moved_hwc = image_hwc + move_hwc / 255
    times = 0.5 * 255 / radius
    pictures = (image_hwc, moved_hwc, 0.5 + 0.5 * move_hwc / radius)
    largest = f"moved\nat most {np.abs(move_hwc).max():.3f} levels"
    titles = (f"training image\n{trained.title}", largest, f"difference\ntimes {times:.0f}, gray is none")
    for axis, picture, title in zip(axes, pictures, titles, strict=False):
        axis.imshow(np.clip(picture, 0, 1), interpolation="nearest")
        axis.set_title(title, fontsize=7.5, parse_math=False)


def _draw_query(axis, one: Shown) -> None:
    axis.imshow(one.query.image, cmap="gray", vmin=0, vmax=1)
    said = f"{one.query.label} {one.before:.3%} -> {one.after:.2%}"
    axis.set_title(f"test image {one.query.title}\n{said}", fontsize=7.5, color="#b2182b", parse_math=False)


def draw_margins(path: Path, paths: dict[int, list[list[float]]]) -> Path:
    """The test image's margin after each refit, a panel for each number of images moved; below 0 it is flipped."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.6 * len(paths) + 0.3, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(paths), squeeze=False, sharey=True, sharex=True)[0]
    for axis, (count, lines), color in zip(axes, paths.items(), COLORS * len(paths), strict=False):
        for margins in lines:
            axis.plot(margins, color=color, linewidth=0.7, alpha=0.6)
        won = sum(margins[-1] < 0 for margins in lines)
        axis.axhline(0, color="black", linewidth=0.8)
        axis.set_title(f"{count} image{'s' * (count > 1)} moved: {won} of {len(lines)} attempts", fontsize=9)
        axis.set_xlabel("iterations, the top layer refitted after each", fontsize=8)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("margin of the test image", fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    return path
