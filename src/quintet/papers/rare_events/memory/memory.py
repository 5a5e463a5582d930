"""The life-long memory of Learning to Remember Rare Events (arXiv 1703.03129, section 3): keys, values and ages.

Legend: B queries, d width, m slots, k neighbours. Values are class or token numbers; -1 marks an empty slot.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from quintet.common.distributed import gather_ranks
from quintet.common.errors import UserError
from quintet.papers.rare_events.memory.index import recall
from quintet.papers.rare_events.memory.memory_config import MemoryConfig
from quintet.papers.rare_events.memory.oldest import OldestSlots
from quintet.papers.rare_events.memory.search import make_search

__all__ = ["Memory", "MemoryAnswer", "MemoryConfig"]


class MemoryAnswer(NamedTuple):
    """What the memory says to B queries; nothing in it carries a gradient."""

    value: Tensor  # (B,) int64, of the nearest neighbour; -1 where the memory has none
    confidence: Tensor  # (B,) float32, softmax weight of the nearest among the k; 0 where there is none
    slots: Tensor  # (B, k) int64, nearest first; -1 where there is no candidate
    similarity: Tensor  # (B, k) float32 cosines; -inf where there is no candidate


class Memory(nn.Module):
    """Unit keys (m, d), values (m,), the step of each slot's last write, and where each value was last written.

    A step is one `write`. Filled slots are always the first `filled` ones: empty slots count as older than any filled
    one and are taken in order. Everything is a buffer, so that checkpoints, resumed runs and moves between devices
    carry it; the keys stay float32 under every precision setting. The random age noise of step s depends on (seed, s)
    only. With several ranks each performs the write of all ranks' examples, so that all hold the same memory.
    """

    def __init__(self, config: MemoryConfig, num_values: int) -> None:
        super().__init__()
        if config.search == "none":
            raise UserError("model.memory.search=none means no memory: set model.memory=null instead of building one")
        if num_values < 1:
            raise UserError(f"the memory needs at least one value to remember, not {num_values}")
        self.config, self.num_values = config, num_values
        self.projection = nn.Linear(config.width, config.width, bias=False) if config.projection else None
        if self.projection is not None:
            nn.init.normal_(self.projection.weight, std=0.01)
        self.register_buffer("keys", torch.zeros(config.slots, config.width))
        self.register_buffer("values", torch.full((config.slots,), -1))
        self.register_buffer("stamps", torch.zeros(config.slots, dtype=torch.int64))
        self.register_buffer("hints", torch.full((num_values,), -1))
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self._filled: int | None = 0  # counted on the host, so that a read does not wait for a GPU
        self._oldest = OldestSlots(config.age_noise, config.seed)
        self.search = make_search(config)
        self.shared = True  # a write is that of all ranks; False: of this one, for a memory that only it evaluates with

    @property
    def ages(self) -> Tensor:
        """Steps (m,) since each slot was last written or matched."""
        return self.step - self.stamps

    @property
    def filled(self) -> int:
        """Number of slots that hold something; they are slots 0 to filled - 1."""
        if self._filled is None:
            self._filled = int((self.values >= 0).sum())
        return self._filled

    def query(self, x_bd: Tensor) -> Tensor:
        """Unit queries (B, d) in float32: the learned projection of `x_bd`, normalised."""
        if x_bd.dim() != 2 or x_bd.shape[1] != self.config.width:
            raise UserError(f"memory queries have shape {tuple(x_bd.shape)}: model.memory.width={self.config.width}")
        with _full_precision(x_bd):
            x_bd = x_bd.float()
            if self.projection is not None:
                x_bd = F.linear(x_bd, self.projection.weight.float())
            return F.normalize(x_bd, dim=1)

    @torch.no_grad()
    def read(self, query_bd: Tensor) -> MemoryAnswer:
        """The k nearest keys of each query, the nearest one's value and its softmax weight (section 3)."""
        similarity_bk, slots_bk = self._nearest(query_bd, self.config.neighbours)
        value_b = torch.where(slots_bk[:, 0] >= 0, self.values[slots_bk[:, 0]], -1)
        weight_bk = torch.softmax(similarity_bk * self.config.softmax_temperature, 1)
        return MemoryAnswer(value_b, torch.where(value_b >= 0, weight_bk[:, 0], 0.0), slots_bk, similarity_bk)

    def losses(
        self, query_bd: Tensor, value_b: Tensor, answer: MemoryAnswer | None = None, hint: bool | None = None
    ) -> Tensor:
        """Margin loss (B,) of section 3.1, [q.K[neg] - q.K[pos] + margin]_+; the gradient reaches the queries only.

        `hint` (by default in training mode, if configured) adds the slot last written for the true value to the
        candidates. A missing neighbour of either kind counts as similarity 0; without both the loss is 0.
        """
        self._check_values(value_b, len(query_bd))
        if hint is None:
            hint = self.config.hint and self.training
        with torch.no_grad(), _full_precision(query_bd):
            answer = self.read(query_bd) if answer is None else answer
            slots_bk, similarity_bk = answer.slots, answer.similarity
            if hint:
                slot_b = self.hints[value_b]
                hinted_b = (query_bd * self.keys[slot_b]).sum(1).masked_fill(slot_b < 0, -torch.inf)
                slots_bk = torch.cat([slots_bk, slot_b[:, None]], 1)
                similarity_bk = torch.cat([similarity_bk, hinted_b[:, None]], 1)
            right_bk = self.values[slots_bk] == value_b[:, None]
            pairs = [_nearest_of(similarity_bk, slots_bk, mask_bk) for mask_bk in (right_bk, ~right_bk)]
            # Copies of the few rows that are needed: the buffer itself is written in place before backward.
            keys_2bd = [self.keys[slot_b] * found_b[:, None] for slot_b, found_b in pairs]
            any_b = pairs[0][1] | pairs[1][1]
        with _full_precision(query_bd):
            margin_b = (query_bd * (keys_2bd[1] - keys_2bd[0])).sum(1) + self.config.margin
        return torch.relu(margin_b) * any_b

    @torch.no_grad()
    def write(self, query_bd: Tensor, value_b: Tensor, answer: MemoryAnswer | None = None) -> None:
        """One step of section 3.1's update for all examples at once, against the memory as it was before the step.

        A match (nearest value right) moves its key: K <- normalise(K + q), over all the batch's queries that matched
        it. Every miss takes a slot of its own, the oldest ones that no example of this batch matched. `answer` spares
        a second search; it must come from `read` of the same queries with no write between. UserError: non-finite
        queries, unknown values or more examples than slots; the memory is then untouched.
        """
        nearest_b = self._nearest(query_bd, 1)[1][:, 0] if answer is None else answer.slots[:, 0]
        query_bd = query_bd.detach().float()
        if self.shared:
            query_bd, value_b, nearest_b = gather_ranks(query_bd, value_b, nearest_b)
        if not len(query_bd):
            return
        self._check_values(value_b, len(query_bd))
        if not bool(torch.isfinite(query_bd).all()):
            raise UserError("the memory got NaN or infinite queries: nothing was written; lower the learning rate")
        if len(query_bd) > self.config.slots:
            raise UserError(f"{len(query_bd)} examples at once do not fit into model.memory.slots={self.config.slots}")
        hit_b = (nearest_b >= 0) & (self.values[nearest_b] == value_b)
        slot_b = nearest_b.masked_scatter(~hit_b, self._free(int((~hit_b).sum()), nearest_b[hit_b]))
        same_bb = slot_b[:, None] == slot_b
        with _full_precision(query_bd):
            moved_bd = F.normalize(self.keys[slot_b] + same_bb.float() @ query_bd, dim=1)
        first_b = ~same_bb.tril(-1).any(1)  # of several matches of one slot, which all have the same new key
        self._store(slot_b[first_b], torch.where(hit_b[:, None], moved_bd, query_bd)[first_b], value_b[first_b])
        last_b = ~(value_b[:, None] == value_b).triu(1).any(1)
        self.hints[value_b[last_b]] = slot_b[last_b]

    def forward(
        self, x_bd: Tensor, value_b: Tensor | None = None, write: bool = True
    ) -> tuple[MemoryAnswer, Tensor | None]:
        """Answer and, where the true values are known, losses (B,); then the write, so that it follows the answer."""
        query_bd = self.query(x_bd)
        answer = self.read(query_bd)
        if value_b is None:
            return answer, None
        losses_b = self.losses(query_bd, value_b, answer)
        if write:
            self.write(query_bd, value_b, answer)
        return answer, losses_b

    def confidence(self, query_bd: Tensor, answer: MemoryAnswer) -> Tensor:
        """`answer.confidence` (B,) with a gradient to the queries, for networks that are to learn from using it."""
        with _full_precision(query_bd):
            keys_bkd = self.keys[answer.slots]  # a copy, since the buffer is written in place before backward
            cosine_bk = (keys_bkd @ query_bd.float()[:, :, None])[:, :, 0]
            cosine_bk = cosine_bk.masked_fill(answer.slots < 0, -torch.inf)
            cosine_bk = torch.where((answer.value >= 0)[:, None], cosine_bk, 0.0)  # no gradient of a softmax of nothing
            weight_b = torch.softmax(cosine_bk * self.config.softmax_temperature, 1)[:, 0]
            return torch.where(answer.value >= 0, weight_b, 0.0)

    @torch.no_grad()
    def clear(self) -> None:
        """Forget everything; the step goes on counting."""
        self._empty()
        self.hints.fill_(-1)
        self.search.reset()

    @contextmanager
    def preserved(self) -> Iterator["Memory"]:
        """Whatever happens in the block, the memory is bit for bit the same after it; costs a copy of what it holds.

        In the block each rank writes for itself: nothing is gathered.
        """
        filled, shared = self.filled, self.shared
        kept = {name: getattr(self, name)[:filled].clone() for name in ("keys", "values", "stamps")}
        hints, step = self.hints.clone(), self.step.clone()
        with self.search.preserved():
            try:
                self.shared = False
                yield self
            finally:
                self.shared = shared
                with torch.no_grad():
                    self._empty()
                    for name, tensor in kept.items():
                        getattr(self, name)[:filled].copy_(tensor)
                    self.hints.copy_(hints)
                    self.step.copy_(step)
                    self._filled = filled

    def recall(self, query_bd: Tensor, k: int | None = None) -> tuple[float, float]:
        """Recall@1 and recall@k of this memory's search against the exact one, for unit queries."""
        with _full_precision(query_bd):
            return recall(self.search, query_bd.detach(), self.keys[: self.filled], k or self.config.neighbours)

    def _nearest(self, query_bd: Tensor, k: int) -> tuple[Tensor, Tensor]:
        with _full_precision(query_bd):
            return self.search.nearest(query_bd.detach().float(), self.keys[: self.filled], k)

    def _free(self, count: int, taken: Tensor) -> Tensor:
        """`count` different slots to write to: empty ones in order, then the oldest, none that is in `taken`.

        There are enough: misses and matched slots together are at most as many as the batch has examples.
        """
        empty = min(count, self.config.slots - self.filled)
        slots = torch.arange(self.filled, self.filled + empty, device=self.stamps.device)
        if empty == count:
            return slots
        old = self._oldest.choose(self.stamps[: self.filled], count - empty, taken, int(self.step))
        return torch.cat([slots, old])

    def _store(self, slot_b: Tensor, key_bd: Tensor, value_b: Tensor) -> None:
        self.step += 1
        self.keys[slot_b] = key_bd
        self.values[slot_b] = value_b
        self.stamps[slot_b] = self.step
        self.search.changed(slot_b)
        self._filled = max(self.filled, int(slot_b.max()) + 1)

    def _empty(self) -> None:
        filled = self.filled  # what lies beyond is empty already
        self.keys[:filled] = 0
        self.values[:filled] = -1
        self.stamps[:filled] = 0
        self._filled = 0
        self._oldest.forget()

    def _check_values(self, value_b: Tensor, batch: int) -> None:
        if value_b.shape != (batch,):
            raise UserError(f"the memory got {tuple(value_b.shape)} values for {batch} queries: one value a query")
        if not batch:
            return
        low, high = value_b.aminmax()
        if int(low) < 0 or int(high) >= self.num_values:
            wrong = int(low) if int(low) < 0 else int(high)
            raise UserError(f"the memory got value {wrong}: it knows 0..{self.num_values - 1}")

    def _apply(self, fn, recurse: bool = True):
        keys = self.keys
        super()._apply(fn, recurse)
        if self.keys.dtype != torch.float32:  # .half(), .bfloat16(): the keys keep their precision
            self.keys = keys.to(self.keys.device)
        return self

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args) -> None:
        for name, tensor in self.named_buffers(recurse=False):
            given = state_dict.get(prefix + name)
            if given is not None and given.shape != tensor.shape:
                raise UserError(
                    f"the checkpoint's memory has {name} of shape {tuple(given.shape)}, model.memory makes "
                    f"{tuple(tensor.shape)}: use the run's own model.memory and data"
                )
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._filled = None  # counted again at the next use
        self._oldest.forget()
        self.search.forget_index()


def _full_precision(tensor: Tensor) -> AbstractContextManager:
    kind = tensor.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


def _nearest_of(similarity_bk: Tensor, slots_bk: Tensor, mask_bk: Tensor) -> tuple[Tensor, Tensor]:
    """Slot (B,) of the nearest candidate within the mask, and whether there is one (B,)."""
    best = similarity_bk.masked_fill(~mask_bk, -torch.inf).max(1, keepdim=True)
    return slots_bk.gather(1, best.indices)[:, 0], best.values[:, 0] > -torch.inf
