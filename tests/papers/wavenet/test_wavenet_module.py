"""WaveNetModule: loss and metrics against hand calculations, plain checkpoints, refusals, schedules."""

import math

import numpy as np
import pytest
import torch
from lightning import LightningDataModule, Trainer
from torch.utils.data import DataLoader

from quintet.common.checkpoints import check_data_info
from quintet.common.errors import UserError
from quintet.common.optim import OptimizerConfig, lr_factor
from quintet.data.batches import AudioBatch
from quintet.metrics.audio import MeanNLL
from quintet.papers.wavenet.module import WaveNetModule
from quintet.papers.wavenet.phones import edit_distance, fold_phones, phone_error_rate

TINY = {
    "layers_per_stack": 3,
    "stacks": 1,
    "residual_channels": 4,
    "gate_channels": 4,
    "skip_channels": 4,
    "head_channels": 4,
}
FACTS = {
    "sample_rate": 16000,
    "num_classes": 256,
    "speakers": ["p225", "p226"],
    "tags": [],
    "local_channels": 0,
    "hop_length": 0,
    "phones": [],
}
PHONE_FACTS = FACTS | {"speakers": [], "phones": ["sil", "aa", "t"]}


def module_of(data_info=FACTS, **network) -> WaveNetModule:
    torch.manual_seed(0)
    return WaveNetModule(TINY | network, {"lr": 1e-3}, data_info).eval()


def batch_of(speakers=(0, 1), chunk=32, context=16, phones=None, real=None) -> AudioBatch:
    generator = torch.Generator().manual_seed(1)
    audio = torch.randint(0, 256, (len(speakers), context + chunk), generator=generator)
    mask = torch.ones(len(speakers), chunk, dtype=torch.bool)
    for row, length in enumerate(real or []):
        mask[row, length:] = False
    speaker = torch.tensor(speakers)
    return AudioBatch(audio, mask, speaker, None, None, phones, torch.arange(len(speakers)))


def test_loss_is_the_hand_computed_nats_of_the_real_targets():
    module, batch = module_of(), batch_of(real=[32, 5])
    logits = module.network(batch.audio[:, :-1], batch.speaker).detach().double().numpy()
    for row, real in enumerate([32, 5]):
        nats = []
        for t in range(16, 16 + real):  # the targets are the last 32 positions; position t is predicted at t - 1
            column = logits[row, :, t - 1]
            nats.append(math.log(np.exp(column).sum()) - column[int(batch.audio[row, t])])
        assert module.example_losses(batch)[row].item() == pytest.approx(np.mean(nats), rel=1e-5)


def test_padding_and_context_are_no_targets():
    module, batch = module_of(), batch_of(real=[32, 5])
    changed = batch.audio.clone()
    changed[1, 16 + 5 :] = 7  # behind the last real target of the second example
    torch.testing.assert_close(module.example_losses(batch), module.example_losses(batch._replace(audio=changed)))


def test_uniform_model_costs_eight_bits():
    module, metrics = module_of(), {}
    torch.nn.init.zeros_(module.network.head[-1].weight)
    torch.nn.init.zeros_(module.network.head[-1].bias)
    module.log = lambda name, value, **_: metrics.update({name: float(value)})
    module.validation_step(batch_of(), 0)
    module.on_validation_epoch_end()
    assert metrics["val/nats"] == pytest.approx(math.log(256), rel=1e-6)
    for name in ("val/bits", "val/bits_p225", "val/bits_p226"):
        assert metrics[name] == pytest.approx(8.0, rel=1e-6)


def test_metrics_weight_samples_not_batches_and_split_speakers():
    metric = MeanNLL(2)
    metric.update(torch.tensor([10.0, 4.0]), torch.tensor([5, 1]), torch.tensor([0, 1]))
    metric.update(torch.tensor([2.0]), torch.tensor([4]), torch.tensor([0]))
    total, per_speaker = metric.compute()
    assert total.item() == pytest.approx(16 / 10)
    assert per_speaker[:2].tolist() == pytest.approx([12 / 9, 4.0])
    assert per_speaker[2].isnan()


