"""WaveNet (van den Oord et al. 2016, arXiv 1609.03499) in plain PyTorch.

Shapes: b batch, q classes, t time in samples, s skip channels, c conditioning channels, p phones, f frames.
"""

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from quintet.common.errors import UserError
from quintet.papers.wavenet.conditioning import (
    ContextStack,
    GlobalConditioning,
    RepeatUpsampling,
    TransposedUpsampling,
)
from quintet.papers.wavenet.layers import DilatedStack, FrontConvolution
from quintet.papers.wavenet.recognition import RecognitionHead


@dataclass(frozen=True)
class WaveNetConfig:
    """Hyperparameters. The paper gives no channel counts. `gate_channels` is the number of channels of z."""

    layers_per_stack: int = 10
    stacks: int = 3
    kernel_size: int = 2
    front_kernel_size: int = 2
    residual_channels: int = 64
    gate_channels: int = 64
    skip_channels: int = 256
    head_channels: int = 256
    speaker_embedding: int | None = None  # None: one-hot
    upsample: str = "transposed"  # or "repeat"
    local_channels_hidden: int = 64  # width of the transposed convolutions
    residual_scaling: bool = False  # sqrt(.5) after every residual sum; not in the paper
    weight_norm: bool = False  # not in the paper
    context_stack: dict[str, Any] | None = (
        None  # {layers_per_stack, stacks, kernel_size, residual_channels, pool, channels}
    )
    recognition: dict[str, Any] | None = None  # {channels, layers, frame: 160}


class WaveNet(nn.Module):
    """p(x_t | x_1, ..., x_t-1, h) as logits over classes; logits at input index j are those of sample j + 1."""

    def __init__(
        self,
        config: WaveNetConfig,
        *,
        num_classes: int = 256,
        num_speakers: int = 0,
        num_tags: int = 0,
        local_channels: int = 0,
        hop_length: int = 0,
        num_phones: int = 0,
    ):
        super().__init__()
        _check(config, local_channels, hop_length, num_phones)
        self.config, self.num_classes, self.hop_length = config, num_classes, hop_length
        self.front = FrontConvolution(num_classes, config.residual_channels, config.front_kernel_size)
        self.upsampling = _upsampling(config, local_channels, hop_length) if local_channels else None
        self.context = ContextStack(num_classes, **config.context_stack) if config.context_stack else None
        parts: list[Any] = [part for part in (self.upsampling, self.context) if part is not None]
        condition = sum(part.channels for part in parts)
        self.stack = DilatedStack(
            layers_per_stack=config.layers_per_stack,
            stacks=config.stacks,
            kernel_size=config.kernel_size,
            residual=config.residual_channels,
            gate=config.gate_channels,
            skip=config.skip_channels,
            condition=condition,
            scale=config.residual_scaling,
        )
        blocks, gates = len(self.stack.blocks), 2 * config.gate_channels
        self.global_conditioning = GlobalConditioning(blocks, gates, num_speakers, num_tags, config.speaker_embedding)
        self.head = nn.Sequential(
            nn.ReLU(),
            nn.Conv1d(config.skip_channels, config.head_channels, 1),
            nn.ReLU(),
            nn.Conv1d(config.head_channels, num_classes, 1),
        )
        self.recognition = None
        if config.recognition:
            self.recognition = RecognitionHead(config.skip_channels, num_phones, **config.recognition)
        if config.weight_norm:
            for module in [m for m in self.modules() if isinstance(m, nn.Conv1d | nn.ConvTranspose1d)]:
                weight_norm(module)

    @property
    def receptive_field(self) -> int:
        """Number of input samples that one output depends on at most, the newest and the context stack's included."""
        own = self.config.front_kernel_size + self.stack.reach
        if self.context is None:
            return own
        return max(own, self.stack.condition_reach + self.context.receptive_field)

    def condition(self, classes_bt: Tensor, local_bft: Tensor | None) -> Tensor | None:
        """Input of every block's conditioning 1x1: upsampled features and context, (B, C, T); None without any."""
        parts = []
        if self.upsampling is not None:
            parts.append(self.upsampled(local_bft, classes_bt.size(1)))
        if self.context is not None:
            parts.append(self.context(classes_bt))
        return torch.cat(parts, dim=1) if parts else None

    def upsampled(self, local_bft: Tensor | None, length: int) -> Tensor:
        """Local features at audio rate, cropped to `length` samples (frame f starts at sample f * hop)."""
        if local_bft is None:
            raise UserError("wavenet: the network is locally conditioned, but `local` features are missing")
        if local_bft.size(-1) * self.hop_length < length:
            raise UserError(
                f"wavenet: {local_bft.size(-1)} local frames of {self.hop_length} samples do not cover {length} "
                "samples of audio: check that hop_length is that of the features"
            )
        assert self.upsampling is not None
        y_bct = self.upsampling(local_bft)[..., :length]
        assert y_bct.size(-1) == length
        return y_bct

    def skips(self, classes_bt, speaker_b=None, tags_bn=None, local_bft=None, last=None, inputs=None) -> Tensor:
        """Sum of the skip connections, (B, S, last or T); see `DilatedStack.forward` for `inputs`."""
        biases_bkg = self.global_conditioning(speaker_b, tags_bn)
        condition_bct = self.condition(classes_bt, local_bft)
        return self.stack(self.front(classes_bt), biases_bkg, condition_bct, last, inputs)

    def forward(
        self,
        classes_bt: Tensor,
        speaker_b: Tensor | None = None,
        tags_bn: Tensor | None = None,
        local_bft: Tensor | None = None,
        last: int | None = None,
    ) -> Tensor:
        """Logits (B, Q, T), or (B, Q, last) of the `last` positions only, which costs less."""
        return self.head(self.skips(classes_bt, speaker_b, tags_bn, local_bft, last))

    def forward_with_phones(self, classes_bt, speaker_b=None, tags_bn=None, local_bft=None, last=None):
        """(logits (B, Q, T), phone logits (B, P, T // frame)); frames are counted from the end of the window."""
        skips_bst = self.skips(classes_bt, speaker_b, tags_bn, local_bft, last)
        return self.head(skips_bst), self._phones(skips_bst)

    def frame_logits(self, classes_bt, speaker_b=None, tags_bn=None, local_bft=None, last=None) -> Tensor:
        """Phone logits (B, P, T // frame) alone."""
        return self._phones(self.skips(classes_bt, speaker_b, tags_bn, local_bft, last))

    def _phones(self, skips_bst: Tensor) -> Tensor:
        if self.recognition is None:
            raise UserError("wavenet: phone logits need model.network.recognition, e.g. {channels: 256, layers: 3}")
        return self.recognition(torch.relu(skips_bst))


