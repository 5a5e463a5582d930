"""One training step of each paper as one writes it down without a harness, on the same networks and optimisers."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def bare_step(module: nn.Module, optimizer: Any, scheduler: Any, clip: float | None) -> Callable[[Any], Tensor]:
    """A function from a batch to the loss of the step that it took."""
    from quintet.papers.rare_events.module import RareEventsModule

    def step(loss: Tensor) -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if clip:
            nn.utils.clip_grad_norm_(module.parameters(), clip)
        optimizer.step()
        scheduler.step()
        return loss.detach()

    if isinstance(module, RareEventsModule):
        return lambda batch: _episodes(module, batch, step)
    penalty = getattr(module, "regularisation", lambda: 0.0)
    return lambda batch: step(module.example_losses(batch).mean() + penalty())


def _episodes(module: Any, batch: Any, step: Callable[[Tensor], Tensor]) -> Tensor:
    """Kaiser et al. 2017: parallel episodes share the memory, a step after every image; the mean loss."""
    module.memory.clear()
    rows = torch.arange(len(batch.labels), device=batch.labels.device)[:, None]
    values_bt = batch.labels + rows * (batch.labels.max() + 1)
    losses = []
    for t in range(values_bt.shape[1]):
        query_bd = module.network(batch.images[:, t]).float()
        losses.append(step(module.memory(query_bd, values_bt[:, t])[1].mean()))
    return torch.stack(losses).mean()
