"""Adam, SGD and learning-rate schedules: what `model.optimizer` of every paper here can say."""

from bisect import bisect_right
from dataclasses import dataclass, fields
from typing import Any, TypeVar, cast

import torch
from torch import nn

from quintet.common.errors import UserError

T = TypeVar("T")
SCHEDULES = ("constant", "halve_every", "exponential", "step_down", "poly", "step")


@dataclass(frozen=True)
class OptimizerConfig:
    """Everything under `model.optimizer`; steps are optimiser steps, not epochs."""

    names = ("adam", "adamw", "sgd")

    name: str = "adam"
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    schedule: str = "constant"
    warmup_steps: int = 0
    halve_every_steps: int = 200_000
    decay_rate: float = 0.5
    decay_steps: int = 200_000
    step_down_at: tuple[int, ...] = ()  # the steps from which the rate is a tenth of what it was before
    power: float = 0.9  # poly: (1 - step / total_steps) ^ power
    total_steps: int | None = None  # poly only; null: trainer.max_steps, or what max_epochs comes to
    gamma: float = 0.1  # step: times gamma every step_size
    step_size: int = 2000
    momentum: float = 0.0  # sgd only
    fused: bool = False  # one kernel for the whole update: faster, other rounding

    def __post_init__(self) -> None:
        if self.name not in self.names:
            raise UserError(f"model.optimizer.name={self.name!r} is unknown: use one of {', '.join(self.names)}")
        if self.schedule not in SCHEDULES:
            raise UserError(f"model.optimizer.schedule={self.schedule!r} is unknown: use one of {', '.join(SCHEDULES)}")
        if not self.lr > 0:
            raise UserError(f"model.optimizer.lr={self.lr} must be above 0")
        if min(self.halve_every_steps, self.decay_steps, self.step_size) < 1:
            raise UserError("model.optimizer.halve_every_steps, .decay_steps and .step_size must be at least 1")
        if self.total_steps is not None and self.total_steps < 1:
            raise UserError(f"model.optimizer.total_steps={self.total_steps}: give 1 or more, or null")
        if list(self.step_down_at) != sorted(self.step_down_at):
            raise UserError(f"model.optimizer.step_down_at={list(self.step_down_at)}: give steps in rising order")
        if not 0 <= self.momentum < 1:
            raise UserError(f"model.optimizer.momentum={self.momentum} must be at least 0 and below 1")


def lr_factor(config: OptimizerConfig, step: int) -> float:
    """What the base rate is multiplied by at optimiser step `step` (0 for the first one)."""
    warmup = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    if config.schedule == "halve_every":
        return warmup * 0.5 ** (step // config.halve_every_steps)
    if config.schedule == "exponential":
        return warmup * config.decay_rate ** (step / config.decay_steps)
    if config.schedule == "step_down":
        return warmup * 0.1 ** bisect_right(config.step_down_at, step)
    if config.schedule == "poly":
        assert config.total_steps, "the module puts the length of the run here"
        return warmup * max(0.0, 1 - step / config.total_steps) ** config.power
    if config.schedule == "step":
        return warmup * config.gamma ** (step // config.step_size)
    return warmup


def build_optimizer(module: nn.Module, config: OptimizerConfig, groups: list[dict] | None = None) -> dict:
    """Lightning's dictionary of optimiser and per-step scheduler; groups: of parameters with rates of their own."""
    trainer = getattr(module, "_trainer", None)
    if config.fused and trainer is not None and trainer.gradient_clip_val and "mixed" in str(trainer.precision):
        raise UserError(
            "model.optimizer.fused=true cannot clip gradients in mixed precision: set it to false, or"
            " trainer.gradient_clip_val=null, or trainer.precision=32-true"
        )
    parameters = module.parameters() if groups is None else groups
    shared = {"lr": config.lr, "weight_decay": config.weight_decay, "fused": config.fused or None}
    if config.name == "sgd":
        optimizer = torch.optim.SGD(parameters, momentum=config.momentum, **shared)
    else:
        cls = torch.optim.AdamW if config.name == "adamw" else torch.optim.Adam
        optimizer = cls(parameters, betas=tuple(config.betas), eps=config.eps, **shared)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: lr_factor(config, step))
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step", "name": "lr"}}


def from_mapping(cls: type[T], values: Any, where: str) -> T:
    """The dataclass `cls` from a plain mapping; an unknown key is a UserError that lists the legal ones."""
    if isinstance(values, cls):
        return values
    legal = [field.name for field in fields(cast(Any, cls))]
    unknown = [key for key in values if key not in legal]
    if unknown:
        raise UserError(f"{where} has no key {unknown[0]!r}: legal keys are {', '.join(legal)}")
    return cls(**values)
