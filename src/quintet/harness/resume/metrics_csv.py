"""metrics.csv: every row once, however often the run was killed and resumed."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.loggers.logger import rank_zero_experiment


class MetricsCsv(CSVLogger):
    """Lightning's CSV logger, whose file is whole at every moment: rows are added, a new header is written aside."""

    def __init__(self, save_dir: str) -> None:
        super().__init__(save_dir, name="", version="")

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The writer, made at the first use, on rank 0."""
        if self._experiment is None:
            Path(self.log_dir).mkdir(parents=True, exist_ok=True)
            self._experiment = Writer(self.log_dir)
        return self._experiment


class Writer(ExperimentWriter):
    """Lightning's, but for the moment at which a metric is logged for the first time."""

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        path = Path(self.metrics_file_path)
        _write(path, fieldnames, _read(path))


def set_aside_metrics(run_dir: Path) -> None:
    """Move metrics.csv away before resuming: Lightning's CSV logger deletes what it finds."""
    path = run_dir / "metrics.csv"
    if path.exists():
        taken = [_number(part) for part in run_dir.glob("metrics.part*.csv")]
        path.rename(run_dir / f"metrics.part{max(taken, default=-1) + 1}.csv")


def join_metrics(run_dir: Path) -> None:
    """One metrics.csv from the parts of a resumed run; a later part replaces the steps it did again."""
    parts = sorted(run_dir.glob("metrics.part*.csv"), key=_number)
    path = run_dir / "metrics.csv"
    if not parts:
        return
    rows: list[dict[str, str]] = []
    for file in [*parts, *([path] if path.exists() else [])]:  # nothing was left to do: nothing was logged
        new = _read(file)
        rows = [row for row in rows if not _again(row, new)] + new
    _write(path, list(dict.fromkeys(key for row in rows for key in row)), rows)
    for file in parts:
        file.unlink()


def _number(part: Path) -> int:
    return int(part.stem.removeprefix("metrics.part"))


def _again(row: dict[str, str], new: list[dict[str, str]]) -> bool:
    """Whether a later part has logged this row again.

    At the step where it begins only rows of the same metrics: it may begin between a step and its validation.
    """
    first = min((int(r["step"]) for r in new), default=None)
    if first is None or int(row["step"]) < first:
        return False
    return int(row["step"]) > first or _filled(row) in [_filled(r) for r in new if int(r["step"]) == first]


def _filled(row: dict[str, str]) -> set[str]:
    return {name for name, value in row.items() if value}


def _read(path: Path) -> list[dict[str, str]]:
    """The rows; one that was cut off by a kill is none."""
    text = path.read_text(encoding="utf-8")
    return list(csv.DictReader(text[: text.rfind("\n") + 1].splitlines()))


def _write(path: Path, columns: list[str], rows: list[dict[str, str]]) -> None:
    aside = path.with_suffix(".partial")
    with aside.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)
    aside.replace(path)
