"""Decoded audio on disk: a memory-mapped `datasets.Dataset` of 16-bit PCM, built once per set of source files."""

import hashlib
import json
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

from filelock import FileLock
from numpy.typing import NDArray

from quintet.data.audio.decode import BadAudio, load
from quintet.data.audio.recording import Recording, Source
from quintet.errors import UserError

log = logging.getLogger(__name__)
FORMAT = 1  # raise when the files below change
DECODE_BLOCK = 64  # recordings decoded at a time, so that memory stays bounded


def digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, default=str, sort_keys=True).encode()).hexdigest()[:16]


def build_once(target: Path, write: Callable[[Path], None]) -> Path:
    """Call `write(folder)` unless `target` exists; other processes wait, and never see a half-written folder."""
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if not target.is_dir():
            temporary = Path(tempfile.mkdtemp(prefix=f"{target.name}.", dir=target.parent))
            try:
                write(temporary)
                temporary.chmod(0o755)
                temporary.replace(target)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
    return target


def write_rows(path: Path, features: dict[str, Any], rows: Iterable[dict[str, Any]]) -> None:
    """Stream rows into an Arrow file that `datasets.Dataset.from_file` maps."""
    from datasets import Features
    from datasets.arrow_writer import ArrowWriter

    with ArrowWriter(path=str(path), features=Features(features), writer_batch_size=16) as writer:
        for row in rows:
            writer.write(row)
        writer.finalize()


def write_store(folder: Path, source: Source, recordings: Sequence[Recording], sample_rate: int, resample: bool,
                on_bad_file: str) -> None:  # fmt: skip
    """Decode everything into `folder/pcm.arrow`; `folder/meta.json` holds the order and the files left out."""
    from datasets import List, Value

    kept: list[Recording] = []
    bad: list[str] = []

    def rows() -> Iterator[dict[str, Any]]:
        for recording, pcm in _decode(source, recordings, sample_rate, resample):
            if isinstance(pcm, BadAudio):
                if on_bad_file == "error":
                    raise pcm
                bad.append(str(recording.path))
                continue
            kept.append(recording)
            yield {"id": recording.id, "pcm": pcm}

    write_rows(folder / "pcm.arrow", {"id": Value("string"), "pcm": List(Value("int16"))}, rows())
    if not kept:
        raise UserError(f"none of the {len(recordings)} files could be decoded, the first is {recordings[0].path}")
    (folder / "meta.json").write_text(json.dumps({"ids": [r.id for r in kept], "bad": bad}))


def _decode(source: Source, recordings: Sequence[Recording], sample_rate: int, resample: bool) -> Iterator[tuple]:
    """(recording, samples or the BadAudio it raised), in order; soundfile and soxr run outside Python's lock."""

    def one(recording: Recording) -> NDArray | BadAudio:
        try:
            return load(source, recording, sample_rate, resample)
        except BadAudio as error:
            return error

    log.info("decoding %d recordings to %d Hz mono, once", len(recordings), sample_rate)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(recordings), DECODE_BLOCK):
            block = recordings[start : start + DECODE_BLOCK]
            yield from zip(block, pool.map(one, block), strict=True)


def warn_bad_files(bad: Sequence[str], total: int) -> None:
    """Name what `on_bad_file=skip` left out, at every start."""
    if bad:
        shown = ", ".join(bad[:20]) + (", ..." if len(bad) > 20 else "")
        warnings.warn(f"data.on_bad_file=skip left out {len(bad)} of {total} files: {shown}")


class ListColumn:
    """Rows of one list column as numpy views of the memory map: nothing is copied, nothing becomes a Python list."""

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
