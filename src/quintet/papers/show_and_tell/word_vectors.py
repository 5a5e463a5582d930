"""Pretrained word vectors in the text format of word2vec and GloVe: on each line a word and its numbers."""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from quintet.common.errors import UserError

KEY = "model.network.word_vectors"
log = logging.getLogger(__name__)


def read_word_vectors(path: str, vocabulary: Sequence[str], width: int, scale: float) -> tuple[Tensor, Tensor]:
    """The ids (K,) of the vocabulary's words that the file contains, and their vectors (K, width).

    word2vec's header line with the two sizes is skipped. A word is matched exactly, else in lower case. The vectors are
    scaled to the root mean square of U(-scale, scale), from which the other words start.
    Errors: UserError for a file that is missing, malformed, of another width, or without any word of the vocabulary.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise UserError(f"{KEY}={path}: no such file; give a file in word2vec's or GloVe's text format, or null")
    row_of = {word: row for row, word in enumerate(vocabulary)}
    found: dict[int, Tensor] = {}
    for number, word, numbers in _lines(file):
        row = row_of.get(word)
        exact = row is not None
        row = row_of.get(word.lower()) if row is None else row
        if row is None or (row in found and not exact):
            continue
        found[row] = _vector(numbers, width, f"{KEY}={path}, line {number}")
    if not found:
        raise UserError(f"{KEY}={path}: none of its words is in the vocabulary; check the language and the format")
    log.info("word vectors: %d of %d words are initialized from %s", len(found), len(vocabulary), file.name)
    vectors = torch.stack(list(found.values()))
    vectors *= scale / 3**0.5 / vectors.square().mean().sqrt().clamp(min=1e-12)
    return torch.tensor(list(found)), vectors


def _lines(file: Path) -> Iterator[tuple[int, str, list[str]]]:
    with file.open(encoding="utf-8", errors="replace") as handle:
        for number, line in enumerate(handle, 1):
            word, *numbers = line.rstrip().split(" ")
            if numbers and not (number == 1 and len(numbers) == 1):
                yield number, word, numbers


def _vector(numbers: list[str], width: int, where: str) -> Tensor:
    if len(numbers) != width:
        raise UserError(f"{where} has {len(numbers)} numbers: set model.network.embedding={len(numbers)}, not {width}")
    try:
        vector = torch.tensor([float(number) for number in numbers])
    except ValueError as error:
        raise UserError(f"{where} is not a vector: {error}") from error
    if not bool(vector.isfinite().all()):
        raise UserError(f"{where} is not a vector: it contains nan or inf")
    return vector
