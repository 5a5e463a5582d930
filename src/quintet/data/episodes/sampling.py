"""Which class and which drawing an episode shows when, as a function of a key."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from quintet.common.errors import UserError


class Plan(NamedTuple):
    """One episode of T images."""

    classes: NDArray[np.int64]  # (T,) class in the split
    labels: NDArray[np.int64]  # (T,) 0..width-1
    showing: NDArray[np.int64]  # (T,) how often the class was shown before
    drawers: NDArray[np.int64]  # (T,) which of the class' drawings


def plan_episode(key: Sequence[int], num_classes: int, num_drawers: int, width: int, length: int) -> Plan:
    """`width` classes in rounds: each round shows every class once in random order, the last one as far as it fits.

    Labels are dealt at random in each episode. A class' drawings do not repeat until all of them were shown.
    `key` is a list of non-negative integers; the same key gives the same episode on every machine.
    """
    random = np.random.default_rng(list(key))
    chosen_w = random.choice(num_classes, width, replace=False)
    rounds = -(-length // width)
    labels_t = _orders(random, rounds, width).reshape(-1)[:length]
    showing_t = np.repeat(np.arange(rounds), width)[:length]
    passes = -(-rounds // num_drawers)
    drawers_ws = _orders(random, width, passes, num_drawers).reshape(width, -1)
    return Plan(chosen_w[labels_t], labels_t, showing_t, drawers_ws[labels_t, showing_t])


def _orders(random: np.random.Generator, *shape: int) -> NDArray[np.int64]:
    """Independent random orders along the last axis."""
    return random.random(shape).argsort(-1)


def check_length(width: int, length: int, shots: Sequence[int]) -> None:
    """k-shot accuracy is that of the (k+1)-th showing: every class has to be shown so often."""
    if width < 2:
        raise UserError(f"data.width={width}: an episode needs 2 or more classes")
    if not shots or min(shots) < 1:
        raise UserError(f"data.shots={list(shots)}: give a list of numbers from 1, such as [1, 5]")
    needed = width * (max(shots) + 1)
    if length < needed:
        raise UserError(
            f"data.length={length} is too short for {max(shots)}-shot accuracy with data.width={width}: "
            f"give {needed} = width x (shots + 1) or more, or lower data.shots"
        )
