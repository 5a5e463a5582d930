"""A GNMT-like translator (Wu et al. 2016, arXiv 1609.08144): stacked residual LSTMs and additive attention.

Legend: B sentences, S source and T target positions, D width, V target tokens. Everything at position t depends on
source and target[:t + 1] only, so that training runs over whole sentences and beam search token by token.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from quintet.common.errors import UserError


@dataclass(frozen=True)
class TranslatorConfig:
    """Everything under `model.network`; the paper of the memory takes GNMT's 8 layers of 1024 (sizes here: CPU)."""

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
            raise UserError(f"model.network.width={self.width} must be even: two directions share the first layer")
        if not 0 <= self.dropout < 1:
            raise UserError(f"model.network.dropout={self.dropout} must be in [0, 1)")
        if self.query not in ("context", "context_state"):
            raise UserError(f"model.network.query={self.query!r}: choose context or context_state")


class Encoded(NamedTuple):
    """What the decoder needs of a batch of sources."""

    states_bsd: Tensor
    keys_bsd: Tensor  # the states as attention sees them
    mask_bs: Tensor  # bool, True = a real token


class ResidualStack(nn.Module):
    """LSTM layers on top of each other, each adding its output to its input; `extra_bte` is fed to every layer."""

    def __init__(self, layers: int, width: int, extra: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.LSTM(width + extra, width, batch_first=True) for _ in range(layers))
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x_btd: Tensor, extra_bte: Tensor | None = None, lengths_b: Tensor | None = None, states: tuple = ()
    ) -> tuple[Tensor, tuple]:
        """Outputs (B, T, D) and the last (h, c) of each layer; with lengths, padding is skipped."""
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
    """weights = softmax(v . tanh(W q + U h)) over real source positions (Bahdanau et al. 2015)."""

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


class Translator(nn.Module):
    """The bottom decoder layer asks the attention; its context goes to every upper layer and to the top output.

    Gives the top output before the softmax and the memory's query features: the attention's output, the context
    (`query=context`, section 3.2 of the memory paper), or context and bottom state together (`context_state`).
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
        self.to_top = nn.Linear(2 * config.width, config.width)
        self.dropout = nn.Dropout(config.dropout)
        self.bias = nn.Parameter(torch.zeros(target_size))

    @property
    def output_embedding(self) -> Tensor:
        """Rows of the softmax (V, D), which are the target embeddings too (Press and Wolf 2017)."""
        return self.embedding.weight

    def forward(self, source_bs: Tensor, length_b: Tensor, target_bt: Tensor) -> tuple[Tensor, Tensor]:
        """Top outputs (B, T, D) and query features (B, T, q) that predict the token after each of `target_bt`."""
        top_btd, features_btq, _ = self.decode(target_bt, self.encoder(source_bs, length_b))
        return top_btd, features_btq

    def decode(
        self, target_bt: Tensor, encoded: Encoded, state: DecoderState | None = None
    ) -> tuple[Tensor, Tensor, DecoderState]:
        """One or many steps on from `state`."""
        x_btd = self.dropout(_scaled(self.embedding, target_bt))
        bottom_btd, bottom = run_lstm(self.bottom, x_btd, None, state.bottom if state else None)
        context_btd, _ = self.attention(bottom_btd, encoded)
        upper_btd, upper = self.upper(bottom_btd, context_btd, states=state.upper if state else ())
        top_btd = torch.tanh(self.to_top(self.dropout(torch.cat([upper_btd, context_btd], 2))))
        both = self.config.query == "context_state"
        features_btq = torch.cat([context_btd, bottom_btd], 2) if both else context_btd
        return top_btd, features_btq, DecoderState(bottom, upper)

    def logits(self, top_nd: Tensor) -> Tensor:
        """Scores (..., V) of top outputs, memory mixed in or not."""
        return nn.functional.linear(self.dropout(top_nd), self.embedding.weight, self.bias)


def run_lstm(
    layer: nn.LSTM, x_btd: Tensor, length_b: Tensor | None, state: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """An LSTM over real tokens only: padding changes neither outputs nor the last state."""
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
    # Unit rows suit a softmax; as inputs they are brought to unit variance.
    return table(ids) * table.embedding_dim**0.5
