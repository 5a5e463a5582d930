"""Words and their ids: those of the training captions that occur often enough (section 4.3.1)."""

from collections.abc import Iterable, Mapping, Sequence

from quintet.common.errors import UserError
from quintet.data.special_ids import BOS, EOS, SPECIAL, UNKNOWN


class Vocabulary:
    """words: in order of their ids; the first four are padding, bos, eos and unknown.

    Raises UserError for a list that does not begin with these, or has a word twice.
    """

    def __init__(self, words: Iterable[str]) -> None:
        self.words = [str(word) for word in words]
        self.ids = {word: number for number, word in enumerate(self.words)}
        if tuple(self.words[: len(SPECIAL)]) != SPECIAL or len(self.ids) < len(self.words):
            raise UserError(f"a vocabulary is {', '.join(SPECIAL)} and then different words, not {self.words[:6]} ...")

    @classmethod
    def from_counts(cls, counts: Mapping[str, int], min_count: int) -> "Vocabulary":
        """Words seen `min_count` times or more in training, the most frequent first, equals by the alphabet.

        Raises UserError when no word is that frequent.
        """
        kept = [word for word, count in counts.items() if count >= min_count and word not in SPECIAL]
        if not kept:
            most = max(counts.values(), default=0)
            raise UserError(f"data.min_count={min_count}: the most frequent training word occurs {most} times")
        return cls([*SPECIAL, *sorted(kept, key=lambda word: (-counts[word], word))])

    def __len__(self) -> int:
        return len(self.words)

    def encode(self, tokens: Iterable[str]) -> list[int]:
        """Ids without bos and eos. A token that is spelt like one of the special ids is an unknown word."""
        found = (self.ids.get(token, UNKNOWN) for token in tokens)
        return [number if number > UNKNOWN else UNKNOWN for number in found]

    def decode(self, ids: Sequence[int]) -> str:
        """Words up to the first eos; padding and bos are left out, an unknown word is `<unk>`."""
        numbers = [int(number) for number in ids]
        numbers = numbers[: numbers.index(EOS)] if EOS in numbers else numbers
        return " ".join(self.words[number] for number in numbers if number > BOS)
