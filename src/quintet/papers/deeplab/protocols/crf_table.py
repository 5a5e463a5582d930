"""The table of `crf_search`: rows that survive a kill, the same for people, and a picture of the grid."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from quintet.common.errors import UserError
from quintet.common.tables import write_csv

FORMAT = 1  # raise when the same settings give other rows
HEADER = ("w1", "sa", "sb", "miou", "miou_chosen", "accuracy")


class Setting(NamedTuple):
    """Parameters of the appearance kernel: weight, pixels, gray levels."""

    w1: float
    sa: float
    sb: float


OFF = Setting(0.0, 0.0, 0.0)  # the network alone, no smoothness kernel either


class Measured(NamedTuple):
    """A setting and its scores: mean IoU, that of the chosen classes (None: none are), pixel accuracy."""

    setting: Setting
    miou: float
    miou_chosen: float | None
    accuracy: float

    @classmethod
    def of(cls, setting: Setting, values: Mapping[str, Tensor]) -> "Measured":
        chosen = float(values["miou_chosen"]) if "miou_chosen" in values else None
        return cls(setting, float(values["miou"]), chosen, float(values["accuracy"]))

    @property
    def chosen_by(self) -> str:
        return "miou" if self.miou_chosen is None else "miou_chosen"

    @property
    def score(self) -> float:
        """What the best setting is chosen by."""
        return self.miou if self.miou_chosen is None else self.miou_chosen

    @property
    def scores(self) -> dict[str, float]:
        found = {name: getattr(self, name) for name in HEADER[3:]}
        return {name: value for name, value in found.items() if value is not None}

    @property
    def text(self) -> str:
        return "no CRF" if self.setting == OFF else "w1 {:g}, sa {:g}, sb {:g}".format(*self.setting)


class Table:
    """A file to which each setting is appended as soon as it is measured.

    grid: the values of w1, sa and sb that count here; rows of other grids stay in the file.
    """

    def __init__(self, path: Path, grid: Mapping[str, Sequence[float]]) -> None:
        self.path, self.grid = path, grid
        self._rows = {row.setting: row for row in _read(path)}
        aside = path.with_suffix(".tmp")  # without what a kill left of a row
        with aside.open("w", newline="") as file:
            csv.writer(file).writerows([HEADER, *(_cells(row) for row in self._rows.values())])
        aside.replace(path)

    def __contains__(self, setting: Setting) -> bool:
        return setting in self._rows

    def __getitem__(self, setting: Setting) -> Measured:
        return self._rows[setting]

    def append(self, rows: Sequence[Measured]) -> None:
        """Onto the disk at once."""
        with self.path.open("a", newline="") as file:
            csv.writer(file).writerows(_cells(row) for row in rows)
        self._rows |= {row.setting: row for row in rows}

    def ranked(self) -> list[Measured]:
        """Of the grid, the best first; of equal ones the one with the smallest w1, sa, sb."""
        inside = (row for row in self._rows.values() if self._counts(row.setting))
        return sorted(inside, key=lambda row: (-row.score, row.setting))

    def best(self) -> Measured:
        """Of the grid; OFF as long as there is none."""
        return next(iter(self.ranked()), self[OFF])

    def _counts(self, setting: Setting) -> bool:
        return all(value in values for value, values in zip(setting, self.grid.values(), strict=True))


def _cells(row: Measured) -> list:
    return ["" if value is None else value for value in (*row.setting, *row[1:])]


def _read(path: Path) -> list[Measured]:
    """The whole rows of the file; a last line without its end is of a killed run."""
    lines = path.read_text().splitlines(keepends=True)[1:] if path.is_file() else []
    rows = []
    for cells in csv.reader([line for line in lines if line.endswith("\n")]):
        if len(cells) != len(HEADER):
            raise UserError(f"{path} has a row of {len(cells)} cells: delete the file, the search begins again")
        values: list[Any] = [float(cell) if cell else None for cell in cells]
        *setting, miou, chosen, accuracy = values
        rows.append(Measured(Setting(*setting), miou, chosen, accuracy))
    return rows


def write_tables(out_dir: Path, table: Table) -> None:
    """crf_search.csv in the order of the grid, crf_search.md the best first; the row without a CRF is 0, 0, 0."""
    write_csv(out_dir / "crf_search.csv", HEADER, [_cells(row) for row in (table[OFF], *sorted(table.ranked()))])
    names = list(table[OFF].scores)
    lines = ["| setting | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]
    for row in [table[OFF], *table.ranked()]:
        lines.append(f"| {row.text} | " + " | ".join(f"{row.scores[name]:.4f}" for name in names) + " |")
    (out_dir / "crf_search.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def draw(path: Path, table: Table, images: int) -> None:
    """A panel for each w1: the score at each sa and sb that was tried; the best is framed."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows, best = table.ranked(), table.best()
    if not rows:
        return
    w1s, sas, sbs = (sorted({row.setting[axis] for row in rows}) for axis in range(3))
    values = np.full((len(w1s), len(sbs), len(sas)), np.nan)
    for row in rows:
        w1, sa, sb = row.setting
        values[w1s.index(w1), sbs.index(sb), sas.index(sa)] = row.score
    figure = Figure(figsize=(2.2 + 0.62 * len(sas), 1.3 + len(w1s) * (0.75 + 0.34 * len(sbs))), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(w1s), 1, squeeze=False, sharex=True)[:, 0]
    low, high = np.nanmin(values), np.nanmax(values)
    for axis, w1, value_ba in zip(axes, w1s, values, strict=True):
        shown = axis.imshow(value_ba, cmap="viridis", vmin=low, vmax=high, aspect="auto", origin="lower")
        for b, a in zip(*np.nonzero(~np.isnan(value_ba)), strict=True):
            dark = value_ba[b, a] < (low + high) / 2
            axis.text(a, b, f"{value_ba[b, a]:.4f}", ha="center", va="center", fontsize=6.5,
                      color="white" if dark else "black")  # fmt: skip
        if best.setting.w1 == w1:
            _frame(axis, sas.index(best.setting.sa), sbs.index(best.setting.sb))
        axis.set(title=f"w1 = {w1:g}", ylabel="sb (gray levels)")
        axis.set_xticks(range(len(sas)), [f"{sa:g}" for sa in sas])
        axis.set_yticks(range(len(sbs)), [f"{sb:g}" for sb in sbs])
    axes[-1].set_xlabel("sa (pixels)")
    named = "mean IoU" + (" of the chosen classes" if best.chosen_by == "miou_chosen" else "")
    figure.colorbar(shown, ax=list(axes), label=named, shrink=0.8)
    figure.suptitle(f"{images} images; without the CRF {table[OFF].score:.4f}; best: {best.text}", fontsize=9)
    figure.savefig(path, dpi=140)


def _frame(axis, a: int, b: int) -> None:
    from matplotlib.patches import Rectangle

    axis.add_patch(Rectangle((a - 0.5, b - 0.5), 1, 1, fill=False, edgecolor="red", linewidth=1.8))
