"""The caption decoder: the image once, then its words (Vinyals et al. 2015, equations 10 to 12).

Legend: I images, B captions, T words read, n rows, F features, D embedding, H hidden width, V words.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from quintet.common.errors import UserError
from quintet.papers.show_and_tell.lstm import FORMS, LstmState, build_lstm
from quintet.papers.show_and_tell.word_vectors import read_word_vectors


@dataclass(frozen=True)
class NetworkConfig:
    """Everything under `model.network`.

    dropout: on what the LSTM reads and on what it says, not inside (the paper keeps .7). init: weights start from
    U(-init, init). feature_scale: null = the encoder's features as they are, the papers' way; a number: each feature
    less its mean over training images, over its standard deviation, times that. word_vectors: a file in word2vec's or
    GloVe's text format that W_e starts from, as wide as `embedding`; null = random, the paper's choice. tied: the
    softmax has W_e's rows (not the paper's).
    """

    embedding: int = 512
    hidden: int = 512
    lstm: str = "paper"
    dropout: float = 0.3
    init: float = 0.08
    feature_scale: float | None = None
    word_vectors: str | None = None
    tied: bool = False

    def __post_init__(self) -> None:
        for name in ("embedding", "hidden"):
            if getattr(self, name) < 1:
                raise UserError(f"model.network.{name}={getattr(self, name)}: give 1 or more")
        if self.lstm not in FORMS:
            raise UserError(f"model.network.lstm={self.lstm!r}: choose {' or '.join(FORMS)}")
        if not 0 <= self.dropout < 1:
            raise UserError(f"model.network.dropout={self.dropout}: give 0 to less than 1 (1 - the paper's keep .7)")
        if not self.init > 0:
            raise UserError(f"model.network.init={self.init}: give more than 0")
        if self.feature_scale is not None and not self.feature_scale > 0:
            raise UserError(f"model.network.feature_scale={self.feature_scale}: give more than 0, or null")
        if self.tied and self.embedding != self.hidden:
            raise UserError("model.network.tied=true needs model.network.embedding equal to model.network.hidden")


class Standardise(nn.Module):
    """Features (I, F) as they are until `measure` has seen some; its mean and deviations are in the checkpoint."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("factor", torch.ones(features))
        self.register_buffer("measured", torch.tensor(False))

    def measure(self, features_if: Tensor, scale: float) -> None:
        """Afterwards these features have mean 0 and standard deviation `scale`; those that hardly vary have less."""
        deviation_f = features_if.std(0, correction=0)
        self.mean.copy_(features_if.mean(0))
        self.factor.copy_(scale / (deviation_f + 0.1 * deviation_f.mean()).clamp_min(1e-12))
        self.measured.fill_(True)

    def forward(self, features_if: Tensor) -> Tensor:
        return (features_if - self.mean) * self.factor


class Decoder(nn.Module):
    """x_{-1} = W_img CNN(I); x_t = W_e S_t; p_{t+1} = softmax(W m_t + b). Nothing is predicted at the image."""

    def __init__(self, config: NetworkConfig, features: int, vocabulary: Sequence[str]) -> None:
        super().__init__()
        self.config, self.features = config, features
        self.standardise = nn.Identity() if config.feature_scale is None else Standardise(features)
        self.image = nn.Linear(features, config.embedding, bias=False)
        self.words = nn.Embedding(len(vocabulary), config.embedding)
        self.lstm = build_lstm(config.lstm, config.embedding, config.hidden)
        self.output = nn.Linear(config.hidden, len(vocabulary))
        self.dropout = nn.Dropout(config.dropout)
        for name, parameter in self.named_parameters():
            if "bias" not in name:
                nn.init.uniform_(parameter, -config.init, config.init)
        nn.init.zeros_(self.output.bias)
        if config.word_vectors is not None:
            found = read_word_vectors(config.word_vectors, vocabulary, config.embedding, config.init)
            self.words.weight.data[found[0]] = found[1]
        if config.tied:
            self.output.weight = self.words.weight
        self._table: tuple[tuple, Tensor] | None = None

    def forward(self, features_if: Tensor, words_bt: Tensor, image_row_b: Tensor) -> Tensor:
        """LSTM outputs (B, T, H) after each of `words_bt`, which begin with bos; dropout is on them."""
        image_b1d = of_captions(self.image(self.standardise(features_if)), image_row_b)[:, None]
        x_btd = torch.cat([image_b1d, self.words(words_bt).to(image_b1d.dtype)], 1)
        return self.dropout(self.lstm(self.dropout(x_btd))[:, 1:])

    def logits(self, top: Tensor) -> Tensor:
        """Scores (..., V) of outputs (..., H)."""
        return self.output(top)

    # step by step

    def start(self, features_if: Tensor) -> LstmState:
        """The state (I, H) after the image."""
        image_id = self.image(self.standardise(features_if))
        return self.lstm.step(self.lstm.project(self.dropout(image_id)), None)

    def step(self, word_n: Tensor, state: LstmState, table_vg: Tensor | None = None) -> LstmState:
        """The state after one more word; with `input_table`'s answer its product is looked up."""
        if table_vg is not None:
            return self.lstm.step(table_vg[word_n], state)
        return self.lstm.step(self.lstm.project(self.dropout(self.words(word_n))), state)

    @torch.no_grad()
    def input_table(self, lookups: int) -> Tensor | None:
        """Every word's input product (V, 4H) for search, if so many `lookups` are worth it; None where not.

        Kept from call to call until a parameter behind it changes.
        """
        parameters = (self.words.weight, *self.lstm.input_parameters())
        key = tuple((p.data_ptr(), p._version, p.dtype) for p in parameters)
        if self._table is None or self._table[0] != key:
            worth = lookups > len(self.words.weight)
            self._table = (key, self.lstm.project(self.words.weight)) if worth else None
        return None if self._table is None else self._table[1]


def of_captions(images_i: Tensor, image_row_b: Tensor) -> Tensor:
    """Each caption's row (B, ...) of what is known of the images (I, ...); as many of both are in the same order.

    That spares a product in every gradient, and lets one caption be cut out of a batch, as influence functions do.
    """
    return images_i if len(images_i) == len(image_row_b) else images_i[image_row_b]
