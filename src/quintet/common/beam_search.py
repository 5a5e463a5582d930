"""Beam search and sampling over any model that predicts one token at a time: captions of images, translations.

Legend: I sources (images or sentences), K beam size, N hypotheses returned for each source, V vocabulary, L maximal
length, n rows. A row is one unfinished hypothesis; the rows of all sources are kept in source order, and their number
changes from step to step.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from quintet.common.errors import UserError

LengthPenalty = Callable[[int], float]


class StepDecoder(Protocol):
    """A model that predicts the next token of every row from the last one and a state, which is of any type."""

    def start(self) -> Any:
        """The state before the first token, one row for each of the I sources."""

    def step(self, token_n: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Log probabilities (n, V) of the token that follows `token_n`, and the new state."""

    def select(self, state: Any, row_n: Tensor) -> Any:
        """The state of these rows, in this order; a row may be repeated or left out."""


class BeamSearchOutput(NamedTuple):
    """The N best hypotheses of each source, best first. Unfinished ones only for a source that has no finished one."""

    tokens: Tensor  # (I, N, L) int64 without bos; eos ends a finished hypothesis, zeros follow
    log_probs: Tensor  # (I, N) log probability of all tokens, eos included; -inf where fewer than N were found
    scores: Tensor  # (I, N) log_probs divided by the length penalty, which is what the hypotheses are ranked by
    finished: Tensor  # (I,) bool, False where no hypothesis ended within L tokens


def power_penalty(alpha: float) -> LengthPenalty:
    """length^alpha, where the length counts eos. alpha=0: no normalization; 1: the mean log probability of a token."""
    return lambda length: length**alpha


def gnmt_penalty(alpha: float) -> LengthPenalty:
    """((5 + length) / 6)^alpha (Wu et al. 2016, equation 14), where the length counts eos."""
    return lambda length: ((5 + length) / 6) ** alpha


@torch.no_grad()
def beam_search(
    decoder: StepDecoder,
    sources: int,
    *,
    bos: int,
    eos: int,
    beam_size: int,
    max_length: int,
    min_length: int = 0,
    n_best: int = 1,
    length_penalty: LengthPenalty = lambda length: 1.0,
    eos_must_rank: bool = True,
    banned: Sequence[int] = (),
    device: torch.device | str = "cpu",
) -> BeamSearchOutput:
    """The `n_best` highest-scoring hypotheses of each source; beam_size=1 is greedy search.

    Every step extends each row by its most likely next tokens, and keeps the `beam_size` most likely extensions of
    each source. A hypothesis that is extended by eos is finished; its score is log probability / length_penalty.

    max_length counts eos, min_length the tokens before it. banned: tokens that are never chosen. eos_must_rank: a row
    finishes only where eos is among its `beam_size` most likely next tokens, as in im2txt; False: at every step, as in
    GNMT, so that eos takes no other token's place.

    A row is dropped as soon as no continuation can be better than the `n_best` finished hypotheses of its source. The
    result is that of a search that always runs to max_length, because log probabilities only fall.
    Errors: UserError for sizes that contradict each other.
    """
    _check(beam_size, max_length, min_length, n_best)
    beams = _Beams(sources, beam_size, n_best, max_length, length_penalty, device)
    banned_ids = torch.tensor(list(banned), dtype=torch.int64, device=device)
    state, token_n = decoder.start(), torch.full((sources,), bos, device=device)
    for length in range(1, max_length + 1):
        log_nv, state = decoder.step(token_n, state)
        log_nv = _allowed(log_nv, banned_ids, eos, length <= min_length)
        eos_n = log_nv[:, eos].clone()
        if not eos_must_rank:
            log_nv[:, eos] = -torch.inf
        log_nk, token_nk = log_nv.topk(min(beam_size, log_nv.shape[1]), dim=1)
        if eos_must_rank:
            is_eos_nk = token_nk == eos
            eos_n = eos_n.masked_fill(~is_eos_nk.any(1), -torch.inf)
            log_nk = log_nk.masked_fill(is_eos_nk, -torch.inf)
        beams.finish(beams.log_prob_n + eos_n, eos, length)
        row_n, token_n = beams.extend(beams.log_prob_n[:, None] + log_nk, token_nk, length)
        if not len(row_n):
            break
        state = decoder.select(state, row_n)
    return beams.output()


