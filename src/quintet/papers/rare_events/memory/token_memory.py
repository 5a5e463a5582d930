"""The memory inside a sequence model, queried for the next token at every position (arXiv 1703.03129, section 3.2).

Legend: N positions of any number of sequences, q query width, D width of the network's last layer, V tokens.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from quintet.common.distributed import largest_of_ranks
from quintet.common.errors import UserError
from quintet.papers.rare_events.memory.config import MemoryConfig
from quintet.papers.rare_events.memory.memory import RENAMED_TENSORS as OF_MEMORY
from quintet.papers.rare_events.memory.memory import Memory, MemoryAnswer

# for `renamed_tensors` of modules that have a TokenMemory as `token_memory`
RENAMED_TENSORS = ((r"^tokens\.", "token_memory."), *OF_MEMORY)


@dataclass(frozen=True)
class RecallConfig:
    """Everything under `model.recall`: how a sequence model uses the memory's answers.

    loss_weight: weight of the margin loss, relative to the cross-entropy. mix_scale: initial weight of a retrieved
    token's embedding. max_count: only tokens that occur at most so often in the training split are written and have a
    memory loss (null: all), so that a small memory is not filled with tokens that the softmax predicts well. gated: the
    confidence is multiplied by a learned gate, a function of the network's output, the confidence and the cosine of the
    nearest neighbour. The last two are not in the paper.
    """

    loss_weight: float = 1.0
    mix_scale: float = 4.0
    max_count: int | None = None
    gated: bool = False

    def __post_init__(self) -> None:
        if self.max_count is not None and self.max_count < 1:
            raise UserError(f"model.recall.max_count={self.max_count} must be at least 1, or null for all tokens")
        if not self.loss_weight >= 0:
            raise UserError(f"model.recall.loss_weight={self.loss_weight} must be at least 0")


class TokenMemory(nn.Module):
    """Values are target tokens. The embedding of the retrieved token, times its confidence, is added to the output.

    The embedding is the token's row of the softmax weights, multiplied by a D x D matrix that starts as `mix_scale`
    times the identity: a retrieved token raises its own logit most, even that of a token which was never a target.
    """

    wanted: Tensor  # (V,) bool: tokens that are written
    counts: Tensor  # (V,) int64: occurrences in the training split

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
            nn.init.constant_(self.gate.bias, -1.0)  # at first most answers are wrong
        wanted_v = torch.tensor([recall.max_count is None or count <= recall.max_count for count in counts])
        self.register_buffer("wanted", wanted_v, persistent=False)
        self.register_buffer("counts", torch.tensor(list(counts)), persistent=False)

    def read(self, features_nq: Tensor) -> tuple[Tensor, MemoryAnswer]:
        """Unit queries (N, d) and the memory's answers; nothing is written."""
        query_nd = self.memory.query(self.to_query(features_nq))
        return query_nd, self.memory.read(query_nd)

    def combine(self, output_nd: Tensor, answer: MemoryAnswer, embedding_vd: Tensor) -> Tensor:
        """The output of the last layer with the retrieved token mixed in (N, D); unchanged where there is no answer."""
        weight_n1 = answer.confidence[:, None].to(output_nd.dtype)
        if self.gate is not None:
            nearest_n1 = answer.similarity[:, :1].clamp(min=-1).to(output_nd.dtype)
            weight_n1 = weight_n1 * self.gate(torch.cat([output_nd, weight_n1, nearest_n1], 1)).sigmoid()
        return output_nd + weight_n1 * self.mix(embedding_vd[answer.value.clamp(min=0)])

    def losses(self, query_nd: Tensor, token_n: Tensor, answer: MemoryAnswer) -> Tensor:
        """Margin loss (N,); 0 for tokens that are not written."""
        loss_n = query_nd.new_zeros(len(query_nd))
        rows = self.wanted[token_n].nonzero()[:, 0]
        if not len(rows):
            return loss_n
        losses = self.memory.losses(query_nd[rows], token_n[rows], _rows(answer, rows))
        return loss_n.index_put((rows,), losses.to(loss_n.dtype))

    @contextmanager
    def enlarged(self, slots: int) -> Iterator[None]:
        """Replace the memory in the block by a larger one with the same content; the trained one is not changed."""
        trained, more = self.memory, slots - self.memory.config.slots
        if more < 0:
            raise UserError(
                f"a memory of {slots} slots is smaller than the trained one: give at least {trained.config.slots}"
            )
        larger = Memory(replace(trained.config, slots=slots), trained.num_values)
        state = trained.state_dict()
        for name, empty in (("keys", 0.0), ("values", -1), ("last_used", 0)):
            tensor = state[name]
            state[name] = torch.cat([tensor, tensor.new_full((more, *tensor.shape[1:]), empty)])
        larger.load_state_dict(state)
        larger.shared = False
        self.memory = larger.to(trained.keys.device).train(trained.training)
        try:
            yield
        finally:
            self.memory = trained

    def write(self, query_nd: Tensor, token_n: Tensor, answer: MemoryAnswer) -> None:
        """Write the wanted tokens; call it after `read` of the same queries, so that the prediction comes first.

        If all ranks together have more examples than half the slots, they are written in several steps.
        """
        rows = self.wanted[token_n].nonzero()[:, 0]
        # writes are collective: every rank takes as many steps as the one with most examples, even if it has none
        world, most_rows = largest_of_ranks(len(rows), token_n.device) if self.memory.shared else (1, len(rows))
        steps = -(-most_rows * world // max(1, self.memory.config.slots // 2))
        if steps == 1:
            self.memory.write(query_nd[rows], token_n[rows], _rows(answer, rows))
            return
        for part in rows.tensor_split(steps) if steps else ():
            self.memory.write(query_nd[part], token_n[part])


def _rows(answer: MemoryAnswer, rows: Tensor) -> MemoryAnswer:
    return MemoryAnswer(*(part[rows] for part in answer))
