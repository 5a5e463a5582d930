"""Small writers that the protocols share: a CSV table and a labelled heat map."""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence]) -> Path:
    """Write a table; floats keep six significant digits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows([f"{v:.6g}" if isinstance(v, float) else v for v in row] for row in rows)
    return path


def plot_matrix(
    path: Path, values: np.ndarray, labels: Sequence[str], title: str, axes: tuple[str, str], unit: str
) -> Path:
    """A square matrix as a picture: `axes` name the rows and the columns, `unit` the colour bar."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    side = min(14.0, 3.0 + 0.28 * len(labels))
    figure = Figure(figsize=(side + 1.2, side), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    image = axis.imshow(values, cmap="viridis")
    axis.set(title=title, ylabel=axes[0], xlabel=axes[1])
    if len(labels) <= 60:
        axis.set_xticks(range(len(labels)), labels, rotation=90, fontsize=8)
        axis.set_yticks(range(len(labels)), labels, fontsize=8)
    figure.colorbar(image, ax=axis, label=unit, shrink=0.8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    return path
