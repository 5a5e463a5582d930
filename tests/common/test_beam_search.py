"""Beam search against a plain one of a single source, and against trying every sequence of a tiny vocabulary."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_beam import plain_beam

from quintet.common.beam_search import beam_search, gnmt_penalty, power_penalty, sample
from quintet.common.errors import UserError

BOS, EOS, TOKENS, LENGTH = 1, 2, 5, 4
PENALTIES = {
    **{f"power {alpha}": power_penalty(alpha) for alpha in (0.0, 0.5, 1.0, 2.0)},
    **{f"gnmt {alpha}": gnmt_penalty(alpha) for alpha in (0.6, 2.0)},
}


def node(prefix):
    """Number of a prefix, so that it indexes a table."""
    start = sum(TOKENS**n for n in range(len(prefix)))
    return start + sum(token * TOKENS**place for place, token in enumerate(reversed(prefix)))


class Language:
    """Log probabilities depend on the source and the whole prefix, which is the state: wrong reordering shows."""

    def __init__(self, sources, seed=0, spread=1.5, length=LENGTH):
        generator = torch.Generator().manual_seed(seed)
        size = sum(TOKENS**n for n in range(length))
        self.table = torch.randn(sources, size, TOKENS, generator=generator).mul(spread).log_softmax(2)
        self.rows = 0

    def start(self):
        return torch.arange(len(self.table))[:, None]  # source, then the tokens so far

    def step(self, token_n, state):
        state = torch.cat([state, token_n[:, None]], 1)
        self.rows += len(state)
        assert (state[:, 1] == BOS).all()
        nodes = [node(row[2:]) for row in state.tolist()]
        return self.table[state[:, 0], nodes], state

    def select(self, state, row_n):
        return state[row_n]

    def of_source(self, source):
        return lambda prefixes: torch.stack([self.table[source, node(prefix)] for prefix in prefixes])


def exhaustive(language, source, penalty, min_length=0, banned=(), length=LENGTH):
    """(score, log probability, tokens) of every sequence that ends in its only eos, best first."""
    found = []
    for size in range(min_length + 1, length + 1):
        for body in itertools.product([t for t in range(TOKENS) if t != EOS and t not in banned], repeat=size - 1):
            tokens = (*body, EOS)
            total = sum(float(language.table[source, node(tokens[:i]), token]) for i, token in enumerate(tokens))
            found.append((total / penalty(size), total, list(tokens)))
    return sorted(found, reverse=True)


def search(language, beam, penalty="power 0.0", **options):
    options = {"bos": BOS, "eos": EOS, "max_length": LENGTH, "length_penalty": PENALTIES[penalty]} | options
    return beam_search(language, len(language.table), beam_size=beam, **options)


def ids(row):
    """Tokens up to eos; padding is left out where there is none."""
    row = row.tolist()
    return row[: row.index(EOS) + 1] if EOS in row else [token for token in row if token]


def hypotheses(found, source):
    rows = zip(found.tokens[source], found.log_probs[source], strict=True)
    return [ids(row) for row, log in rows if log > -torch.inf]


@pytest.mark.parametrize("eos_must_rank", [True, False])
@pytest.mark.parametrize(
    ("penalty", "min_length", "banned"),
    [("power 0.0", 0, ()), ("power 0.5", 0, (0, 1)), ("power 1.0", 2, (0,)), ("power 2.0", 0, ()),
     ("gnmt 0.6", 0, ()), ("gnmt 2.0", 1, (0,))],
)  # fmt: skip
def test_a_beam_as_wide_as_the_tree_finds_what_trying_everything_finds(penalty, min_length, banned, eos_must_rank):
    language = Language(3)
    found = search(language, 150, penalty, n_best=25, min_length=min_length, banned=banned, eos_must_rank=eos_must_rank)
    assert found.finished.all()
    for source in range(3):
        best = exhaustive(language, source, PENALTIES[penalty], min_length, banned)
        assert int((found.log_probs[source] > -torch.inf).sum()) == min(25, len(best))
        for k, (score, total, tokens) in enumerate(best[:25]):
            assert found.scores[source, k].item() == pytest.approx(score, rel=1e-5)
            assert found.log_probs[source, k].item() == pytest.approx(total, rel=1e-5)
            assert found.tokens[source, k].tolist() == tokens + [0] * (LENGTH - len(tokens))


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    beam=st.integers(1, 6),
    n_best=st.integers(1, 6),
    penalty=st.sampled_from(sorted(PENALTIES)),
    min_length=st.integers(0, 3),
    banned=st.sampled_from([(), (0,), (0, 1)]),
    spread=st.sampled_from([0.3, 1.5, 4.0]),
    eos_must_rank=st.booleans(),
)
def test_many_sources_give_what_a_plain_beam_that_never_stops_early_gives_one_by_one(
    seed, beam, n_best, penalty, min_length, banned, spread, eos_must_rank
):
    language, n_best = Language(4, seed, spread), min(n_best, beam)
    options = {"min_length": min_length, "banned": banned, "n_best": n_best, "eos_must_rank": eos_must_rank}
    found = search(language, beam, penalty, **options)
    for source in range(4):
        expected = plain_beam(language.of_source(source), eos=EOS, beam=beam, max_length=LENGTH,
                              penalty=PENALTIES[penalty], **options)  # fmt: skip
        count = len(expected)
        assert [row[: len(tokens)] for row, (_, tokens) in zip(found.tokens[source].tolist(), expected, strict=False)
                ] == [tokens for _, tokens in expected]  # fmt: skip
        assert (found.log_probs[source, count:] == -torch.inf).all()
        totals = torch.tensor([total for total, _ in expected])
        scores = torch.tensor([total / PENALTIES[penalty](len(tokens)) for total, tokens in expected])
        torch.testing.assert_close(found.log_probs[source, :count], totals)
        torch.testing.assert_close(found.scores[source, :count], scores)
        assert bool(found.finished[source]) == (expected[0][1][-1] == EOS)


def test_a_beam_of_one_is_greedy():
    language = Language(6, seed=3)
    language.table[..., 0] = -torch.inf  # padding, which `ids` leaves out
    found = search(language, 1)
    for source in range(6):
        tokens = []
        while len(tokens) < LENGTH and EOS not in tokens:
            tokens.append(int(language.table[source, node(tokens)].argmax()))
        assert ids(found.tokens[source, 0]) == tokens


def test_a_beam_of_one_that_may_finish_at_every_step_returns_the_best_end_of_the_greedy_path():
    language = Language(6, seed=3)
    language.table[..., 0] = -torch.inf
    found = search(language, 1, "gnmt 0.6", eos_must_rank=False)
    for source in range(6):
        path, total, ends = [], 0.0, []
        for length in range(1, LENGTH + 1):
            log_v = language.table[source, node(path)].clone()
            ends.append(((total + float(log_v[EOS])) / PENALTIES["gnmt 0.6"](length), [*path, EOS]))
            log_v[EOS] = -torch.inf
            path, total = [*path, int(log_v.argmax())], total + float(log_v.max())
        assert ids(found.tokens[source, 0]) == max(ends)[1]


@pytest.mark.parametrize("eos_must_rank", [True, False])
def test_an_unfinished_hypothesis_only_where_nothing_is_finished(eos_must_rank):
    language = Language(2)
    language.table[0, :, EOS] = -torch.inf
    found = search(language, 3, "gnmt 0.6", n_best=2, banned=(0,), eos_must_rank=eos_must_rank)
    assert found.finished.tolist() == [False, True]
    assert EOS not in found.tokens[0] and (found.tokens[0] > 0).all() and found.log_probs[0].isfinite().all()
    torch.testing.assert_close(found.scores[0], found.log_probs[0] / PENALTIES["gnmt 0.6"](LENGTH))
    assert all(EOS in row for row, log in zip(found.tokens[1], found.log_probs[1], strict=True) if log.isfinite())


def test_hypotheses_that_cannot_win_are_no_longer_extended():
    language = Language(3)
    language.table[:, :, EOS] = -0.01  # the end is likely at once: nothing else can matter
    search(language, 4)
    assert language.rows == 3


def test_sources_do_not_influence_each_other():
    language = Language(5, seed=5)
    together = search(language, 3, "gnmt 0.6", n_best=3, eos_must_rank=False)
    for source in range(5):
        alone = Language(5, seed=5)
        alone.table = alone.table[source : source + 1]
        found = search(alone, 3, "gnmt 0.6", n_best=3, eos_must_rank=False)
        assert torch.equal(found.tokens[0], together.tokens[source])


def test_the_decoders_log_probabilities_are_not_written_to():
    language = Language(1, length=1)
    before = language.table.clone()
    language.step = lambda token_n, state: (language.table[:, 0], state)
    search(language, 2, max_length=1, eos_must_rank=False, banned=(3,))
    assert torch.equal(language.table, before)


def test_samples_follow_the_probabilities_and_cold_ones_are_greedy():
    language = Language(1, seed=2)
    many = Language(4000, seed=2)
    many.table = language.table.expand(4000, -1, -1)
    generator = torch.Generator().manual_seed(0)
    drawn = sample(many, 4000, bos=BOS, eos=EOS, max_length=2, generator=generator)
    counts = torch.bincount(drawn.tokens[:, 0, 0], minlength=TOKENS) / 4000
    torch.testing.assert_close(counts, language.table[0, 0].exp(), atol=0.03, rtol=0)
    both = drawn.tokens[0, 0].tolist()
    expected = language.table[0, 0, both[0]] + (0 if both[0] == EOS else language.table[0, node(both[:1]), both[1]])
    assert drawn.log_probs[0, 0].item() == pytest.approx(float(expected), rel=1e-5)
    assert torch.equal(drawn.scores, drawn.log_probs)
    assert torch.equal(drawn.finished, (drawn.tokens[:, 0] == EOS).any(1))
    cold = sample(language, 1, bos=BOS, eos=EOS, max_length=LENGTH, temperature=1e-3)
    assert ids(cold.tokens[0, 0]) == ids(search(language, 1).tokens[0, 0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beam": 0}, "beam_size=0"),
        ({"max_length": 0}, "max_length=0"),
        ({"n_best": 4}, "n_best=4 must be from 1 to beam_size=3"),
        ({"min_length": LENGTH}, f"min_length={LENGTH} must be at least 0 and below max_length={LENGTH}"),
    ],
)
def test_sizes_are_checked(options, message):
    with pytest.raises(UserError, match=message):
        search(Language(1), **({"beam": 3} | options))
    with pytest.raises(UserError, match="temperature=0"):
        sample(Language(1), 1, bos=BOS, eos=EOS, max_length=2, temperature=0.0)
