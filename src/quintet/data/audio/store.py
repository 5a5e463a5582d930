"""Decoded audio on disk: a memory-mapped `datasets.Dataset` of 16-bit PCM, built once per set of source files."""

import json
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from quintet.common.errors import UserError
from quintet.data.audio.decode import BadAudio
from quintet.data.audio.load import load
from quintet.data.audio.recording import Recording, Source
from quintet.data.store import write_rows

log = logging.getLogger(__name__)
FORMAT = 1  # raise when the files below change
DECODE_BLOCK = 64  # recordings decoded at a time, so that memory stays bounded


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
