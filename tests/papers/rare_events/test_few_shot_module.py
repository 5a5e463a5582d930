"""The few-shot module: what it remembers when, what evaluation leaves alone, and the baseline without memory."""

import pytest
import torch
from lightning import LightningDataModule, Trainer
from torch.utils.data import DataLoader

from quintet.common.checkpoints import load_checkpoint
from quintet.common.errors import UserError
from quintet.data.batches import EpisodeBatch
from quintet.data.resumable import ResumableDataModule
from quintet.harness.resume.checkpoint import LastCheckpoint
from quintet.harness.resume.random_state import RandomState
from quintet.papers.rare_events.module import RareEventsModule, own_values

FACTS = {"num_labels": 3, "batch_size": 2, "image_size": 8, "num_classes_train": 7}
NETWORK = {"channels": [4], "width": 8, "dropout": 0.2}
MEMORY = {"slots": 64, "width": 8, "neighbours": 16}


def module_of(memory=MEMORY, **more):
    torch.manual_seed(0)
    return RareEventsModule(NETWORK, {"lr": 1e-2}, FACTS, memory=memory, **more)


def episodes(seed=0, rows=2, width=3, rounds=4):
    """Classes are far apart: a class is one random picture, a drawing of it that picture with a little noise."""
    generator = torch.Generator().manual_seed(seed)
    pictures = torch.rand(7, 1, 8, 8, generator=generator)
    order = torch.stack([torch.randperm(7, generator=generator)[:width] for _ in range(rows)])
    labels = torch.stack(
        [torch.cat([torch.randperm(width, generator=generator) for _ in range(rounds)]) for _ in range(rows)]
    )
    classes = order.gather(1, labels)
    images = pictures[classes] + 0.05 * torch.randn(*classes.shape, 1, 8, 8, generator=generator)
    showing = torch.arange(rounds).repeat_interleave(width).expand(rows, -1)
    return EpisodeBatch(images, labels, showing, classes)


class Data(ResumableDataModule):
    """Five batches an epoch, each a function of its number; two epochs."""

    data_info = FACTS

    def train_dataloader(self):
        return self.resumable_loader(range(5), 1, seed=0, collate_fn=lambda items: episodes(items[0]))

    def val_dataloader(self):
        return DataLoader(range(1), batch_size=None, collate_fn=lambda item: episodes(100))


def buffers(module):
    return {name: tensor.clone() for name, tensor in module.memory.named_buffers()}


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


def trained(module, *callbacks, max_epochs=1, ckpt=None, **more):
    saves = any(isinstance(callback, LastCheckpoint) for callback in callbacks)
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=saves,
        use_distributed_sampler=False,
        max_epochs=max_epochs,
        callbacks=[RandomState(), *callbacks],
        **more,
    )
    trainer.fit(module, datamodule=Data(), ckpt_path=ckpt, weights_only=True if ckpt else None)
    return trainer


def test_parallel_episodes_never_share_a_value():
    labels = torch.tensor([[0, 1, 2], [2, 1, 0]])
    assert own_values(labels).tolist() == [[0, 1, 2], [5, 4, 3]]
    assert own_values(labels, rank=1).tolist() == [[6, 7, 8], [11, 10, 9]]


@pytest.mark.parametrize(("updates", "steps"), [("image", 5 * 12), ("episode", 5)])
def test_optimiser_steps_of_an_epoch(updates, steps):
    assert trained(module_of(updates=updates)).global_step == steps


def test_an_episode_step_is_the_gradient_of_the_mean_margin_loss():
    module, batch = module_of(updates="episode", gradient_clip=None), episodes(rows=1)
    module.eval()  # no dropout, no hint: example_losses is the same function
    module.example_losses(batch).mean().backward()
    wanted = [p.grad.clone() for p in module.parameters()]
    module.zero_grad()
    module.memory.clear()
    module._losses(batch.images, own_values(batch.labels), batch.classes).mean().backward()
    for parameter, gradient in zip(module.parameters(), wanted, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)
    assert any(gradient.abs().max() > 0 for gradient in wanted)


def test_training_starts_each_batch_with_an_empty_memory_unless_lifelong():
    module = module_of()
    trained(module)
    assert set(module.memory.values[: module.memory.filled].tolist()) == set(range(6))  # two episodes of three labels
    module = module_of(lifelong=True)
    batches = []
    module.on_train_batch_start = lambda batch, index: batches.append(set(batch.classes.flatten().tolist()))
    trained(module)
    held = set(module.memory.values[: module.memory.filled].tolist())
    assert held <= set().union(*batches) and held - batches[-1]  # classes, also of batches before the last


def test_evaluation_and_example_losses_leave_the_memory_bit_identical():
    module, batch = module_of(), episodes(3)
    trained(module, limit_val_batches=0)
    before = buffers(module)
    module.eval()
    losses = module.example_losses(batch)
    module.validation_step(batch, 0)
    assert losses.shape == (2,) and torch.isfinite(losses).all() and losses.requires_grad
    assert same(before, buffers(module)) and before["step"] > 0


