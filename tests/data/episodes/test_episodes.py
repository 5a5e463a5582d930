"""What an episode is, that it depends on (seed, epoch, i) alone, and that a stopped run goes on in the middle."""

import pickle

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from drawings import BACKGROUND, EVALUATION, module_on, write_zips

from quintet.common.errors import UserError
from quintet.data.batches import EpisodeBatch
from quintet.data.episodes.dataset import EpisodeSampler
from quintet.data.episodes.sampling import plan_episode


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_zips(tmp_path_factory.mktemp("omniglot"))


@pytest.fixture
def make(folder):
    return lambda **overrides: module_on(folder, folder / "cache", **overrides)


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(("width", "length"), [(5, 30), (4, 11), (7, 7)])
def test_every_class_is_shown_once_before_any_is_shown_again(width, length):
    plan = plan_episode((1, 2, 3), 9, 6, width, length)
    assert len(plan.labels) == length and set(plan.labels) == set(range(width))
    pairs = set(zip(plan.labels.tolist(), plan.classes.tolist(), strict=True))
    assert len(pairs) == width == len(set(plan.classes)), "one class a label"
    for t in range(length):
        assert plan.showing[t] == (plan.labels[:t] == plan.labels[t]).sum() == t // width
    drawings = list(zip(plan.classes.tolist(), plan.drawers.tolist(), strict=True))
    assert len(set(drawings)) == length, "no drawing twice while there are others"


def test_a_long_episode_shuffles_the_drawings_again():
    plan = plan_episode((0,), 3, 4, 2, 2 * 4 * 3)
    passes = np.stack([plan.drawers[plan.labels == 0][p * 4 : p * 4 + 4] for p in range(3)])
    assert (np.sort(passes, 1) == np.arange(4)).all() and len({tuple(p) for p in passes.tolist()}) > 1


def test_classes_labels_orders_and_drawings_are_all_random():
    plans = [plan_episode((7, i), 8, 6, 4, 8) for i in range(2000)]
    for values, options in (
        (np.array([p.classes[0] for p in plans]), 8),
        (np.array([p.labels[0] for p in plans]), 4),
        (np.array([p.drawers[0] for p in plans]), 6),
        (np.array([p.labels[p.classes == p.classes.min()][0] for p in plans]), 4),  # no label prefers a class
        (np.array([p.labels[4:].tolist().index(p.labels[0]) for p in plans]), 4),  # rounds are ordered independently
    ):
        counts = np.bincount(values, minlength=options)
        expected = len(plans) / options
        assert (((counts - expected) ** 2 / expected).sum()) < 4 * options, counts  # chi-square, far in the tail


def test_batch_holds_the_drawings_it_names(make):
    module = make()
    images = module.images("train")
    batch = next(iter(module.train_dataloader()))
    assert isinstance(batch, EpisodeBatch) and batch.images.shape == (2, 12, 1, 12, 12)
    assert [t.dtype for t in batch] == [torch.float32, torch.int64, torch.int64, torch.int64]
    plan = module.episodes("train").plan(1)
    assert np.array_equal(batch.classes[1], plan.classes) and np.array_equal(batch.labels[1], plan.labels)
    expected = images[plan.classes, plan.drawers] / 255
    assert np.allclose(batch.images[1, :, 0], expected) and 0.9 < batch.images.max() <= 1
    assert same(batch, EpisodeBatch(*(t.clone() for t in module.episodes("train").__getitems__([0, 1]))))


def test_episode_is_a_function_of_seed_epoch_and_number(make):
    one = list(make().train_dataloader())
    assert all(same(a, b) for a, b in zip(one, make(num_workers=1).train_dataloader(), strict=True))
    flat = [torch.cat(field) for field in zip(*one, strict=True)]
    other = [torch.cat(field) for field in zip(*make(batch_size=3).train_dataloader(), strict=True)]
    assert same(flat, other), "the batch size does not matter"
    dataset = make().episodes("train")
    assert not same(dataset[0], dataset[len(dataset)]), "another epoch has other episodes"
    assert not same(dataset[0], make(seed=2).episodes("train")[0])
    keys = {make().episodes(split).key for split in ("train", "val", "test")}
    assert len(keys) == 3, "the splits' random numbers are not the same ones"


def test_validation_and_test_are_the_same_every_time(make):
    module = make()
    for loader in (module.val_dataloader, module.test_dataloader):
        first, again = list(loader()), list(loader())
        assert all(same(a, b) for a, b in zip(first, again, strict=True))
    assert [len(batch.labels) for batch in module.val_dataloader()] == [1, 2]
    assert sum(len(batch.labels) for batch in module.test_dataloader()) == 5