def describe_receptive_field(network: WaveNet, sample_rate: int) -> str:
    """For the start of a run: "receptive field 3071 samples = 191.9 ms at 16000 Hz"."""
    samples = network.receptive_field
    return f"receptive field {samples} samples = {1000 * samples / sample_rate:.1f} ms at {sample_rate} Hz"


def _upsampling(config: WaveNetConfig, local_channels: int, hop_length: int) -> nn.Module:
    if config.upsample == "repeat":
        return RepeatUpsampling(local_channels, hop_length)
    return TransposedUpsampling(local_channels, hop_length, config.local_channels_hidden)


def _check(config: WaveNetConfig, local_channels: int, hop_length: int, num_phones: int) -> None:
    where = "wavenet: model.network."
    if config.upsample not in ("transposed", "repeat"):
        raise UserError(f"{where}upsample is {config.upsample!r}; choose transposed or repeat")
    for key in ("layers_per_stack", "stacks", "kernel_size", "front_kernel_size"):
        if getattr(config, key) < 1:
            raise UserError(f"{where}{key} is {getattr(config, key)}; it must be at least 1")
    if local_channels and hop_length < 1:
        raise UserError(f"wavenet: {local_channels} local channels but hop_length {hop_length}; it must be at least 1")
    for key, part in (("context_stack", ContextStack), ("recognition", RecognitionHead)):
        options = inspect.signature(part).parameters.values()
        legal = [p.name for p in options if p.kind is p.KEYWORD_ONLY]
        needed = [p.name for p in options if p.kind is p.KEYWORD_ONLY and p.default is p.empty]
        given = getattr(config, key) or dict.fromkeys(needed)
        if not set(needed) <= set(given) <= set(legal):
            raise UserError(f"{where}{key} has keys {sorted(given)}; needed: {needed}, legal: {legal}")
    if config.recognition and not num_phones:
        raise UserError(f"{where}recognition is set, but the data has no phones; choose such data or set it to null")
