"""Whole alphabets held out for validation."""

import random
from collections.abc import Sequence

from quintet.common.errors import UserError
from quintet.data.episodes.store import ROTATIONS


def split_background(
    alphabets: Sequence[str], held_out: int, rotations: bool, seed: int
) -> tuple[list[int], list[int]]:
    """Rows of the stored background part for training and for validation; `alphabets` has one name a class.

    Training takes all four turns of its classes (or none but the upright one). Validation takes the upright classes
    of the held-out alphabets, as the test does; no turn of theirs is in training.
    """
    names = sorted(set(alphabets))
    if not 0 <= held_out < len(names):
        raise UserError(
            f"data.val_alphabets={held_out}: the background part has {len(names)} alphabets, give 0 to {len(names) - 1}"
        )
    held = set(random.Random(f"alphabets:{seed}").sample(names, held_out))
    count = len(alphabets)
    kept = [c for c in range(count) if alphabets[c] not in held]
    train = [turn * count + c for turn in range(ROTATIONS if rotations else 1) for c in kept]
    return train, [c for c in range(count) if alphabets[c] in held]
