"""Blocks of examples -> an Arrow file, and its inputs back as numpy views of the memory map."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


def write_part(path: Path, blocks: Iterable[Any], content: Any) -> None:
    """One split as an Arrow file: each Block is one record batch, so that memory holds one at a time."""
    from datasets import ClassLabel, Features, List, Value
    from datasets.arrow_writer import ArrowWriter

    inputs = List(Value(content.dtype), length=math.prod(content.input_shape))
    label = ClassLabel(names=content.classes)
    features = Features({"inputs": inputs, "label": label, "name": Value("string"), "text": Value("string")})
    with ArrowWriter(path=str(path), features=features) as writer:
        writer.write_table(features.arrow_schema.empty_table())  # a split without any block is a file as well
        for block in blocks:
            if len(block.labels):
                writer.write_table(_table(block, content, features.arrow_schema), writer_batch_size=len(block.labels))
        writer.finalize()


def _table(block: Any, content: Any, schema: Any) -> Any:
    import pyarrow as pa

    inputs = np.ascontiguousarray(block.inputs)
    count = len(block.labels)
    assert inputs.dtype == content.dtype, f"the inputs are {inputs.dtype}, but declared as {content.dtype}"
    assert inputs.shape == (count, *content.input_shape), f"{inputs.shape} is not {count} x {content.input_shape}"
    assert min(block.labels) >= 0 and max(block.labels) < len(content.classes), "labels are 0..C-1"
    rows = pa.FixedSizeListArray.from_arrays(pa.array(inputs.reshape(-1)), math.prod(content.input_shape))
    texts = block.texts if block.texts is not None else [None] * count
    columns = [rows, pa.array(np.asarray(block.labels, np.int64)), pa.array(block.names), pa.array(texts, pa.string())]
    return pa.Table.from_arrays(columns, schema=schema)


class ArrowInputs:
    """The column `inputs` of a split; rows are gathered in one go, without a Python object for any of them."""

    def __init__(self, path: Path) -> None:
        from datasets import Dataset

        self.path = path
        self.dataset = Dataset.from_file(str(path))  # keeps the map open
        column = self.dataset.data.column("inputs")
        self.width: int = column.type.list_size
        self._dtype = column.type.value_type.to_pandas_dtype()
        self._chunks = [c.flatten().to_numpy(zero_copy_only=True).reshape(-1, self.width) for c in column.chunks]
        self._starts = np.cumsum([0, *(len(chunk) for chunk in self._chunks)])

    def __reduce__(self) -> tuple:
        return ArrowInputs, (self.path,)  # a spawned worker maps the file again; the examples are not copied to it

    def __len__(self) -> int:
        return int(self._starts[-1])

    def gather(self, rows: NDArray[np.int64]) -> NDArray:
        """(B, width) of the stored type, a copy."""
        chunk_b = np.searchsorted(self._starts, rows, side="right") - 1
        out = np.empty((len(rows), self.width), self._dtype)
        for chunk in np.unique(chunk_b):
            here_b = chunk_b == chunk
            out[here_b] = self._chunks[chunk][rows[here_b] - self._starts[chunk]]
        return out


class ArrayInputs:
    """Rows of a memory-mapped .npy (N, width): features that were computed once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._array = np.load(path, mmap_mode="r")
        self.width: int = self._array.shape[1]

    def __reduce__(self) -> tuple:
        return ArrayInputs, (self.path,)

    def __len__(self) -> int:
        return len(self._array)

    def gather(self, rows: NDArray[np.int64]) -> NDArray:
        """(B, width), a copy."""
        return self._array[rows]
