"""A memory on top of any network that maps inputs to features (arXiv 1703.03129, section 3)."""

from torch import Tensor, nn

from quintet.common.errors import UserError
from quintet.papers.rare_events.memory.memory import Memory, MemoryAnswer


class MemoryAugmented(nn.Module):
    """Classification by memory: the network's features are the query, the value of the answer is the predicted class.

    `network` maps its input to features (B, d), or to a shape that flattens to it. Given the true classes, they are
    written after the prediction, in training and in evaluation; `memory.snapshot()` undoes the writes of an evaluation.
    """

    def __init__(self, network: nn.Module, memory: Memory) -> None:
        super().__init__()
        self.network, self.memory = network, memory

    def embed(self, inputs: Tensor) -> Tensor:
        """Features (B, d), before the memory's own projection. UserError if their width is not the memory's."""
        features_bd = self.network(inputs).flatten(1)
        if features_bd.shape[1] != self.memory.config.width:
            raise UserError(
                f"the network returns {features_bd.shape[1]} features, the memory has width={self.memory.config.width}:"
                " both must be equal"
            )
        return features_bd

    def forward(
        self, inputs: Tensor, value_b: Tensor | None = None, write: bool = True
    ) -> tuple[MemoryAnswer, Tensor | None]:
        """The answer and, given the true classes, the margin losses (B,), which train the network; then the write."""
        return self.memory(self.embed(inputs), value_b, write)
