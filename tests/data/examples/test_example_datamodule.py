"""Batches, splits and their choice: every example keeps its pixels, its label and its index."""

import pickle

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from idx_files import SIDE, idx, images, labels, write_idx

from quintet.common.errors import UserError
from quintet.data.batches import ExampleBatch
from quintet.data.examples.datamodule import ExampleDataModule
from quintet.data.examples.mnist import Mnist
from quintet.data.examples.source import Block, Content, Example, ExampleSource

TRAIN, VAL, TEST = 60, 10, 20  # files hold TRAIN + VAL training images


@pytest.fixture
def make(tmp_path):
    root = write_idx(tmp_path / "mnist", TRAIN + VAL, TEST)

    def module(val_size=VAL, **options):
        made = ExampleDataModule(Mnist(str(root), val_size), str(tmp_path / "cache"), **options)
        made.prepare_data()
        made.setup()
        return made

    return module


def pixels(part, rows):
    count = TRAIN + VAL if part == "train" else TEST
    return torch.from_numpy(images(part, count)[rows]).double()[:, None] / 255


def same(batch, other):
    return all(torch.equal(a, b) for a, b in zip(batch, other, strict=True))


def test_a_batch_has_pixels_between_0_and_1_labels_and_indices(make):
    module = make(batch_size=7)
    batch = next(iter(module.train_dataloader()))
    assert isinstance(batch, ExampleBatch) and batch.inputs.shape == (7, 1, SIDE, SIDE)
    assert (batch.inputs.dtype, batch.labels.dtype, batch.index.dtype) == (torch.float32, torch.int64, torch.int64)
    rows = batch.index.numpy() + VAL
    assert torch.allclose(batch.inputs.double(), pixels("train", rows), atol=1e-7)
    assert batch.labels.tolist() == labels(TRAIN + VAL)[rows].tolist()
    everything = module.arrays("train")[0]
    assert everything.min() == 0 and everything.max() == 1  # exactly, both are in the files
    assert module.data_info == {"input_shape": [1, SIDE, SIDE], "num_classes": 10, "classes": list("0123456789"),
                            "num_train": TRAIN}  # fmt: skip


def test_every_example_once_an_epoch_in_an_order_of_its_own(make):
    module = make(batch_size=7)
    order = torch.cat([batch.index for batch in module.train_dataloader()])
    assert order.sort().values.tolist() == list(range(TRAIN)) and order.tolist() != list(range(TRAIN))
    for loader, count in ((module.val_dataloader(), VAL), (module.test_dataloader(), TEST)):
        assert torch.cat([batch.index for batch in loader]).tolist() == list(range(count))
    assert [len(batch.labels) for batch in make(eval_batch_size=8).test_dataloader()] == [6, 7, 7]


def test_one_full_batch_that_is_not_copied(make):
    module = make()
    (first,), (second,) = list(module.train_dataloader()), list(module.train_dataloader())
    assert first.index.tolist() == list(range(TRAIN))
    assert first.inputs.data_ptr() == second.inputs.data_ptr() == module.arrays("train")[0].data_ptr()
    assert torch.allclose(first.inputs.double(), pixels("train", np.arange(VAL, VAL + TRAIN)), atol=1e-7)
    module.arrays("train")[1].fill_(9)  # a flip of labels stays with whoever flips them
    assert torch.equal(module.arrays("train")[1], first.labels) and len(first.labels.unique()) == 10


def test_workers_give_the_same_batches_and_get_no_pixels(make):
    one, other = make(batch_size=16), make(batch_size=16, num_workers=1)
    assert all(same(a, b) for a, b in zip(one.train_dataloader(), other.train_dataloader(), strict=True))
    dataset = make().examples("train")
    whole = dataset.whole
    copied = pickle.dumps(dataset)
    assert len(copied) < 3000 and same(pickle.loads(copied).whole, whole)


def test_examples_by_index_in_the_order_asked_for(make, monkeypatch):
    monkeypatch.setattr("quintet.data.examples.mnist.BLOCK", 16)  # rows of several record batches
    module = make()
    for wanted in ([3], [59, 0, 17, 17, 16], list(range(TRAIN)), list(range(TRAIN))[::-1]):
        batch = module.example_batch("train", wanted)
        rows = np.array(wanted) + VAL
        assert batch.index.tolist() == wanted and batch.labels.tolist() == labels(TRAIN + VAL)[rows].tolist()
        assert torch.allclose(batch.inputs.double(), pixels("train", rows), atol=1e-7)
    assert module.num_examples("test") == TEST and len(module.example_batch("test", []).labels) == 0
    for wrong in (-1, TRAIN):
        for call in (module.example_batch, module.images):
            with pytest.raises(UserError, match=f"example {wrong} of split train: it has {TRAIN}, counted from 0"):
                call("train", [0, wrong])
    with pytest.raises(UserError, match="example 20 of split test"):
        module.preview("test", 20)
    with pytest.raises(UserError, match="unknown split 'dev': choose train, val, test"):
        module.num_examples("dev")


