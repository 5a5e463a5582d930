"""Drawings that are noisy prototypes of their class, and a module that embeds them as they are, with a real Memory."""

import numpy as np
import torch
from torch import nn

from quintet.papers.rare_events.memory.memory import Memory, MemoryConfig

CLASSES, DRAWERS, SIDE = 12, 8, 6


class NoisyClasses:
    """The data side that the protocols read: `images` (C, D, S, S) uint8 and `classes` of the test split."""

    def __init__(self, noise: float = 40.0, classes: int = CLASSES, drawers: int = DRAWERS, seed: int = 0) -> None:
        random = np.random.default_rng(seed)
        prototypes = random.uniform(0, 255, (classes, 1, SIDE, SIDE))
        noisy = prototypes + random.normal(0, noise, (classes, drawers, SIDE, SIDE))
        self.array = noisy.clip(0, 255).astype(np.uint8)

    def images(self, split: str) -> np.ndarray:
        assert split == "test"
        return self.array

    def classes(self, split: str) -> list[str]:
        return [f"Aleph/character{c:02d}" for c in range(len(self.array))]


class Plain(nn.Module):
    """The embedding is the centred image; the memory has settings of its own and is not empty."""

    device = torch.device("cpu")

    def __init__(self, memory: bool = True, **settings) -> None:
        super().__init__()
        config = {"slots": 64, "width": SIDE * SIDE, "neighbours": 4, "projection": True, "seed": 5} | settings
        self.config = MemoryConfig(**config)
        torch.manual_seed(3)
        self.memory = None
        if memory:
            self.memory = Memory(self.config, 20)
            nn.init.orthogonal_(self.memory.projection.weight)
            with torch.no_grad():
                few = min(10, self.config.slots)
                self.memory(torch.randn(few, SIDE * SIDE), torch.arange(few))

    def embed(self, images_bchw: torch.Tensor) -> torch.Tensor:
        assert not self.training and images_bchw.shape[1:] == (1, SIDE, SIDE) and images_bchw.max() <= 1
        return (images_bchw - 0.5).flatten(1)

    def blank_memory(self, num_values: int) -> Memory:
        made = Memory(self.config, num_values).eval()
        made.projection = self.memory.projection if self.memory is not None else None
        return made


def snapshot(module: Plain) -> dict:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}
