"""A recording as the network wants it: one channel at the configured rate."""

import numpy as np
from numpy.typing import NDArray

from quintet.common.errors import UserError
from quintet.data.audio.decode import BadAudio, to_pcm16
from quintet.data.audio.recording import Recording, Source


def load(source: Source, recording: Recording, sample_rate: int, resample: bool) -> NDArray:
    """Mono int16 samples at `sample_rate`; several channels are averaged.

    Raises BadAudio; UserError when the rates differ and data.resample is off.
    """
    pcm, rate = source.read(recording)
    if pcm.ndim == 2:
        pcm = np.rint(pcm.mean(axis=1)).astype(np.int16)
    if rate != sample_rate:
        if not resample:
            raise UserError(
                f"{recording.path} has {rate} Hz, data.sample_rate is {sample_rate} Hz:"
                f" set data.sample_rate={rate}, or data.resample=true to convert"
            )
        import soxr

        pcm = to_pcm16(soxr.resample(pcm / 32768.0, rate, sample_rate), str(recording.path))
    if len(pcm) == 0:
        raise BadAudio(f"{recording.path} holds no samples: remove it, or set data.on_bad_file=skip")
    return pcm
