"""The memory against its rules written out slowly, and each of its promises by hand."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from slow_memory import SlowMemory

from quintet.common.errors import UserError
from quintet.papers.rare_events.memory.lru import LeastRecentlyUsed
from quintet.papers.rare_events.memory.memory import Memory, MemoryAnswer, MemoryConfig


def make(num_values: int = 6, **settings_) -> Memory:
    given_ = {"slots": 12, "width": 5, "neighbours": 4, "projection": False, "age_noise": 0.0, **settings_}
    return Memory(MemoryConfig(**given_), num_values)


def filled_with(rows: list, values: list, **settings_) -> Memory:
    """A memory that holds these keys and values, one write a row."""
    memory = make(width=len(rows[0]), **settings_)
    for row, value in zip(rows, values, strict=True):
        memory.write(unit(row), torch.tensor([value]), NO_ANSWER)
    return memory


NO_ANSWER = MemoryAnswer(*([torch.full((1, 1), -1)] * 4))  # nothing was found: the write is a miss


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
        assert memory.values.tolist() == slow.values and memory.slot_of_value.tolist() == slow.slot_of_value
        filled = memory.filled
        assert memory.ages[:filled].tolist() == slow.ages[:filled]
        torch.testing.assert_close(memory.keys[:filled].double(), torch.stack(slow.keys[:filled]), rtol=0, atol=2e-6)


def test_temperature_of_the_paper():
    config = MemoryConfig(neighbours=256, margin=0.1)
    assert config.softmax_temperature == pytest.approx(math.log(0.2 * 256) / 0.1) == pytest.approx(39.36, abs=0.01)
    assert MemoryConfig(neighbours=4).softmax_temperature == 1.0  # ln(0.8) is negative
    assert MemoryConfig(temperature=7.0).softmax_temperature == 7.0
    # The reason behind the formula: one key nearer by the margin than k others gets a fifth of the weight of k.
    others, nearest = torch.full((256,), 0.5), torch.tensor([0.6])
    weight = torch.softmax(torch.cat([nearest, others]) * config.softmax_temperature, 0)[0]
    assert float(weight) == pytest.approx(0.2 / 1.2, abs=1e-4)


def test_the_confidence_is_the_softmax_weight_among_the_k_nearest():
    memory = filled_with([[1, 0], [0.8, 0.6], [0, 1]], [0, 1, 2], neighbours=2, temperature=3.0)
    answer = memory.read(unit([1, 0]))
    expected = math.exp(3) / (math.exp(3) + math.exp(3 * 0.8))
    assert answer.value.tolist() == [0] and answer.slots.tolist() == [[0, 1]]
    assert float(answer.confidence) == pytest.approx(expected, abs=1e-6)


def test_an_empty_memory_says_so_and_value_0_is_not_taken_for_empty():
    memory = make()
    answer, losses_b = memory(torch.randn(3, 5), torch.tensor([0, 0, 1]), write=False)
    assert answer.value.tolist() == [-1] * 3 and answer.confidence.tolist() == [0.0] * 3
    assert (answer.slots == -1).all() and (answer.similarity == -torch.inf).all() and losses_b.tolist() == [0.0] * 3
    assert memory.filled == 0 and int(memory.step) == 0  # write=False


def test_empty_slots_are_no_candidates_even_when_every_key_is_far():
    """A zero key would have cosine 0, more than the only real one."""
    memory = filled_with([[-1, 0]], [3])
    answer = memory.read(unit([1, 0]))
    assert answer.value.tolist() == [3] and answer.slots.tolist() == [[0, -1, -1, -1]]
    assert answer.similarity[0, 0] == -1 and (answer.similarity[0, 1:] == -torch.inf).all()
    assert float(answer.confidence) == 1.0


def test_negative_cosines_are_not_replaced_by_masked_zeros():
    """Loss by hand, right cosine -0.6, wrong -0.8: multiplying with a 0/1 mask would take 0 for both."""
    memory = filled_with([[-0.6, 0.8], [-0.8, -0.6]], [0, 1]).eval()
    loss = memory.losses(unit([1, 0]), torch.tensor([0]))
    assert float(loss) == pytest.approx(0.0, abs=1e-6)
    loss = memory.losses(unit([1, 0]), torch.tensor([1]))
    assert float(loss) == pytest.approx(-0.6 + 0.8 + 0.1, abs=1e-6)


def test_a_missing_neighbour_counts_as_zero():
    memory = filled_with([[0.8, 0.6]], [0]).eval()
    query = unit([1, 0])
    assert float(memory.losses(query, torch.tensor([1]))) == pytest.approx(0.8 + 0.1)  # no right one
    memory = filled_with([[0.05, 1]], [0]).eval()
    only = 0.05 / math.sqrt(1 + 0.05**2)
    assert float(memory.losses(query, torch.tensor([0]))) == pytest.approx(0.1 - only, abs=1e-6)  # no wrong one


def test_the_gradient_reaches_the_query_and_survives_the_write():
    memory = filled_with([[1, 0, 0], [0, 1, 0]], [0, 1], neighbours=2)
    keys = memory.keys.clone()
    x = unit([0.6, 0.8, 0.1]).requires_grad_()
    _, losses_b = memory(x, torch.tensor([0]))
    memory(x, torch.tensor([1]))  # the keys change before backward
    losses_b.sum().backward()
    query = x.detach()
    expected = keys[1] - keys[0]  # then through the normalisation: the part across the query
    torch.testing.assert_close(x.grad[0], expected - query[0] * (expected @ query[0]))
    assert not memory.keys.requires_grad


def test_match_and_miss_by_hand():
    memory = filled_with([[1, 0], [0, 1]], [0, 1], slots=3, neighbours=2)
    memory(unit([0.8, 0.6]), torch.tensor([0]))  # matches slot 0
    torch.testing.assert_close(memory.keys[0], unit([1.8, 0.6])[0])
    assert memory.ages.tolist()[:2] == [0, 1] and memory.values.tolist() == [0, 1, -1]
    memory(unit([0.8, 0.6]), torch.tensor([5]))  # a miss: the empty slot
    assert memory.values.tolist() == [0, 1, 5] and torch.equal(memory.keys[2], unit([0.8, 0.6])[0])
    memory(unit([-1, 0.2]), torch.tensor([4]))  # full: the oldest, which is slot 1
    assert memory.values.tolist() == [0, 4, 5] and memory.ages.tolist() == [2, 0, 1]


def test_several_matches_of_one_slot_move_its_key_together():
    """Whatever their order; one after the other the last would count most, or overwrite the others."""
    queries = [[0.9, 0.1, 0], [0.8, 0, 0.5], [0.7, -0.3, 0.1]]
    expected = torch.nn.functional.normalize(unit([1, 0, 0])[0] + unit(*queries).sum(0), dim=0)
    for order in ([0, 1, 2], [2, 0, 1]):
        memory = filled_with([[1, 0, 0]], [2])
        memory(unit(*(queries[i] for i in order)), torch.tensor([2, 2, 2]))
        torch.testing.assert_close(memory.keys[0], expected)
        assert memory.filled == 1


def test_new_examples_of_one_value_get_a_slot_each_and_the_hint_is_the_last():
    memory = make()
    memory(unit([1, 0, 0, 0, 0], [0, 1, 0, 0, 0], [0, 0, 1, 0, 0]), torch.tensor([3, 1, 3]))
    assert memory.values[:4].tolist() == [3, 1, 3, -1]
    assert memory.slot_of_value.tolist() == [-1, 1, -1, 2, -1, -1]


def test_misses_take_different_slots_and_none_that_the_batch_matched():
    """Slot 0 is the oldest and is matched: only the other example's order decides between slots 1 and 2."""
    memory = filled_with([[1, 0], [0, 1], [-1, 0], [0, -1]], [0, 1, 2, 3], slots=4, neighbours=2, num_values=9)
    memory(unit([1, 0.1], [0.7, 0.7], [-0.7, 0.6]), torch.tensor([0, 7, 8]))
    assert memory.values.tolist() == [0, 7, 8, 3]
    torch.testing.assert_close(memory.keys[0], unit([1, 0])[0] + unit([1, 0.1])[0], rtol=0.51, atol=0.06)
    # As many examples as slots: every one still gets its own.
    memory(unit([1, 0.2], [0.2, -1], [0.4, 1], [-1, -1]), torch.tensor([4, 5, 6, 1]))
    assert sorted(memory.values.tolist()) == [1, 4, 5, 6]


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), noise=st.sampled_from([0.0, 0.5, 8.0]), count=st.integers(1, 12))
def test_the_oldest_are_chosen_by_age_plus_noise(seed, noise, count):
    """Never one that could not have won, whatever the noise; the same with and without the list that is kept."""
    random = torch.Generator().manual_seed(seed)
    stamps = torch.randint(40, (60,), generator=random)
    kept = LeastRecentlyUsed(noise, seed, small=10, kept=20)
    for step in range(40, 52):
        taken = torch.randperm(60, generator=random)[:3]
        chosen = kept.choose(stamps, count, taken, step)
        assert torch.equal(chosen, LeastRecentlyUsed(noise, seed).choose(stamps, count, taken, step))
        assert len(chosen.unique()) == count and not torch.isin(chosen, taken).any()
        others = torch.tensor([slot for slot in range(60) if slot not in chosen and slot not in taken])
        assert stamps[chosen].max() - stamps[others].min() <= 2 * noise
        stamps[torch.cat([chosen, taken])] = step
    assert kept._slots is not None


