"""Texts as token ids: byte-level subwords learnt from the training split, or the symbols of the synthetic task.

A vocabulary config builds one `Codec` for each language; ids 0..3 are padding, bos, eos and unknown in each.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from quintet.common.errors import UserError
from quintet.data.special_ids import SPECIAL, UNKNOWN

BYTES = 256
SIDES = ("source", "target")


class Codec(Protocol):
    """One side's texts to ids and back; `size` counts the special ids."""

    size: int

    def encode(self, texts: Sequence[str]) -> list[list[int]]: ...

    def decode(self, ids: Sequence[int]) -> str: ...


class SubwordCodec:
    """Byte-level BPE of the `tokenizers` library: every text is decoded exactly, and no word is unknown."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.tokenizer.encode_special_tokens = True  # "<eos>" inside a text is five characters, not the end
        self.size = tokenizer.get_vocab_size()

    @classmethod
    def train(cls, texts: Iterable[str], size: int) -> "SubwordCodec":
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

        tokenizer = Tokenizer(models.BPE())
        # the space in front makes a word the same token at the start of a line and inside it
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=size, special_tokens=list(SPECIAL), initial_alphabet=alphabet, show_progress=False
        )
        tokenizer.train_from_iterator(texts, trainer)
        return cls(tokenizer)

    @classmethod
    def load(cls, path: Path) -> "SubwordCodec":
        from tokenizers import Tokenizer

        return cls(Tokenizer.from_file(str(path)))

    def save(self, path: Path) -> None:
        self.tokenizer.save(str(path))

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids without bos and eos."""
        return [encoding.ids for encoding in self.tokenizer.encode_batch(list(texts), add_special_tokens=False)]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of real tokens; padding, bos, eos are left out."""
        return self.tokenizer.decode([i for i in ids if i > UNKNOWN], skip_special_tokens=True).removeprefix(" ")


class SymbolCodec:
    """Symbol s is id s + 2; largest symbol + 3 ids."""

    def __init__(self, largest: int) -> None:
        self.largest, self.size = largest, largest + 3

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        rows = [[int(word) for word in text.split()] for text in texts]
        wrong = next((s for row in rows for s in row if not 2 <= s <= self.largest), None)
        if wrong is not None:
            raise UserError(f"symbol {wrong} is outside 2..{self.largest}: see data.vocabulary.largest")
        return [[s + 2 for s in row] for row in rows]

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(str(i - 2) for i in ids if i > UNKNOWN)


@dataclass
class Subwords:
    """size: tokens a side, 256 bytes and 4 special ones among them; shared: one vocabulary for both languages."""

    size: int = 8000
    shared: bool = False

    def __post_init__(self) -> None:
        if self.size < BYTES + len(SPECIAL):
            raise UserError(f"data.vocabulary.size={self.size}: give {BYTES + len(SPECIAL)} or more (bytes, specials)")

    def key(self) -> list:
        from tokenizers import __version__

        return ["subwords", self.size, self.shared, __version__]

    def build(self, train: Any, folder: Path) -> None:
        """Learn from the training split only and write `<side>.json`."""
        if self.shared:
            codec = SubwordCodec.train((text for side in SIDES for text in _column(train, side)), self.size)
            for side in SIDES:
                codec.save(folder / f"{side}.json")
            return
        for side in SIDES:
            SubwordCodec.train(_column(train, side), self.size).save(folder / f"{side}.json")

    def open(self, folder: Path) -> dict[str, Codec]:
        return {side: SubwordCodec.load(folder / f"{side}.json") for side in SIDES}


@dataclass
class SymbolIds:
    """largest: the symbols are 2..largest; no learning, nothing to store."""

    largest: int = 16000

    def key(self) -> list:
        return ["symbols", self.largest]

    def build(self, train: Any, folder: Path) -> None:
        (folder / "symbols.json").write_text(json.dumps({"largest": self.largest}))

    def open(self, folder: Path) -> dict[str, Codec]:
        return {side: SymbolCodec(self.largest) for side in SIDES}


def _column(dataset: Any, side: str) -> Iterator[str]:
    for batch in dataset.iter(batch_size=1000):
        yield from batch[side]
