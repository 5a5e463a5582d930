"""The memory against its rules written out slowly, and each of its promises by hand."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from slow_memory import SlowMemory

from quintet.models.rare_events.memory import Memory, MemoryConfig


def make(num_values: int = 6, **settings_) -> Memory:
    given_ = {"slots": 12, "width": 5, "neighbours": 4, "projection": False, "age_noise": 0.0, **settings_}
    return Memory(MemoryConfig(**given_), num_values)


def unit(*rows) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.tensor(rows, dtype=torch.float32), dim=1)


def states_equal(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    slots=st.integers(6, 14),
    neighbours=st.integers(1, 6),
    num_values=st.integers(1, 8),
    batches=st.lists(st.integers(1, 6), min_size=1, max_size=8),
    training=st.booleans(),
)
def test_random_streams_follow_the_rules_written_out(seed, slots, neighbours, num_values, batches, training):
    """Predictions, weights, losses, keys, values, ages and hints after every step, overwriting included."""
    random = torch.Generator().manual_seed(seed)
    memory = make(num_values, slots=slots, neighbours=neighbours, chunk_rows=5).train(training)
    slow = SlowMemory(slots, neighbours, margin=0.1, num_values=num_values)
    centres = torch.randn(num_values, 5, generator=random)
    for batch in batches:
        value_b = torch.randint(num_values, (batch,), generator=random)
        noise_bd = torch.randn(batch, 5, generator=random)
        query_bd = torch.nn.functional.normalize(centres[value_b] + 0.7 * noise_bd, dim=1)
        rows = [row.double() for row in query_bd]
        answer, losses_b = memory(query_bd, value_b)
        expected = [slow.predict(row) for row in rows]
        assert answer.value.tolist() == [value for value, _ in expected]
        torch.testing.assert_close(answer.confidence.tolist(), [weight for _, weight in expected], rtol=1e-4, atol=1e-5)
        expected_losses = [slow.loss(row, int(v), hint=training) for row, v in zip(rows, value_b, strict=True)]
        torch.testing.assert_close(losses_b.tolist(), expected_losses, rtol=1e-4, atol=1e-5)
        # Equal ages: the lower slot goes first in both.
        slow.write(rows, value_b.tolist(), noise=lambda slots: [0.0] * len(slots))
        assert memory.values.tolist() == slow.values and memory.hints.tolist() == slow.hints
        filled = memory.filled
        assert memory.ages[:filled].tolist() == slow.ages[:filled]
        torch.testing.assert_close(memory.keys[:filled].double(), torch.stack(slow.keys[:filled]), rtol=0, atol=2e-6)


def test_preserved_is_bit_identical_whatever_happens_inside():
    memory = make()
    memory(torch.randn(6, 5), torch.arange(6))
    before = {name: tensor.clone() for name, tensor in memory.state_dict().items()}
    with pytest.raises(RuntimeError, match="inside"), memory.preserved():
        memory(torch.randn(5, 5), torch.arange(5))
        memory.clear()
        memory(torch.randn(12, 5), torch.arange(12) % 6)
        assert not states_equal(before, memory.state_dict())
        raise RuntimeError("inside")
    assert states_equal(before, memory.state_dict()) and memory.filled == 6
