"""A translator after GNMT (Wu et al. 2016, arXiv 1609.08144): stacked residual LSTMs and additive attention.

Legend: B sentences, S source and T target positions, D width, q width of the query features, V target tokens.
The output at target position t depends on the source and target[:t + 1] only, so that training runs over whole
sentences and beam search token by token.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from quintet.common.errors import UserError


@dataclass(frozen=True)
class TranslatorConfig:
    """Everything under `model.network`. The paper of the memory uses GNMT's 8 layers of 1024; the defaults suit a CPU.

    query: what queries the memory, context (the attention's output) | context_state (with the bottom layer's output).
    """

    width: int = 256
    encoder_layers: int = 2
    decoder_layers: int = 2
    dropout: float = 0.2
    query: str = "context"

    def __post_init__(self) -> None:
        for name in ("width", "encoder_layers", "decoder_layers"):
            if getattr(self, name) < 1:
                raise UserError(f"model.network.{name}={getattr(self, name)} must be at least 1")
        if self.width % 2:
            raise UserError(
                f"model.network.width={self.width} must be even: half of it is for each direction of the first layer"
            )
        if not 0 <= self.dropout < 1:
            raise UserError(f"model.network.dropout={self.dropout} must be at least 0 and below 1")
        if self.query not in ("context", "context_state"):
            raise UserError(f"model.network.query={self.query!r}: choose context or context_state")


class Encoded(NamedTuple):
    """The encoder's output for a batch of sources."""

    states_bsd: Tensor
    keys_bsd: Tensor  # U h in the attention, computed once for all target positions
    mask_bs: Tensor  # bool, True = a real token, False = padding


class ResidualStack(nn.Module):
    """LSTM layers, each of which adds its output to its input; `extra_bte` is an additional input of every layer."""

    def __init__(self, layers: int, width: int, extra: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.LSTM(width + extra, width, batch_first=True) for _ in range(layers))
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x_btd: Tensor, extra_bte: Tensor | None = None, lengths_b: Tensor | None = None, states: tuple = ()
    ) -> tuple[Tensor, tuple]:
        """Outputs (B, T, D) and the last (h, c) of each layer; `lengths_b` excludes padding."""
        ends = []
        for index, layer in enumerate(self.layers):
            inner = self.dropout(x_btd)
            inner = inner if extra_bte is None else torch.cat([inner, extra_bte], 2)
            out_btd, end = run_lstm(layer, inner, lengths_b, states[index] if states else None)
            x_btd = x_btd + out_btd
            ends.append(end)
        return x_btd, tuple(ends)


class Encoder(nn.Module):
    """A bidirectional first layer, then residual layers in one direction (GNMT section 3.2)."""

    def __init__(self, config: TranslatorConfig, size: int) -> None:
        super().__init__()
        self.embedding = _embedding(size, config.width)
        self.first = nn.LSTM(config.width, config.width // 2, batch_first=True, bidirectional=True)
        self.upper = ResidualStack(config.encoder_layers - 1, config.width, 0, config.dropout)
        self.to_keys = nn.Linear(config.width, config.width, bias=False)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, source_bs: Tensor, length_b: Tensor) -> Encoded:
        x_bsd = self.dropout(_scaled(self.embedding, source_bs))
        x_bsd, _ = run_lstm(self.first, x_bsd, length_b)
        x_bsd, _ = self.upper(x_bsd, lengths_b=length_b)
        mask_bs = torch.arange(source_bs.shape[1], device=source_bs.device) < length_b[:, None]
        return Encoded(x_bsd, self.to_keys(x_bsd), mask_bs)


