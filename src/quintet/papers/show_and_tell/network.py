"""The caption decoder: the LSTM reads the image once, then words (Vinyals et al. 2015, equations 10 to 12).

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
class DecoderConfig:
    """Everything under `model.network`.

    lstm: paper | standard, see lstm.py. dropout: on the LSTM's inputs and outputs, not on its state; the probability of
    dropping, where the paper keeps .7. init: weights start from U(-init, init). feature_scale: null = the encoder's
    features unchanged, as in the papers; a number: features with the mean of the training images subtracted, divided by
    their standard deviation and multiplied by this number. word_vectors: a file in word2vec's or GloVe's text format
    from which the word embedding W_e starts, of width `embedding`; null = random, as in the paper. tied: the output
    layer shares its weights with W_e (not in the paper).
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
                raise UserError(f"model.network.{name}={getattr(self, name)} must be at least 1")
        if self.lstm not in FORMS:
            raise UserError(f"model.network.lstm={self.lstm!r}: choose {' or '.join(FORMS)}")
        if not 0 <= self.dropout < 1:
            raise UserError(
                f"model.network.dropout={self.dropout} must be at least 0 and below 1 (the probability of dropping)"
            )
        if not self.init > 0:
            raise UserError(f"model.network.init={self.init} must be above 0")
        if self.feature_scale is not None and not self.feature_scale > 0:
            raise UserError(f"model.network.feature_scale={self.feature_scale} must be above 0, or null")
        if self.tied and self.embedding != self.hidden:
            raise UserError("model.network.tied=true needs model.network.embedding equal to model.network.hidden")


class FeatureNormalizer(nn.Module):
    """Standardizes features (I, F). The identity until `fit`; its statistics are part of the checkpoint."""

    mean: Tensor  # (F,)
    factor: Tensor  # (F,)
    fitted: Tensor  # () bool

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("factor", torch.ones(features))
        self.register_buffer("fitted", torch.tensor(False))

    def fit(self, features_if: Tensor, scale: float) -> None:
        """Make these features have mean 0 and standard deviation `scale`.

        A tenth of the mean deviation is added to each, so that features which hardly vary are not blown up to noise.
        """
        deviation_f = features_if.std(0, correction=0)
        self.mean.copy_(features_if.mean(0))
        self.factor.copy_(scale / (deviation_f + 0.1 * deviation_f.mean()).clamp_min(1e-12))
        self.fitted.fill_(True)

    def forward(self, features_if: Tensor) -> Tensor:
        return (features_if - self.mean) * self.factor


class Decoder(nn.Module):
    """Equations 10 to 12: x_{-1} = W_img CNN(I), x_t = W_e S_t, p_{t+1} = softmax(W m_t + b).

    W_img is `image`, W_e is `words`, (W, b) is `output`. No word is predicted from the output at the image.
    """

    def __init__(self, config: DecoderConfig, features: int, vocabulary: Sequence[str]) -> None:
        super().__init__()
        self.config, self.features = config, features
        self.feature_norm = nn.Identity() if config.feature_scale is None else FeatureNormalizer(features)
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
        """LSTM outputs m_t (B, T, H) after dropout, for each of `words_bt`, which begin with bos."""
        image_b1d = rows_of_captions(self.image(self.feature_norm(features_if)), image_row_b)[:, None]
        x_btd = torch.cat([image_b1d, self.words(words_bt).to(image_b1d.dtype)], 1)
        return self.dropout(self.lstm(self.dropout(x_btd))[:, 1:])

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits (..., V) of LSTM outputs (..., H)."""
        return self.output(hidden)

    # one step at a time, for search and scheduled sampling

    def start(self, features_if: Tensor) -> LstmState:
        """The state (I, H) after the image has been read."""
        image_id = self.image(self.feature_norm(features_if))
        return self.lstm.step(self.lstm.project(self.dropout(image_id)), None)

    def step(self, word_n: Tensor, state: LstmState, table_vg: Tensor | None = None) -> LstmState:
        """The state after one more word; table_vg from `input_table` replaces its input product by a lookup."""
        if table_vg is not None:
            return self.lstm.step(table_vg[word_n], state)
        return self.lstm.step(self.lstm.project(self.dropout(self.words(word_n))), state)

    @torch.no_grad()
    def input_table(self, lookups: int) -> Tensor | None:
        """The LSTM's input product of every word (V, 4H) for search without dropout, or None.

        None where fewer words than the vocabulary will be looked up, so that computing the table does not pay. The
        table is kept between calls until one of the parameters it depends on changes.
        """
        parameters = (self.words.weight, *self.lstm.input_parameters())
        key = tuple((p.data_ptr(), p._version, p.dtype) for p in parameters)
        if self._table is None or self._table[0] != key:
            pays = lookups > len(self.words.weight)
            self._table = (key, self.lstm.project(self.words.weight)) if pays else None
        return None if self._table is None else self._table[1]


def rows_of_captions(images_i: Tensor, image_row_b: Tensor) -> Tensor:
    """The row of each caption's image (B, ...), from one row for each image (I, ...).

    With as many images as captions the rows are in the same order already. Returning them unchanged avoids an indexing
    operation in the backward pass, and allows single captions to be cut out of a batch, as influence functions do.
    """
    return images_i if len(images_i) == len(image_row_b) else images_i[image_row_b]
