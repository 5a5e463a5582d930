"""What `model.optimizer` refuses once it knows the trainer."""

import pytest
from lightning import LightningModule, Trainer
from torch import nn

from quintet.common.errors import UserError
from quintet.common.optim import OptimizerConfig, build_optimizer


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
