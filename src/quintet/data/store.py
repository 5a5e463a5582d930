"""The cache: folders that are built once, Arrow files, and their columns as memory-mapped arrays."""

import glob
import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

from filelock import FileLock
from numpy.typing import NDArray


def digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, default=str, sort_keys=True).encode()).hexdigest()[:16]


def build_once(target: Path, write: Callable[[Path], None]) -> Path:
    """Call `write(folder)` unless `target` exists; other processes wait, and never see a half-written folder.

    The next call removes what a killed process has left behind.
    """
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if not target.is_dir():
            for left in target.parent.glob(f"{glob.escape(target.name)}.????????/"):
                shutil.rmtree(left, ignore_errors=True)
            temporary = Path(tempfile.mkdtemp(prefix=f"{target.name}.", dir=target.parent))
            try:
                write(temporary)
                temporary.chmod(0o755)
                temporary.replace(target)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
    return target


def write_rows(path: Path, features: dict[str, Any], rows: Iterable[dict[str, Any]], block: int = 16) -> None:
    """Stream rows into an Arrow file that `datasets.Dataset.from_file` maps, `block` rows held at a time."""
    from datasets import Features
    from datasets.arrow_writer import ArrowWriter

    with ArrowWriter(path=str(path), features=Features(features), writer_batch_size=block) as writer:
        for row in rows:
            writer.write(row)
        writer.finalize()


class ListColumn:
    """Rows of one list column as numpy views of the memory map: without copies and without Python lists."""

    def __init__(self, path: Path, column: str) -> None:
        from datasets import Dataset

        self._source = (path, column)
        self.dataset = Dataset.from_file(str(path))  # keeps the map open
        self._rows: list[tuple[NDArray, int, int]] = []
        for chunk in self.dataset.data.column(column).chunks:
            values = chunk.values.to_numpy(zero_copy_only=True)
            offsets = chunk.offsets.to_numpy()
            self._rows += [(values, int(a), int(b)) for a, b in pairwise(offsets)]

    def __reduce__(self) -> tuple:
        return ListColumn, self._source  # a spawned worker maps the file again; the samples are not copied to it

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, row: int) -> NDArray:
        values, start, stop = self._rows[row]
        return values[start:stop]