def test_flat_inputs_still_show_a_picture(make):
    module = make(flatten=True)
    assert module.data_info["input_shape"] == [SIDE * SIDE]
    assert torch.equal(module.arrays("test")[0], make().arrays("test")[0].flatten(1))
    shown = module.preview("test", 3)
    assert shown.image.shape == (SIDE, SIDE) and shown.title == shown.label == str(labels(TEST)[3])
    assert np.allclose(shown.image, images("t10k", TEST)[3] / 255, atol=1e-7)
    assert torch.allclose(module.images("val", [1]).double(), pixels("train", [1]).expand(-1, 3, -1, -1), atol=1e-7)


def test_some_classes_relabelled_in_the_order_given(make):
    for wanted, names in (([1, 7], ["1", "7"]), (["7", "1", "0"], ["7", "1", "0"])):
        module = make(classes=wanted)
        assert module.data_info["classes"] == names and module.data_info["num_classes"] == len(names)
        for split, digits in (("train", labels(TRAIN + VAL)[VAL:]), ("val", labels(VAL)), ("test", labels(TEST))):
            kept = np.flatnonzero(np.isin(digits, [int(name) for name in names]))
            inputs, new = module.arrays(split)
            assert [names[label] for label in new] == [str(d) for d in digits[kept]]
            part, first = ("t10k", 0) if split == "test" else ("train", VAL if split == "train" else 0)
            assert torch.allclose(inputs.double(), pixels(part, kept + first), atol=1e-7)
        assert module.preview("train", 0).label == names[module.arrays("train")[1][0]]


def test_fewer_training_examples_are_the_first_of_numpys_legacy_permutation(make):
    module = make(max_train=6, seed=3)
    order = np.arange(TRAIN)
    np.random.seed(3)  # as the authors' load_small_mnist
    np.random.shuffle(order)
    chosen = np.sort(order[:6])
    assert torch.allclose(module.arrays("train")[0].double(), pixels("train", chosen + VAL), atol=1e-7)
    assert module.data_info["num_train"] == 6 and module.num_examples("test") == TEST
    assert not torch.equal(make(max_train=6, seed=4).arrays("train")[0], module.arrays("train")[0])


def test_a_part_of_training_is_held_out_where_there_is_no_validation(make):
    module = make(val_size=0, val_fraction=0.3)
    inputs = torch.cat([module.arrays("train")[0], module.arrays("val")[0]])
    assert (module.num_examples("train"), module.num_examples("val")) == (49, 21)
    whole = pixels("train", np.arange(TRAIN + VAL)).flatten(1)
    assert (torch.cdist(whole, inputs.flatten(1).double()) < 1e-5).sum(0).tolist() == [1] * (TRAIN + VAL)
    again = make(val_size=0, val_fraction=0.3, batch_size=5)
    assert torch.equal(again.arrays("val")[0], module.arrays("val")[0])
    assert not torch.equal(make(val_size=0, val_fraction=0.3, seed=1).arrays("val")[0], module.arrays("val")[0])
    assert torch.equal(module.images("val", [4])[:, :1], module.arrays("val")[0][4:5])
    assert np.array_equal(module.preview("val", 4).image, module.arrays("val")[0][4, 0])
    assert make(val_size=0).val_dataloader() == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": [1, 10]}, r"data\.classes: there is no class '10', only 0, 1, 2"),
        ({"classes": [1]}, r"data\.classes=\[1\]: give two or more different ones of 0, 1"),
        ({"classes": [1, "1"]}, r"give two or more different ones"),
        ({"max_train": 61}, r"data\.max_train=61: there are 60 training examples"),
        ({"max_train": 0}, r"data\.max_train=0: give 1 or more or null"),
        ({"max_train": 1}, r"training split of MNIST has one class only"),
        ({"batch_size": 61}, r"data\.batch_size=61: there are 60 training examples; null takes all"),
        ({"batch_size": 0}, r"data\.batch_size=0"),
        ({"eval_batch_size": 0}, r"data\.eval_batch_size=0: give 1 or more$"),
        ({"val_fraction": 0.1}, r"data\.val_fraction=0\.1: MNIST has a validation part, give 0"),
        ({"val_size": 0, "val_fraction": 0.001}, r"data\.val_fraction=0\.001 holds out none of 70"),
        ({"val_fraction": 1.0}, r"data\.val_fraction=1\.0: give 0 to less than 1"),
        ({"seed": -1}, r"data\.seed=-1"),
    ],
)
def test_impossible_settings_are_user_errors(make, options, message):
    with pytest.raises(UserError, match=message):
        make(**options)


