"""The life-long memory of Learning to Remember Rare Events (arXiv 1703.03129, section 3).

In the paper's notation: keys K, values V, ages A; a query q with true value v; its k nearest keys n_1, ..., n_k.

    q = normalize(projection(x))                                                     Memory.query
    n_1, ..., n_k = the slots with the largest q . K[n]                              Memory.read
    answer V[n_1], with the weight of n_1 in softmax(t q . K[n_i]) as confidence     Memory.read
    loss = max(0, q . K[n_b] - q . K[n_p] + margin)                                  Memory.losses
    if V[n_1] = v:   K[n_1] <- normalize(K[n_1] + q),  A[n_1] <- 0                   Memory.write
    if V[n_1] != v:  n' = argmax(A + noise),  K[n'] <- q,  V[n'] <- v,  A[n'] <- 0   Memory.write

where V[n_p] = v is the nearest right value and V[n_b] != v the nearest wrong one.

Legend: B queries, d width, m slots, k neighbours. Values are numbers of classes or tokens; -1 marks an empty slot.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from quintet.common.distributed import gather_ranks
from quintet.common.errors import UserError
from quintet.papers.rare_events.memory.config import MemoryConfig
from quintet.papers.rare_events.memory.inverted_file import InvertedFileSearch
from quintet.papers.rare_events.memory.lru import LeastRecentlyUsed
from quintet.papers.rare_events.memory.lsh import LshSearch
from quintet.papers.rare_events.memory.search import ExactSearch, recall

__all__ = ["RENAMED_TENSORS", "SEARCH_TYPES", "Memory", "MemoryAnswer", "MemoryConfig"]

SEARCH_TYPES: dict[str, type[ExactSearch]] = {"exact": ExactSearch, "lsh": LshSearch, "faiss": InvertedFileSearch}
# for `renamed_tensors` of the modules that have a memory
RENAMED_TENSORS = ((r"\bmemory\.stamps$", "memory.last_used"), (r"\bmemory\.hints$", "memory.slot_of_value"))


class MemoryAnswer(NamedTuple):
    """The memory's answer to B queries, without gradients."""

    value: Tensor  # (B,) int64 value of the nearest neighbour; -1 where the memory has none
    confidence: Tensor  # (B,) float32 softmax weight of the nearest neighbour among the k; 0 where there is none
    slots: Tensor  # (B, k) int64 the k nearest, nearest first; -1 where there are fewer
    similarity: Tensor  # (B, k) float32 their cosines; -inf where there are fewer


