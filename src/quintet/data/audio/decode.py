"""Audio files -> 16-bit PCM, and every way in which a file can be bad."""

import io
import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quintet.common.errors import UserError

OGG_PAGE = 65307  # bytes at most


class BadAudio(UserError):
    """The file cannot be decoded, or not completely; `data.on_bad_file=skip` leaves it out."""


def read_file(path: Path) -> tuple[NDArray, int]:
    """Anything libsndfile reads (wav, flac, ogg, mp3, NIST sphere) -> int16 (n,) or (n, channels), rate in Hz."""
    with path.open("rb") as file:
        head, size = file.read(1024), path.stat().st_size
        file.seek(max(0, size - OGG_PAGE))
        ends = head, file.read()
    return _read(path, ends, size, str(path))


def read_bytes(data: bytes, name: str) -> tuple[NDArray, int]:
    """The same from memory; `name` appears in messages."""
    return _read(io.BytesIO(data), (data[:1024], data[-OGG_PAGE:]), len(data), name)


def measure(data: bytes, name: str) -> tuple[int, int]:
    """(samples, rate in Hz) as the header has it; of an mp3, whose header may not be exact, by decoding it."""
    import soundfile

    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            frames, rate, exact = file.frames, file.samplerate, file.format not in ("MP3", "MPEG")
    except (soundfile.SoundFileError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise BadAudio(f"{name} cannot be decoded ({reason}): repair it, or set data.on_bad_file=skip") from error
    whole = not _cut_off(data[:1024], data[-OGG_PAGE:], len(data))
    return (frames, rate) if exact and whole else (len(read_bytes(data, name)[0]), rate)


def _read(source: Path | io.BytesIO, ends: tuple[bytes, bytes], size: int, name: str) -> tuple[NDArray, int]:
    import soundfile

    try:
        with soundfile.SoundFile(source) as file:
            rate, declared = file.samplerate, 0 if file.format in ("MP3", "MPEG") else file.frames
            exact = file.subtype == "PCM_16"
            audio = file.read(dtype="int16" if exact else "float32")
    except (
        soundfile.SoundFileError,
        RuntimeError,
        MemoryError,
    ) as error:  # memory: for the size in the header
        reason = " ".join(str(error).split())
        raise BadAudio(f"{name} cannot be decoded ({reason}): repair it, or set data.on_bad_file=skip") from error
    if len(audio) < declared or _cut_off(*ends, size):
        raise BadAudio(f"{name} is truncated: copy it again, or set data.on_bad_file=skip")
    return (audio if exact else to_pcm16(audio, name)), rate


def _cut_off(head: bytes, tail: bytes, size: int) -> bool:
    """libsndfile reads a truncated wav, sphere or ogg file without an error."""
    if head.startswith(b"OggS"):
        page = tail[tail.rfind(b"OggS") :]
        if len(page) < 27 or not page[5] & 4:  # cut off in a page's header, or no page that ends the stream
            return True
        return 27 + page[26] + sum(page[27 : 27 + page[26]]) > len(page)
    if head[:4] == b"RIFF":
        (riff_bytes,) = struct.unpack("<I", head[4:8])
        known = 0 < riff_bytes < 0xFFFFFFF0
        return known and (riff_bytes + 8 > size + 1 or _end_of_samples(head) > size)  # 1: an odd chunk's padding
    if head.startswith(b"NIST_1A"):
        lines = (line.split() for line in head.decode("latin-1").splitlines())
        fields = {parts[0]: parts[2] for parts in lines if len(parts) == 3}
        samples = int(fields.get("sample_count", 0)) * int(fields.get("channel_count", 1))
        return samples * int(fields.get("sample_n_bytes", 2)) + len(head) > size and "shorten" not in str(fields)
    return False


def _end_of_samples(head: bytes) -> int:
    """Where a RIFF file's chunk `data` ends, as its header has it; 0 if that is not within `head` or not known."""
    at = 12
    while at + 8 <= len(head):
        name, length = struct.unpack("<4sI", head[at : at + 8])
        if name == b"data":
            return at + 8 + length if length < 0xFFFFFFF0 else 0
        at += 8 + length + length % 2
    return 0


def to_pcm16(audio: NDArray, name: str) -> NDArray:
    """Floats in [-1, 1] -> int16. Raises BadAudio for NaN or infinite samples."""
    if not np.isfinite(audio).all():
        raise BadAudio(f"{name} holds NaN or infinite samples: repair it, or set data.on_bad_file=skip")
    return np.clip(np.rint(audio * 32768.0), -32768, 32767).astype(np.int16)
