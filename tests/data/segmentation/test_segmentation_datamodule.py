"""Batches, their order and their augmentation; resuming; what the protocols ask for; impossible settings."""

import pickle
import re

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from devkit import labels_of, write_lines, write_palette, write_picture, write_voc

from quintet.common.errors import UserError
from quintet.data.batches import SegmentationBatch
from quintet.data.segmentation.datamodule import IMAGENET_MEAN, SegmentationDataModule
from quintet.data.segmentation.folder import SegmentationFolder
from quintet.data.segmentation.voc import VOC
from quintet.harness.messages import user_message

TRAIN, VAL, H, W = 5, 3, 20, 30
SMALL = {"batch_size": 2, "crop_size": 17, "eval_size": 33, "eval_batch_size": 2, "seed": 4}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("voc")
    write_voc(folder, TRAIN, VAL)
    return folder


@pytest.fixture
def make(root, tmp_path):
    def module(**options):
        made = SegmentationDataModule(VOC(str(options.pop("root", root))), str(tmp_path / "cache"), **SMALL | options)
        made.prepare_data()
        made.setup()
        return made

    return module


def same(batch, other):
    return all(torch.equal(a, b) for a, b in zip(batch, other, strict=True))


def epoch_of(module):
    return list(module.train_dataloader())


def test_a_training_batch(make):
    batches = epoch_of(make())
    batch = batches[0]
    assert isinstance(batch, SegmentationBatch) and [len(b.index) for b in batches] == [2, 2, 1]
    assert batch.images.shape == (2, 3, 17, 17) and batch.labels.shape == (2, 17, 17)
    assert (batch.images.dtype, batch.labels.dtype, batch.index.dtype) == (torch.float32, torch.int64, torch.int64)
    assert batch.sizes.tolist() == [[17, 17]] * 2
    order = torch.cat([b.index for b in batches]).tolist()
    assert sorted(order) == list(range(TRAIN)) and order != list(range(TRAIN))
    for images, labels in zip(batch.images, batch.labels, strict=True):
        ground = labels == 0  # a JPEG's colours are about right: 255 green, no red
        assert ground.any() and images[1][ground].mean() > 0.8 > 0.3 > images[0][ground].mean()


def test_images_smaller_than_the_window_are_padded(make):
    batch = epoch_of(make(crop_size=41, mirror=False))[0]
    assert batch.sizes.tolist() == [[H, W]] * 2
    assert torch.equal(batch.images[:, :, H:], torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1).expand(2, 3, 41 - H, 41))
    for index, labels in zip(batch.index, batch.labels, strict=True):
        assert np.array_equal(labels[:H, :W], labels_of(int(index))) and (labels[:, W:] == 255).all()


def test_whole_images_are_evaluated(make):
    module = make()
    for loader, first in ((module.val_dataloader(), TRAIN), (module.test_dataloader(), TRAIN)):
        batches = list(loader)
        assert torch.cat([b.index for b in batches]).tolist() == list(range(VAL))
        assert [tuple(b.images.shape) for b in batches] == [(1, 3, 33, 33), (2, 3, 33, 33)]
        assert np.array_equal(batches[1].labels[1, :H, :W], labels_of(first + 2))
        assert batches[1].sizes.tolist() == [[H, W]] * 2
    own = list(make(eval_size=None, eval_batch_size=1).test_dataloader())
    assert [tuple(b.images.shape) for b in own] == [(1, 3, 25, 33)] * VAL


def test_each_epoch_has_views_of_its_own_and_workers_make_the_same(make):
    scaled = {"scales": [0.5, 1, 1.5], "crop_size": 33}
    module, busy = make(**scaled), make(**scaled, num_workers=2)
    epochs = {}
    for epoch in (0, 1):
        module.position = busy.position = lambda epoch=epoch: (epoch, 0)
        epochs[epoch] = epoch_of(module)
        assert all(same(a, b) for a, b in zip(epochs[epoch], epoch_of(busy), strict=True))
    views = [{int(i): x for b in epochs[e] for i, x in zip(b.index, b.images, strict=True)} for e in (0, 1)]
    assert not any(torch.equal(views[0][i], views[1][i]) for i in range(TRAIN))
    module.position = lambda: (1, 1)
    assert all(same(a, b) for a, b in zip(epoch_of(module), epochs[1][1:], strict=True))


class Recorder(pl.LightningModule):
    """Keeps the batches that it sees."""

    def __init__(self):
        super().__init__()
        self.layer, self.seen = torch.nn.Linear(1, 1), []

    def training_step(self, batch, batch_idx):
        self.seen.append(batch)
        return self.layer(batch.images.mean().view(1, 1)).mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.mark.filterwarnings("error:.*dataloader is not resumable.*")
