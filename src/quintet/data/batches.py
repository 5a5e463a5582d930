"""The batch types that DataModules pass to LightningModules, one for each task."""

from typing import NamedTuple

import torch
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


class EpisodeBatch(NamedTuple):
    """Streaming few-shot episodes (Kaiser et al. 2017, Omniglot); B episodes of T images, S pixels a side.

    Each episode has its own classes, labeled anew. Images come in rounds: every class is shown once, in random order,
    before any class is shown again.
    """

    images: Tensor  # (B, T, 1, S, S) float32 ink: 0 = paper, 1 = ink
    labels: Tensor  # (B, T) int64 label of the class in this episode, 0..width-1
    showing: Tensor  # (B, T) int64 how often the class was shown before in this episode, 0 = first
    classes: Tensor  # (B, T) int64 index of the class in its split


class SequencePairBatch(NamedTuple):
    """Pairs of token sequences, source -> target; B pairs, S and T the longest of the batch.

    The decoder reads `target[:, :-1]` and predicts `target[:, 1:]`. Ids 0..3 are padding, bos, eos and unknown.
    """

    source: Tensor  # (B, S) int64 token ids, ends with eos, 0 = padding
    target: Tensor  # (B, T) int64 token ids, starts with bos, ends with eos, 0 = padding
    source_length: Tensor  # (B,) int64, eos included
    target_length: Tensor  # (B,) int64, bos and eos included
    index: Tensor  # type: ignore[assignment]  # (B,) int64 row of the pair in its split

    @property
    def real(self) -> Tensor:
        """(B, T - 1) bool: True where `target[:, 1:]` is a token or eos, False at padding."""
        return _to_predict(self.target, self.target_length)


class ExampleBatch(NamedTuple):
    """Labeled examples, the z = (x, y) of Koh & Liang 2017; B examples.

    With data.batch_size=null a batch is the whole split, and shares its memory with every other such batch: clone a
    tensor before writing into it.
    """

    inputs: Tensor  # (B, *shape) float32: features, or images (B, C, H, W) in [0, 1]
    labels: Tensor  # (B,) int64 class 0..C-1
    index: Tensor  # type: ignore[assignment]  # (B,) int64 row of the example in its split


class SegmentationBatch(NamedTuple):
    """Images with a class at every pixel (Chen et al. 2017); B images, H and W those of the largest.

    The image is at the top left. Padding has the DataModule's pad_colour, which the backbone normalizes to 0, and
    label 255.
    """

    images: Tensor  # (B, 3, H, W) float32 RGB in [0, 1]
    labels: Tensor  # (B, H, W) int64 class 0..C-1; 255 = not scored: borders of objects, and padding
    sizes: Tensor  # (B, 2) int64 height and width before padding
    index: Tensor  # type: ignore[assignment]  # (B,) int64 row of the image in its split


class CaptionBatch(NamedTuple):
    """Images with captions (Vinyals et al. 2015); I images, B captions of them, T the longest, F encoder features.

    The decoder reads the image, then `words[:, :-1]`, and predicts `words[:, 1:]`: nothing is predicted at the image.
    Ids 0..3 are padding, bos, eos and unknown. An image with several captions in the batch is in it once. Images are in
    the order of their first captions: if I = B, image b belongs to caption b.
    """

    images: Tensor | None  # (I, 3, H, W) float32 RGB in [0, 1]; None if `features` are given
    features: Tensor | None  # (I, F) float32 cached output of the frozen encoder; None if `images` are given
    words: Tensor  # (B, T) int64 bos, the words, eos, 0 = padding
    lengths: Tensor  # (B,) int64 ids of each caption, bos and eos included
    image_row: Tensor  # (B,) int64 which of the I images each caption is of
    image_index: Tensor  # (I,) int64 row of each image in its split
    index: Tensor  # type: ignore[assignment]  # (B,) int64 row of the caption in its split

    @property
    def real(self) -> Tensor:
        """(B, T - 1) bool: True where `words[:, 1:]` is a word or eos, False at padding."""
        return _to_predict(self.words, self.lengths)

    def expand_images(self) -> "CaptionBatch":
        """Repeat images so that I = B; rows of all fields can then be selected together."""
        images, features = (None if part is None else part[self.image_row] for part in (self.images, self.features))
        rows = torch.arange(len(self.words), device=self.words.device)
        return self._replace(
            images=images, features=features, image_row=rows, image_index=self.image_index[self.image_row]
        )


def _to_predict(tokens_bt: Tensor, length_b: Tensor) -> Tensor:
    """(B, T - 1) bool: True for tokens after the first that are not padding."""
    return torch.arange(1, tokens_bt.shape[1], device=tokens_bt.device) < length_b[:, None]
