"""How several processes train one model: `trainer.strategy`."""

from __future__ import annotations

import inspect
from typing import Any

from lightning.pytorch.strategies import DDPStrategy, StrategyRegistry
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from quintet.app.build import build

# torch 2.13 has renamed it
RENAMED = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
SEND_BUFFERS = "forward_sync_buffers" if RENAMED else "broadcast_buffers"


class QuintetDDP(DDPStrategy):
    """Lightning's DDP, which sends rank 0's buffers to the others at each step only where they may differ.

    The memory's buffers, 8 MB and more, are the same on all ranks by themselves, as are frozen batch norms. Statistics
    that batch norm learns are each rank's own, of which rank 0's are to be validated and saved.
    """

    def _setup_model(self, model: nn.Module) -> DistributedDataParallel:
        self._ddp_kwargs[SEND_BUFFERS] = learns_statistics(model)
        return super()._setup_model(model)


def learns_statistics(model: nn.Module) -> bool:
    """Whether a batch norm in training mode keeps running statistics."""
    norms = [part for part in model.modules() if isinstance(part, _BatchNorm)]
    return any(norm.training and norm.track_running_stats for norm in norms)


def strategy_of(chosen: Any) -> Any:
    """The strategy object of a `_target_` node or of one of Lightning's names for DDP; other names as they are."""
    if isinstance(chosen, dict):
        return build(chosen)
    known = StrategyRegistry[chosen] if isinstance(chosen, str) and chosen in StrategyRegistry else {}
    return QuintetDDP(**known["init_params"]) if known.get("strategy") is DDPStrategy else chosen
