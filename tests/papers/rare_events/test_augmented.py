"""A memory on top of a network, and a remembered value inside one."""

import pytest
import torch
from torch import nn

from quintet.common.errors import UserError
from quintet.papers.rare_events.memory.augmented import MemoryAugmented, ValueMixer
from quintet.papers.rare_events.memory.memory import Memory, MemoryAnswer, MemoryConfig

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
        with torch.no_grad(), model.memory.preserved():
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
    with pytest.raises(UserError, match=r"5 features.*width=8"):
        model(torch.randn(2, 4))


def test_the_value_mixer_adds_what_is_remembered_by_its_weight_and_nothing_when_there_is_nothing():
    mixer = ValueMixer(5, 3)
    top_bd = torch.randn(3, 3)
    slots = torch.zeros(3, 1, dtype=torch.int64)
    answer = MemoryAnswer(torch.tensor([4, -1, 0]), torch.tensor([0.5, 0.0, 1.0]), slots, torch.zeros(3, 1))
    expected = top_bd + torch.stack([0.5 * mixer.embedding.weight[4], torch.zeros(3), mixer.embedding.weight[0]])
    torch.testing.assert_close(mixer(top_bd, answer), expected)
    weight_b = torch.tensor([0.2, 0.0, 0.1], requires_grad=True)
    mixer(top_bd, answer, weight_b).sum().backward()
    torch.testing.assert_close(weight_b.grad[0], mixer.embedding.weight[4].sum().detach())
