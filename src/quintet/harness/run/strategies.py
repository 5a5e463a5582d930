"""How several processes train one model: `trainer.strategy`."""

from __future__ import annotations

import inspect
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, StrategyRegistry
from lightning.pytorch.utilities import GradClipAlgorithmType
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from quintet.common.errors import UserError
from quintet.harness.callbacks.ema import Ema
from quintet.harness.callbacks.two_stage import TwoStage
from quintet.harness.config.build import build

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


class QuintetFSDP(FSDPStrategy):
    """Lightning's FSDP with the whole network as one unit and checkpoints that any number of devices loads.

    One unit, because the L2 term of a loss reads all weights at once. Between steps each device holds its share of
    weights, gradients and optimiser state.
    """

    def __init__(self, sharding_strategy: str = "FULL_SHARD", cpu_offload: bool = False) -> None:
        sharding: Any = sharding_strategy  # Lightning checks the name
        super().__init__(sharding_strategy=sharding, cpu_offload=cpu_offload, state_dict_type="full")


def refuse_unshardable(trainer: Trainer, module: LightningModule) -> None:
    """FSDP does not do all that the other strategies do: one line instead of a wrong gradient."""
    if not isinstance(trainer.strategy, FSDPStrategy):
        return
    if isinstance(trainer.accelerator, CPUAccelerator):
        raise UserError("trainer=fsdp needs GPUs, torch has no FSDP on the CPU: use trainer=ddp_cpu")
    if not module.automatic_optimization:
        raise UserError(f"trainer=fsdp: {type(module).__name__} steps by itself, use trainer=ddp")
    if trainer.gradient_clip_val and trainer.gradient_clip_algorithm != GradClipAlgorithmType.VALUE:
        raise UserError(
            f"trainer=fsdp cannot clip by norm: set trainer.gradient_clip_val=null (it is {trainer.gradient_clip_val}),"
            " trainer.gradient_clip_algorithm=value, or use trainer=ddp"
        )
    for callback in trainer.callbacks:  # type: ignore[attr-defined]  # set by a connector of Lightning's
        if isinstance(callback, Ema | TwoStage):
            raise UserError(f"trainer=fsdp has no {type(callback).__name__}: use trainer=ddp, or leave it out")


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
