"""The Extended Neural GPU (Kaiser and Bengio 2016, arXiv 1610.08613); a slice of its tape queries the memory.

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
    """Everything under `model.network`. steps: of the encoder; null = the length of the sequence."""

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
            raise UserError(
                f"model.network.steps={self.steps} must be at least 1, or null for the length of the sequence"
            )
        if not 0 <= self.dropout < 1:
            raise UserError(f"model.network.dropout={self.dropout} must be at least 0 and below 1")


class ConvolutionalGRU(nn.Module):
    """s <- u s + (1 - u) tanh(U * (r s) + W * p + B), section 3; p is the output tape, an input of the decoder only.

    u and r are the sigmoids of `gates`, which is a convolution of s and p too.
    """

    def __init__(self, maps: int, kernel_size: int, inputs: int = 0) -> None:
        super().__init__()
        padding = kernel_size // 2
        self.gates = nn.Conv2d(maps + inputs, 2 * maps, kernel_size, padding=padding)
        self.candidate = nn.Conv2d(maps + inputs, maps, kernel_size, padding=padding)
        assert self.gates.bias is not None
        nn.init.ones_(self.gates.bias)  # the gates start open, so that a step changes little of the tape

    def forward(self, tape: Tensor, inputs: Tensor | None = None) -> Tensor:
        extra = [] if inputs is None else [inputs]
        update, reset = self.gates(torch.cat([tape, *extra], 1)).sigmoid().chunk(2, 1)
        candidate = self.candidate(torch.cat([reset * tape, *extra], 1)).tanh()
        return update * tape + (1 - update) * candidate


class ExtendedNeuralGPU(nn.Module):
    """The input symbols are written to column 0 of the tape, which the encoder then changes in several steps.

    Each output takes one step of the decoder, which also reads a tape with the outputs so far. Output t is read at
    position t of the tape.
    """

    def __init__(self, config: NeuralGPUConfig, source_size: int, target_size: int) -> None:
        super().__init__()
        self.config, self.width = config, config.maps
        self.query_width = config.maps * config.columns
        self.source_embedding = nn.Embedding(source_size, config.maps, padding_idx=0)
        self.embedding = nn.Embedding(target_size, config.maps, padding_idx=0)
        nn.init.normal_(self.embedding.weight, std=config.maps**-0.5)  # norm 1: these are the softmax's weights too
        self.encoder = ConvolutionalGRU(config.maps, config.kernel_size)
        self.decoder = ConvolutionalGRU(config.maps, config.kernel_size, inputs=config.maps)
        self.dropout = nn.Dropout(config.dropout)
        self.bias = nn.Parameter(torch.zeros(target_size))

    @property
    def output_embedding(self) -> Tensor:
        """Weights of the softmax (V, M)."""
        return self.embedding.weight

    def encode(self, source_bs: Tensor, length_b: Tensor) -> tuple[Tensor, Tensor]:
        """The tape after the encoder's steps, and its mask (B, 1, N, 1), which is 0 at padding."""
        mask = (torch.arange(source_bs.shape[1], device=source_bs.device) < length_b[:, None])[:, None, :, None]
        # the mask because the embedding of padding is 0, but its forward-mode derivative is not
        symbols_bmn1 = self.source_embedding(source_bs).tanh().transpose(1, 2)[..., None] * mask
        empty = symbols_bmn1.new_zeros(*symbols_bmn1.shape[:3], self.config.columns - 1)
        tape = torch.cat([symbols_bmn1, empty], 3)
        steps = self.config.steps or int(length_b.max())
        for step in range(steps):
            new = self.encoder(self.dropout(tape)) * mask
            # steps=null: every sequence takes as many steps as it has symbols, whatever the batch
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
        """Outputs (B, T, M), which are column 0 at position t, and query features (B, T, M * W), all columns there.

        target_bt: the true outputs with bos first, each read by the decoder after it was predicted. Without it,
        `choose(output, features)` returns the token (B,) to be read at each of `steps` positions.
        Errors: UserError for more outputs than source tokens.
        """
        if target_bt is None:
            assert choose is not None and steps is not None, "give target_bt, or choose and steps"
            count = steps
        else:
            count = target_bt.shape[1]
        if target_bt is not None and not target_bt.is_cuda:  # reading values on a GPU would make every step wait
            check_room(((target_bt != PAD) & (target_bt != EOS)).sum(1), length_b)
        tape, mask = self.encode(source_bs, length_b)
        written = torch.zeros_like(tape)
        outputs, features = [], []
        for t in range(count):
            tape = self.decoder(self.dropout(tape), written) * mask
            outputs.append(tape[:, :, t, 0])
            features.append(tape[:, :, t].flatten(1))
            if t + 1 < count:
                if target_bt is not None:
                    token_b = target_bt[:, t + 1]
                else:
                    assert choose is not None
                    token_b = choose(outputs[-1], features[-1])
                written = written.clone()
                written[:, :, t, 0] = self.embedding(token_b)
        return torch.stack(outputs, 1), torch.stack(features, 1)

    def logits(self, output_nd: Tensor) -> Tensor:
        """Logits (..., V) of outputs (..., M), before or after the memory's answers are mixed in."""
        return nn.functional.linear(output_nd, self.embedding.weight, self.bias)


def check_room(outputs_b: Tensor, length_b: Tensor) -> None:
    """UserError for a target that is longer than its source, since the tape is as long as the source."""
    wrong = (outputs_b > length_b).nonzero()
    if len(wrong):
        row = int(wrong[0])
        raise UserError(
            f"the Neural GPU writes at most one token for each source token, but a pair has {int(outputs_b[row])}"
            f" outputs for {int(length_b[row])} source tokens: use model=translator, or data=symbols"
        )