def test_validation_equals_the_mean_over_every_sample():
    module, metrics = module_of(), {}
    first, second = batch_of(real=[32, 5]), batch_of(speakers=(1,), real=[9])
    module.log = lambda name, value, **_: metrics.update({name: float(value)})
    for batch in (first, second):
        module.validation_step(batch, 0)
    module.on_validation_epoch_end()
    losses, other = module.example_losses(first), module.example_losses(second)
    assert metrics["val/nats"] == pytest.approx((losses[0] * 32 + losses[1] * 5 + other[0] * 9).item() / 46, rel=1e-5)
    assert metrics["val/bits"] == pytest.approx(metrics["val/nats"] / math.log(2), rel=1e-6)
    assert metrics["val/bits_p226"] == pytest.approx((losses[1] * 5 + other[0] * 9).item() / 14 / math.log(2), rel=1e-5)


def test_recognition_without_speakers_reports_accuracy_and_the_joint_loss():
    module, metrics = module_of(PHONE_FACTS, recognition={"channels": 4, "layers": 1, "frame": 16}), {}
    batch = batch_of(phones=torch.tensor([[1, -100], [2, 0]]))._replace(speaker=None)
    module.log = lambda name, value, **_: metrics.update({name: float(value)})
    module.validation_step(batch, 0)
    module.on_validation_epoch_end()
    best, labelled = module(batch)[1].argmax(1), batch.phones != -100
    assert metrics["val/frame_accuracy"] == pytest.approx((best == batch.phones)[labelled].float().mean().item())
    assert metrics["val/loss"] == pytest.approx(module.example_losses(batch).mean().item(), rel=1e-5)
    assert set(metrics) == {"val/nats", "val/bits", "val/frame_accuracy", "val/loss"}


def test_recognition_adds_the_weighted_frame_loss():
    recognition = {"channels": 4, "layers": 1, "frame": 16}
    module = module_of(PHONE_FACTS, recognition=recognition)
    phones = torch.tensor([[1, -100], [-100, -100]])
    batch = batch_of(phones=phones)._replace(speaker=None)
    logits = module(batch)[1].detach().double()
    assert logits.shape == (2, 3, 2)
    frame = math.log(logits[0, :, 0].exp().sum()) - float(logits[0, 1, 0])
    together = module.example_losses(batch)
    module.hparams["frame_loss_weight"] = 0.0
    audio_only = module.example_losses(batch)
    assert (together - audio_only).tolist() == pytest.approx([frame, 0.0], abs=1e-5)


def test_frames_lie_where_their_labels_lie():
    module = module_of(PHONE_FACTS, recognition={"channels": 4, "layers": 0, "frame": 16})
    batch = batch_of(chunk=32, context=16, phones=torch.zeros(2, 2, dtype=torch.long))._replace(speaker=None)
    changed = batch.audio.clone()
    changed[:, 32:] = 3  # the second frame of the chunk and nothing before it
    before, after = module(batch)[1], module(batch._replace(audio=changed))[1]
    torch.testing.assert_close(before[..., 0], after[..., 0])
    assert not torch.allclose(before[..., 1], after[..., 1])


def test_checkpoint_is_plain_and_needs_no_hydra(tmp_path):
    module, path = module_of(), tmp_path / "wavenet.ckpt"
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, max_steps=0, barebones=True)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(path)
    stored = torch.load(path, weights_only=True)
    assert stored["hyper_parameters"]["network"]["residual_channels"] == 4
    again = WaveNetModule.load_from_checkpoint(path, weights_only=True).eval()
    batch = batch_of()
    assert torch.equal(module.example_losses(batch), again.example_losses(batch))


def test_checkpoint_of_another_model_is_refused(tmp_path):
    other, path = module_of(residual_channels=8), tmp_path / "other.ckpt"
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, max_steps=0, barebones=True)
    trainer.strategy.connect(other)
    trainer.save_checkpoint(path)
    with pytest.raises(UserError, match="not of this WaveNet"):
        WaveNetModule.load_from_checkpoint(path, network=TINY)


def test_fit_steps_and_reports(tmp_path):
    module = module_of()
    loader = DataLoader([batch_of()] * 3, batch_size=None)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    before = module.example_losses(batch_of()).mean().item()
    trainer.fit(module, loader, loader)
    assert module.example_losses(batch_of()).mean().item() < before
    assert {"train/loss", "val/loss", "val/nats", "val/bits", "val/bits_p225"} <= set(trainer.callback_metrics)


def test_every_parameter_gets_a_gradient():
    module = module_of(PHONE_FACTS | {"speakers": ["a", "b"]}, recognition={"channels": 4, "layers": 1, "frame": 16})
    module.example_losses(batch_of(phones=torch.zeros(2, 2, dtype=torch.long))).mean().backward()
    assert [name for name, p in module.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"speaker": torch.tensor([0, 2])}, "speakers 0..1: p225, p226"),
        ({"speaker": None}, "batch.speaker is none"),
    ],
)
def test_batch_of_unknown_speaker_is_refused(change, message):
    with pytest.raises(UserError, match=message):
        module_of().example_losses(batch_of()._replace(**change))