@pytest.mark.parametrize("apart", [4, 11])
def test_the_noise_is_uniform_and_comes_from_the_seed_and_step(apart):
    """Two slots, ages 0 and a, noise +-8: the younger wins with probability 1/2 * ((16 - a) / 16)^2."""
    stamps = torch.tensor([apart, 0])

    def younger(seed: int, steps: int) -> list[bool]:
        oldest = LeastRecentlyUsed(8.0, seed)
        return [int(oldest.choose(stamps, 1, stamps[:0], step)) == 0 for step in range(steps)]

    wins = younger(1, 2000)
    assert sum(wins) / 2000 == pytest.approx(((16 - apart) / 16) ** 2 / 2, abs=0.02)
    assert younger(1, 100) == wins[:100] != younger(2, 100)


def test_the_hint_helps_the_loss_in_training_only_and_never_the_answer():
    """With k=1 only slot 1 is found; the slot last written for value 0 is slot 0."""
    memory = filled_with([[0.6, 0.8], [1, 0]], [0, 1], neighbours=1)
    query, value = unit([1, 0]), torch.tensor([0])
    for training, right in ((True, 0.6), (False, 0.0)):
        answer, losses_b = memory.train(training)(query, value, write=False)
        assert answer.slots.tolist() == [[1]] and answer.value.tolist() == [1]
        assert float(losses_b) == pytest.approx(1 - right + 0.1)
    assert float(memory.losses(query, value, hint=True)) == pytest.approx(0.5)
    off = Memory(MemoryConfig(slots=12, width=2, neighbours=1, projection=False, hint=False), 6)
    off.load_state_dict(memory.state_dict())
    assert float(off.train().losses(query, value)) == pytest.approx(1.1)


