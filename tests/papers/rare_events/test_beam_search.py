"""Beam search against trying every sequence, and what it owes to its parts."""

import itertools
import math

import pytest
import torch

from quintet.common.errors import UserError
from quintet.papers.rare_events.beam_search import BeamAnswer, beam_search, length_penalty, select_rows

BOS, EOS, TOKENS, LENGTH = 1, 2, 5, 4


def tables(batch, seed=0):
    """A random language: log probabilities depend on the sentence and on the whole prefix."""
    generator = torch.Generator().manual_seed(seed)
    size = sum(TOKENS**n for n in range(LENGTH))
    return torch.randn(batch, size, TOKENS, generator=generator).mul(1.5).log_softmax(2)


def node(prefix):
    """Number of a prefix, so that it indexes `tables`."""
    index = sum(TOKENS**n for n in range(len(prefix)))
    return index + sum(token * TOKENS**place for place, token in enumerate(reversed(prefix)))


def step_of(table_bnv, beam):
    """State: the prefixes themselves, so that a wrongly reordered state answers wrongly."""
    sentence_n = torch.arange(len(table_bnv)).repeat_interleave(beam)

    def step(token_n, state):
        prefix_nl = torch.cat([state[0], token_n[:, None]], 1) if state else token_n[:, None]
        assert (prefix_nl[:, 0] == BOS).all()
        nodes = [node(row[1:]) for row in prefix_nl.tolist()]
        return table_bnv[sentence_n, nodes], (prefix_nl,)

    return step


def search(table_bnv, beam, alpha=0.6, length=LENGTH):
    return beam_search(step_of(table_bnv, beam), (), len(table_bnv), bos=BOS, eos=EOS, beam_size=beam,
                       max_length=length, alpha=alpha)  # fmt: skip


def exhaustive(table_nv, alpha, length=LENGTH):
    """Every sequence that ends in its only eos within `length` tokens, best score first."""
    found = []
    for size in range(1, length + 1):
        for body in itertools.product([t for t in range(TOKENS) if t != EOS], repeat=size - 1):
            tokens = (*body, EOS)
            total = sum(float(table_nv[node(tokens[:i]), token]) for i, token in enumerate(tokens))
            found.append((total / ((5 + size) / 6) ** alpha, tokens))
    return sorted(found, reverse=True)


@pytest.mark.parametrize("alpha", [0.0, 0.6, 2.0])
def test_a_wide_beam_finds_what_trying_everything_finds(alpha):
    table = tables(3)
    found = search(table, beam=130, alpha=alpha)
    for b in range(3):
        best = exhaustive(table[b], alpha)
        for k in range(25):
            score, tokens = best[k]
            assert found.scores[b, k].item() == pytest.approx(score, rel=1e-5)
            assert tuple(found.tokens[b, k, : len(tokens)].tolist()) == tokens
            assert not found.tokens[b, k, len(tokens) :].any()


def test_stopping_early_never_loses_the_best():
    """With a narrow beam the answer is that of a search which always goes to the end."""
    for seed in range(8):
        table = tables(4, seed)
        early, late = search(table, 3, alpha=1.0), never_stopping(table, 3, 1.0)
        assert torch.equal(early.scores, late.scores) and torch.equal(early.tokens, late.tokens)


def never_stopping(table, beam, alpha):
    """A literal beam search over lists, one sentence at a time, without an early end."""
    tokens, scores = [], []
    for table_nv in table:
        alive, done = [(0.0, ())], []
        for length in range(1, LENGTH + 1):
            grown = []
            for total, prefix in alive:
                for token in range(TOKENS):
                    new = (total + table_nv[node(prefix), token], (*prefix, token))
                    if token == EOS:
                        done.append((new[0] / length_penalty(length, alpha), new[1]))
                    else:
                        grown.append(new)
            alive = sorted(grown, key=lambda item: -float(item[0]))[:beam]
        best = sorted(done, key=lambda item: -float(item[0]))[:beam]
        tokens.append([[*row, *[0] * (LENGTH - len(row))] for _, row in best])
        scores.append([float(score) for score, _ in best])
    return BeamAnswer(torch.tensor(tokens), torch.tensor(scores), None)


def test_a_beam_of_one_is_greedy():
    table = tables(6, seed=3)
    found = search(table, 1)
    for b in range(6):
        tokens = []
        while len(tokens) < LENGTH and EOS not in tokens:
            tokens.append(int(table[b, node(tokens)].argmax()))
        if EOS in tokens:  # a finished prefix may have been better than the greedy end, which comes later
            ends = [(exhaustive_score(table[b], [*tokens[:i], EOS]), [*tokens[:i], EOS]) for i in range(len(tokens))]
            assert found.tokens[b, 0].tolist()[: len(max(ends)[1])] == max(ends)[1]


def exhaustive_score(table_nv, tokens, alpha=0.6):
    total = sum(float(table_nv[node(tokens[:i]), token]) for i, token in enumerate(tokens))
    return total / length_penalty(len(tokens), alpha)


def test_without_an_end_the_best_unfinished_stand():
    table = tables(2)
    table[0, :, EOS] = -math.inf
    found = search(table, 3)
    assert found.finished.tolist() == [False, True]
    assert EOS not in found.tokens[0].tolist()[0] and found.scores[0, 0] > -math.inf


def test_sentences_do_not_touch_each_other():
    table = tables(3, seed=5)
    together = search(table, 3)
    for b in range(3):
        alone = search(table[b : b + 1], 3)
        assert torch.equal(alone.tokens[0], together.tokens[b])


def test_rows_of_nested_states():
    state = ((torch.arange(4.0)[:, None], torch.arange(4.0).view(1, 4, 1)), torch.arange(4))
    picked = select_rows(state, torch.tensor([2, 0]))
    assert picked[0][0].flatten().tolist() == picked[0][1].flatten().tolist() == picked[1].tolist() == [2, 0]


def test_sizes_are_checked():
    with pytest.raises(UserError, match="beam_size=0"):
        search(tables(1), 0)
