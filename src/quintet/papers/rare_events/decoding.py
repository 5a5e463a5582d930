"""A translator with its memory, one target token at a time, for beam search.

Legend: B source sentences, n rows (unfinished translations of all sentences), V target tokens.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from quintet.papers.rare_events.translator import DecoderState, Encoded, Translator


class TranslationState(NamedTuple):
    """The state of the rows between two steps."""

    source_n: Tensor  # (n,) the source sentence of each row
    encoded: Encoded  # its encoding
    decoder: DecoderState | None  # None before the first token


class TranslationStepDecoder:
    """A StepDecoder (see common/beam_search.py) of the encoded sentences.

    logits: from the network's outputs (n, D) and query features (n, q) to logits (n, V), with the memory's answers.
    """

    def __init__(self, network: Translator, encoded: Encoded, logits: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.network, self.encoded, self.logits = network, encoded, logits

    def start(self) -> TranslationState:
        states_bsd = self.encoded.states_bsd
        return TranslationState(torch.arange(len(states_bsd), device=states_bsd.device), self.encoded, None)

    def step(self, token_n: Tensor, state: TranslationState) -> tuple[Tensor, TranslationState]:
        output_n1d, features_n1q, decoder = self.network.decode(token_n[:, None], state.encoded, state.decoder)
        return self.logits(output_n1d[:, 0], features_n1q[:, 0]).log_softmax(1), state._replace(decoder=decoder)

    def select(self, state: TranslationState, row_n: Tensor) -> TranslationState:
        source_n, encoded = state.source_n[row_n], state.encoded
        # mostly each sentence keeps its number of rows, and the encodings, which are large, need not be copied
        if not torch.equal(source_n, state.source_n):
            encoded = Encoded(*(part[source_n] for part in self.encoded))
        assert state.decoder is not None, "select follows a step"
        return TranslationState(source_n, encoded, state.decoder.select(row_n))
