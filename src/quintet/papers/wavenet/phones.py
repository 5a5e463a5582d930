"""The phone error rate (van den Oord et al. 2016, section 3.4)."""

from collections.abc import Sequence

from quintet.data.audio.phones import TIMIT_61_TO_39

# The 39 classes of Lee & Hon (1989) as in the TIMIT source, and the silence labels of the Montreal Forced Aligner.
FOLD = TIMIT_61_TO_39 | dict.fromkeys(("sp", "spn", ""), "sil")


def fold_phones(symbols: Sequence[str]) -> list[str]:
    """A frame sequence as a phone sequence: fold to 39 classes, drop `q`, merge repeats."""
    bases = (symbol.lower().rstrip("012") for symbol in symbols)
    folded = [phone for base in bases if (phone := FOLD.get(base, base)) is not None]
    return [phone for i, phone in enumerate(folded) if i == 0 or phone != folded[i - 1]]


def edit_distance(reference: Sequence, hypothesis: Sequence) -> int:
    """Levenshtein distance: the least number of insertions, deletions and substitutions."""
    row = list(range(len(hypothesis) + 1))
    for i, expected in enumerate(reference, 1):
        diagonal, row[0] = row[0], i
        for j, found in enumerate(hypothesis, 1):
            best = min(row[j] + 1, row[j - 1] + 1, diagonal + (expected != found))
            diagonal, row[j] = row[j], best
    return row[-1]


def phone_error_rate(references: Sequence[Sequence[str]], hypotheses: Sequence[Sequence[str]]) -> float:
    """Edits over reference phones, both given as frame-level symbols and folded to 39 classes (section 3.4)."""
    pairs = [(fold_phones(r), fold_phones(h)) for r, h in zip(references, hypotheses, strict=True)]
    return sum(edit_distance(r, h) for r, h in pairs) / max(1, sum(len(r) for r, _ in pairs))
