"""Exact beam search over many images at once (section 4.3.2), and sampling.

Legend: I images, K beam size, N captions wanted of each, V words, n rows: the unfinished captions of all images, in
image order, as many of each as can still matter.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from quintet.common.errors import UserError

NEVER = -torch.inf


class Speaker(Protocol):
    """What is searched: a decoder, or several that speak together."""

    def start(self) -> Any:
        """The state of all I images after the image step."""

    def step(self, word_n: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Log probabilities (n, V) of the word after `word_n`, and the new state."""

    def select(self, state: Any, row_n: Tensor) -> Any:
        """The state of these rows."""


class Found(NamedTuple):
    """The captions of each image, best first; complete ones only, wherever there is one."""

    words: Tensor  # (I, N, max_length) int64 without bos; eos ends a complete caption, zeros follow
    log_probability: Tensor  # (I, N) of the whole caption, eos included; -inf where fewer were found
    complete: Tensor  # (I,) bool: False where nothing ended within max_length: the best unfinished stand there


@torch.no_grad()
def beam_search(
    speaker: Speaker, images: int, *, bos: int, eos: int, beam_size: int, max_length: int = 20, min_length: int = 0,
    alpha: float = 0.0, captions: int = 1, banned: Sequence[int] = (), device: torch.device | str = "cpu",
) -> Found:  # fmt: skip
    """The most likely captions by a beam of `beam_size`; beam_size=1 is greedy.

    Every unfinished caption is continued by its `beam_size` most likely words; where that is eos the caption is
    complete, of the others the `beam_size` most likely go on. max_length counts eos, min_length the words before it.
    A complete caption's score is log p / length^alpha, eos counted. `banned` words are never said.
    A caption is given up as soon as no continuation can reach the `captions` best complete ones of its image: log
    probabilities only fall, so that the answer is the one of a search which always goes on to the end.
    """
    _check(beam_size, max_length, min_length, captions)
    search = _Search(images, beam_size, captions, max_length, alpha, device)
    state, silent = speaker.start(), torch.tensor(list(banned), dtype=torch.int64, device=device)
    words_n = torch.full((images,), bos, device=device)
    for length in range(1, max_length + 1):
        log_nv, state = speaker.step(words_n, state)
        log_nv = log_nv.float().index_fill(1, silent, NEVER)
        if length <= min_length:
            log_nv[:, eos] = NEVER
        top_nk, word_nk = log_nv.topk(min(beam_size, log_nv.shape[1]), dim=1)
        total_nk, ends_nk = search.score_n[:, None] + top_nk, word_nk == eos
        search.complete(total_nk.masked_fill(~ends_nk, NEVER).amax(1), eos, length)
        rows_n, words_n = search.go_on(total_nk.masked_fill(ends_nk, NEVER), word_nk, length)
        if not len(rows_n):
            break
        state = speaker.select(state, rows_n)
    return search.found()