@pytest.mark.parametrize("workers", [0, 1])
def test_a_resumed_run_sees_the_very_views_that_were_left(make, tmp_path, workers):
    def fit(steps, resume=None, workers=0):
        module = Recorder()
        trainer = pl.Trainer(
            max_steps=steps, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
            use_distributed_sampler=False, enable_checkpointing=False, default_root_dir=tmp_path,
        )  # fmt: skip
        data = make(scales=[0.5, 1, 1.5], num_workers=workers)
        trainer.fit(module, data, ckpt_path=resume, weights_only=True if resume else None)
        trainer.save_checkpoint(tmp_path / f"{steps}.ckpt")
        return module.seen

    whole = fit(8)
    assert len(fit(4)) == 4  # in the middle of the second epoch of three batches
    rest = fit(8, tmp_path / "4.ckpt", workers)
    assert len(rest) == 4 and all(same(a, b) for a, b in zip(rest, whole[4:], strict=True))


def test_two_ranks_share_an_epoch(make):
    """Four batches' worth: both take three of one image, and together they see all."""
    seen = []
    for rank in (0, 1):
        module = make(batch_size=1)
        module.trainer = type("Trainer", (), {"global_rank": rank, "world_size": 2})()
        module.position = lambda: (0, 0)
        seen.append([int(b.index) for b in module.train_dataloader()])
    assert len(seen[0]) == len(seen[1]) == 3 and set(seen[0] + seen[1]) == set(range(TRAIN))


def test_classes_that_no_training_mask_shows_are_told(tmp_path, caplog):
    folder = tmp_path / "own"
    for part in ("train", "test"):
        for name in ("a", "b"):
            write_picture(folder / "images" / part / f"{name}.png", np.zeros((9, 9, 3), np.uint8))
            white = np.zeros((9, 9), np.uint8)
            white[3:6, 3:6] = 255
            write_picture(folder / "masks" / part / f"{name}.png", white)
    options = {"batch_size": 1, "crop_size": 9, "eval_size": 9}
    for colours, told in ((None, True), ([[0, 0, 0], [255, 255, 255]], False)):
        caplog.clear()
        source = SegmentationFolder(str(folder), ["ground", "thing"], colours=colours)
        SegmentationDataModule(source, str(tmp_path / "cache"), **options).setup()
        warned = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
        assert [f"{folder}: no training mask shows thing (255 in a mask" in text for text in warned] == [True] * told


def test_fewer_training_images(make):
    module = make(max_train=3)
    order = np.random.RandomState(4).permutation(TRAIN)[:3]
    names = [module.raw("train", i)[2] for i in range(3)]
    assert module.num_examples("train") == 3 and names == [f"2012_{n:06d}" for n in sorted(order)]
    assert module.num_examples("test") == VAL


def test_an_example_is_the_same_in_any_company(make, tmp_path):
    folder = write_voc(tmp_path / "odd", TRAIN, VAL)
    names = [f"2012_{n:06d}" for n in range(TRAIN + VAL)]
    write_picture(folder / "JPEGImages" / f"{names[-1]}.jpg", np.zeros((9, 41, 3), np.uint8))
    write_palette(folder / "SegmentationClass" / f"{names[-1]}.png", np.zeros((9, 41), np.uint8))
    for options in ({"eval_size": 41}, {"eval_size": None, "eval_batch_size": 1}):
        module = make(root=tmp_path / "odd", **options)
        together = module.example_batch("test", [2, 0, 0])
        assert together.index.tolist() == [2, 0, 0] and together.sizes.tolist() == [[9, 41], [H, W], [H, W]]
        assert together.images.shape[2:] == ((41, 41) if options["eval_size"] else (25, 41))
        for place, index in enumerate((2, 0, 0)):
            alone = module.example_batch("test", [index])
            assert all(torch.equal(a[0], b[place]) for a, b in zip(alone, together, strict=True))
    train = module.example_batch("train", range(TRAIN))  # never cut, never mirrored
    assert [np.array_equal(x[:H, :W], labels_of(i)) for i, x in enumerate(train.labels)] == [True] * TRAIN