class Memory(nn.Module):
    """Keys (m, d), values (m,) and ages (m,), kept as the step of each slot's last write. A step is one `write`.

    The filled slots are always the first `filled` ones: empty slots count as the oldest and are taken in order. All
    state is in buffers, so that checkpoints contain it; the keys stay float32 under every precision setting. The noise
    on ages depends on (seed, step) only. With several ranks each performs the write of all ranks' examples, so that all
    hold the same memory.
    """

    keys: Tensor  # (m, d) float32 unit vectors
    values: Tensor  # (m,) int64
    last_used: Tensor  # (m,) int64 step of the last write
    slot_of_value: Tensor  # (num_values,) int64 slot last written for each value, -1 = never
    step: Tensor  # () int64

    def __init__(self, config: MemoryConfig, num_values: int) -> None:
        super().__init__()
        if config.search == "none":
            raise UserError("model.memory.search=none means no memory: set model.memory=null instead of building one")
        if num_values < 1:
            raise UserError(f"a memory needs at least one value, not num_values={num_values}")
        self.config, self.num_values = config, num_values
        self.projection = nn.Linear(config.width, config.width, bias=False) if config.projection else None
        if self.projection is not None:
            nn.init.normal_(self.projection.weight, std=0.01)
        self.register_buffer("keys", torch.zeros(config.slots, config.width))
        self.register_buffer("values", torch.full((config.slots,), -1))
        self.register_buffer("last_used", torch.zeros(config.slots, dtype=torch.int64))
        self.register_buffer("slot_of_value", torch.full((num_values,), -1))
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self._filled: int | None = 0  # counted on the host, so that a read does not wait for a GPU
        self._lru = LeastRecentlyUsed(config.age_noise, config.seed)
        self.search = SEARCH_TYPES[config.search](config)
        self.shared = True  # whether `write` gathers the examples of all ranks

    @property
    def ages(self) -> Tensor:
        """Steps (m,) since each slot was last written or matched: A in the paper."""
        return self.step - self.last_used

    @property
    def filled(self) -> int:
        """The number of slots in use, which are slots 0 to filled - 1."""
        if self._filled is None:
            self._filled = int((self.values >= 0).sum())
        return self._filled

    def forward(
        self, x_bd: Tensor, value_b: Tensor | None = None, write: bool = True
    ) -> tuple[MemoryAnswer, Tensor | None]:
        """The answer to x and, where the true values are given, losses (B,); then the write, after the answer."""
        query_bd = self.query(x_bd)
        answer = self.read(query_bd)
        if value_b is None:
            return answer, None
        losses_b = self.losses(query_bd, value_b, answer)
        if write:
            self.write(query_bd, value_b, answer)
        return answer, losses_b

    def query(self, x_bd: Tensor) -> Tensor:
        """Unit queries q (B, d) in float32: the learned projection of x, normalized."""
        if x_bd.dim() != 2 or x_bd.shape[1] != self.config.width:
            raise UserError(
                f"memory queries have shape {tuple(x_bd.shape)}, but model.memory.width={self.config.width}: set it to"
                " the width of the queries"
            )
        with _full_precision(x_bd):
            x_bd = x_bd.float()
            if self.projection is not None:
                x_bd = F.linear(x_bd, self.projection.weight.float())
            return F.normalize(x_bd, dim=1)

    @torch.no_grad()
    def read(self, query_bd: Tensor) -> MemoryAnswer:
        """The k nearest keys of each query, the value of the nearest one and its softmax weight."""
        similarity_bk, slots_bk = self._nearest(query_bd, self.config.neighbours)
        value_b = torch.where(slots_bk[:, 0] >= 0, self.values[slots_bk[:, 0]], -1)
        weight_bk = torch.softmax(similarity_bk * self.config.softmax_temperature, 1)
        return MemoryAnswer(value_b, torch.where(value_b >= 0, weight_bk[:, 0], 0.0), slots_bk, similarity_bk)

    def losses(
        self, query_bd: Tensor, value_b: Tensor, answer: MemoryAnswer | None = None, hint: bool | None = None
    ) -> Tensor:
        """Margin loss (B,), max(0, q . K[n_b] - q . K[n_p] + margin); its gradient reaches the queries only.

        hint: the slot last written for the true value is a candidate too; by default in training, if configured.
        A missing neighbour of either kind counts as similarity 0; without both the loss is 0.
        """
        self._check_values(value_b, len(query_bd))
        if hint is None:
            hint = self.config.hint and self.training
        with torch.no_grad(), _full_precision(query_bd):
            answer = self.read(query_bd) if answer is None else answer
            slots_bk, similarity_bk = answer.slots, answer.similarity
            if hint:
                slot_b = self.slot_of_value[value_b]
                hinted_b = (query_bd * self.keys[slot_b]).sum(1).masked_fill(slot_b < 0, -torch.inf)
                slots_bk = torch.cat([slots_bk, slot_b[:, None]], 1)
                similarity_bk = torch.cat([similarity_bk, hinted_b[:, None]], 1)
            right_bk = self.values[slots_bk] == value_b[:, None]
            n_p, has_p = _nearest_of(similarity_bk, slots_bk, right_bk)
            n_b, has_b = _nearest_of(similarity_bk, slots_bk, ~right_bk)
            # copies of these rows, because the buffer is written in place before the backward pass
            right_bd, wrong_bd = self.keys[n_p] * has_p[:, None], self.keys[n_b] * has_b[:, None]
        with _full_precision(query_bd):
            margin_b = (query_bd * (wrong_bd - right_bd)).sum(1) + self.config.margin
        return torch.relu(margin_b) * (has_p | has_b)

    @torch.no_grad()
    def write(self, query_bd: Tensor, value_b: Tensor, answer: MemoryAnswer | None = None) -> None:
        """Section 3.1's update for all examples at once; each sees the memory as it was before this step.

        The queries of all examples that match one slot move its key together. Every miss takes a slot of its own, and
        none that an example of this batch matched. `answer` saves a second search; it must come from `read` of the same
        queries, with no write between.
        Errors: UserError for non-finite queries, unknown values or more examples than slots; nothing is written then.
        """
        n_1 = self._nearest(query_bd, 1)[1][:, 0] if answer is None else answer.slots[:, 0]
        query_bd = query_bd.detach().float()
        if self.shared:
            query_bd, value_b, n_1 = gather_ranks(query_bd, value_b, n_1)
        if not len(query_bd):
            return
        self._check_values(value_b, len(query_bd))
        if not bool(torch.isfinite(query_bd).all()):
            raise UserError("the memory got NaN or infinite queries: nothing was written; lower the learning rate")
        if len(query_bd) > self.config.slots:
            raise UserError(f"{len(query_bd)} examples at once do not fit into model.memory.slots={self.config.slots}")

        match_b = (n_1 >= 0) & (self.values[n_1] == value_b)
        slot_b = n_1.masked_scatter(~match_b, self._slots_for_misses(int((~match_b).sum()), n_1[match_b]))
        # case V[n_1] = v: K[n_1] <- normalize(K[n_1] + sum of the queries that match n_1)
        same_slot_bb = slot_b[:, None] == slot_b
        with _full_precision(query_bd):
            moved_bd = F.normalize(self.keys[slot_b] + same_slot_bb.float() @ query_bd, dim=1)
        # case V[n_1] != v: K[n'] <- q
        key_bd = torch.where(match_b[:, None], moved_bd, query_bd)
        # one write for each slot: several matches of a slot have the same new key
        first_b = ~same_slot_bb.tril(-1).any(1)
        written = slot_b[first_b]
        self.step += 1
        self.keys[written], self.values[written], self.last_used[written] = key_bd[first_b], value_b[first_b], self.step
        self.search.changed(written)
        self._filled = max(self.filled, int(written.max()) + 1)
        last_b = ~(value_b[:, None] == value_b).triu(1).any(1)
        self.slot_of_value[value_b[last_b]] = slot_b[last_b]

    def _slots_for_misses(self, count: int, matched: Tensor) -> Tensor:
        """`count` different slots: empty ones in order, then n' = argmax(A + noise), but none that was matched.

        There are enough: misses and matched slots together are at most as many as the batch has examples.
        """
        empty = min(count, self.config.slots - self.filled)
        slots = torch.arange(self.filled, self.filled + empty, device=self.values.device)
        if empty == count:
            return slots
        old = self._lru.choose(self.last_used[: self.filled], count - empty, matched, int(self.step))
        return torch.cat([slots, old])

    def _nearest(self, query_bd: Tensor, k: int) -> tuple[Tensor, Tensor]:
        with _full_precision(query_bd):
            return self.search.nearest(query_bd.detach().float(), self.keys[: self.filled], k)

    @torch.no_grad()
    def clear(self) -> None:
        """Forget everything; the step goes on counting."""
        self._empty()
        self.slot_of_value.fill_(-1)
        self.search.reset()

    @contextmanager
    def snapshot(self) -> Iterator["Memory"]:
        """Restore the memory bit for bit after the block; costs a copy of its content.

        In the block each rank writes its own examples only.
        """
        filled, shared = self.filled, self.shared
        content = {name: getattr(self, name)[:filled].clone() for name in ("keys", "values", "last_used")}
        slot_of_value, step = self.slot_of_value.clone(), self.step.clone()
        with self.search.snapshot():
            try:
                self.shared = False
                yield self
            finally:
                self.shared = shared
                with torch.no_grad():
                    self._empty()
                    for name, tensor in content.items():
                        getattr(self, name)[:filled].copy_(tensor)
                    self.slot_of_value.copy_(slot_of_value)
                    self.step.copy_(step)
                    self._filled = filled

    def recall(self, query_bd: Tensor, k: int | None = None) -> tuple[float, float]:
        """Recall@1 and recall@k of this memory's search against exact search, for unit queries."""
        with _full_precision(query_bd):
            return recall(self.search, query_bd.detach(), self.keys[: self.filled], k or self.config.neighbours)

    def _empty(self) -> None:
        filled = self.filled  # slots beyond it are empty already
        self.keys[:filled] = 0
        self.values[:filled] = -1
        self.last_used[:filled] = 0
        self._filled = 0
        self._lru.invalidate()

    def _check_values(self, value_b: Tensor, batch: int) -> None:
        if value_b.shape != (batch,):
            raise UserError(f"the memory got {tuple(value_b.shape)} values for {batch} queries: give one value a query")
        if not batch:
            return
        low, high = value_b.aminmax()
        if int(low) < 0 or int(high) >= self.num_values:
            wrong = int(low) if int(low) < 0 else int(high)
            raise UserError(f"the memory got value {wrong}, but its values are 0..{self.num_values - 1}")

    def _apply(self, fn: Any, recurse: bool = True) -> "Memory":
        keys = self.keys
        super()._apply(fn, recurse)
        if self.keys.dtype != torch.float32:  # after .half() or .bfloat16(): the keys keep their precision
            self.keys = keys.to(self.keys.device)
        return self

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: Any) -> None:
        for name, tensor in self.named_buffers(recurse=False):
            given = state_dict.get(prefix + name)
            if given is not None and given.shape != tensor.shape:
                raise UserError(
                    f"the checkpoint's memory has {name} of shape {tuple(given.shape)}, model.memory makes "
                    f"{tuple(tensor.shape)}: use the run's own model.memory and data"
                )
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._filled = None  # counted again at the next use
        self._lru.invalidate()
        self.search.invalidate()


def _full_precision(tensor: Tensor) -> AbstractContextManager:
    kind = tensor.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


def _nearest_of(similarity_bk: Tensor, slots_bk: Tensor, mask_bk: Tensor) -> tuple[Tensor, Tensor]:
    """Slot (B,) of the nearest candidate within the mask, and whether there is one (B,)."""
    best = similarity_bk.masked_fill(~mask_bk, -torch.inf).max(1, keepdim=True)
    return slots_bk.gather(1, best.indices)[:, 0], best.values[:, 0] > -torch.inf
