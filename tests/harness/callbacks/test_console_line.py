"""The console's line after a validation."""

import logging

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader

from quintet.harness.callbacks.throughput import ConsoleLine


class Counting(LightningModule):
    """Logs the number of the epoch when its validation ends, as the models here log theirs."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(1, 1)

    def training_step(self, batch, index):
        return self.net(batch).sum()

    def validation_step(self, batch, index):
        self.net(batch)

    def on_validation_epoch_end(self):
        self.log("val/number", torch.tensor(float(self.current_epoch)))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def test_the_line_has_the_values_of_its_own_validation(caplog):
    caplog.set_level(logging.INFO, "quintet")
    data = DataLoader(torch.ones(2, 1))
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
                      enable_checkpointing=False, max_epochs=3, callbacks=[ConsoleLine()])  # fmt: skip
    trainer.fit(Counting(), data, data)
    lines = [record.message for record in caplog.records if record.message.startswith("epoch")]
    assert lines == [f"epoch {n}  step {2 * n + 2}  val/number {n:.4f}" for n in range(3)]
