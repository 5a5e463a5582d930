"""Load one split of a Hub data set or of local files with `datasets.load_dataset`, with one-line errors."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from quintet.common.errors import UserError


def load_split(root: str, subset: str | None, split: str, columns: Mapping[str, str | Sequence[str] | None],
               cache_dir: str | Path | None, missing: str) -> Any:  # fmt: skip
    """Return the split as a `datasets.Dataset`.

    root: a Hub id, a folder or a parquet file. columns: key of data.source -> the column or columns that it names.
    cache_dir: the data set is copied into its subfolder `hub`; None means the default cache of `datasets`.
    Raises UserError(`missing`) for a path that does not exist, and UserError for a split that cannot be loaded and for
    a column that the split does not have.
    """
    from datasets import load_dataset
    from datasets.exceptions import DatasetGenerationError

    local = Path(root).expanduser()
    if not local.exists() and (root.count("/") > 1 or root.startswith(("/", ".", "~"))):
        raise UserError(missing)
    if local.is_file():
        path = {"path": "parquet", "data_files": str(local)}
    else:
        path = {"path": str(local) if local.is_dir() else root}
    cache = None if cache_dir is None else str(Path(cache_dir) / "hub")
    try:
        loaded = load_dataset(**path, name=subset, split=split, cache_dir=cache)
    except (ImportError, FileNotFoundError, ValueError, ConnectionError, DatasetGenerationError) as error:
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        raise UserError(f"data.root={root} (split {split}) cannot be loaded: {reason}") from error
    for key, named in columns.items():
        for column in [named] if isinstance(named, str) else named or []:
            if column not in loaded.column_names:
                raise UserError(f"data.source.{key}={column}: {root} has the columns {', '.join(loaded.column_names)}")
    return loaded