def test_raw_files_and_exhibits(make):
    module = make()
    image, labels, name = module.raw("train", 1)
    assert image.shape == (H, W, 3) and image.dtype == labels.dtype == np.uint8 and name == "2012_000001"
    assert np.array_equal(labels, labels_of(1))
    shown = module.preview("train", 1)
    assert shown.title == name and shown.image.shape == (H, W, 3) and 0 <= shown.image.min() <= shown.image.max() <= 1
    counts = [int((labels_of(1) == c).sum()) for c in range(4)]
    names = module.data_info["classes"]
    assert shown.label == names[1 + int(np.argmax(counts[1:]))] and shown.text == ", ".join(names[:4])
    ground, other = labels == 0, labels == 1
    assert np.allclose(shown.image[ground], image[ground] / 255)
    assert np.allclose(shown.image[other], (image[other] / 255 + np.array([128, 0, 0]) / 255) / 2)
    assert module.data_info["num_classes"] == 21 and module.data_info["classes"][:2] == ["background", "aeroplane"]


def test_images_without_public_labels(make, tmp_path):
    folder = write_voc(tmp_path / "server", TRAIN, VAL)
    write_picture(folder / "JPEGImages" / "2008_000006.jpg", np.zeros((H, W, 3), np.uint8))
    write_lines(folder / "ImageSets" / "Segmentation" / "test.txt", ["2008_000006"])
    source = VOC(str(tmp_path / "server"), test="test")
    module = SegmentationDataModule(source, str(tmp_path / "cache"), **SMALL)
    module.setup()
    assert module.raw("test", 0)[1:] == (None, "2008_000006")
    assert (next(iter(module.test_dataloader())).labels == 255).all() and module.preview("test", 0).label is None
    with pytest.raises(UserError, match=r"test\.txt names 2008_000006, but mask .*2008_000006\.png is missing"):
        VOC(str(tmp_path / "server"), val="test").splits(tmp_path / "cache")


def test_a_file_that_breaks_during_training_is_one_line_from_a_worker_too(make, tmp_path):
    folder = write_voc(tmp_path / "broken", TRAIN, VAL)
    module = make(root=tmp_path / "broken", num_workers=1)
    path = folder / "JPEGImages" / "2012_000001.jpg"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError) as caught:
        epoch_of(module)
    told = user_message(caught.value)
    assert re.fullmatch(r"corrupt image .*2012_000001\.jpg: .*; replace it, or take it out of the list", told)


def test_workers_get_no_pictures(make):
    dataset = make().train_dataloader().dataset
    data = pickle.dumps(dataset)
    assert same(pickle.loads(data)[TRAIN + 1], dataset[TRAIN + 1]) and len(data) < 20_000


def test_unknown_splits_and_indices(make):
    module = make()
    for call in (module.num_examples, lambda s: module.raw(s, 0), lambda s: module.example_batch(s, [0])):
        with pytest.raises(UserError, match="unknown split 'dev': choose train, val, test"):
            call("dev")
    for wrong in (-1, VAL):
        for call in (module.raw, module.preview, lambda s, i: module.example_batch(s, [0, i])):
            with pytest.raises(UserError, match=f"example {wrong} of split test: it has {VAL}, counted from 0"):
                call("test", wrong)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop_size": 320}, r"data\.crop_size=320: give 8k \+ 1 pixels, such as 321"),
        ({"crop_size": 0}, r"data\.crop_size=0"),
        ({"eval_size": 512}, r"data\.eval_size=512: .*such as 513"),
        ({"eval_size": 25}, r"data\.eval_size=25: val has images as large as 20 x 30; give 33 or more, or null"),
        ({"eval_size": None}, r"data\.eval_batch_size=2: images of their own size come one by one"),
        ({"eval_batch_size": 0}, r"data\.eval_batch_size=0: give 1 or more$"),
        ({"batch_size": 6}, r"data\.batch_size=6: there are 5 training images"),
        ({"batch_size": 0}, r"data\.batch_size=0"),
        ({"max_train": 6}, r"data\.max_train=6: there are 5 training images"),
        ({"max_train": 0}, r"data\.max_train=0: give 1 or more or null"),
        ({"scales": [1, 0]}, r"data\.scales=\[1, 0\]: give factors above 0, or null"),
        ({"scales": [float("nan")]}, r"data\.scales=\[nan\]"),
        ({"pad_colour": [124, 116, 104]}, r"data\.pad_colour=\[124, 116, 104\]: give red, green and blue, each 0 to 1"),
        ({"pad_colour": [0.5]}, r"data\.pad_colour=\[0\.5\]"),
        ({"tile_size": 512}, r"data\.tile_size=512"),
        ({"tile_size": 17, "tile_overlap": 17}, r"data\.tile_overlap=17: give 0 to less than tile_size=17"),
        ({"tile_overlap": 5}, r"data\.tile_overlap=5: give 0 to less than tile_size=None"),
        ({"seed": -1}, r"data\.seed=-1"),
    ],
)  # fmt: skip
def test_impossible_settings(make, options, message):
    with pytest.raises(UserError, match=message):
        make(**options)
