"""Batches and their order, resuming, ranks, views, what metrics and protocols ask for; impossible settings."""

from collections import Counter
from types import SimpleNamespace

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from caption_files import captions_of, number_of, write_flickr8k

from quintet.common.errors import UserError
from quintet.data.batches import CaptionBatch
from quintet.data.captions.datamodule import CaptionDataModule
from quintet.data.captions.flickr8k import Flickr8k
from quintet.data.special_ids import BOS, EOS, PAD

TRAIN, VAL, TEST = 13, 3, 4
SMALL = {"batch_size": 8, "min_count": 1, "resize_size": 10, "crop_size": 8, "eval_batch_size": 2, "length_window": 2}
PLAIN = {"mirror": False, "colour_jitter": False}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("captions")
    write_flickr8k(folder / "flickr8k", TRAIN, VAL, TEST)
    return folder


@pytest.fixture
def make(folder):
    def module(**options):
        made = CaptionDataModule(Flickr8k(str(folder / "flickr8k")), str(folder / "cache"), **SMALL | options)
        made.prepare_data()
        made.setup()
        return made

    return module


def on_rank(module, rank, world):
    module.trainer = SimpleNamespace(global_rank=rank, world_size=world)
    module.position = lambda: (0, 0)
    return module


def same(batch, other):
    return all(a is b is None or torch.equal(a, b) for a, b in zip(batch, other, strict=True))


def test_a_training_batch(make):
    module = make(**PLAIN)
    batches = list(module.train_dataloader())
    assert [len(b.index) for b in batches] == [8] * 8 + [1]
    texts = module.captions("train")
    for batch in batches:
        assert isinstance(batch, CaptionBatch) and batch.features is None
        assert (batch.images.dtype, batch.words.dtype, batch.image_row.dtype) == (torch.float32, *[torch.int64] * 2)
        images = batch.image_index.tolist()
        assert len(set(images)) == len(images) == len(batch.images), "an image stands once in a batch"
        assert batch.images.shape[1:] == (3, 8, 8)
        for words, length, row, index in zip(
            batch.words, batch.lengths.tolist(), batch.image_row.tolist(), batch.index.tolist(), strict=True
        ):
            assert images[row] == index // 5 == number_of(batch.images[row])
            assert words[0] == BOS and words[length - 1] == EOS and (words[length:] == PAD).all()
            assert module.vocabulary.decode(words) == texts[index].lower().removesuffix(" .")
        assert batch.words.shape[1] == batch.lengths.max()


def test_like_lengths_come_together(make):
    module = make(length_window=50)
    batches = list(module.train_dataloader())
    assert np.mean([np.ptp(b.lengths.numpy()) for b in batches]) < 0.5 * np.mean(
        [np.ptp(b.lengths.numpy()) for b in make(length_window=1).train_dataloader()]
    )
    orders = [torch.cat([b.index for b in m.train_dataloader()]).tolist() for m in (module, make(length_window=50))]
    assert orders[0] == orders[1] and orders[0] != list(range(5 * TRAIN))


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("world", [1, 2])
def test_every_caption_once_an_epoch(make, world, grouped):
    """Two ranks: as many batches each, and no more repeated than makes the ranks even."""
    size = 3 if grouped else 8
    loaders = [
        on_rank(make(batch_size=size, group_by_image=grouped), r, world).train_dataloader() for r in range(world)
    ]
    batches = [list(loader) for loader in loaders]
    assert len({len(b) for b in batches}) == 1 and len(loaders[0]) == len(batches[0])
    seen = Counter(torch.cat([b.index for part in batches for b in part]).tolist())
    assert set(seen) == set(range(5 * TRAIN))
    assert sum(seen.values()) - len(seen) == (0 if world == 1 else 5 if grouped else 1)
    if grouped:
        assert all(len(b.index) == 5 * len(b.image_index) <= 15 for part in batches for b in part)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_evaluated_once_each_and_in_order_on_any_number_of_ranks(make, world):
    for split, count in (("val", VAL), ("test", TEST)):
        parts = []
        for rank in range(world):
            module = on_rank(make(), rank, world)
            loader = module.val_dataloader() if split == "val" else module.test_dataloader()
            parts.append(list(loader))
            assert len(loader) == len(parts[-1])
        assert len({len(part) for part in parts}) == 1, "a rank more would wait for ever"
        batches = [b for part in parts for b in part]
        assert torch.cat([b.image_index for b in batches]).tolist() == list(range(count))
        assert torch.cat([b.index for b in batches]).tolist() == list(range(5 * count))
        assert all(b.image_row.tolist() == np.repeat(range(len(b.image_index)), 5).tolist() for b in batches)
        first = TRAIN if split == "val" else TRAIN + VAL
        assert [number_of(x) for b in batches for x in b.images] == list(range(first, first + count))


