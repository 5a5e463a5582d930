"""Splits of data sets that come without any: drawn by a seed, the same on every machine."""

from collections.abc import Sequence

import numpy as np

from quintet.common.errors import UserError
from quintet.data.captions.source import Parts, Picture


def drawn(pictures: Sequence[Picture], val: int, test: int, seed: int, keys: str) -> Parts:
    """`test` and `val` of the images, and the rest to train on, each in the given order.

    Drawn from all that are listed, there or not, so that a test image is one wherever only some could be downloaded.
    NumPy's legacy permutation never changes. Raises UserError naming `keys` when too few are left.
    """
    if val < 0 or test < 0 or val + test > len(pictures):
        raise UserError(f"{keys}: {val} + {test} images of {len(pictures)} to hold out")
    order = np.random.RandomState(seed).permutation(len(pictures))
    parts = np.split(order, [test, test + val])
    named = zip(("test", "val", "train"), parts, strict=True)
    return Parts({split: [pictures[i] for i in np.sort(part)] for split, part in named})