def test_episodes_are_answered_as_if_alone_and_nothing_is_known_at_first():
    module, batch = module_of().eval(), episodes(5, rows=3)
    together = module.predict_episodes(batch)
    alone = [module.predict_episodes(EpisodeBatch(*(part[b : b + 1] for part in batch)))[0] for b in range(3)]
    assert torch.equal(together, torch.stack(alone))
    assert together[:, 0].tolist() == [-1, -1, -1]
    # pictures so far apart that even the untrained network finds them again
    assert (together == batch.labels)[batch.showing == 3].float().mean() > 0.8


@pytest.mark.parametrize("slots", [64, 4])
def test_an_episodes_loss_is_its_own(slots):
    """As if it were alone: neither the other episodes of the batch nor the trained memory are seen."""
    module, batch = module_of(MEMORY | {"slots": slots, "neighbours": 4}), episodes(4, rows=3)
    trained(module, limit_val_batches=0)
    module.eval()
    together = module.example_losses(batch)
    for b in range(3):
        module.memory.clear()
        module.memory.step.zero_()
        alone = module._losses(*(part[b : b + 1] for part in (batch.images, batch.labels, batch.classes))).mean()
        torch.testing.assert_close(together[b], alone)
    assert len(set(together.tolist())) == 3


@pytest.mark.parametrize("memory", [None, MEMORY | {"search": "none"}])
def test_without_memory_it_classifies_and_its_embedding_remembers(memory):
    module, batch = module_of(memory).eval(), episodes(5)
    assert module.memory is None and module.classifier.out_features == 7
    logits = module.classifier(module.embed(batch.images.flatten(0, 1)))
    wanted = torch.nn.functional.cross_entropy(logits, batch.classes.flatten())
    torch.testing.assert_close(module.example_losses(batch).mean(), wanted)
    assert (module.predict_episodes(batch) == batch.labels)[batch.showing == 3].float().mean() > 0.8
    with pytest.raises(UserError, match="no memory to query"):
        module(batch.images[:, 0])
    first = module.state_dict()["classifier.weight"].clone()
    assert trained(module).global_step == 5 * 12  # as many steps on the same images as with memory
    assert not torch.equal(first, module.state_dict()["classifier.weight"])


@pytest.mark.parametrize("batches", [2, 5])
def test_resumed_run_ends_bit_for_bit_like_a_whole_one(tmp_path, batches):
    """Stopped inside an epoch (2 of 5 batches) and at its end: weights, memory, hints and ages."""
    whole = module_of()
    trained(whole, max_epochs=2)
    trained(module_of(), LastCheckpoint(tmp_path, 10**9), max_steps=12 * batches, max_epochs=2)
    path = tmp_path / "last.ckpt"
    assert load_checkpoint(path)["global_step"] == 12 * batches
    resumed = module_of()
    trained(resumed, max_epochs=2, ckpt=path)
    assert same(whole.state_dict(), resumed.state_dict())


def test_last_checkpoint_is_written_when_a_batch_crosses_the_interval(tmp_path):
    class Saved(LastCheckpoint):
        steps: tuple = ()

        def save(self, trainer):
            self.steps += (trainer.global_step,)
            super().save(trainer)

    saved = Saved(tmp_path, every_n_steps=25)
    trained(module_of(), saved, max_steps=50)
    assert saved.steps == (36, 60)  # 25 and 50 lie inside batches of 12 steps; 60 is the end of the epoch, validated


def test_reports_accuracy_by_shot():
    trainer = trained(module_of(), max_epochs=3)
    shown = {name for name in trainer.callback_metrics if name.startswith("val/")}
    assert shown == {"val/accuracy_1_shot", "val/accuracy_2_shot", "val/accuracy", "val/loss"}
    assert trainer.callback_metrics["val/accuracy_2_shot"] > 0.8


def test_refusals():
    with pytest.raises(UserError, match=r"memory\.width=4 must be model\.network\.width=8"):
        module_of(MEMORY | {"width": 4})
    with pytest.raises(UserError, match=r"model\.updates='pixel'"):
        module_of(updates="pixel")
    with pytest.raises(UserError, match="12 pixels wide, the network was built for 8"):
        module_of().embed(torch.zeros(1, 1, 12, 12))
    with pytest.raises(UserError, match=r"model\.network has no key 'chanels'"):
        RareEventsModule({"chanels": [3]}, {}, FACTS)


def test_checkpoint_of_another_memory_size_is_one_line(tmp_path):
    trained(module_of(), LastCheckpoint(tmp_path))
    with pytest.raises(UserError, match=r"memory.*keys|keys"):
        RareEventsModule.load_from_checkpoint(tmp_path / "last.ckpt", memory=MEMORY | {"slots": 32})
    again = RareEventsModule.load_from_checkpoint(tmp_path / "last.ckpt")
    assert again.memory.filled > 0


def test_it_is_a_pair_with_its_data_module():
    assert RareEventsModule.batch_type is EpisodeBatch and issubclass(ResumableDataModule, LightningDataModule)