def test_one_class_or_no_test_examples_are_refused(tmp_path):
    root = write_idx(tmp_path / "mnist", 12, 4)
    (root / "train-labels-idx1-ubyte.gz").unlink()
    (root / "train-labels-idx1-ubyte").write_bytes(idx(2049, np.full(12, 5, np.uint8)))
    with pytest.raises(UserError, match="training split of MNIST has one class only"):
        ExampleDataModule(Mnist(str(root), 2), str(tmp_path)).setup()
    root = write_idx(tmp_path / "empty", 12, 0)
    with pytest.raises(UserError, match=r"the test split of MNIST is empty: see data\.root"):
        ExampleDataModule(Mnist(str(root), 2), str(tmp_path)).setup()


class Table(ExampleSource):
    """Six rows of two columns in two blocks."""

    name = "a table"
    texts = None

    def fingerprint(self, cache_dir):
        return [self.texts]

    def read(self, cache_dir):
        rows = np.array([[0, 1.5], [2, 0], [3, 4], [5, 6], [7, 8], [9, 10]], np.float32)
        blocks = [Block(rows[:2], np.array([0, 1]), ["a", "b"], self.texts),
                  Block(rows[2:], np.array([1, 0, 1, 0]), list("cdef"))]  # fmt: skip
        parts = {"train": blocks, "test": blocks[:1]}
        return Content((2,), ["no", "yes"], parts, feature_names=["age", "dose"], notes={"unit": "mg"})


def test_a_table_shows_its_columns_and_a_text_its_words(tmp_path):
    module = ExampleDataModule(Table("x"), str(tmp_path))
    module.setup()
    assert module.feature_names == ["age", "dose"] and module.source.notes == {"unit": "mg"}
    shown = module.preview("train", 0)
    assert (shown.title, shown.label, shown.table, shown.image) == ("a", "no", {"dose": "1.5"}, None)
    with pytest.raises(UserError, match="a table has no images but 2 columns"):
        module.images("train", [0])
    with pytest.raises(UserError, match=r"data\.features needs images: a table has the shape \(2,\), set null"):
        from quintet.data.examples.features import FrozenBackbone

        ExampleDataModule(Table("x"), str(tmp_path), features=FrozenBackbone()).setup()
    worded = Table("x")
    worded.texts = ["hello", "there"]
    module = ExampleDataModule(worded, str(tmp_path))
    module.setup()
    shown = module.preview("test", 1)
    assert (shown.title, shown.text, shown.table) == ("b", "there", None)


def test_a_colour_picture_is_shown_height_width_colour():
    source = Table("x")
    source.input_shape, source.feature_names = (3, 2, 4), None
    planes = np.arange(24, dtype=np.float32).reshape(3, 2, 4) / 24
    shown = source.preview(Example(planes, "yes", "dog/1.JPEG", None))
    assert shown.title == "dog/1.JPEG" and shown.image.shape == (2, 4, 3)
    assert np.array_equal(shown.image[1, 3], planes[:, 1, 3])


def test_a_source_that_miscounts_its_columns_is_told(tmp_path):
    class Wrong(Table):
        def read(self, cache_dir):
            content = super().read(cache_dir)
            content.feature_names = ["age"]
            return content

    with pytest.raises(UserError, match="1 feature names for 2 columns"):
        Wrong("x").splits(tmp_path)


class Recorder(pl.LightningModule):
    """Notes which examples it sees."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen = []

    def training_step(self, batch, batch_idx):
        self.seen.append(batch.index.tolist())
        return self.weight.sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(module, folder, steps, ckpt=None):
    recorder = Recorder()
    trainer = pl.Trainer(max_steps=steps, max_epochs=-1, accelerator="cpu", default_root_dir=folder, logger=False,
                         enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
                         use_distributed_sampler=False, limit_val_batches=0, num_sanity_val_steps=0)  # fmt: skip
    trainer.fit(recorder, datamodule=module, ckpt_path=ckpt)
    return recorder.seen, trainer


@pytest.mark.parametrize("batch_size", [25, None])
def test_a_stopped_run_continues_with_the_remaining_batches(make, tmp_path, batch_size):
    whole, _ = fit(make(batch_size=batch_size), tmp_path, 7)
    first, trainer = fit(make(batch_size=batch_size), tmp_path, 4)
    trainer.save_checkpoint(tmp_path / "middle.ckpt")
    rest, _ = fit(make(batch_size=batch_size), tmp_path, 7, tmp_path / "middle.ckpt")
    assert first + rest == whole and len(rest) == 3
    assert (whole[0] == whole[3]) == (batch_size is None)


def test_a_full_batch_is_of_one_device(make):
    module = make()
    module.trainer = type("Trainer", (), {"world_size": 2, "global_rank": 0})()
    with pytest.raises(UserError, match=r"data\.batch_size=null is one full batch on one device"):
        module.train_dataloader()
