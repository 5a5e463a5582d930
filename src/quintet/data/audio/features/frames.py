"""Shared by frame extractors: label files, the cache of frames, and the count of utterances without labels."""

import json
import logging
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quintet.common.errors import UserError
from quintet.data.audio.recording import Recording
from quintet.data.store import ListColumn, build_once, digest, write_rows

log = logging.getLogger(__name__)
VERSION = 1  # raise when an extractor computes something else


@dataclass
class FrameExtractor:
    """Turns recordings into frames; a subclass is a dataclass, its fields are part of the cache key.

    `extract` returns (frames, channels) float32, (frames,) int16, or None for an utterance to leave out.
    """

    arrow_type = "float32"

    def label_files(self, recordings: Sequence[Recording], cache_dir: Path) -> dict[str, Path]:
        """The label file of each utterance id; none by default."""
        return {}

    def extract(self, recording: Recording, pcm: NDArray, sample_rate: int, label: Path | None) -> NDArray | None:
        raise NotImplementedError

    def _target(self, folder: Path, labels: dict[str, Path], sample_rate: int) -> Path:
        stats = [(name, str(path), path.stat().st_size, path.stat().st_mtime_ns) for name, path in labels.items()]
        return folder.with_name(
            f"{folder.name}-{digest(VERSION, type(self).__name__, asdict(self), sample_rate, stats)}"
        )

    def build(self, folder: Path, recordings: Sequence[Recording], sample_rate: int, cache_dir: Path) -> Path:
        """Compute all frames once, in the order of the store at `folder`; returns their path."""
        labels = self.label_files(recordings, cache_dir)
        return build_once(
            self._target(folder, labels, sample_rate),
            lambda target: self._write(target, folder, recordings, sample_rate, labels),
        )

    def _write(self, target: Path, folder: Path, recordings: Sequence[Recording], sample_rate: int,
               labels: dict[str, Path]) -> None:  # fmt: skip
        from datasets import List, Value

        pcm, dropped = ListColumn(folder / "pcm.arrow", "pcm"), []
        log.info("%s: %d utterances, once", type(self).__name__, len(recordings))

        def rows() -> Any:
            for row, recording in enumerate(recordings):
                frames = self.extract(recording, pcm[row], sample_rate, labels.get(recording.id))
                if frames is None:
                    dropped.append(recording.id)
                    frames = np.zeros(0, np.float32)
                yield {"frames": np.ascontiguousarray(frames).reshape(-1).astype(self.arrow_type)}

        write_rows(target / "frames.arrow", {"frames": List(Value(self.arrow_type))}, rows())
        (target / "meta.json").write_text(json.dumps({"dropped": dropped}))

    def open(self, folder: Path, recordings: Sequence[Recording], sample_rate: int, cache_dir: Path) -> ListColumn:
        """The frames, memory-mapped; logs how many utterances without frames are left out."""
        target = self.build(folder, recordings, sample_rate, cache_dir)
        dropped = json.loads((target / "meta.json").read_text())["dropped"]
        if dropped:
            shown = ", ".join(dropped[:10]) + (", ..." if len(dropped) > 10 else "")
            warnings.warn(
                f"{type(self).__name__}: {len(dropped)} of {len(recordings)} utterances have no usable labels and"
                f" are left out: {shown}"
            )
        return ListColumn(target / "frames.arrow", "frames")


def hop_of(frame_rate: float, sample_rate: int, key: str = "data.features.frame_rate") -> int:
    """Samples per frame. Raises UserError unless it is a whole number."""
    hop = sample_rate / frame_rate
    if hop < 1 or hop != int(hop):
        raise UserError(f"{key}={frame_rate} does not divide data.sample_rate={sample_rate} into whole samples")
    return int(hop)


def num_frames(num_samples: int, hop: int) -> int:
    """Frames that cover all samples; the last one may be part padding."""
    return -(-num_samples // hop)


def match_labels(
    recordings: Sequence[Recording], found: dict[str, Path], on_missing: str, where: str
) -> dict[str, Path]:
    """Label file by utterance id. Raises UserError naming the first utterance without, unless on_missing=skip."""
    if on_missing not in ("error", "skip"):
        raise UserError(f"on_missing={on_missing}: choose error or skip")
    without = [recording.id for recording in recordings if recording.id not in found]
    if without and on_missing == "error":
        raise UserError(
            f"{len(without)} utterances have no label file in {where}, the first is {without[0]}: add it, or set"
            " on_missing=skip to leave such utterances out"
        )
    return {recording.id: found[recording.id] for recording in recordings if recording.id in found}
