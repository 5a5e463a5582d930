"""Windows over the utterances of one split: every sample is a target exactly once per epoch."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from quintet.data.audio.mulaw import pcm16_table
from quintet.data.batches import AudioBatch

IGNORE = -100  # torch's cross-entropy leaves these frames out


@dataclass
class Utterances:
    """The utterances of one split. `rows` index the columns, which may be memory maps.

    pcm[row]: (n,) int16; local[row]: (frames * channels,) float32, frame by frame; phones[row]: (frames,) integers.
    """

    rows: Sequence[int]
    ids: Sequence[str]
    pcm: Any
    speaker: Sequence[int] | None = None
    tags: Sequence[NDArray] | None = None  # multi-hot float32 each
    local: Any = None
    local_channels: int = 0
    hop: int = 1
    phones: Any = None
    phone_frame: int = 160
    lengths: NDArray = field(init=False)

    def __post_init__(self) -> None:
        known = getattr(self.pcm, "lengths", None)  # of audio that is decoded only when it is read
        lengths = (len(self.pcm[row]) for row in self.rows) if known is None else (known[row] for row in self.rows)
        self.lengths = np.fromiter(lengths, np.int64, len(self.rows))

    def __len__(self) -> int:
        return len(self.rows)

    def local_frames(self, index: int) -> NDArray:
        """(frames, channels) float32, a view."""
        return self.local[self.rows[index]].reshape(-1, self.local_channels)


class ChunkDataset(Dataset):
    """Item i is C = `chunk` consecutive targets of one utterance after `context` positions of history.

    `[i]` gives an AudioBatch without the batch axis; `batch([i, j, ...])` one with it (a DataLoader calls that).
    """

    def __init__(self, utterances: Utterances, chunk: int, context: int, quantization: int = 256) -> None:
        self.utterances, self.chunk, self.context = utterances, chunk, context
        self.ends = np.cumsum(-(-utterances.lengths // chunk))
        self.table = pcm16_table(quantization)

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def locate(self, item: int) -> tuple[int, int]:
        """(utterance, first target sample) of an item."""
        if not 0 <= item < len(self):
            raise IndexError(f"chunk {item} of {len(self)}")
        utterance = int(np.searchsorted(self.ends, item, side="right"))
        before = int(self.ends[utterance - 1]) if utterance else 0
        return utterance, (item - before) * self.chunk

    def __getitem__(self, item: int) -> AudioBatch:
        return AudioBatch._make(None if part is None else part[0] for part in self.batch([item]))

    def __getitems__(self, items: Sequence[int]) -> AudioBatch:
        return self.batch(items)

    def batch(self, items: Sequence[int]) -> AudioBatch:
        """Gather windows; outside the utterance there is silence, zero frames and ignored phones."""
        u, length = self.utterances, self.context + self.chunk
        places = [self.locate(int(item)) for item in items]
        pcm = np.zeros((len(places), length), np.int16)
        mask = np.zeros((len(places), self.chunk), bool)
        local = phones = None
        if u.local is not None:
            local = np.zeros((len(places), u.local_channels, length // u.hop), np.float32)
        if u.phones is not None:
            phones = np.full((len(places), self.chunk // u.phone_frame), IGNORE, np.int64)
        for b, (index, start) in enumerate(places):
            row, first = u.rows[index], start - self.context
            _copy(pcm[b], u.pcm[row], first)
            mask[b, : u.lengths[index] - start] = True
            if local is not None:
                _copy(local[b].T, u.local_frames(index), first // u.hop)
            if phones is not None:
                _copy(phones[b], u.phones[row], start // u.phone_frame)
        indices = [index for index, _ in places]
        return AudioBatch(
            audio=torch.from_numpy(self.table[pcm.view(np.uint16)].astype(np.int64)),
            mask=torch.from_numpy(mask),
            speaker=None if u.speaker is None else torch.tensor([u.speaker[i] for i in indices]),
            tags=None if u.tags is None else torch.from_numpy(np.stack([u.tags[i] for i in indices])),
            local=None if local is None else torch.from_numpy(local),
            phones=None if phones is None else torch.from_numpy(phones),
            utterance=torch.tensor(indices),
        )


def _copy(window: NDArray, sequence: NDArray, first: int) -> None:
    """window[i] = sequence[first + i] wherever that exists."""
    start, stop = max(first, 0), min(first + len(window), len(sequence))
    if stop > start:
        window[start - first : stop - first] = sequence[start:stop]


def collate(items: AudioBatch | Sequence[AudioBatch]) -> AudioBatch:
    """DataLoader's collate_fn: `__getitems__` has already made the batch; single items are stacked."""
    if isinstance(items, AudioBatch):
        return items
    return AudioBatch._make(None if part[0] is None else torch.stack(part) for part in zip(*items, strict=True))