def test_ranks_deal_out_the_episodes_of_an_epoch():
    samplers = [EpisodeSampler(7, 2, shuffle=False, drop_last=True, rank=r, world_size=2, position=lambda: (3, 0))
                for r in range(2)]  # fmt: skip
    batches = [list(sampler) for sampler in samplers]
    assert batches == [[[21, 23]], [[22, 24]]], "full batches of different episodes of epoch 3 (7 a pass)"


def test_validation_alphabets_are_whole_and_in_no_rotation_in_training(make):
    chosen = set()
    for seed in range(8):
        module = make(seed=seed, val_alphabets=2, width=2, length=8)
        train = {name.split("/")[0] for name in module.classes("train")}
        val = {name.split("/")[0] for name in module.classes("val")}
        assert len(val) == 2 and not train & val and train | val == set(BACKGROUND)
        assert len(module.classes("val")) == sum(BACKGROUND[a] for a in val) and "@" not in "".join(
            module.classes("val")
        )
        assert len(module.classes("train")) == 4 * sum(BACKGROUND[a] for a in train)
        chosen.add(tuple(sorted(val)))
        assert module.classes("val") == make(seed=seed, val_alphabets=2, width=2, length=8).classes("val")
    assert len(chosen) > 2, "the seed chooses"


def test_no_validation_alphabets_trains_on_all(make):
    module = make(val_alphabets=0)
    assert module.val_dataloader() == [] and module.data_info["num_classes_train"] == 4 * sum(BACKGROUND.values())
    assert module.data_info == {"num_labels": 3, "batch_size": 2, "image_size": 12, "num_classes_train": 48}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"width": 5, "length": 29, "shots": [1, 5]},
            r"data\.length=29 is too short for 5-shot.*data\.width=5: give 30",
        ),
        ({"width": 20, "length": 119, "shots": [5]}, r"give 120 "),
        (
            {"width": 8, "length": 40, "val_alphabets": 0},
            rf"data\.width=8 .*test split of Omniglot has {sum(EVALUATION.values())}",
        ),
        ({"width": 6, "length": 40}, r"data\.width=6 .*val split of Omniglot has [234]: lower"),
        ({"width": 1}, r"data\.width=1"),
        ({"shots": []}, r"data\.shots=\[\]"),
        ({"shots": [0]}, r"data\.shots=\[0\]"),
        ({"val_alphabets": 4}, r"data\.val_alphabets=4: the background part has 4 alphabets, give 0 to 3"),
        ({"val_alphabets": -1}, r"data\.val_alphabets=-1"),
        ({"batch_size": 7}, r"data\.batch_size=7: give 1 to data\.episodes_per_epoch=6"),
        ({"batch_size": 0}, r"data\.batch_size=0"),
        ({"image_size": 106}, r"data\.image_size=106: give 4 to 105"),
        ({"test_episodes": 0}, r"data\.test_episodes=0"),
        ({"seed": -1}, r"data\.seed=-1"),
    ],
)
def test_impossible_settings_are_user_errors(make, overrides, message):
    with pytest.raises(UserError, match=message):
        make(**overrides)


def test_a_worker_gets_no_pixels(make):
    dataset = make().episodes("train")
    before = dataset[0]
    copied = pickle.dumps(dataset)
    assert len(copied) < 2000 and same(pickle.loads(copied)[0], before)


class Recorder(pl.LightningModule):
    """Notes the classes of the batches it sees; takes two optimiser steps a batch, as the model may."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen = []

    def training_step(self, batch, batch_idx):
        self.seen.append(batch.classes.clone())
        for _ in range(2):
            self.optimizers().step()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(module, folder, batches, ckpt=None):
    recorder = Recorder()
    trainer = pl.Trainer(max_steps=2 * batches, max_epochs=-1, accelerator="cpu", default_root_dir=folder, logger=False,
                         enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
                         use_distributed_sampler=False, limit_val_batches=0, num_sanity_val_steps=0)  # fmt: skip
    trainer.fit(recorder, datamodule=module, ckpt_path=ckpt)
    return recorder, trainer


def test_a_stopped_run_continues_with_the_remaining_episodes(make, tmp_path):
    whole = fit(make(), tmp_path, 8)[0].seen  # 3 batches an epoch
    first, trainer = fit(make(), tmp_path, 4)
    trainer.save_checkpoint(tmp_path / "middle.ckpt")
    rest = fit(make(), tmp_path, 8, ckpt=tmp_path / "middle.ckpt")[0].seen
    assert len(whole) == 8 and len(rest) == 4
    assert same(first.seen + rest, whole) and not torch.equal(whole[0], whole[3])
