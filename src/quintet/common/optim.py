"""Adam, SGD and learning-rate schedules: `model.optimizer` of every paper. Others of torch by `_target_`."""

from bisect import bisect_right
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal, TypeVar, cast

import torch
from torch import nn

from quintet.common.errors import UserError
from quintet.common.ranges import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

T = TypeVar("T")
TORCH = "torch.optim."
SCHEDULES = ("constant", "halve_every", "exponential", "step_down", "poly", "step")


@dataclass(frozen=True)
class OptimizerConfig:
    """Everything under `model.optimizer`; steps are optimiser steps, not epochs."""

    names: ClassVar[tuple[str, ...]] = ("adam", "adamw", "sgd")

    name: Literal["adam", "adamw", "sgd"] = "adam"
    lr: PositiveFloat = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: NonNegativeFloat = 0.0
    schedule: Literal["constant", "halve_every", "exponential", "step_down", "poly", "step"] | dict[str, Any] = (
        "constant"
    )
    warmup_steps: NonNegativeInt = 0
    halve_every_steps: PositiveInt = 200_000
    decay_rate: float = 0.5
    decay_steps: PositiveInt = 200_000
    step_down_at: tuple[int, ...] = ()  # the steps from which the rate is a tenth of what it was before
    power: float = 0.9  # poly: (1 - step / total_steps) ^ power
    total_steps: PositiveInt | None = None  # poly only; null: trainer.max_steps, or what max_epochs comes to
    gamma: float = 0.1  # step: times gamma every step_size
    step_size: PositiveInt = 2000
    momentum: float = 0.0  # sgd only
    fused: bool = False  # one kernel for the whole update: faster, other rounding
    options: dict[str, Any] = field(default_factory=dict)  # arguments of an optimizer of torch chosen by _target_

    def __post_init__(self) -> None:
        if self.name not in self.names and not self.name.startswith(TORCH):
            raise UserError(f"model.optimizer.name={self.name!r} is unknown: use one of {', '.join(self.names)}")
        if not isinstance(self.schedule, dict) and self.schedule not in SCHEDULES:
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
    optimizer = make_optimizer(module.parameters() if groups is None else groups, config)
    if isinstance(config.schedule, dict):
        arguments = {key: value for key, value in config.schedule.items() if key != "name"}
        try:
            scheduler = getattr(torch.optim.lr_scheduler, config.schedule["name"].rpartition(".")[2])(
                optimizer, **arguments
            )
        except (TypeError, ValueError) as error:
            raise UserError(f"model.optimizer.schedule={config.schedule['name']}: {error}") from error
        if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
            raise UserError("model.optimizer.schedule: ReduceLROnPlateau needs a metric, choose one that counts steps")
    else:
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: lr_factor(config, step))
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step", "name": "lr"}}


def make_optimizer(parameters: Any, config: OptimizerConfig) -> torch.optim.Optimizer:
    """The optimizer alone: Adam, AdamW, SGD, or a class of torch.optim with `config.options`."""
    if config.name.startswith(TORCH):
        try:
            return getattr(torch.optim, config.name.removeprefix(TORCH))(parameters, **config.options)
        except (TypeError, ValueError) as error:
            raise UserError(f"model.optimizer._target_={config.name}: {error}") from error
    shared: dict[str, Any] = {"lr": config.lr, "weight_decay": config.weight_decay, "fused": config.fused or None}
    if config.name == "sgd":
        return torch.optim.SGD(parameters, momentum=config.momentum, **shared)
    cls = torch.optim.AdamW if config.name == "adamw" else torch.optim.Adam
    betas = cast(tuple[float, float], tuple(config.betas))  # yaml gives a list
    return cls(parameters, betas=betas, eps=config.eps, **shared)


def from_mapping(cls: type[T], values: Any, where: str) -> T:
    """The dataclass `cls` from a plain mapping; an unknown key is a UserError that lists the legal ones."""
    if isinstance(values, cls):
        return values
    legal = [field.name for field in fields(cast(Any, cls))]
    unknown = [key for key in values if key not in legal]
    if unknown:
        raise UserError(f"{where} has no key {unknown[0]!r}: legal keys are {', '.join(legal)}")
    return cls(**values)