class _Search:
    """The rows' words and scores, and the complete captions of each image."""

    def __init__(self, images: int, beam: int, captions: int, max_length: int, alpha: float, device: Any) -> None:
        self.images, self.beam, self.max_length, self.alpha = images, beam, max_length, alpha
        self.score_n = torch.zeros(images, device=device)
        self.image_n = torch.arange(images, device=device)
        self.slot_n = torch.zeros(images, dtype=torch.int64, device=device)  # place among the rows of its image
        self.prefix_nl = torch.zeros(images, 0, dtype=torch.int64, device=device)
        self.done_in = torch.full((images, captions), NEVER, device=device)  # log p / length^alpha
        self.done_log_in = self.done_in.clone()
        self.done_inl = torch.zeros(images, captions, max_length, dtype=torch.int64, device=device)

    def _grid(self, values_nk: Tensor) -> Tensor:
        """Rows' values at (image, slot), -inf where an image has fewer rows: (I, K, k)."""
        grid = values_nk.new_full((self.images, self.beam, values_nk.shape[1]), NEVER)
        grid[self.image_n, self.slot_n] = values_nk
        return grid

    def complete(self, log_n: Tensor, eos: int, length: int) -> None:
        """Each row once more with eos behind it, of log probability `log_n`: the best of them stay."""
        if not bool((log_n > NEVER).any()):
            return
        captions = self.done_in.shape[1]
        new_ik = self._grid(log_n[:, None])[..., 0]
        both = torch.cat([self.done_in, new_ik / length**self.alpha], 1)
        order = both.sort(dim=1, descending=True, stable=True).indices[:, :captions]  # an old one wins a tie
        words = torch.zeros(self.images, self.beam, self.max_length, dtype=torch.int64, device=both.device)
        words[self.image_n, self.slot_n, :length] = F.pad(self.prefix_nl, (0, 1), value=eos)
        words = torch.cat([self.done_inl, words], 1)
        self.done_inl = words.gather(1, order[..., None].expand(-1, -1, self.max_length))
        self.done_log_in = torch.cat([self.done_log_in, new_ik], 1).gather(1, order)
        self.done_in = both.gather(1, order)

    def go_on(self, total_nk: Tensor, word_nk: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """Choose the next rows among the continuations: which row each comes from, and its new word."""
        grid = self._grid(total_nk).flatten(1)
        score_ik, flat_ik = grid.topk(min(self.beam, grid.shape[1]), dim=1)
        # at best nothing more is lost, and the caption becomes as long as it may
        hope_ik = score_ik / (self.max_length if self.alpha > 0 else length) ** self.alpha
        alive_ik = (score_ik > NEVER) & (hope_ik > self.done_in[:, -1:])
        if length == self.max_length:  # only for an image that has nothing complete to show
            alive_ik &= ~(self.done_in[:, :1] > NEVER)
        row_of = torch.zeros(self.images, self.beam, dtype=torch.int64, device=grid.device)
        row_of[self.image_n, self.slot_n] = torch.arange(len(self.image_n), device=grid.device)
        width = total_nk.shape[1]
        self.image_n, self.slot_n = alive_ik.nonzero(as_tuple=True)
        flat_n = flat_ik[self.image_n, self.slot_n]
        rows_n = row_of[self.image_n, flat_n // width]
        words_n = word_nk[rows_n, flat_n % width]
        self.score_n = score_ik[self.image_n, self.slot_n]
        self.prefix_nl = torch.cat([self.prefix_nl[rows_n], words_n[:, None]], 1)
        return rows_n, words_n

    def found(self) -> Found:
        complete_i = self.done_in[:, 0] > NEVER
        captions = self.done_in.shape[1]
        lost = ~complete_i[self.image_n] & (self.slot_n < captions)  # unfinished: what the last step left standing
        image, slot = self.image_n[lost], self.slot_n[lost]
        self.done_inl[image, slot, : self.prefix_nl.shape[1]] = self.prefix_nl[lost]
        self.done_log_in[image, slot] = self.score_n[lost]
        return Found(self.done_inl, self.done_log_in, complete_i)


@torch.no_grad()
def sample(
    speaker: Speaker, images: int, *, bos: int, eos: int, temperature: float = 1.0, max_length: int = 20,
    min_length: int = 0, banned: Sequence[int] = (), generator: torch.Generator | None = None,
    device: torch.device | str = "cpu",
) -> Found:  # fmt: skip
    """One caption an image, each word drawn from p^(1 / temperature); the log probabilities are of p itself."""
    _check(1, max_length, min_length, 1)
    if not temperature > 0:
        raise UserError(f"temperature={temperature}: give more than 0, or decode greedily")
    words = torch.zeros(images, 1, max_length, dtype=torch.int64, device=device)
    total_i1, complete_i = torch.zeros(images, 1, device=device), torch.zeros(images, dtype=torch.bool, device=device)
    image_n, state = torch.arange(images, device=device), speaker.start()
    words_n = torch.full((images,), bos, device=device)
    silent = torch.tensor(list(banned), dtype=torch.int64, device=device)
    for length in range(1, max_length + 1):
        log_nv, state = speaker.step(words_n, state)
        drawn_nv = log_nv.float().index_fill(1, silent, NEVER)
        if length <= min_length:
            drawn_nv[:, eos] = NEVER
        words_n = torch.multinomial((drawn_nv / temperature).softmax(1), 1, generator=generator)[:, 0]
        words[image_n, 0, length - 1] = words_n
        total_i1[image_n, 0] += log_nv.gather(1, words_n[:, None])[:, 0].float()
        ends_n = words_n == eos
        complete_i[image_n[ends_n]] = True
        rows_n = (~ends_n).nonzero()[:, 0]
        if not len(rows_n):
            break
        image_n, words_n, state = image_n[rows_n], words_n[rows_n], speaker.select(state, rows_n)
    return Found(words, total_i1, complete_i)


def _check(beam_size: int, max_length: int, min_length: int, captions: int) -> None:
    if beam_size < 1 or max_length < 1:
        raise UserError(f"beam_size={beam_size}, max_length={max_length}: both must be at least 1")
    if not 1 <= captions <= beam_size:
        raise UserError(f"captions={captions}: give 1 to beam_size={beam_size}")
    if not 0 <= min_length < max_length:
        raise UserError(f"min_length={min_length}: give 0 to less than max_length={max_length}")