def test_batch_of_other_tags_or_features_is_refused():
    tagged = module_of(FACTS | {"speakers": [], "tags": ["slow", "fast"]})
    with pytest.raises(UserError, match=r"batch\.tags has 3 tags"):
        tagged.example_losses(batch_of()._replace(tags=torch.zeros(2, 3)))
    local = module_of(FACTS | {"speakers": [], "local_channels": 5, "hop_length": 16})
    with pytest.raises(UserError, match=r"batch\.local has 0 channels"):
        local.example_losses(batch_of())


def test_data_of_other_speakers_is_refused_before_the_run():
    check_data_info(FACTS, dict(FACTS))
    with pytest.raises(UserError, match=r"data has speakers=\['p226', 'p225'\], the model was built for"):
        check_data_info(FACTS, FACTS | {"speakers": ["p226", "p225"]})
    module, trainer = module_of(), Trainer(accelerator="cpu", barebones=True, max_steps=1)
    data = LightningDataModule.from_datasets([batch_of()], batch_size=None)
    data.data_info = FACTS | {"sample_rate": 8000}
    with pytest.raises(UserError, match="sample_rate=8000"):
        trainer.fit(module, datamodule=data)


def test_conditions_choose_what_is_used():
    free = WaveNetModule(TINY, {}, FACTS, conditions=["tags"])
    assert free.network.global_conditioning.speaker is None
    assert free.example_losses(batch_of()._replace(speaker=None)).shape == (2,)
    with pytest.raises(UserError, match=r"model\.conditions"):
        WaveNetModule(TINY, {}, FACTS, conditions=["pitch"])


def test_misspelt_keys_and_missing_phones_are_refused():
    with pytest.raises(UserError, match=r"model\.network has no key 'stack'"):
        WaveNetModule(TINY | {"stack": 2}, {}, FACTS)
    with pytest.raises(UserError, match="schedule='cosine' is unknown"):
        WaveNetModule(TINY, {"schedule": "cosine"}, FACTS)
    with pytest.raises(UserError, match="recognition needs phone labels"):
        module_of(recognition={"channels": 4, "layers": 1})


def test_schedules():
    halve = OptimizerConfig(schedule="halve_every", halve_every_steps=10)
    assert [lr_factor(halve, step) for step in (0, 9, 10, 25)] == [1.0, 1.0, 0.5, 0.25]
    decay = OptimizerConfig(schedule="exponential", decay_rate=0.1, decay_steps=100)
    assert lr_factor(decay, 50) == pytest.approx(10**-0.5)
    warm = OptimizerConfig(warmup_steps=4)
    assert [lr_factor(warm, step) for step in (0, 1, 3, 9)] == [0.25, 0.5, 1.0, 1.0]


def test_scheduler_steps_with_the_optimizer():
    module = WaveNetModule(TINY, {"lr": 0.1, "schedule": "halve_every", "halve_every_steps": 2}, FACTS)
    configured = module.configure_optimizers()
    optimizer, scheduler = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    rates = []
    for _ in range(4):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert configured["lr_scheduler"]["interval"] == "step"
    assert rates == pytest.approx([0.1, 0.1, 0.05, 0.05])


def test_receptive_field_is_said_in_samples_and_milliseconds(monkeypatch):
    said = []
    monkeypatch.setattr("quintet.papers.wavenet.module.rank_zero_info", said.append)
    module = module_of()
    module.on_fit_start()
    assert module.receptive_field == 9  # front 2 + dilations 1 + 2 + 4
    assert said == ["WaveNet receptive field 9 samples = 0.6 ms at 16000 Hz"]


def test_edit_distance_and_phone_error_rate():
    assert edit_distance("kitten", "sitting") == 3
    assert edit_distance("", "abc") == 3
    assert fold_phones(["h#", "h#", "pau", "AH0", "ax", "q", "ah", "zh"]) == ["sil", "ah", "sh"]
    # reference: sil aa t = 3 phones; hypothesis: sil t = one deletion
    assert phone_error_rate([["sil", "aa", "aa", "t"]], [["sil", "sil", "t", "t"]]) == pytest.approx(1 / 3)
