"""Properties of the order: each caption once an epoch, on any number of ranks, and the rest of it after a stop."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from quintet.data.order import CaptionSampler, ViewSampler

LENGTHS = st.lists(st.integers(1, 30), min_size=1, max_size=120)


def passes(make, world, epoch, start=0):
    """Each rank's batches."""
    return [list(make(rank, world, lambda: (epoch, start))) for rank in range(world)]


@pytest.mark.parametrize("kind", ["captions", "images"])
@given(lengths=LENGTHS, size=st.integers(1, 12), world=st.integers(1, 3), window=st.integers(1, 4),
       epoch=st.integers(0, 3), seed=st.integers(0, 5))  # fmt: skip
@settings(max_examples=100, deadline=None)
def test_each_once_an_epoch_and_the_rest_after_a_stop(kind, lengths, size, world, window, epoch, seed):
    count = len(lengths)
    assume(size * world <= count)

    def make(rank, world, position):
        if kind == "images":
            return ViewSampler(count, size, seed, rank=rank, world_size=world, position=position)
        return CaptionSampler(lengths, size, seed, window, rank, world, position)

    parts = passes(make, world, epoch)
    assert len({len(part) for part in parts}) == 1, "every rank takes as many steps"
    indices = [index for part in parts for batch in part for index in batch]
    assert {index // count for index in indices} == {epoch}, "the index says which view is meant"
    seen = Counter(index % count for index in indices)
    assert set(seen) == set(range(count)) and sum(seen.values()) == count + -count % world
    assert max(len(batch) for part in parts for batch in part) <= size
    stop = len(parts[0]) // 2
    assert passes(make, world, epoch, stop) == [part[stop:] for part in parts]


@given(lengths=LENGTHS, size=st.integers(1, 12), seed=st.integers(0, 5))
@settings(max_examples=100, deadline=None)
def test_one_window_over_all_is_as_tight_as_can_be(lengths, size, seed):
    """Sorted and cut: no other batches of this size have a smaller sum of longest members."""
    assume(size <= len(lengths))
    batches = list(CaptionSampler(lengths, size, seed, window=1000))
    longest = sum(max(lengths[i] for i in batch) for batch in batches)
    assert longest == sum(max(part) for part in np.split(np.sort(lengths), range(size, len(lengths), size)))
