"""Beam search over any step function, batched, with GNMT's length normalisation (Wu et al. 2016, equation 14).

Legend: B sentences, K beam size, V tokens, n = B * K rows in sentence order.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from quintet.common.errors import UserError


class BeamAnswer(NamedTuple):
    """The best hypotheses of each sentence, best first."""

    tokens: Tensor  # (B, K, L) int64 without bos; eos ends a hypothesis, zeros follow
    scores: Tensor  # (B, K) log probability / lp(length); -inf where fewer were found
    finished: Tensor  # (B,) bool: False where nothing ended within max_length; the best unfinished stand there


def length_penalty(length: int | Tensor, alpha: float) -> float | Tensor:
    """lp = ((5 + length) / 6) ^ alpha, where the length counts eos."""
    return ((5 + length) / 6) ** alpha


def select_rows(state: Any, rows: Tensor) -> Any:
    """The same rows of every tensor in nested tuples; LSTM states (1, n, D) are taken along their second axis."""
    if isinstance(state, Tensor):
        return state.index_select(1 if state.dim() == 3 and state.shape[0] == 1 else 0, rows)
    parts = [select_rows(part, rows) for part in state]
    return type(state)(*parts) if hasattr(state, "_fields") else type(state)(parts)


@torch.no_grad()
def beam_search(
    step: Callable[[Tensor, Any], tuple[Tensor, Any]],
    state: Any,
    batch: int,
    *,
    bos: int,
    eos: int,
    beam_size: int,
    max_length: int,
    alpha: float = 0.6,
    select: Callable[[Any, Tensor], Any] = select_rows,
    device: torch.device | str = "cpu",
) -> BeamAnswer:
    """The most likely token sequences that end in eos within `max_length` tokens.

    step(tokens (n,), state) -> log probabilities (n, V) of the next token and the new state; `state` has n = batch *
    beam_size rows, `select(state, rows)` takes some of them. A sentence is done when no unfinished hypothesis can
    beat its K finished ones, so a beam as wide as the tree finds the optimum.
    """
    if beam_size < 1 or max_length < 1:
        raise UserError(f"beam_size={beam_size}, max_length={max_length}: both must be at least 1")
    alive = torch.zeros(batch, beam_size, 0, dtype=torch.int64, device=device)
    alive_bk = torch.full((batch, beam_size), -torch.inf, device=device)
    alive_bk[:, 0] = 0  # all rows of a sentence begin alike: only one of them counts
    done = torch.zeros(batch, beam_size, max_length, dtype=torch.int64, device=device)
    done_bk = torch.full((batch, beam_size), -torch.inf, device=device)
    last_n = torch.full((batch * beam_size,), bos, device=device)
    first_b1 = torch.arange(batch, device=device)[:, None] * beam_size
    for length in range(1, max_length + 1):
        log_nv, state = step(last_n, state)
        total_bkv = alive_bk[..., None] + log_nv.float().view(batch, beam_size, -1)
        ended_bk = total_bkv[..., eos] / length_penalty(length, alpha)
        ended = torch.nn.functional.pad(alive, (0, 1), value=eos)
        done, done_bk = _best(done, done_bk, _padded(ended, max_length), ended_bk)
        total_bkv[..., eos] = -torch.inf
        size = total_bkv.shape[2]
        alive_bk, flat_bk = _top(total_bkv.flatten(1), beam_size)
        parent_bk, token_bk = flat_bk // size, flat_bk % size
        alive = torch.cat([alive.gather(1, parent_bk[..., None].expand(-1, -1, length - 1)), token_bk[..., None]], 2)
        # The log probability only falls and the penalty only grows: this is the most that is still to come.
        hope_b = alive_bk[:, 0] / length_penalty(max_length if alpha > 0 else length, alpha)
        if bool((hope_b <= done_bk[:, -1]).all()):
            break
        state, last_n = select(state, (first_b1 + parent_bk).flatten()), token_bk.flatten()
    found_b = done_bk[:, 0] > -torch.inf
    alive_bk = alive_bk / length_penalty(alive.shape[2], alpha)
    tokens = torch.where(found_b[:, None, None], done, _padded(alive, max_length))
    return BeamAnswer(tokens, torch.where(found_b[:, None], done_bk, alive_bk), found_b)


def _top(values_bn: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest; with fewer columns than that, rows of -inf (which repeat column 0) fill up."""
    found = values_bn.topk(min(count, values_bn.shape[1]), dim=1)
    missing = count - found.values.shape[1]
    pad = torch.nn.functional.pad
    return pad(found.values, (0, missing), value=-torch.inf), pad(found.indices, (0, missing))


def _padded(tokens_bkl: Tensor, length: int) -> Tensor:
    return torch.nn.functional.pad(tokens_bkl, (0, length - tokens_bkl.shape[2]))


def _best(old: Tensor, old_bk: Tensor, new: Tensor, new_bk: Tensor) -> tuple[Tensor, Tensor]:
    """The K best of old and new hypotheses; an old one wins a tie."""
    scores = torch.cat([old_bk, new_bk], 1)
    order = scores.sort(dim=1, descending=True, stable=True).indices[:, : old_bk.shape[1]]
    tokens = torch.cat([old, new], 1)
    return tokens.gather(1, order[..., None].expand(-1, -1, tokens.shape[2])), scores.gather(1, order)
