"""Which buffers DDP sends, and what FSDP is built for and refuses."""

from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.callbacks import Callback
from torch import distributed, nn

from quintet.backbones.frozen_norm import freeze_batch_norm
from quintet.common.errors import UserError
from quintet.harness.callbacks.ema import Ema
from quintet.harness.callbacks.two_stage import TwoStage
from quintet.harness.config import compose, config
from quintet.harness.config.build import build
from quintet.harness.run.strategies import SEND_BUFFERS, QuintetFSDP, learns_statistics, refuse_unshardable, strategy_of


def test_only_statistics_that_batch_norm_learns_are_sent():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm2d(3))
    model.register_buffer("memory", torch.zeros(4))
    assert learns_statistics(model)
    assert not learns_statistics(model.eval())  # a frozen encoder's
    freeze_batch_norm(model.train())
    assert not learns_statistics(model)


def test_names_of_ddp_keep_their_meaning():
    assert strategy_of("ddp")._start_method == "popen" and strategy_of("ddp_fork")._start_method == "fork"
    assert strategy_of("ddp_find_unused_parameters_true")._ddp_kwargs == {"find_unused_parameters": True}
    assert strategy_of("auto") == "auto" and strategy_of("nothing_known") == "nothing_known"


class Normed(LightningModule):
    """Its batch norm sees other numbers on each rank."""

    def __init__(self):
        super().__init__()
        self.norm, self.out = nn.BatchNorm1d(2), nn.Linear(2, 1)

    def training_step(self, batch, index):
        return self.out(self.norm(batch + self.global_rank)).square().mean()

    def validation_step(self, batch, index):
        self.out(self.norm(batch))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class SameOnAllRanks(Callback):
    """Of everything that is validated."""

    def on_validation_end(self, trainer, module):
        found = [None, None]
        distributed.all_gather_object(found, {k: v.tolist() for k, v in module.state_dict().items()})
        assert found[0] == found[1] and found[0]["norm.running_mean"] != [0, 0]
        assert trainer.strategy._ddp_kwargs[SEND_BUFFERS]


def test_all_ranks_validate_the_statistics_of_rank_0(tmp_path):
    data = torch.utils.data.DataLoader(torch.arange(24.0).view(12, 2), batch_size=3)
    trainer = Trainer(
        max_epochs=1, accelerator="cpu", devices=2, strategy=strategy_of("ddp_fork"), logger=False,
        callbacks=[SameOnAllRanks()], default_root_dir=tmp_path, enable_checkpointing=False, num_sanity_val_steps=0,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Normed(), data, data)


def test_fsdp_composes_and_builds():
    overrides = ["experiment=wavenet/sample", "trainer=fsdp", "run_dir=x", "name=x"]
    cfg = compose.compose_checked("train", overrides)
    config.check(cfg, config.Origin(tuple(overrides)))
    strategy = build(cfg.trainer.strategy)
    assert isinstance(strategy, QuintetFSDP) and strategy._state_dict_type == "full"
    assert isinstance(strategy_of({"_target_": "quintet.harness.run.strategies.QuintetFSDP"}), QuintetFSDP)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"accelerator": CPUAccelerator()}, "needs GPUs"),
        ({"module": SimpleNamespace(automatic_optimization=False)}, "steps by itself"),
        ({"gradient_clip_val": 5.0}, r"clip by norm.*gradient_clip_val=null"),
        ({"callbacks": [Ema()]}, "Ema"),
        ({"callbacks": [TwoStage(1)]}, "TwoStage"),
    ],
)
def test_what_fsdp_cannot_do_is_refused(changes, words):
    settings = {
        "strategy": QuintetFSDP(),
        "accelerator": None,
        "gradient_clip_val": None,
        "gradient_clip_algorithm": None,
        "callbacks": [],
    }
    module = changes.pop("module", SimpleNamespace(automatic_optimization=True))
    with pytest.raises(UserError, match=words):
        refuse_unshardable(SimpleNamespace(**settings | changes), module)
    refuse_unshardable(SimpleNamespace(**settings | changes | {"strategy": None}), module)
    refuse_unshardable(SimpleNamespace(**settings), SimpleNamespace(automatic_optimization=True))
