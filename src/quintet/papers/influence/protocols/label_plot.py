"""The plot of `explain`: influence on each query, marked where the label (class, speaker) is its own."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quintet.data.preview import Preview

OWN, OTHER, HEIGHT = "#1b7837", "0.6", 0.4  # inches a query


def draw_labels(path: Path, shown: list[Preview], scores_qu: NDArray, labels_u: list[str | None], what: str,
                notes: str) -> Path:  # fmt: skip
    """A line of marks for each query; scores are divided by the query's largest, so that all lines are of one width."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 1.6 + HEIGHT * len(shown)), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.add_subplot()
    for row, (query, scores_u) in enumerate(zip(shown, scores_qu, strict=True)):
        own_u = np.array([label == query.label for label in labels_u])
        relative_u = scores_u / max(float(np.abs(scores_u).max()), 1e-30)
        for mine, color, name in ((~own_u, OTHER, "another label"), (own_u, OWN, "the query's label")):
            height = row + (-0.14 if color == OWN else 0.14)
            axis.plot(relative_u[mine], np.full(mine.sum(), height), "|", color=color, markersize=9,
                      markeredgewidth=1.4, label=name if row == 0 else None)  # fmt: skip
    axis.axvline(0, color="black", linewidth=0.6)
    axis.set_yticks(range(len(shown)), [f"{one.title} ({one.label})" for one in shown], fontsize=8)
    axis.invert_yaxis()
    axis.set_xlabel(f"influence of {what} over the largest: harmful < 0 < helpful")
    figure.legend(loc="outside upper right", ncols=2, fontsize=8, frameon=False)
    figure.supxlabel(notes, fontsize=6, color="0.35")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    return path
