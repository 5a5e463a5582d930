"""A data module of a few seconds of tones, in memory, with everything that a protocol reads."""

import numpy as np
import torch

from quintet.data.audio import mulaw
from quintet.data.audio.recording import Recording
from quintet.data.batches import AudioBatch
from quintet.papers.wavenet.module import WaveNetModule

TINY = {
    "layers_per_stack": 4,
    "stacks": 1,
    "residual_channels": 8,
    "gate_channels": 8,
    "skip_channels": 8,
    "head_channels": 8,
}
CONTEXT, CHUNK, HOP, CHANNELS = 160, 320, 80, 3


class ToneData:
    """Six utterances of 0.04 s a split: speaker s says a tone of its own pitch; phones alternate by frame."""

    recording_of = staticmethod(lambda path: Recording(path.stem, path))

    def __init__(self, speakers: int = 2, local: bool = False, phones: bool = False) -> None:
        self.local, self.phones = local, phones
        self.data_info = {
            "sample_rate": 16000,
            "num_classes": 256,
            "speakers": ["low", "high"] if speakers else [],
            "tags": [],
            "local_channels": CHANNELS if local else 0,
            "hop_length": HOP if local else 0,
            "phones": ["sil", "aa"] if phones else [],
        }
        self.train_set = [self._item(u, start) for u in range(6) for start in (0, CHUNK)]

    def num_utterances(self, split: str) -> int:
        return 6

    def utterance(self, split: str, index: int) -> dict:
        speaker = index % 2
        tone = 0.5 * np.sin(2 * np.pi * (400, 1600)[speaker] * np.arange(2 * CHUNK) / 16000)
        local = np.full((CHANNELS, 2 * CHUNK // HOP), float(speaker), np.float32) if self.local else None
        pcm = (32767 * tone).astype(np.int16)
        phones = np.tile([0, 1], 2) if self.phones else None
        return {
            "pcm": pcm,
            "speaker": speaker,
            "tags": None,
            "local": local,
            "phones": phones,
            "id": f"tone_{index}",
        }

    def _item(self, index: int, start: int) -> AudioBatch:
        item = self.utterance("train", index)
        silence = np.zeros(CONTEXT, np.int16)
        window = np.concatenate([silence, item["pcm"]])[start : start + CONTEXT + CHUNK]
        frames = torch.tensor([0, 1]) if self.phones else None
        local = torch.full((CHANNELS, (CONTEXT + CHUNK) // HOP), float(item["speaker"])) if self.local else None
        return AudioBatch(
            torch.as_tensor(mulaw.encode(window / 32768)),
            torch.ones(CHUNK, dtype=torch.bool),
            torch.tensor(item["speaker"]),
            None,
            local,
            frames,
            torch.tensor(index),
        )

    def test_dataloader(self) -> list[AudioBatch]:
        """Two windows a batch, in order, as the real loader gives them."""
        pairs = zip(self.train_set[::2], self.train_set[1::2], strict=True)
        return [
            AudioBatch(*(None if a is None else torch.stack([a, b]) for a, b in zip(*p, strict=True))) for p in pairs
        ]


def fitted(module: WaveNetModule, data: ToneData, steps: int) -> WaveNetModule:
    torch.manual_seed(0)
    optimizer = torch.optim.Adam(module.parameters(), 1e-2)
    batches = data.test_dataloader()
    for step in range(steps):
        optimizer.zero_grad()
        module.example_losses(batches[step % len(batches)]).mean().backward()
        optimizer.step()
    return module.eval()
