"""What `model.optimizer` refuses once it knows the trainer."""

import pytest
import torch
from lightning import LightningModule, Trainer
from torch import nn

from quintet.common.errors import UserError
from quintet.common.optim import OptimizerConfig, build_optimizer, from_mapping


class Small(LightningModule):
    def __init__(self, **trainer):
        super().__init__()
        self.layer = nn.Linear(2, 1)
        self.trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, **trainer)


def test_a_fused_optimiser_cannot_clip_in_mixed_precision():
    config = OptimizerConfig(fused=True)
    with pytest.raises(UserError, match=r"model\.optimizer\.fused=true cannot clip"):
        build_optimizer(Small(precision="bf16-mixed", gradient_clip_val=5.0), config)
    for allowed in ({"precision": "bf16-mixed"}, {"gradient_clip_val": 5.0}):
        assert build_optimizer(Small(**allowed), config)["optimizer"].defaults["fused"]


def test_an_optimizer_and_a_schedule_of_torch_by_target():
    from quintet.harness.config.build import _name_torch_optimizers

    node = {
        "_target_": "torch.optim.RMSprop", "name": "adam", "lr": 0.1, "alpha": 0.9, "warmup_steps": 0,
        "schedule": {"_target_": "torch.optim.lr_scheduler.CosineAnnealingLR", "T_max": 10},
    }  # fmt: skip
    built = build_optimizer(Small(), from_mapping(OptimizerConfig, _name_torch_optimizers(node), "model.optimizer"))
    optimizer, schedule = built["optimizer"], built["lr_scheduler"]["scheduler"]
    assert type(optimizer) is torch.optim.RMSprop and optimizer.defaults["alpha"] == 0.9
    assert type(schedule) is torch.optim.lr_scheduler.CosineAnnealingLR and schedule.T_max == 10
