"""Exponential moving average of the weights, on Lightning's own WeightAveraging."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch.callbacks import WeightAveraging


class Ema(WeightAveraging):
    """Average with decay min(decay, (1 + n) / (10 + n)) after n updates, so that short runs are not held back.

    Validation, `best.ckpt` and the end of training use the averaged weights; resuming restores both sets.
    """

    def __init__(self, decay: float = 0.9999) -> None:
        def average(averaged: Any, current: Any, count: Any) -> Any:
            rate = min(decay, (1 + float(count)) / (10 + float(count)))
            return torch.lerp(current, averaged, rate) if current.is_floating_point() else current

        super().__init__(avg_fn=average, use_buffers=True)
