"""A memory on top of a network."""

import pytest
import torch
from torch import nn

from quintet.common.errors import UserError
from quintet.papers.rare_events.memory.augmented import MemoryAugmented
from quintet.papers.rare_events.memory.memory import Memory, MemoryConfig

CONFIG = MemoryConfig(slots=64, width=8, neighbours=8)


def test_a_network_learns_through_its_memory_to_recognise_what_it_saw_once():
    """Classes differ in 4 of 40 noisy inputs; after training, new classes are recognised from one example."""
    torch.manual_seed(0)
    model = MemoryAugmented(nn.Linear(40, 8), Memory(MemoryConfig(slots=64, width=8, neighbours=8), 8))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)

    def example(classes: torch.Tensor) -> torch.Tensor:
        return torch.cat([classes, 2 * torch.randn(len(classes), 36)], 1)

    def one_shot(episodes: int) -> float:
        right = []
        with torch.no_grad(), model.memory.snapshot():
            for _ in range(episodes):
                model.memory.clear()
                classes = 3 * torch.randn(8, 4)
                model(example(classes), torch.arange(8))
                right.append(model(example(classes), torch.arange(8))[0].value == torch.arange(8))
        return float(torch.cat(right).float().mean())

    before = one_shot(20)
    for _ in range(150):
        model.memory.clear()
        classes = 3 * torch.randn(8, 4)
        losses_b = torch.cat([model(example(classes), torch.arange(8))[1] for _ in range(4)])
        optimizer.zero_grad()
        losses_b.mean().backward()
        optimizer.step()
    assert one_shot(20) > before + 0.3


def test_the_features_must_fit_the_memory():
    model = MemoryAugmented(nn.Linear(4, 5), Memory(CONFIG, 3))
    with pytest.raises(UserError, match=r"5 features, the memory has width=8"):
        model(torch.randn(2, 4))