def test_a_stale_hint_is_a_wrong_neighbour():
    """Slot 0 was written for value 0 and then overwritten by value 2."""
    memory = filled_with([[0.8, 0.6], [0, 1], [-1, 0]], [0, 1, 2], slots=2, neighbours=1)
    assert memory.values.tolist() == [2, 1] and memory.slot_of_value[0] == 0
    loss = memory.losses(unit([-0.6, 0.8]), torch.tensor([0]), hint=True)
    assert float(loss) == pytest.approx(0.8 + 0.1)  # the nearest wrong one is slot 1, then the hint with 0.6


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_bad_queries_and_values_leave_the_memory_untouched(bad):
    memory = make(num_values=6)
    memory(torch.randn(3, 5), torch.arange(3))
    before = {name: tensor.clone() for name, tensor in memory.state_dict().items()}
    x = torch.randn(2, 5)
    x[1, 2] = bad
    with pytest.raises(UserError, match="NaN or infinite"):
        memory(x, torch.tensor([0, 1]))
    for values in ([0, 6], [-1, 0]):
        with pytest.raises(UserError, match=r"its values are 0\.\.5"):
            memory(torch.randn(2, 5), torch.tensor(values))
    with pytest.raises(UserError, match="one value a query"):
        memory(torch.randn(2, 5), torch.tensor([0]))
    with pytest.raises(UserError, match=r"width=5"):
        memory(torch.randn(2, 4), torch.tensor([0, 1]))
    with pytest.raises(UserError, match="slots=12"):
        memory(torch.randn(13, 5), torch.zeros(13, dtype=torch.int64))
    assert states_equal(before, memory.state_dict()) and memory.filled == 3


@pytest.mark.parametrize(
    ("settings_", "named"),
    [
        ({"slots": 8, "neighbours": 9}, "neighbours=9"),
        ({"search": "annoy"}, "exact, lsh, faiss, none"),
        ({"search": "none"}, "model.memory=null"),
        ({"margin": 0.0}, "margin"),
        ({"temperature": 0.0}, "temperature"),
        ({"age_noise": -1.0}, "age_noise"),
        ({"lsh_bits": 30}, "lsh_bits"),
        ({"faiss_lists": 0}, "faiss_lists"),
    ],
)
def test_settings_that_make_no_sense(settings_, named):
    with pytest.raises(UserError, match=named.replace(".", r"\.")):
        make(**settings_)


