"""What became slower? The result files of two folders, row by row.

    python -m benchmarks.compare logs/bench/<one commit> logs/bench/<another> [--threshold 0.1]

`make bench` fills such a folder. Only rows with a unit of time, rate, memory or size are compared; what differs by more
than the threshold is marked. Machines are noisy: run both commits on the same quiet one.
"""

import argparse
import sys
from pathlib import Path

from benchmarks.common import one_line_errors
from quintet.common.errors import UserError
from quintet.harness.results import read_result

LESS_IS_BETTER = ("s", "ms", "us", "MB", "MiB", "GB", "ms a batch", "s CPU")


def direction(unit: str) -> int:
    """1: more is better, -1: less is better, 0: not a matter of speed or size."""
    if unit in LESS_IS_BETTER:
        return -1
    return 1 if unit.endswith(("/s", "/min")) or unit == "x" else 0


def changes(before: Path, after: Path) -> tuple[list[tuple[str, str, float, float, float]], list[str]]:
    """(file, metric, before, after, how many times as good) of each comparable row, and what only one folder has."""
    old_rows, new_rows = _rows(before), _rows(after)
    rows = []
    for (name, metric), old in old_rows.items():
        new, better = new_rows.get((name, metric)), direction(old["unit"])
        if new is None or not better or not all(_positive(one["value"]) for one in (old, new)):
            continue
        rows.append((name, metric, old["value"], new["value"], (new["value"] / old["value"]) ** better))
    alone = sorted({" / ".join(key) for key in old_rows.keys() ^ new_rows.keys()})
    return rows, alone


def _rows(folder: Path) -> dict[tuple[str, str], dict]:
    files = sorted(folder.glob("*.json"))
    if not files:
        raise UserError(f"{folder}: no result files: `make bench` writes them to logs/bench/<commit>")
    return {(path.stem, one["metric"]): one for path in files for one in read_result(path)["rows"]}


def _positive(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


def main() -> int:
    """Command line; the exit code is 1 if something became worse by more than the threshold."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--threshold", type=float, default=0.1)
    args = parser.parse_args()
    with one_line_errors():
        rows, alone = changes(args.before, args.after)
    worse = 0
    for name, metric, old, new, gain in sorted(rows, key=lambda one: one[-1]):
        mark = "worse " if gain < 1 / (1 + args.threshold) else "better" if gain > 1 + args.threshold else "      "
        worse += mark == "worse "
        print(f"{mark} {gain:6.2f} x  {name}: {metric}: {old:.6g} -> {new:.6g}")
    for one in alone:
        print(f"only in one of them: {one}")
    print(f"{len(rows)} rows compared, {worse} worse by more than {args.threshold:.0%}")
    return int(worse > 0)


if __name__ == "__main__":
    sys.exit(main())