class _Beams:
    """The unfinished hypotheses (rows) of all sources, and the best finished ones of each source."""

    def __init__(self, sources: int, beam_size: int, n_best: int, max_length: int, length_penalty: LengthPenalty,
                 device: torch.device | str) -> None:  # fmt: skip
        self.sources, self.beam_size, self.max_length = sources, beam_size, max_length
        self.penalty = length_penalty
        self.log_prob_n = torch.zeros(sources, device=device)
        self.source_n = torch.arange(sources, device=device)
        self.rank_n = torch.zeros(sources, dtype=torch.int64, device=device)  # of a row among those of its source
        self.prefix_nl = torch.zeros(sources, 0, dtype=torch.int64, device=device)
        self.done_score_in = torch.full((sources, n_best), -torch.inf, device=device)
        self.done_log_prob_in = self.done_score_in.clone()
        self.done_inl = torch.zeros(sources, n_best, max_length, dtype=torch.int64, device=device)

    def _by_source(self, values_nk: Tensor) -> Tensor:
        """The rows' values as (I, K, k), -inf where a source has fewer than K rows."""
        values_ikk = values_nk.new_full((self.sources, self.beam_size, values_nk.shape[1]), -torch.inf)
        values_ikk[self.source_n, self.rank_n] = values_nk
        return values_ikk

    def finish(self, log_prob_n: Tensor, eos: int, length: int) -> None:
        """Finish a copy of every row with eos, with these log probabilities, and keep the n_best of each source."""
        if not bool((log_prob_n > -torch.inf).any()):
            return
        n_best = self.done_score_in.shape[1]
        new_ik = self._by_source(log_prob_n[:, None])[..., 0]
        score = torch.cat([self.done_score_in, new_ik / self.penalty(length)], 1)
        order_in = score.sort(dim=1, descending=True, stable=True).indices[:, :n_best]  # the earlier one wins a tie
        tokens = torch.zeros(self.sources, self.beam_size, self.max_length, dtype=torch.int64, device=score.device)
        tokens[self.source_n, self.rank_n, :length] = F.pad(self.prefix_nl, (0, 1), value=eos)
        tokens = torch.cat([self.done_inl, tokens], 1)
        self.done_inl = tokens.gather(1, order_in[..., None].expand(-1, -1, self.max_length))
        self.done_log_prob_in = torch.cat([self.done_log_prob_in, new_ik], 1).gather(1, order_in)
        self.done_score_in = score.gather(1, order_in)

    def extend(self, log_prob_nk: Tensor, token_nk: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """Keep the best extensions of each source: the rows that they extend, and their new tokens."""
        extensions = self._by_source(log_prob_nk).flatten(1)
        log_prob_ik, flat_ik = extensions.topk(min(self.beam_size, extensions.shape[1]), dim=1)
        # An upper bound of what a row's score can become: no more probability is lost, the best length is chosen.
        bound_ik = log_prob_ik / max(self.penalty(later) for later in range(length, self.max_length + 1))
        keep_ik = (log_prob_ik > -torch.inf) & (bound_ik > self.done_score_in[:, -1:])
        if length == self.max_length:  # unfinished rows are returned only for sources with nothing finished
            keep_ik &= ~(self.done_score_in[:, :1] > -torch.inf)
        row_ik = torch.zeros(self.sources, self.beam_size, dtype=torch.int64, device=extensions.device)
        row_ik[self.source_n, self.rank_n] = torch.arange(len(self.source_n), device=extensions.device)
        width = log_prob_nk.shape[1]
        self.source_n, self.rank_n = keep_ik.nonzero(as_tuple=True)
        flat_n = flat_ik[self.source_n, self.rank_n]
        row_n = row_ik[self.source_n, flat_n // width]
        token_n = token_nk[row_n, flat_n % width]
        self.log_prob_n = log_prob_ik[self.source_n, self.rank_n]
        self.prefix_nl = torch.cat([self.prefix_nl[row_n], token_n[:, None]], 1)
        return row_n, token_n

    def output(self) -> BeamSearchOutput:
        """The finished hypotheses; the best remaining rows where a source has none."""
        finished_i = self.done_score_in[:, 0] > -torch.inf
        n_best, length = self.done_score_in.shape[1], self.prefix_nl.shape[1]
        used_n = ~finished_i[self.source_n] & (self.rank_n < n_best)
        source, rank = self.source_n[used_n], self.rank_n[used_n]
        self.done_inl[source, rank, :length] = self.prefix_nl[used_n]
        self.done_log_prob_in[source, rank] = self.log_prob_n[used_n]
        self.done_score_in[source, rank] = self.log_prob_n[used_n] / self.penalty(length)
        return BeamSearchOutput(self.done_inl, self.done_log_prob_in, self.done_score_in, finished_i)


@torch.no_grad()
def sample(
    decoder: StepDecoder,
    sources: int,
    *,
    bos: int,
    eos: int,
    max_length: int,
    min_length: int = 0,
    temperature: float = 1.0,
    banned: Sequence[int] = (),
    generator: torch.Generator | None = None,
    device: torch.device | str = "cpu",
) -> BeamSearchOutput:
    """One sequence for each source (N = 1), each token drawn from p^(1 / temperature).

    The log probabilities, which are the scores too, are those of p itself: at temperature 1, without banned tokens.
    """
    _check(1, max_length, min_length, 1)
    if not temperature > 0:
        raise UserError(f"temperature={temperature} must be above 0; use greedy decoding for the limit 0")
    tokens = torch.zeros(sources, 1, max_length, dtype=torch.int64, device=device)
    log_prob_i1 = torch.zeros(sources, 1, device=device)
    finished_i = torch.zeros(sources, dtype=torch.bool, device=device)
    banned_ids = torch.tensor(list(banned), dtype=torch.int64, device=device)
    source_n, state = torch.arange(sources, device=device), decoder.start()
    token_n = torch.full((sources,), bos, device=device)
    for length in range(1, max_length + 1):
        log_nv, state = decoder.step(token_n, state)
        allowed_nv = _allowed(log_nv, banned_ids, eos, length <= min_length)
        token_n = torch.multinomial((allowed_nv / temperature).softmax(1), 1, generator=generator)[:, 0]
        tokens[source_n, 0, length - 1] = token_n
        log_prob_i1[source_n, 0] += log_nv.gather(1, token_n[:, None])[:, 0].float()
        ends_n = token_n == eos
        finished_i[source_n[ends_n]] = True
        row_n = (~ends_n).nonzero()[:, 0]
        if not len(row_n):
            break
        source_n, token_n, state = source_n[row_n], token_n[row_n], decoder.select(state, row_n)
    return BeamSearchOutput(tokens, log_prob_i1, log_prob_i1, finished_i)


def _allowed(log_nv: Tensor, banned_ids: Tensor, eos: int, too_short: bool) -> Tensor:
    """A float32 copy of the log probabilities with -inf for tokens that must not be chosen."""
    log_nv = log_nv.float().index_fill(1, banned_ids, -torch.inf)
    if too_short:
        log_nv[:, eos] = -torch.inf
    return log_nv


def _check(beam_size: int, max_length: int, min_length: int, n_best: int) -> None:
    if beam_size < 1 or max_length < 1:
        raise UserError(f"beam_size={beam_size}, max_length={max_length}: both must be at least 1")
    if not 1 <= n_best <= beam_size:
        raise UserError(f"n_best={n_best} must be from 1 to beam_size={beam_size}")
    if not 0 <= min_length < max_length:
        raise UserError(f"min_length={min_length} must be at least 0 and below max_length={max_length}")
