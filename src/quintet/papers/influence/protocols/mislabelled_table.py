"""The refits of `mislabelled` as a table that grows seed by seed, and as figure 6 of Koh and Liang 2017.

Legend: S seeds, M methods, K fractions.
"""

import csv
import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from quintet.common.tables import write_csv

METHODS = ("influence", "loss", "random")
COLORS = {"influence": "#1f77b4", "loss": "#2ca02c", "random": "#d62728"}


class Refitted(NamedTuple):
    """One refit."""

    seed: int
    method: str
    fraction: float  # of the training examples that were checked
    checked: int
    found: int  # flipped labels among them, now restored
    test_accuracy: float
    gradient_norm: float


class RefitTable:
    """The file with a row for each refit; `per_seed` rows make a seed complete, and only complete seeds count."""

    def __init__(self, path: Path, per_seed: int) -> None:
        self.path = path
        rows = defaultdict(list)
        for row in _read(path):
            rows[row.seed].append(row)
        self._rows = {seed: found for seed, found in rows.items() if len(found) == per_seed}
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_suffix(".tmp")  # without what a kill left of a seed
        with aside.open("w", newline="") as file:
            csv.writer(file).writerows([Refitted._fields, *(row for found in self._rows.values() for row in found)])
        aside.replace(path)

    def __contains__(self, seed: int) -> bool:
        return seed in self._rows

    def append(self, seed: int, rows: Sequence[Refitted]) -> None:
        """A finished seed, onto the disk at once."""
        with self.path.open("a", newline="") as file:
            csv.writer(file).writerows(rows)
        self._rows[seed] = list(rows)

    def rows(self, seeds: int) -> list[Refitted]:
        """Of seeds 0 .. seeds - 1, in order."""
        return [row for seed in range(seeds) for row in self._rows[seed]]

    def values(self, seeds: int, name: str) -> NDArray[np.float64]:
        """A column as an array (S, M, K)."""
        column = [getattr(row, name) for row in self.rows(seeds)]
        return np.array(column, np.float64).reshape(seeds, len(METHODS), -1)


def _read(path: Path) -> list[Refitted]:
    """The whole rows of the file; a last line without its end is of a killed run."""
    lines = path.read_text().splitlines(keepends=True)[1:] if path.is_file() else []
    cells = csv.reader([line for line in lines if line.endswith("\n")])
    return [Refitted(int(s), m, float(f), int(c), int(n), float(a), float(g)) for s, m, f, c, n, a, g in cells]


def standard_error(values: NDArray) -> NDArray:
    """Of the mean over the first axis, the seeds."""
    return values.std(0, ddof=1) / math.sqrt(len(values))


def write_curves(out_dir: Path, fractions: Sequence[float], found_smk: NDArray, accuracy_smk: NDArray) -> None:
    """curves.csv: means and standard errors; paired.csv: influence minus loss, seed by seed."""
    curves, pairs = [], []
    for k, fraction in enumerate(fractions):
        for m, method in enumerate(METHODS):
            numbers = [float(f(v[:, m, k])) for v in (accuracy_smk, found_smk) for f in (np.mean, standard_error)]
            curves.append((fraction, method, *numbers))
        for name, values_smk in (("test_accuracy", accuracy_smk), ("found", found_smk)):
            gain_s = influence_minus_loss(values_smk[:, :, k])
            above, below = int((gain_s > 0).sum()), int((gain_s < 0).sum())
            pairs.append((fraction, name, float(gain_s.mean()), float(standard_error(gain_s)), above, below))
    header = ("fraction_checked", "method", "test_accuracy", "test_accuracy_se", "fraction_found", "fraction_found_se")
    write_csv(out_dir / "curves.csv", header, curves)
    header = ("fraction_checked", "quantity", "influence_minus_loss", "standard_error", "seeds_above", "seeds_below")
    write_csv(out_dir / "paired.csv", header, pairs)


def influence_minus_loss(values_sm: NDArray) -> NDArray:
    """The gain of one order over the other, (S,): both saw the same flips."""
    return values_sm[:, METHODS.index("influence")] - values_sm[:, METHODS.index("loss")]


def draw(path: Path, fractions: Sequence[float], found_smk: NDArray, accuracy_smk: NDArray, clean: float,
         title: str) -> None:  # fmt: skip
    """Test accuracy and flips found against the fraction checked; `clean`: the accuracy without any flip."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    for axis, values_smk in ((left, accuracy_smk), (right, found_smk)):
        for m, method in enumerate(METHODS):
            mean, error = values_smk[:, m].mean(0), standard_error(values_smk[:, m])
            axis.errorbar(fractions, mean, error, color=COLORS[method], marker="o", markersize=3, capsize=2,
                          linewidth=1.3, label=method)  # fmt: skip
        axis.set(xlabel="fraction of the training data checked", xlim=(0, fractions[-1] or 1))
        axis.grid(color="0.92")
    left.axhline(clean, color="black", linestyle="--", linewidth=1, label="labels as they were")
    left.set(ylabel="test accuracy")
    right.set(ylabel="fraction of the flips found", ylim=(0, 1))
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    figure.suptitle(title, fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=140)