class Recorder(pl.LightningModule):
    """Keeps the batches that it sees."""

    def __init__(self):
        super().__init__()
        self.layer, self.seen = torch.nn.Linear(1, 1), []

    def training_step(self, batch, batch_idx):
        self.seen.append(batch)
        return self.layer(batch.words.float().mean().view(1, 1)).mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.mark.filterwarnings("error:.*dataloader is not resumable.*")
@pytest.mark.parametrize(("grouped", "workers"), [(False, 0), (False, 1), (True, 0)])
def test_a_resumed_run_sees_the_rest(make, tmp_path, grouped, workers):
    def fit(steps, resume=None, workers=0):
        module = Recorder()
        trainer = pl.Trainer(
            max_steps=steps, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
            use_distributed_sampler=False, enable_checkpointing=False, default_root_dir=tmp_path,
            num_sanity_val_steps=0, limit_val_batches=0,
        )  # fmt: skip
        data = make(num_workers=workers, group_by_image=grouped, batch_size=5 if grouped else 20)
        trainer.fit(module, data, ckpt_path=resume, weights_only=True if resume else None)
        trainer.save_checkpoint(tmp_path / f"{steps}.ckpt")
        return module.seen

    whole = fit(9)
    assert len(fit(5)) == 5  # in the middle of the second epoch of four batches, or of three
    rest = fit(9, tmp_path / "5.ckpt", workers)
    assert len(rest) == 4 and all(same(a, b) for a, b in zip(rest, whole[5:], strict=True))


def test_views_change_from_epoch_to_epoch_and_workers_make_the_same(make):
    module, busy = make(), make(num_workers=2)
    epochs = {}
    for epoch in (0, 1):
        module.position = busy.position = lambda epoch=epoch: (epoch, 0)
        epochs[epoch] = list(module.train_dataloader())
        assert all(same(a, b) for a, b in zip(epochs[epoch], list(busy.train_dataloader()), strict=True))
    views = [{int(i): x for b in epochs[e] for i, x in zip(b.image_index, b.images, strict=True)} for e in (0, 1)]
    assert not any(torch.equal(views[0][i], views[1][i]) for i in range(TRAIN))
    module.position = lambda: (1, 3)
    assert all(same(a, b) for a, b in zip(module.train_dataloader(), epochs[1][3:], strict=True))


def test_an_example_is_the_same_in_any_company(make):
    module = make()
    together = module.example_batch("train", [7, 0, 6, 7])
    assert together.index.tolist() == [7, 0, 6, 7] and together.image_index.tolist() == [1, 0]
    assert together.image_row.tolist() == [0, 1, 0, 0]
    for place, index in enumerate((7, 0, 6, 7)):
        alone = module.example_batch("train", [index])
        length = int(alone.lengths)
        assert torch.equal(alone.words[0], together.words[place, :length]) and length == together.lengths[place]
        assert torch.equal(alone.images[0], together.images[together.image_row[place]])


