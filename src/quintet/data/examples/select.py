"""Which stored rows a split consists of: chosen classes, a held-out fraction, a smaller training set."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quintet.common.errors import UserError


def keep_classes(labels_n: NDArray, names: Sequence[str], classes: Sequence[Any] | None) -> tuple[NDArray, NDArray]:
    """(rows, labels) of the examples of these classes, in the stored order; labels are positions in `classes`.

    Raises UserError for a class that is not there or occurs twice, or fewer than two.
    """
    if classes is None:
        return np.arange(len(labels_n)), labels_n
    wanted = [str(name) for name in classes]
    if len(set(wanted)) != len(wanted) or len(wanted) < 2:
        raise UserError(f"data.classes={list(classes)}: give two or more different ones of {', '.join(names)}, or null")
    for name in wanted:
        if name not in names:
            raise UserError(f"data.classes: there is no class {name!r}, only {', '.join(names)}")
    new_c = np.full(len(names), -1)
    new_c[[list(names).index(name) for name in wanted]] = np.arange(len(wanted))
    relabelled_n = new_c[labels_n]
    rows = np.flatnonzero(relabelled_n >= 0)
    return rows, relabelled_n[rows]


def draw(count: int, size: float, seed: int) -> tuple[NDArray, NDArray]:
    """(the rest, `size` of `count` positions or that fraction of them), both ascending.

    Drawn as the authors drew their small MNIST: the first ones of NumPy's legacy permutation, which never changes.
    """
    taken = size if size >= 1 else round(size * count)
    shuffled = np.random.RandomState(seed).permutation(count)
    return np.sort(shuffled[int(taken) :]), np.sort(shuffled[: int(taken)])
