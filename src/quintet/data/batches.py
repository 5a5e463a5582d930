"""The batch of each task: what a DataModule yields and a LightningModule eats."""

from typing import NamedTuple

from torch import Tensor


class AudioBatch(NamedTuple):
    """Windows of mu-law audio, WaveNet section 2; B windows, C targets each, L = context + C positions.

    The network reads `audio[:, :-1]`; its logits at index j predict `audio[:, j + 1]`. Only the last C positions are
    targets, so that the receptive field is always filled: with real audio, or with true silence before the start.
    """

    audio: Tensor  # (B, L) int64 mu-law classes 0..Q-1; silence (class Q // 2) where the utterance has no samples
    mask: Tensor  # (B, C) bool: which of the last C positions are real targets; padding after the end is False
    speaker: Tensor | None  # (B,) int64
    tags: Tensor | None  # (B, N) float32 multi-hot
    local: Tensor | None  # (B, F, L // hop) float32; frame f conditions positions f*hop .. f*hop+hop-1; 0 = silence
    phones: Tensor | None  # (B, C // 160) int64 phone of every frame of the last C positions, -100 = ignore
    utterance: Tensor  # (B,) int64 index of the utterance in its split
