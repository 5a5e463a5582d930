"""From a caption decoder to captions in words: settings, the decoders that beam search calls, ensembles.

Legend: I images, n rows (unfinished captions), F features, H hidden width, V words.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from quintet.common.beam_search import BeamSearchOutput, StepDecoder, beam_search, power_penalty, sample
from quintet.common.errors import UserError
from quintet.data.special_ids import BOS, EOS, PAD, UNKNOWN
from quintet.papers.rare_events.memory.token_memory import TokenMemory
from quintet.papers.show_and_tell.lstm import LstmState
from quintet.papers.show_and_tell.network import Decoder

METHODS = ("beam", "greedy", "sample")


@dataclass(frozen=True)
class DecodingConfig:
    """Everything under `model.decoding`.

    method: beam | greedy | sample. beam_size: 20 in the paper, 3 in its TPAMI version. max_length: most words of a
    caption, its end included; min_length: fewest words, without the end. length_normalisation: alpha; captions are
    ranked by log p / length^alpha, and 0 is the paper's. captions: number for each image. temperature: for sampling.
    unknown: whether captions may contain the unknown word.
    """

    method: str = "beam"
    beam_size: int = 3
    max_length: int = 20
    min_length: int = 0
    length_normalisation: float = 0.0
    captions: int = 1
    temperature: float = 1.0
    unknown: bool = False

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise UserError(f"model.decoding.method={self.method!r}: choose {', '.join(METHODS)}")
        for name in ("beam_size", "max_length", "captions"):
            if getattr(self, name) < 1:
                raise UserError(f"model.decoding.{name}={getattr(self, name)} must be at least 1")
        if not 0 <= self.min_length < self.max_length:
            raise UserError(
                f"model.decoding.min_length={self.min_length} must be at least 0 and below max_length={self.max_length}"
            )
        if not self.length_normalisation >= 0:
            raise UserError(f"model.decoding.length_normalisation={self.length_normalisation} must be at least 0")
        if not self.temperature > 0:
            raise UserError(f"model.decoding.temperature={self.temperature} must be above 0")
        if self.captions > self.width:
            raise UserError(
                f"model.decoding.captions={self.captions}: method={self.method} finds at most {self.width} for an image"
            )

    @property
    def width(self) -> int:
        """The beam size, which is 1 for greedy decoding and sampling."""
        return self.beam_size if self.method == "beam" else 1

    def check_vocabulary(self, size: int) -> None:
        """UserError for a beam that is wider than the vocabulary."""
        if self.width > size:
            raise UserError(
                f"model.decoding.beam_size={self.beam_size} must be at most {size}, the size of the vocabulary"
            )


class Caption(NamedTuple):
    """One caption of an image."""

    words: list[str]
    log_probability: float  # natural logarithm, of all words and the end
    finished: bool  # False: it had not ended after max_length words

    @property
    def text(self) -> str:
        return " ".join(self.words)


class CaptionStepDecoder:
    """One caption decoder, for images given by their encoder features (I, F)."""

    def __init__(self, decoder: Decoder, features_if: Tensor, lookups: int, memory: TokenMemory | None = None) -> None:
        self.decoder, self.features_if, self.memory = decoder, features_if, memory
        self.table_vg = decoder.input_table(lookups)

    def start(self) -> LstmState:
        return self.decoder.start(self.features_if)

    def step(self, token_n: Tensor, state: LstmState) -> tuple[Tensor, LstmState]:
        state = self.decoder.step(token_n, state, self.table_vg)
        return logits_with_memory(self.decoder, state.m, self.memory).log_softmax(1), state

    def select(self, state: LstmState, row_n: Tensor) -> LstmState:
        return LstmState(state.m[row_n], state.c[row_n])


class EnsembleStepDecoder:
    """Several decoders with the same vocabulary, see `ensemble_log_probs`."""

    def __init__(self, members: Sequence[StepDecoder]) -> None:
        self.members = list(members)

    def start(self) -> tuple:
        return tuple(member.start() for member in self.members)

    def step(self, token_n: Tensor, state: tuple) -> tuple[Tensor, tuple]:
        steps = [member.step(token_n, part) for member, part in zip(self.members, state, strict=True)]
        return ensemble_log_probs([log_nv for log_nv, _ in steps]), tuple(part for _, part in steps)

    def select(self, state: tuple, row_n: Tensor) -> tuple:
        return tuple(member.select(part, row_n) for member, part in zip(self.members, state, strict=True))


def logits_with_memory(decoder: Decoder, hidden_nh: Tensor, memory: TokenMemory | None) -> Tensor:
    """Logits (n, V) of LSTM outputs, after the memory's answers are mixed into them where there is a memory."""
    if memory is not None:
        hidden_nh = memory.combine(hidden_nh, memory.read(hidden_nh)[1], decoder.output.weight)
    return decoder.logits(hidden_nh).float()


def ensemble_log_probs(members: Sequence[Tensor]) -> Tensor:
    """Log of the members' normalized geometric mean, (n, V): the mean of their log probabilities, normalized."""
    return members[0] if len(members) == 1 else torch.stack(list(members)).mean(0).log_softmax(1)


def decode(decoder: StepDecoder, images: int, config: DecodingConfig, device: torch.device | str,
           generator: torch.Generator | None = None) -> BeamSearchOutput:  # fmt: skip
    """Captions of all images by the configured method. Padding and bos are never chosen."""
    common: dict[str, Any] = {
        "bos": BOS,
        "eos": EOS,
        "max_length": config.max_length,
        "min_length": config.min_length,
        "banned": (PAD, BOS) if config.unknown else (PAD, BOS, UNKNOWN),
        "device": device,
    }
    if config.method == "sample":
        return sample(decoder, images, temperature=config.temperature, generator=generator, **common)
    penalty = power_penalty(config.length_normalisation)
    return beam_search(
        decoder, images, beam_size=config.width, n_best=config.captions, length_penalty=penalty, **common
    )


def to_captions(output: BeamSearchOutput, vocabulary: Sequence[str]) -> list[list[Caption]]:
    """The captions of each image, best first; fewer than asked for where the search found fewer."""
    found = []
    parts = (part.tolist() for part in (output.tokens, output.log_probs, output.finished))
    for tokens, log_probs, finished in zip(*parts, strict=True):
        pairs = zip(tokens, log_probs, strict=True)
        found.append([Caption(_words(ids, vocabulary), log, finished) for ids, log in pairs if log > -torch.inf])
    return found


def _words(ids: list[int], vocabulary: Sequence[str]) -> list[str]:
    end = ids.index(EOS) if EOS in ids else len(ids)
    return [vocabulary[word] for word in ids[:end] if word != PAD]