def test_a_snapshot_is_bit_identical_whatever_happens_inside():
    memory = make(age_noise=8.0)
    memory(torch.randn(6, 5), torch.arange(6))
    before = {name: tensor.clone() for name, tensor in memory.state_dict().items()}
    with pytest.raises(RuntimeError, match="inside"), memory.snapshot():
        memory(torch.randn(5, 5), torch.arange(5))
        with memory.snapshot():
            memory(torch.randn(5, 5), torch.arange(5))
        memory.clear()
        assert memory.filled == 0 and (memory.values == -1).all() and (memory.slot_of_value == -1).all()
        memory(torch.randn(12, 5), torch.arange(12) % 6)
        memory(torch.randn(12, 5), torch.arange(12) % 6)
        assert not states_equal(before, memory.state_dict())
        raise RuntimeError("inside")
    assert states_equal(before, memory.state_dict()) and memory.filled == 6


def test_a_resumed_memory_goes_on_exactly_and_touches_no_other_random_state():
    stream = [(torch.randn(4, 5), torch.randint(6, (4,))) for _ in range(40)]
    memory, resumed = make(slots=30, age_noise=1.0), make(slots=30, age_noise=1.0)
    for one in (memory, resumed):
        one._lru.small, one._lru.kept = 10, 20  # as in large memories, which keep a list of old slots
    for x, value in stream[:20]:
        memory(x, value)
    for x, value in stream[::-1]:
        resumed(x, value)  # another life
    resumed.load_state_dict(copy.deepcopy(memory.state_dict()))
    random = torch.random.get_rng_state()
    outcomes = [[m(x, value) for x, value in stream[20:]] for m in (memory, resumed)]
    assert torch.equal(random, torch.random.get_rng_state())
    assert states_equal(memory.state_dict(), resumed.state_dict())
    for (one, one_loss), (other, other_loss) in zip(*outcomes, strict=True):
        assert all(map(torch.equal, one, other)) and torch.equal(one_loss, other_loss)


def test_every_step_has_its_own_noise():
    memory = make(slots=8, age_noise=8.0, seed=3)
    memory(torch.randn(8, 5), torch.zeros(8, dtype=torch.int64))
    chosen = []
    for value in range(1, 6):
        expected = LeastRecentlyUsed(8.0, 3).choose(memory.last_used.clone(), 1, memory.last_used[:0], int(memory.step))
        memory.write(torch.randn(1, 5), torch.tensor([value]), NO_ANSWER)
        chosen.append(int((memory.values == value).nonzero()))
        assert chosen[-1] == int(expected)
    assert len(set(chosen)) > 2


def test_the_state_fits_a_weights_only_checkpoint_and_no_other_memory(tmp_path):
    memory = make()
    memory(torch.randn(4, 5), torch.arange(4))
    torch.save(memory.state_dict(), tmp_path / "memory.pt")
    state = torch.load(tmp_path / "memory.pt", weights_only=True)
    assert {"keys", "values", "last_used", "slot_of_value", "step"} == set(state)
    for other in (make(slots=13), make(num_values=7), make(width=6)):
        with pytest.raises(UserError, match=r"checkpoint's memory .*model\.memory"):
            other.load_state_dict(state)
    for search in ("lsh", "faiss"):
        pytest.importorskip("faiss")
        other = make(search=search)
        other.load_state_dict(state)
        assert other.filled == 4
        make().load_state_dict(other.state_dict())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_and_low_precision_modules_keep_float32_queries_and_keys(dtype):
    memory = make(slots=64, width=32, neighbours=8, projection=True)
    reference = copy.deepcopy(memory)
    x = torch.randn(16, 32, requires_grad=True)
    expected, expected_losses = reference(x, torch.arange(16) % 6)
    expected, expected_losses = reference(x, torch.arange(16) % 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        memory(x, torch.arange(16) % 6)
        answer, losses_b = memory(x, torch.arange(16) % 6)
        losses_b.sum().backward()
    assert all(map(torch.equal, answer, expected)) and torch.equal(losses_b, expected_losses)
    assert torch.equal(memory.keys, reference.keys) and losses_b.dtype == torch.float32
    memory.to(dtype)
    assert memory.keys.dtype == torch.float32 and torch.equal(memory.keys, reference.keys)
    assert memory.projection.weight.dtype == dtype
    answer, losses_b = memory(x.to(dtype), torch.arange(16) % 6)
    assert answer.confidence.dtype == losses_b.dtype == torch.float32 and losses_b.isfinite().all()


def test_inference_mode_writes_a_memory_that_training_can_go_on_with():
    """Lightning evaluates in inference mode."""
    memory = make()
    with torch.inference_mode(), memory.snapshot():
        memory(torch.randn(4, 5), torch.arange(4))
        memory.clear()
        memory(torch.randn(4, 5), torch.arange(4))
    x = torch.randn(4, 5, requires_grad=True)
    memory(x, torch.arange(4))
    memory(x, torch.arange(4))[1].sum().backward()
    assert memory.filled == 4 and int(memory.step) == 2
