"""The memory inside a sequence model (arXiv 1703.03129, section 3.2): it is asked for the next token at every position.

Legend: N positions of any number of sequences, q query width, D width of the network's top output, V tokens.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from quintet.common.distributed import largest_of_ranks
from quintet.common.errors import UserError
from quintet.papers.rare_events.memory.memory import Memory, MemoryAnswer, MemoryConfig


@dataclass(frozen=True)
class RecallConfig:
    """Everything under `model.recall`: how a sequence model uses what its memory answers.

    loss_weight: of the margin loss against the cross-entropy. mix_scale: how strongly a retrieved token counts at
    first. max_count: only tokens that stand at most so often in the training split are written and cost a memory loss
    (null: all), which keeps a small memory from filling with what the softmax knows. gated: a learned scalar gate on
    (top output, confidence, cosine of the nearest neighbour), times the confidence. The last two are not in the paper.
    """

    loss_weight: float = 1.0
    mix_scale: float = 4.0
    max_count: int | None = None
    gated: bool = False

    def __post_init__(self) -> None:
        if self.max_count is not None and self.max_count < 1:
            raise UserError(f"model.recall.max_count={self.max_count}: give 1 or more, or null for every token")
        if not self.loss_weight >= 0:
            raise UserError(f"model.recall.loss_weight={self.loss_weight} must be 0 or more")


class TokenMemory(nn.Module):
    """Values are target tokens; the retrieved token's output embedding x confidence is added to the top output.

    The embedding is the row of the softmax weights itself, through a D x D map that starts as `mix_scale` times the
    identity: a retrieved token raises its own logit most, also one that training has never rewarded.
    """

    def __init__(
        self, config: MemoryConfig, recall: RecallConfig, query_width: int, width: int, counts: Sequence[int]
    ) -> None:
        super().__init__()
        self.memory = Memory(config, len(counts))
        self.to_query = nn.Linear(query_width, config.width, bias=False)
        self.mix = nn.Linear(width, width, bias=False)
        nn.init.eye_(self.mix.weight)
        self.mix.weight.data *= recall.mix_scale
        self.gate = nn.Linear(width + 2, 1) if recall.gated else None
        if self.gate is not None:
            nn.init.constant_(self.gate.bias, -1.0)  # most answers of a young memory are wrong
        wanted_v = torch.tensor([recall.max_count is None or count <= recall.max_count for count in counts])
        self.register_buffer("wanted", wanted_v, persistent=False)
        self.register_buffer("counts", torch.tensor(list(counts)), persistent=False)

    def read(self, features_nq: Tensor) -> tuple[Tensor, MemoryAnswer]:
        """Unit queries (N, d) and what the memory answers; nothing is written."""
        query_nd = self.memory.query(self.to_query(features_nq))
        return query_nd, self.memory.read(query_nd)

    def combine(self, top_nd: Tensor, answer: MemoryAnswer, embedding_vd: Tensor) -> Tensor:
        """The top output (N, D) with the retrieved token mixed in; unchanged where the memory has no answer."""
        weight_n1 = answer.confidence[:, None].to(top_nd.dtype)
        if self.gate is not None:
            nearest_n1 = answer.similarity[:, :1].clamp(min=-1).to(top_nd.dtype)
            weight_n1 = weight_n1 * self.gate(torch.cat([top_nd, weight_n1, nearest_n1], 1)).sigmoid()
        return top_nd + weight_n1 * self.mix(embedding_vd[answer.value.clamp(min=0)])

    def losses(self, query_nd: Tensor, token_n: Tensor, answer: MemoryAnswer) -> Tensor:
        """Margin loss (N,); 0 for tokens that are not remembered."""
        loss_n = query_nd.new_zeros(len(query_nd))
        rows = self.wanted[token_n].nonzero()[:, 0]
        if not len(rows):
            return loss_n
        kept = self.memory.losses(query_nd[rows], token_n[rows], _rows(answer, rows))
        return loss_n.index_put((rows,), kept.to(loss_n.dtype))

    @contextmanager
    def enlarged(self, slots: int) -> Iterator[None]:
        """In the block a larger memory with the same content stands in for the trained one, which stays as it is."""
        kept, room = self.memory, slots - self.memory.config.slots
        if room < 0:
            raise UserError(f"a memory of {slots} slots does not hold the trained one of {kept.config.slots}")
        larger = Memory(replace(kept.config, slots=slots), kept.num_values)
        state = kept.state_dict()
        for name, empty in (("keys", 0.0), ("values", -1), ("stamps", 0)):
            tensor = state[name]
            state[name] = torch.cat([tensor, tensor.new_full((room, *tensor.shape[1:]), empty)])
        larger.load_state_dict(state)
        larger.shared = False
        self.memory = larger.to(kept.keys.device).train(kept.training)
        try:
            yield
        finally:
            self.memory = kept

    def write(self, query_nd: Tensor, token_n: Tensor, answer: MemoryAnswer) -> None:
        """Remember the wanted tokens; call it after `read` of the same queries, so that prediction precedes it.

        More examples of all ranks than half the slots go in several steps of the memory, each seeing the ones before.
        """
        rows = self.wanted[token_n].nonzero()[:, 0]
        # every rank takes as many steps as the one with most to say, also when it has nothing to say itself
        world, most_rows = largest_of_ranks(len(rows), token_n.device) if self.memory.shared else (1, len(rows))
        steps = -(-most_rows * world // max(1, self.memory.config.slots // 2))
        if steps == 1:
            self.memory.write(query_nd[rows], token_n[rows], _rows(answer, rows))
            return
        for part in rows.tensor_split(steps) if steps else ():
            self.memory.write(query_nd[part], token_n[part])


def _rows(answer: MemoryAnswer, rows: Tensor) -> MemoryAnswer:
    return MemoryAnswer(*(part[rows] for part in answer))
