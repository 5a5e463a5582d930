"""The Extended Neural GPU (Kaiser and Bengio 2016, arXiv 1610.08613) with a slice of its tape as the memory's query.

Legend: B sequences, N tape positions, W tape columns, M maps, T target positions. A tape is (B, M, N, W).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from quintet.common.errors import UserError
from quintet.data.special_ids import EOS, PAD


@dataclass(frozen=True)
class NeuralGPUConfig:
    """Everything under `model.network`. steps: encoder steps; null = as many as the sequence has symbols."""

    maps: int = 48
    columns: int = 2
    kernel_size: int = 3
    steps: int | None = None
    dropout: float = 0.0

    def __post_init__(self) -> None:
        for name in ("maps", "columns", "kernel_size"):
            if getattr(self, name) < 1:
                raise UserError(f"model.network.{name}={getattr(self, name)} must be at least 1")
        if self.kernel_size % 2 == 0:
            raise UserError(f"model.network.kernel_size={self.kernel_size} must be odd")
        if self.steps is not None and self.steps < 1:
            raise UserError(f"model.network.steps={self.steps}: give 1 or more, or null for the sequence's length")
        if not 0 <= self.dropout < 1:
            raise UserError(f"model.network.dropout={self.dropout} must be in [0, 1)")


class ConvolutionalGRU(nn.Module):
    """s <- u s + (1 - u) tanh(U * (r s) + W * p + B); `p` is the output tape, for the decoder only (section 3)."""

    def __init__(self, maps: int, kernel_size: int, inputs: int = 0) -> None:
        super().__init__()
        padding = kernel_size // 2
        self.gates = nn.Conv2d(maps + inputs, 2 * maps, kernel_size, padding=padding)
        self.candidate = nn.Conv2d(maps + inputs, maps, kernel_size, padding=padding)
        nn.init.ones_(self.gates.bias)  # gates start open: a new tape keeps what stands on it

    def forward(self, tape: Tensor, inputs: Tensor | None = None) -> Tensor:
        def joined(state: Tensor) -> Tensor:
            return state if inputs is None else torch.cat([state, inputs], 1)

        update, reset = self.gates(joined(tape)).sigmoid().chunk(2, 1)
        return update * tape + (1 - update) * self.candidate(joined(reset * tape)).tanh()


class ExtendedNeuralGPU(nn.Module):
    """Symbols stand in column 0 of the tape; output t is read at position t after t more steps that see outputs < t."""

    def __init__(self, config: NeuralGPUConfig, source_size: int, target_size: int) -> None:
        super().__init__()
        self.config, self.width = config, config.maps
        self.query_width = config.maps * config.columns
        self.source_embedding = nn.Embedding(source_size, config.maps, padding_idx=0)
        self.embedding = nn.Embedding(target_size, config.maps, padding_idx=0)
        nn.init.normal_(self.embedding.weight, std=config.maps**-0.5)  # unit rows: they are the softmax's too
        self.encoder = ConvolutionalGRU(config.maps, config.kernel_size)
        self.decoder = ConvolutionalGRU(config.maps, config.kernel_size, inputs=config.maps)
        self.dropout = nn.Dropout(config.dropout)
        self.bias = nn.Parameter(torch.zeros(target_size))

    @property
    def output_embedding(self) -> Tensor:
        """Rows of the softmax (V, M)."""
        return self.embedding.weight

    def encode(self, source_bs: Tensor, length_b: Tensor) -> tuple[Tensor, Tensor]:
        """The tape after the encoder's steps, and its mask (B, 1, N, 1); a sequence stops after its own steps."""
        mask = (torch.arange(source_bs.shape[1], device=source_bs.device) < length_b[:, None])[:, None, :, None]
        # padding's embedding is 0 already, its forward-mode derivative is not
        symbols_bmn1 = self.source_embedding(source_bs).tanh().transpose(1, 2)[..., None] * mask
        empty = symbols_bmn1.new_zeros(*symbols_bmn1.shape[:3], self.config.columns - 1)
        tape = torch.cat([symbols_bmn1, empty], 3)
        steps = self.config.steps or int(length_b.max())
        for step in range(steps):
            new = self.encoder(self.dropout(tape)) * mask
            tape = new if self.config.steps else torch.where(step < length_b[:, None, None, None], new, tape)
        return tape, mask

    def forward(
        self,
        source_bs: Tensor,
        length_b: Tensor,
        target_bt: Tensor | None = None,
        choose: Callable[[Tensor, Tensor], Tensor] | None = None,
        steps: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Top outputs (B, T, M) and query features (B, T, M * W): column 0 and all columns of the slice at t.

        `target_bt` (bos first) are the outputs that the decoder is told; without it `choose(top, features)` says the
        token (B,) of each of `steps` positions. UserError: more outputs than source tokens.
        """
        count = target_bt.shape[1] if steps is None else steps
        if target_bt is not None and not target_bt.is_cuda:  # a look at a GPU's values would make it wait every step
            check_room(((target_bt != PAD) & (target_bt != EOS)).sum(1), length_b)
        tape, mask = self.encode(source_bs, length_b)
        written = torch.zeros_like(tape)
        tops, features = [], []
        for t in range(count):
            tape = self.decoder(self.dropout(tape), written) * mask
            tops.append(tape[:, :, t, 0])
            features.append(tape[:, :, t].flatten(1))
            if t + 1 < count:
                token_b = choose(tops[-1], features[-1]) if target_bt is None else target_bt[:, t + 1]
                written = written.clone()
                written[:, :, t, 0] = self.embedding(token_b)
        return torch.stack(tops, 1), torch.stack(features, 1)

    def logits(self, top_nd: Tensor) -> Tensor:
        """Scores (..., V) of top outputs, memory mixed in or not."""
        return nn.functional.linear(top_nd, self.embedding.weight, self.bias)


def check_room(outputs_b: Tensor, length_b: Tensor) -> None:
    """The tape is as long as the source: a pair with a longer target is a UserError."""
    wrong = (outputs_b > length_b).nonzero()
    if len(wrong):
        row = int(wrong[0])
        raise UserError(
            f"the Neural GPU writes at most one token per source token: {int(outputs_b[row])} outputs for "
            f"{int(length_b[row])}; use model=translator, or data=symbols"
        )
