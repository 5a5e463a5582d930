"""Predictions and labels for the tests of the metric, also in processes of their own."""

import numpy as np
import torch


def pictures(count=5, classes=6, absent=(4,), seed=0):
    """Predictions and labels (H, W) of different sizes with 255 among the labels, without some classes."""
    generator = np.random.default_rng(seed)
    kept = [c for c in range(classes) if c not in absent]
    made = []
    for number in range(count):
        size = (20 + number, 30 - number)
        labels = generator.choice(kept, size, p=np.arange(1, len(kept) + 1) / sum(range(1, len(kept) + 1)))
        predicted = np.where(generator.random(size) < 0.6, labels, generator.choice(kept, size))
        labels[generator.random(size) < 0.1] = 255
        made.append((torch.from_numpy(predicted), torch.from_numpy(labels)))
    return made