class AdditiveAttention(nn.Module):
    """weights = softmax(v . tanh(W q + U h)) over the real source positions (Bahdanau et al. 2015)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.to_query = nn.Linear(width, width)
        self.score = nn.Linear(width, 1, bias=False)

    def forward(self, query_btd: Tensor, encoded: Encoded) -> tuple[Tensor, Tensor]:
        """Context (B, T, D) and weights (B, T, S)."""
        hidden_btsd = torch.tanh(self.to_query(query_btd)[:, :, None] + encoded.keys_bsd[:, None])
        score_bts = self.score(hidden_btsd)[..., 0].masked_fill(~encoded.mask_bs[:, None], -torch.inf)
        weight_bts = score_bts.softmax(2)
        return weight_bts @ encoded.states_bsd, weight_bts


class DecoderState(NamedTuple):
    """(h, c) of the bottom layer and of the upper ones, each (1, B, D)."""

    bottom: tuple[Tensor, Tensor]
    upper: tuple[tuple[Tensor, Tensor], ...]

    def select(self, row_n: Tensor) -> "DecoderState":
        """The state of these rows of the batch."""
        (h, c), upper = self.bottom, self.upper
        return DecoderState((h[:, row_n], c[:, row_n]), tuple((h[:, row_n], c[:, row_n]) for h, c in upper))


class Translator(nn.Module):
    """The decoder's bottom layer queries the attention, whose context is an input of every upper layer and the output.

    Returns the decoder's output before the softmax and the memory's query features: the attention's context
    (`query=context`, section 3.2 of the memory paper), or context and bottom layer together (`context_state`).
    """

    def __init__(self, config: TranslatorConfig, source_size: int, target_size: int) -> None:
        super().__init__()
        self.config, self.width = config, config.width
        self.query_width = config.width * (2 if config.query == "context_state" else 1)
        self.encoder = Encoder(config, source_size)
        self.embedding = _embedding(target_size, config.width)
        self.bottom = nn.LSTM(config.width, config.width, batch_first=True)
        self.attention = AdditiveAttention(config.width)
        self.upper = ResidualStack(config.decoder_layers - 1, config.width, config.width, config.dropout)
        self.to_output = nn.Linear(2 * config.width, config.width)
        self.dropout = nn.Dropout(config.dropout)
        self.bias = nn.Parameter(torch.zeros(target_size))

    @property
    def output_embedding(self) -> Tensor:
        """Weights of the softmax (V, D), which are the target embeddings too (Press and Wolf 2017)."""
        return self.embedding.weight

    def forward(self, source_bs: Tensor, length_b: Tensor, target_bt: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs (B, T, D) and query features (B, T, q) that predict the token after each of `target_bt`."""
        output_btd, features_btq, _ = self.decode(target_bt, self.encoder(source_bs, length_b))
        return output_btd, features_btq

    def decode(
        self, target_bt: Tensor, encoded: Encoded, state: DecoderState | None = None
    ) -> tuple[Tensor, Tensor, DecoderState]:
        """Outputs and query features as from `forward`, continued from `state`, and the new state."""
        x_btd = self.dropout(_scaled(self.embedding, target_bt))
        bottom_btd, bottom = run_lstm(self.bottom, x_btd, None, state.bottom if state else None)
        context_btd, _ = self.attention(bottom_btd, encoded)
        upper_btd, upper = self.upper(bottom_btd, context_btd, states=state.upper if state else ())
        output_btd = torch.tanh(self.to_output(self.dropout(torch.cat([upper_btd, context_btd], 2))))
        both = self.config.query == "context_state"
        features_btq = torch.cat([context_btd, bottom_btd], 2) if both else context_btd
        return output_btd, features_btq, DecoderState(bottom, upper)

    def logits(self, output_nd: Tensor) -> Tensor:
        """Logits (..., V) of outputs (..., D), before or after the memory's answers are mixed in."""
        return nn.functional.linear(self.dropout(output_nd), self.embedding.weight, self.bias)


def run_lstm(
    layer: nn.Module, x_btd: Tensor, length_b: Tensor | None, state: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Run an LSTM over the real tokens only, so that padding changes neither the outputs nor the last state."""
    if length_b is None:
        return layer(x_btd, state)
    packed = pack_padded_sequence(x_btd, length_b.cpu(), batch_first=True, enforce_sorted=False)
    out, end = layer(packed, state)
    return pad_packed_sequence(out, batch_first=True, total_length=x_btd.shape[1])[0], end


def _embedding(size: int, width: int) -> nn.Embedding:
    table = nn.Embedding(size, width, padding_idx=0)
    nn.init.normal_(table.weight, std=width**-0.5)
    return table


def _scaled(table: nn.Embedding, ids: Tensor) -> Tensor:
    # the rows have norm 1, which suits a softmax; as inputs they are scaled to unit variance
    return table(ids) * table.embedding_dim**0.5
