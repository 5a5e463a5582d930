"""Conditioning: global and local (section 2.5, equation 3) and a context stack (section 2.6).

Shapes: b batch, k blocks, g 2 * gate channels, f features, t time in samples, n number of tags.
"""

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quintet.common.errors import UserError
from quintet.papers.wavenet.layers import DilatedStack, FrontConvolution


class GlobalConditioning(nn.Module):
    """V^T h for every block at once; h is a speaker (one-hot, or a learned embedding) and/or a multi-hot tag vector."""

    def __init__(self, blocks: int, channels: int, num_speakers: int, num_tags: int, embedding: int | None):
        super().__init__()
        self.blocks, self.num_speakers, self.num_tags = blocks, num_speakers, num_tags
        out = blocks * channels
        self.speaker = self.project = self.tags = None
        if num_speakers:
            # V^T h of a one-hot h is row h of V: the table is V itself when there is no embedding.
            self.speaker = nn.Embedding(num_speakers, embedding or out)
            nn.init.normal_(self.speaker.weight, std=1.0 if embedding else 0.1)
            self.project = nn.Linear(embedding, out, bias=False) if embedding else None
        if num_tags:
            self.tags = nn.Linear(num_tags, out, bias=False)

    def forward(self, speaker_b: Tensor | None, tags_bn: Tensor | None) -> Tensor | None:
        """(B, K, 2G) to add before the gates, or None for a network without global conditioning."""
        parts = []
        if self.speaker is not None:
            h = self.speaker(_given(speaker_b, "speaker", self.num_speakers))
            parts.append(h if self.project is None else self.project(h))
        if self.tags is not None:
            parts.append(self.tags(_given(tags_bn, "tags", self.num_tags).to(self.tags.weight.dtype)))
        return sum(parts).unflatten(-1, (self.blocks, -1)) if parts else None


class RepeatUpsampling(nn.Module):
    """Repeats every frame `hop` times: the paper's "slightly worse" alternative (section 2.5)."""

    def __init__(self, features: int, hop: int):
        super().__init__()
        self.hop, self.channels = hop, features

    def forward(self, local_bft: Tensor) -> Tensor:
        return local_bft.repeat_interleave(self.hop, dim=-1)


class TransposedUpsampling(nn.Module):
    """Learned transposed convolutions, stride by stride up to `hop`; frame f stays centered on its own samples."""

    def __init__(self, features: int, hop: int, channels: int):
        super().__init__()
        self.hop, self.channels, self.strides = hop, channels, upsampling_strides(hop)
        widths = [features] + [channels] * len(self.strides)
        self.layers = nn.ModuleList(
            nn.ConvTranspose1d(a, b, 2 * s, stride=s, padding=s // 2)
            for (a, b), s in zip(itertools.pairwise(widths), self.strides, strict=True)
        )

    def forward(self, local_bft: Tensor) -> Tensor:
        y = local_bft
        for i, (layer, stride) in enumerate(zip(self.layers, self.strides, strict=True)):
            length = y.size(-1) * stride
            y = layer(F.leaky_relu(y, 0.4) if i else y)[..., :length]  # an odd stride gives one sample too many
            assert y.size(-1) == length
        return y


def upsampling_strides(hop: int, largest: int = 16) -> list[int]:
    """Factors of hop, each at most `largest` where its primes allow: 256 -> [16, 16], 200 -> [10, 10, 2]."""
    primes, rest, p = [], hop, 2
    while rest > 1:
        while rest % p == 0:
            primes.append(p)
            rest //= p
        p += 1
    strides = [1]
    for prime in reversed(primes):
        fits = [i for i, s in enumerate(strides) if s * prime <= largest]
        if fits:
            strides[fits[0]] *= prime
        else:
            strides.append(prime)
    return sorted((s for s in strides if s > 1), reverse=True) or [1]


class ContextStack(nn.Module):
    """A smaller WaveNet over mean-pooled audio that locally conditions the main one (section 2.6).

    Block m covers samples m*pool .. m*pool+pool-1, counted from the window's start. Its output conditions block
    m+1, so that no output depends on later samples.
    """

    def __init__(self, num_classes, *, layers_per_stack, stacks, kernel_size, residual_channels, pool, channels):
        super().__init__()
        self.pool, self.channels = pool, channels
        self.front = FrontConvolution(num_classes, residual_channels, 1)
        self.stack = DilatedStack(
            layers_per_stack=layers_per_stack,
            stacks=stacks,
            kernel_size=kernel_size,
            residual=residual_channels,
            gate=residual_channels,
            skip=channels,
        )

    @property
    def receptive_field(self) -> int:
        """Samples from the newest sample of block m+1 back to the oldest that conditions it."""
        return (self.stack.reach + 2) * self.pool

    def pooled(self, classes_bt: Tensor) -> Tensor:
        """(B, T) -> (B, R, T // pool), the mean of the embedded samples of each whole block."""
        return F.avg_pool1d(self.front(classes_bt), self.pool)

    def forward(self, classes_bt: Tensor) -> Tensor:
        """(B, T) classes -> (B, channels, T); the first block has no past and gets zeros."""
        length = classes_bt.size(1)
        whole = (length - 1) // self.pool  # blocks with a successor inside the window
        if whole == 0:
            return self.front.weight.new_zeros(classes_bt.size(0), self.channels, length)
        context_bcm = torch.relu(self.stack(self.pooled(classes_bt[:, : whole * self.pool])))
        return F.pad(context_bcm, (1, 0)).repeat_interleave(self.pool, dim=-1)[..., :length]


def _given(value: Tensor | None, name: str, size: int) -> Tensor:
    if value is None:
        raise UserError(f"wavenet: the network is conditioned on {name} (size {size}), but {name} is missing")
    return value
