"""Parquet shards, local or on the Hub, read a row group at a time: nothing of them is copied to the disk."""

import logging
import os
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np

from quintet.common.errors import UserError
from quintet.data.store import digest

log = logging.getLogger(__name__)
MAX_GROUP_BYTES = 2**31  # of a row group, decompressed: it is held in memory


class ParquetShards:
    """The rows of `files` in order, as one table with these columns.

    Each process keeps the last `keep` row groups that it used in memory. Raises UserError for a file that is not a
    parquet, has not these columns, or has a row group too large to hold.
    """

    def __init__(self, files: list[str], columns: list[str], keep: int = 8) -> None:
        self.files, self.columns, self.keep = files, columns, keep
        self._opened: dict[tuple[int, str], Any] = {}
        self._groups: OrderedDict[int, Any] = OrderedDict()
        self._places: list[tuple[str, int]] = []
        counts = []
        for file in files:
            metadata = self._open(file).metadata
            self._check(file, metadata)
            self._places += [(file, group) for group in range(metadata.num_row_groups)]
            counts += [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        self._opened.clear()
        self.ends = np.cumsum(counts, dtype=np.int64)  # of every row group, in rows
        self.key = digest(sorted(columns), [self._identity(file) for file in files], counts)

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def __reduce__(self) -> tuple:
        return ParquetShards, (self.files, self.columns, self.keep)  # a spawned worker opens the files again

    def row(self, index: int) -> dict[str, Any]:
        """All columns of a row; images and sounds as the bytes of their files."""
        group = int(np.searchsorted(self.ends, index, side="right"))
        first = int(self.ends[group - 1]) if group else 0
        table = self._group(group)
        return {name: table.column(name)[index - first].as_py() for name in self.columns}

    def where(self, index: int) -> str:
        """File and row in it, for messages."""
        group = int(np.searchsorted(self.ends, index, side="right"))
        file = self._places[group][0]
        first = next(i for i, (name, _) in enumerate(self._places) if name == file)
        return f"{file}, row {index - (int(self.ends[first - 1]) if first else 0)}"

    def column(self, name: str) -> list:
        """One column of all rows; no other is read."""
        tables = [self._open(file).read(columns=[name], use_threads=False) for file in self.files]
        self._opened.clear()
        return [value for table in tables for value in table.column(name).to_pylist()]

    def _group(self, group: int) -> Any:
        if group in self._groups:
            self._groups.move_to_end(group)
            return self._groups[group]
        file, number = self._places[group]
        try:
            table = self._open(file).read_row_group(number, columns=self.columns, use_threads=False)
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"{file}, row group {number} cannot be read: {reason}; download it again") from error
        self._groups[group] = table
        while len(self._groups) > self.keep:
            self._groups.popitem(last=False)
        return table

    def _open(self, file: str) -> Any:
        """Open once per process: a forked worker would share the file position with its parent."""
        import fsspec
        import pyarrow.parquet as pq

        key = os.getpid(), file
        if key not in self._opened:
            try:
                self._opened[key] = pq.ParquetFile(fsspec.open(file, "rb").open())
            except (OSError, ValueError) as error:
                raise UserError(
                    f"{file} is not a parquet file: {str(error).splitlines()[0]}; download it again"
                ) from error
        return self._opened[key]

    def _check(self, file: str, metadata: Any) -> None:
        names = metadata.schema.to_arrow_schema().names
        for column in self.columns:
            if column not in names:
                raise UserError(f"{file} has no column {column}: it has {', '.join(names)}")
        for group in range(metadata.num_row_groups):
            size = metadata.row_group(group).total_byte_size
            if size > MAX_GROUP_BYTES:
                raise UserError(
                    f"{file}: row group {group} has {size / 2**30:.1f} GiB, too much to hold in memory: write the file"
                    " again with smaller ones (row_group_size, e.g. 100 rows)"
                )

    @staticmethod
    def _identity(file: str) -> list:
        path = Path(file)
        return [file, *((path.stat().st_size, path.stat().st_mtime_ns) if path.is_file() else ())]


def find_shards(root: str, subset: str | None, split: str, cache_dir: Path) -> list[str]:
    """The parquet files of a split of a Hub id, a local folder or one file. Raises UserError for other files."""
    local = Path(root).expanduser()
    if local.is_file():
        return [str(local)]
    from datasets import load_dataset_builder

    try:
        builder = load_dataset_builder(str(local) if local.is_dir() else root, subset, cache_dir=str(cache_dir / "hub"))
        files = builder.config.data_files or {}
    except (FileNotFoundError, ValueError, ConnectionError, OSError) as error:
        raise UserError(f"data.root={root} cannot be read: {str(error).strip().splitlines()[0]}") from error
    if split not in files:
        raise UserError(f"data.root={root} has no split {split}: it has {', '.join(map(str, files)) or 'no files'}")
    others = [str(file) for file in files[split] if not str(file).endswith(".parquet")]
    if others:
        raise UserError(
            f"data.streaming=true reads parquet files, {others[0]} is not one: write the data set as parquet shards"
        )
    return [str(file) for file in files[split]]
