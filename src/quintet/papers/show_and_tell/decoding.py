"""From a decoder to captions in words: the settings, what is searched, ensembles.

Legend: I images, n rows, V words, M members of an ensemble.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from quintet.common.errors import UserError
from quintet.data.special_ids import BOS, EOS, PAD, UNKNOWN
from quintet.papers.rare_events.memory.token_memory import TokenMemory
from quintet.papers.show_and_tell.beam_search import Found, Speaker, beam_search, sample
from quintet.papers.show_and_tell.lstm import LstmState
from quintet.papers.show_and_tell.network import Decoder

METHODS = ("beam", "greedy", "sample")


@dataclass(frozen=True)
class DecodingConfig:
    """Everything under `model.decoding`.

    method: beam | greedy | sample. beam_size: the paper's 20, or 3 of the TPAMI article. max_length counts the end,
    min_length the words before it. length_normalisation: scores are log p / length^this; 0 is the paper's. captions:
    how many of each image. temperature: of sampling. unknown: the unknown word may be said.
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
                raise UserError(f"model.decoding.{name}={getattr(self, name)}: give 1 or more")
        if not 0 <= self.min_length < self.max_length:
            raise UserError(f"model.decoding.min_length={self.min_length}: give 0 to less than {self.max_length}")
        if not self.length_normalisation >= 0:
            raise UserError(f"model.decoding.length_normalisation={self.length_normalisation}: give 0 or more")
        if not self.temperature > 0:
            raise UserError(f"model.decoding.temperature={self.temperature}: give more than 0")
        if self.captions > self.width:
            raise UserError(f"model.decoding.captions={self.captions}: {self.method} finds {self.width} an image")

    @property
    def width(self) -> int:
        """Beam size; 1 where there is no beam."""
        return self.beam_size if self.method == "beam" else 1

    def check_vocabulary(self, size: int) -> None:
        """UserError for a beam that is wider than there are words to continue with."""
        if self.width > size:
            raise UserError(f"model.decoding.beam_size={self.beam_size}: the vocabulary has {size} words, give fewer")


class Caption(NamedTuple):
    """One caption of an image; complete=False: it had not ended when it was max_length long."""

    words: list[str]
    log_probability: float  # natural, of all words and the end
    complete: bool

    @property
    def text(self) -> str:
        return " ".join(self.words)


class DecoderSpeaker:
    """One decoder over the features (I, F) of the images."""

    def __init__(self, decoder: Decoder, features_if: Tensor, lookups: int, memory: TokenMemory | None = None) -> None:
        self.decoder, self.features_if, self.memory = decoder, features_if, memory
        self.table_vg = decoder.input_table(lookups)

    def start(self) -> LstmState:
        return self.decoder.start(self.features_if)

    def step(self, word_n: Tensor, state: LstmState) -> tuple[Tensor, LstmState]:
        state = self.decoder.step(word_n, state, self.table_vg)
        return remembered(self.decoder, state.m, self.memory).log_softmax(1), state

    def select(self, state: LstmState, row_n: Tensor) -> LstmState:
        return LstmState(state.m[row_n], state.c[row_n])


def remembered(decoder: Decoder, top_nh: Tensor, memory: TokenMemory | None) -> Tensor:
    """Logits (n, V) of outputs, the memory's answers to them mixed in where there is one."""
    if memory is not None:
        top_nh = memory.combine(top_nh, memory.read(top_nh)[1], decoder.output.weight)
    return decoder.logits(top_nh).float()


def mean_log(members: Sequence[Tensor]) -> Tensor:
    """The members' mean log probabilities (n, V), normalised: the geometric mean of their probabilities."""
    return members[0] if len(members) == 1 else torch.stack(list(members)).mean(0).log_softmax(1)


class EnsembleSpeaker:
    """Several speakers at once, see `mean_log`."""

    def __init__(self, speakers: Sequence[Speaker]) -> None:
        self.speakers = list(speakers)

    def start(self) -> tuple:
        return tuple(speaker.start() for speaker in self.speakers)

    def step(self, word_n: Tensor, state: tuple) -> tuple[Tensor, tuple]:
        said = [speaker.step(word_n, part) for speaker, part in zip(self.speakers, state, strict=True)]
        return mean_log([log_nv for log_nv, _ in said]), tuple(part for _, part in said)

    def select(self, state: tuple, row_n: Tensor) -> tuple:
        return tuple(speaker.select(part, row_n) for speaker, part in zip(self.speakers, state, strict=True))


def decode(speaker: Speaker, images: int, config: DecodingConfig, device: torch.device,
           generator: torch.Generator | None = None) -> Found:  # fmt: skip
    """Captions of all images as the configuration asks for them."""
    banned = (PAD, BOS) if config.unknown else (PAD, BOS, UNKNOWN)
    limits = {"max_length": config.max_length, "min_length": config.min_length}
    shared = limits | {"bos": BOS, "eos": EOS, "banned": banned, "device": device}
    if config.method == "sample":
        return sample(speaker, images, temperature=config.temperature, generator=generator, **shared)
    return beam_search(speaker, images, beam_size=config.width, alpha=config.length_normalisation,
                       captions=config.captions, **shared)  # fmt: skip


def in_words(found: Found, vocabulary: Sequence[str]) -> list[list[Caption]]:
    """The captions of each image, best first; fewer where fewer were found."""
    rows = zip(found.words.tolist(), found.log_probability.tolist(), found.complete.tolist(), strict=True)
    return [
        [Caption(_words(ids, vocabulary), log, complete) for ids, log in zip(captions, logs, strict=True)
         if log > -torch.inf]
        for captions, logs, complete in rows
    ]  # fmt: skip


def _words(ids: list[int], vocabulary: Sequence[str]) -> list[str]:
    end = ids.index(EOS) if EOS in ids else len(ids)
    return [vocabulary[word] for word in ids[:end] if word != PAD]
