"""Audio that is decoded when it is read: only lengths are kept on disk, and the last recordings in memory."""

import json
import logging
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quintet.common.errors import UserError
from quintet.data.audio.decode import BadAudio
from quintet.data.audio.load import load
from quintet.data.audio.recording import Recording

log = logging.getLogger(__name__)
FORMAT = 1  # raise when the files below change
DECODED_BYTES = 2**28  # of each process


def write_lengths(folder: Path, source: Any, recordings: Sequence[Recording], sample_rate: int,
                  on_bad_file: str) -> None:  # fmt: skip
    """`lengths.npy` in samples, and `meta.json` as `write_store` makes it. Reads every shard once, decodes nothing.

    Raises UserError for another rate than data.sample_rate; BadAudio, or with on_bad_file=skip it is left out.
    """
    log.info("%s: measuring %d recordings, once", source.name, len(recordings))
    kept, lengths, bad = [], [], []
    for recording in recordings:
        try:
            length, rate = source.length(recording)
            if not length:
                raise BadAudio(f"{recording.path} holds no samples: remove it, or set data.on_bad_file=skip")
        except BadAudio as error:
            if on_bad_file == "error":
                raise
            log.warning("%s", error)
            bad.append(str(recording.path))
            continue
        if rate != sample_rate:
            raise UserError(
                f"{recording.path} has {rate} Hz, data.sample_rate is {sample_rate} Hz: set data.sample_rate={rate};"
                " data.streaming=true does not convert"
            )
        kept.append(recording.id)
        lengths.append(length)
    if not kept:
        raise UserError(f"none of the {len(recordings)} recordings of {source.name} can be decoded")
    np.save(folder / "lengths.npy", np.array(lengths, np.int64))
    (folder / "meta.json").write_text(json.dumps({"ids": kept, "bad": bad}))


class StreamedPcm:
    """`[row]` decodes recording `row`, (n,) int16. lengths: samples of each row.

    Raises BadAudio for one that is not as long as its header said.
    """

    def __init__(self, source: Any, recordings: Sequence[Recording], lengths: NDArray[np.int64], rate: int) -> None:
        self.source, self.recordings, self.lengths, self.rate = source, recordings, lengths, rate
        self._decoded: OrderedDict[int, NDArray[np.int16]] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, row: int) -> NDArray[np.int16]:
        if row in self._decoded:
            self._decoded.move_to_end(row)
            return self._decoded[row]
        recording = self.recordings[row]
        pcm = load(self.source, recording, self.rate, resample=False)
        if len(pcm) != self.lengths[row]:
            raise BadAudio(
                f"{recording.path} has {len(pcm)} samples, its header promised {self.lengths[row]}: it is damaged, or"
                " has changed since it was measured"
            )
        self._decoded[row] = pcm
        self._bytes += pcm.nbytes
        while self._bytes > DECODED_BYTES and len(self._decoded) > 1:
            self._bytes -= self._decoded.popitem(last=False)[1].nbytes
        return pcm
