"""Random state, EMA and LastCheckpoint on a network with dropout: a resumed run equals the uninterrupted one."""

import shutil

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from quintet.common.checkpoints import load_checkpoint
from quintet.data.resumable import ResumableDataModule
from quintet.harness.callbacks.ema import Ema
from quintet.harness.callbacks.throughput import batch_size_of
from quintet.harness.resume.checkpoint import AtomicCheckpointIO, LastCheckpoint, newest_checkpoint
from quintet.harness.resume.epoch_end import EpochEnd
from quintet.harness.resume.random_state import RandomState, capture, restore
from quintet.harness.run.strategies import strategy_of


class Dropping(LightningModule):
    """Dropout in training, and a validation step that draws random numbers."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Linear(8, 1))
        self.seen = []

    def training_step(self, batch, index):
        self.seen.append(batch[:, 0].tolist())
        return self.net(batch).square().mean() + torch.rand(()) * self.net[0].weight.sum()

    def validation_step(self, batch, index):
        torch.rand(3)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 0.01)


class Numbers(ResumableDataModule):
    def setup(self, stage=None):
        self.rows = torch.arange(60.0).view(20, 3) / 60

    def train_dataloader(self):
        return self.resumable_loader(self.rows, batch_size=4, seed=3, generator=torch.Generator().manual_seed(0))

    def val_dataloader(self):
        return torch.utils.data.DataLoader(self.rows, batch_size=10, generator=torch.Generator().manual_seed(0))


def fit(folder, steps, resume=None, ema=True):
    seed_everything(1, verbose=False)
    module = Dropping()
    callbacks = [RandomState(), *([Ema(0.9)] if ema else []), LastCheckpoint(str(folder), every_n_steps=1000)]
    trainer = Trainer(
        max_steps=steps, callbacks=callbacks, logger=False, accelerator="cpu", default_root_dir=folder,
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
        plugins=[AtomicCheckpointIO()],
    )  # fmt: skip
    trainer.fit(module, datamodule=Numbers(), ckpt_path=resume, weights_only=True)
    return module


@pytest.mark.parametrize("ema", [False, True])
@pytest.mark.parametrize("stop", [1, 5, 7, 10])
def test_resumed_equals_uninterrupted(tmp_path, stop, ema):
    whole = fit(tmp_path / "whole", 13, ema=ema)
    first = fit(tmp_path / "part", stop, ema=ema)
    rest = fit(tmp_path / "part", 13, resume=newest_checkpoint(tmp_path / "part"), ema=ema)
    assert first.seen + rest.seen == whole.seen
    a, b = (load_checkpoint(tmp_path / n / "last.ckpt") for n in ("whole", "part"))
    for key in ["state_dict", *(["current_model_state"] if ema else [])]:
        assert all(torch.equal(a[key][k], b[key][k]) for k in a[key]), key


def test_without_the_random_state_it_would_differ(tmp_path, monkeypatch):
    """The check above can fail: take the restoring away and it does."""
    whole = fit(tmp_path / "whole", 9)
    fit(tmp_path / "part", 7)
    monkeypatch.setattr(RandomState, "on_train_start", lambda *a: None)
    rest = fit(tmp_path / "part", 9, resume=tmp_path / "part" / "last.ckpt")
    assert not torch.equal(whole.net[0].weight, rest.net[0].weight)


def test_random_state_round_trip():
    state = capture()
    first = torch.rand(3)
    restore(state)
    assert torch.equal(torch.rand(3), first)


def test_ema_against_the_formula(tmp_path):
    """Three steps by hand: e <- r e + (1 - r) w with r = min(decay, (1 + n) / (10 + n)); the first update copies."""
    ema = Ema(0.9)
    average = ema._kwargs["avg_fn"]
    value = torch.tensor([1.0])
    for count, new in enumerate([2.0, 3.0, 4.0], start=1):
        rate = min(0.9, (1 + count) / (10 + count))
        expected = rate * value + (1 - rate) * new
        value = average(value, torch.tensor([new]), torch.tensor(count))
        assert torch.allclose(value, expected)


def test_batch_size_of_finds_the_first_tensor():
    assert batch_size_of((None, torch.zeros(5, 2))) == 5
    assert batch_size_of({"a": [None, torch.zeros(7)]}) == 7


class Growing(Dropping):
    """Its first validation is its best; at the end it has something to say."""

    def validation_step(self, batch, index):
        super().validation_step(batch, index)
        self.log("val/step", float(self.trainer.global_step))

    def on_train_end(self):
        (killed,) = (one for one in self.trainer.callbacks if isinstance(one, Killed))
        killed.leave(self.trainer.global_step, "ended")  # after all callbacks
        self.said = True


class Killed(Callback):
    """What kills at the start of each validation, within each batch and at the end would leave; when it validated."""

    def __init__(self, folder):
        self.folder, self.left, self.validated = folder, [], []

    def leave(self, step, what):
        place = self.folder.with_name(f"{self.folder.name}-{step}-{what}")
        shutil.copytree(self.folder, place)
        if newest_checkpoint(place):
            self.left.append((step, what, place))

    def on_validation_start(self, trainer, module):
        if not trainer.sanity_checking:
            self.leave(trainer.global_step, "validating")

    def on_validation_end(self, trainer, module):
        if not trainer.sanity_checking:
            self.validated.append(trainer.global_step)

    def on_train_batch_end(self, trainer, *args):
        self.leave(trainer.global_step, "stepped")


@pytest.mark.parametrize(("interval", "count"), [(1.0, 2), (2, 5), (1, 13)])  # epochs of 5 batches
@pytest.mark.parametrize("every", [1, 3])
def test_nothing_is_passed_over_wherever_a_kill_comes(tmp_path, every, interval, count):
    """Every validation is made, the best is remembered, and what is said at the end is said."""

    def go(name, resume):
        folder = tmp_path / name
        folder.mkdir()
        killed, module = Killed(folder), Growing()
        best = ModelCheckpoint(tmp_path / "best", monitor="val/step", mode="min", enable_version_counter=False)
        seed_everything(1, verbose=False)
        trainer = Trainer(
            max_steps=13, val_check_interval=interval, logger=False, num_sanity_val_steps=0,
            callbacks=[killed, EpochEnd(), best, LastCheckpoint(str(folder), every)], accelerator="cpu",
            default_root_dir=tmp_path, enable_progress_bar=False, enable_model_summary=False,
            plugins=[AtomicCheckpointIO()],
        )  # fmt: skip
        trainer.fit(module, datamodule=Numbers(), ckpt_path=resume, weights_only=True)
        return killed, module, load_checkpoint(newest_checkpoint(folder) or resume)

    whole, _, end = go("whole", None)
    assert len(whole.validated) == count and end["global_step"] == 13 and len(whole.left) > count
    for step, what, place in whole.left:
        again, module, other = go(f"{step}-{what}", newest_checkpoint(place))
        assert again.validated == whole.validated[len(whole.validated) - len(again.validated) :]
        assert what != "validating" or step in again.validated
        assert module.said and other["global_step"] == 13
        assert best_of(other) == best_of(end)


def best_of(checkpoint):
    (score,) = (state["best_model_score"] for state in checkpoint["callbacks"].values() if "best_model_score" in state)
    return float(score)


class Uneven(Dropping):
    """Each rank draws as many random numbers as it likes, as captions of different lengths do."""

    def training_step(self, batch, index):
        torch.rand(1 + self.global_rank)
        return super().training_step(batch, index)


def fit_on_two(folder, steps, resume=None):
    seed_everything(1, verbose=False)
    trainer = Trainer(
        max_steps=steps, callbacks=[RandomState(), LastCheckpoint(str(folder), every_n_steps=1000)], logger=False,
        accelerator="cpu", devices=2, strategy=strategy_of("ddp_fork"), default_root_dir=folder,
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
        plugins=[AtomicCheckpointIO()],
    )  # fmt: skip
    trainer.fit(Uneven(), datamodule=Numbers(), ckpt_path=resume, weights_only=True)
    return load_checkpoint(folder / "last.ckpt")


def test_every_rank_goes_on_with_its_own_random_numbers(tmp_path):
    whole = fit_on_two(tmp_path / "whole", 5)
    fit_on_two(tmp_path / "part", 2)
    part = fit_on_two(tmp_path / "part", 5, tmp_path / "part" / "last.ckpt")
    assert all(torch.equal(whole["state_dict"][key], part["state_dict"][key]) for key in whole["state_dict"])
    one, two = (state["torch"] for state in part["random_states"])
    assert not torch.equal(one, two)  # ranks' dropout differs
