"""A memory on top of any network (arXiv 1703.03129, section 3.2): for classes, and inside a sequence model.

Legend: B examples or positions, d memory width, D width of the network's top output.
"""

import torch
from torch import Tensor, nn

from quintet.common.errors import UserError
from quintet.papers.rare_events.memory.memory import Memory, MemoryAnswer


class MemoryAugmented(nn.Module):
    """Classification by memory: the network's features are the query, the answer's value is the predicted class.

    `network` maps its input to features (B, d) or anything that flattens to it. In training as in evaluation the true
    classes are written after they were predicted; `memory.preserved()` keeps an evaluation from leaving traces.
    """

    def __init__(self, network: nn.Module, memory: Memory) -> None:
        super().__init__()
        self.network, self.memory = network, memory

    def embed(self, inputs: Tensor) -> Tensor:
        """Features (B, d), before the memory's own projection. UserError: not as wide as the memory."""
        features_bd = self.network(inputs).flatten(1)
        if features_bd.shape[1] != self.memory.config.width:
            raise UserError(
                f"the network gives {features_bd.shape[1]} features, model.memory.width={self.memory.config.width}: "
                "both must be the same"
            )
        return features_bd

    def forward(
        self, inputs: Tensor, value_b: Tensor | None = None, write: bool = True
    ) -> tuple[MemoryAnswer, Tensor | None]:
        """The answer and, with the true classes, the margin losses (B,), which train the network; then the write."""
        return self.memory(self.embed(inputs), value_b, write)


class ValueMixer(nn.Module):
    """A remembered value enters a sequence model: its embedding x confidence beside the top output, linearly combined.

    It starts as the identity on the top output plus the weighted embedding, so that an empty memory changes nothing.
    """

    def __init__(self, num_values: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_values, width)
        self.combine = nn.Linear(2 * width, width)
        with torch.no_grad():
            self.combine.weight.copy_(torch.eye(width).repeat(1, 2))
            self.combine.bias.zero_()

    def forward(self, top_bd: Tensor, answer: MemoryAnswer, confidence_b: Tensor | None = None) -> Tensor:
        """Combined output (B, D). `confidence_b` from `Memory.confidence` lets the loss reach the query through it."""
        weight_b = answer.confidence if confidence_b is None else confidence_b
        value_bd = self.embedding(answer.value.clamp(min=0)) * weight_b[:, None].to(top_bd.dtype)
        return self.combine(torch.cat([top_bd, value_bd], 1))