def test_what_metrics_and_protocols_ask_for(make):
    module = make()
    assert [module.num_examples(s) for s in ("train", "val", "test")] == [5 * TRAIN, 5 * VAL, 5 * TEST]
    assert module.num_images("test") == TEST and module.image_ids("val") == [
        f"{TRAIN + i:04d}_ab.jpg" for i in range(VAL)
    ]
    assert module.references("test", [2, 0]) == [captions_of(TRAIN + VAL + i) for i in (2, 0)]
    assert module.captions("val") == [text for i in range(VAL) for text in captions_of(TRAIN + i)]
    assert [number_of(x) for x in module.images("test", [3, 1])] == [TRAIN + VAL + 3, TRAIN + VAL + 1]
    batch = module.image_batch("test", [3, 1])
    assert batch.image_index.tolist() == [3, 1] and batch.index.tolist() == [*range(15, 20), *range(5, 10)]
    shown = module.preview("test", 7)
    assert shown.title == f"{TRAIN + VAL + 1:04d}_ab.jpg#2" and shown.text == captions_of(TRAIN + VAL + 1)[2]
    assert shown.image.shape == (12, 16, 3) and round(shown.image[0, 0, 1] * 255) == TRAIN + VAL + 1
    assert shown.group == f"{TRAIN + VAL + 1:04d}_ab.jpg"


def test_long_captions_and_captions_of_unknown_words_are_not_trained_on(make, tmp_path, caplog):
    short = make(max_words=4)
    assert short.num_examples("train") == 3 * TRAIN and short.num_examples("val") == 5 * VAL
    assert "left out of training: 26 captions longer than 4 words, 0 of unknown words only" in caplog.text
    batches = list(short.train_dataloader())
    assert max(int(b.lengths.max()) for b in batches) == 6
    assert sorted(torch.cat([b.index for b in batches]).tolist()) == [i for i in range(5 * TRAIN) if i % 5 < 3]
    odd = write_flickr8k(tmp_path / "odd", 6, captions=lambda n: ["Quux ."] if n == 2 else ["a dog", "the dog"])
    for grouped in (False, True):
        module = CaptionDataModule(Flickr8k(str(odd)), str(tmp_path), min_count=2, batch_size=2, group_by_image=grouped)
        assert module.num_examples("train") == 10 and module.num_images("train") == 6
        seen = torch.cat([b.image_index for b in module.train_dataloader()])
        assert set(seen.tolist()) == {0, 1, 3, 4, 5}
        with pytest.raises(UserError, match="image 2 of split train has no caption that is trained on"):
            module.image_batch("train", [2])
    assert module.image_batch("train", [5, 3]).image_index.tolist() == [5, 3]


def test_unknown_splits_and_indices(make):
    module = make()
    for call in (module.num_examples, module.image_ids, lambda s: module.example_batch(s, [0])):
        with pytest.raises(UserError, match="unknown split 'dev': choose train, val, test"):
            call("dev")
    for wrong in (-1, 5 * VAL):
        for call in (module.preview, lambda s, i: module.example_batch(s, [0, i])):
            with pytest.raises(UserError, match=f"example {wrong} of split val: it has {5 * VAL}, counted from 0"):
                call("val", wrong)
    with pytest.raises(UserError, match=f"example {VAL} of split val: it has {VAL}"):
        module.references("val", [VAL])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, r"data\.batch_size=0: give 1 or more$"),
        ({"batch_size": 66}, r"data\.batch_size=66 .* is larger than the 65 training examples"),
        ({"eval_batch_size": 0}, r"data\.eval_batch_size=0"),
        ({"min_count": 0}, r"data\.min_count=0"),
        ({"min_count": 66}, r"data\.min_count=66: the most frequent training word occurs 65 times"),
        ({"max_words": 0}, r"data\.max_words=0: give 1 or more or null"),
        ({"max_words": 1}, r"data\.max_words=1: the shortest training caption has 2 words"),
        ({"length_window": 0}, r"data\.length_window=0"),
        ({"crop_size": 0}, r"data\.crop_size=0"),
        ({"crop_size": 11}, r"data\.resize_size=10 is smaller than data\.crop_size=11"),
        ({"seed": -1}, r"data\.seed=-1"),
    ],
)
def test_impossible_settings(make, options, message):
    with pytest.raises(UserError, match=message):
        make(**options).train_dataloader()
