"""The memory budget: what a network keeps, counted by hand, and the same numbers whatever is taken at once."""

import pytest
import torch
from torch import nn

from quintet.data.batches import ExampleBatch
from quintet.papers.influence.risk import memory
from quintet.papers.influence.risk.examples import Examples
from quintet.papers.influence.risk.memory import examples_at_once, saved_bytes, vectors_at_once
from quintet.papers.influence.risk.risk import EmpiricalRisk

CPU = torch.device("cpu")


class Tanh(nn.Module):
    """Two layers, 5 -> 64 -> 1."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(5, 64), nn.Tanh(), nn.Linear(64, 1))

    def example_losses(self, batch: ExampleBatch) -> torch.Tensor:
        return (self.layers(batch.inputs)[:, 0] - batch.labels).square()


def examples(count: int = 40) -> Examples:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(count, 5, generator=generator)
    return Examples.of_batch(ExampleBatch(inputs, torch.arange(count) % 3, torch.arange(count)))


def test_what_a_network_keeps_is_counted():
    risk = EmpiricalRisk(Tanh(), examples())
    # each example's inputs (5), the tanh's outputs (64), and the difference that is squared (1), in 4 bytes
    assert 4 * (5 + 64 + 1) <= risk.example_bytes <= 4 * (5 + 64 + 1) + 64


def test_parameters_are_not_counted():
    theta = torch.ones(1000)
    assert saved_bytes(lambda t: (t.view(10, 100) @ t[:100]).sum(), theta) == 0


def test_large_examples_are_taken_one_by_one(monkeypatch):
    monkeypatch.setattr(memory, "BUDGET", 8000)
    assert examples_at_once(10_000, 10, 4, CPU) == 1 and vectors_at_once(10_000, 1, CPU) == 1
    assert examples_at_once(100, 10, 4, CPU) == 10  # room for eight tangents
    assert examples_at_once(1, 500, 4, CPU) == 4  # room for four gradients
    assert vectors_at_once(100, 10, CPU) == 4
    monkeypatch.setattr(memory, "BUDGET", 1 << 40)
    assert examples_at_once(1, 1, 4, CPU) == memory.MOST


@pytest.mark.parametrize("budget", [4000, 30_000])
def test_a_small_budget_changes_nothing_but_the_chunks(monkeypatch, budget):
    train, vectors = examples(), torch.randn(7, 5 * 64 + 64 + 64 + 1, generator=torch.Generator().manual_seed(2))
    plenty = EmpiricalRisk(Tanh(), train)
    assert plenty.batch_size == memory.MOST
    wanted = plenty.hvp(vectors), torch.cat([plenty.directional(b, vectors) for _, b in plenty.batches()], 1)
    monkeypatch.setattr(memory, "BUDGET", budget)
    scarce = EmpiricalRisk(Tanh(), train)
    assert scarce.batch_size < 20
    found = scarce.hvp(vectors), torch.cat([scarce.directional(b, vectors) for _, b in scarce.batches()], 1)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
