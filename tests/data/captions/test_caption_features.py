"""Cached features of the frozen encoder: equal to its own, computed once, served in place of images."""

import pickle
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from caption_files import captions_of, write_flickr8k, write_image, write_lines

from quintet.backbones.encoder import Encoder, EncoderConfig
from quintet.common.errors import UserError
from quintet.data.captions import features
from quintet.data.captions.datamodule import CaptionDataModule
from quintet.data.captions.flickr8k import Flickr8k

ENCODER = {"name": "resnet18", "weights": None, "image_size": 32}
SMALL = {"batch_size": 6, "min_count": 1, "resize_size": 10, "crop_size": 8, "eval_batch_size": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("features")
    write_flickr8k(folder / "flickr8k", 6, 2, 2)
    return folder


@pytest.fixture
def calls(monkeypatch):
    """The splits whose features would be computed."""
    made = []

    def write(folder, config, table, *_):
        made.append(table.split)
        np.save(folder / "features.npy", np.zeros((table.num_images, 4), np.float32))

    monkeypatch.setattr(features, "_write", write)
    return made


def module_on(root, cache, encoder=ENCODER, **options):
    made = CaptionDataModule(Flickr8k(str(root)), str(cache), features=encoder, **SMALL | options)
    made.setup()
    return made


def test_features_are_the_encoders_of_the_evaluated_images(folder):
    module = module_on(folder / "flickr8k", folder / "cache", EncoderConfig(**ENCODER))
    encoder = Encoder(module.encoder)
    for batch in [*module.train_dataloader(), *module.val_dataloader(), *module.test_dataloader()]:
        assert batch.images is None and batch.features.shape == (len(batch.image_index), 512)
    batch = module.example_batch("train", [29, 3, 4])
    with torch.no_grad():
        expected = encoder(module.images("train", batch.image_index.tolist()))
    assert batch.image_index.tolist() == [5, 0] and torch.allclose(batch.features, expected, atol=1e-5)
    assert (batch.features[0] - batch.features[1]).abs().max() > 1e-3


def test_served_from_the_next_pass_on(folder):
    module = module_on(folder / "flickr8k", folder / "cache", num_workers=1)
    train, val = module.train_dataloader(), module.val_dataloader()
    first = [list(loader) for loader in (train, val)]
    module.serve("images")
    later = [list(loader) for loader in (train, val)]
    for before, after in zip([*first[0], *first[1]], [*later[0], *later[1]], strict=True):
        assert before.images is None and after.features is None and after.images.shape[1:] == (3, 8, 8)
        assert all(torch.equal(a, b) for a, b in zip(before[2:], after[2:], strict=True)), "the same captions"
    assert module.test_dataloader().dataset.served == "images", "also of a loader that is made later"
    module.serve("features")
    assert next(iter(val)).features is not None


def counted(batches):
    """Lightning's count of the batches that a training has done."""
    total = SimpleNamespace(processed=batches)
    return SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=SimpleNamespace(total=total)))


def test_what_is_served_survives_a_checkpoint(folder):
    module = module_on(folder / "flickr8k", folder / "cache")
    module.trainer = SimpleNamespace(num_training_batches=5, fit_loop=counted(7))
    module.serve("images")
    other = module_on(folder / "flickr8k", folder / "cache")
    other.load_state_dict(module.state_dict())
    assert other.served == "images" and other.dataset("train").served == "images"


def test_without_features_there_are_none_to_serve(folder):
    module = module_on(folder / "flickr8k", folder / "cache", None)
    assert module.served == "images"
    with pytest.raises(UserError, match=r"no cached features to serve: set data\.features"):
        module.serve("features")
    with pytest.raises(UserError, match=r"serve\('pictures'\): choose images or features"):
        module.serve("pictures")


def test_computed_once_for_these_weights_this_view_and_these_files(tmp_path, calls):
    root, cache = write_flickr8k(tmp_path / "flickr8k", 4, 2, 2), tmp_path / "cache"
    module_on(root, cache)
    assert calls == ["train", "val", "test"]
    moved = shutil.copytree(root, tmp_path / "moved")
    lines = (moved / "Flickr8k.token.txt").read_text().replace("garden", "park")
    (moved / "Flickr8k.token.txt").write_text(lines)
    for options in ({}, {"batch_size": 2}, {"mirror": False, "colour_jitter": False, "seed": 3}, {"min_count": 2}):
        module_on(moved, cache, **options)
    assert len(calls) == 3, "neither the place, the captions nor the augmentation matters"
    write_image(root / "Flicker8k_Dataset" / "0005_ab.jpg", 77)
    module_on(root, cache)
    assert calls[3:] == ["val"], "one image of val is another"
    for change in ({"resize_size": 11}, {"crop_size": 7}, {"keep_aspect": True}):
        module_on(moved, cache, **change)
    assert len(calls) == 4 + 9
    torch.save(Encoder(EncoderConfig(**ENCODER)).body.state_dict(), tmp_path / "w.pth")
    module_on(moved, cache, ENCODER | {"image_size": 33})
    module_on(moved, cache, ENCODER | {"name": "resnet34"})
    assert len(calls) == 13 + 6


def test_the_array_is_mapped_and_neither_it_nor_the_images_go_to_workers(folder):
    dataset = module_on(folder / "flickr8k", folder / "cache").train_dataloader().dataset
    assert isinstance(dataset.features._array, np.memmap)
    sent = pickle.dumps(dataset)
    assert len(sent) < 20_000
    batch, again = dataset.__getitems__([3, 4]), pickle.loads(sent).__getitems__([3, 4])
    assert all(torch.equal(a, b) for a, b in zip(batch[1:], again[1:], strict=True))


def test_the_trainings_random_numbers_are_left_alone(tmp_path):
    root = write_flickr8k(tmp_path / "flickr8k", 6, 2, 2)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    module = module_on(root, tmp_path / "cache")
    list(module.train_dataloader()), list(module.val_dataloader())
    assert torch.equal(torch.get_rng_state(), before)


def test_a_skipped_image_has_no_row(tmp_path):
    root = write_flickr8k(tmp_path / "flickr8k", 6, 2, 2)
    (root / "Flicker8k_Dataset" / "0002_ab.jpg").write_bytes(b"broken")
    module = CaptionDataModule(Flickr8k(str(root), "skip"), str(tmp_path), features=ENCODER, **SMALL)
    batch = module.image_batch("train", range(5))
    with torch.no_grad():
        expected = Encoder(module.encoder)(module.images("train", range(5)))
    assert torch.allclose(batch.features, expected, atol=1e-5)
    assert module.references("train", [2]) == [captions_of(3)]


def test_an_encoder_that_there_is_not(folder):
    with pytest.raises(UserError, match=r"model\.encoder\.name=vgg"):
        module_on(folder / "flickr8k", folder / "cache", {"name": "vgg"})
    write_lines(folder / "weights.pth", ["no weights"])
    with pytest.raises(UserError, match=r"model\.encoder\.weights=\S+ cannot be read"):
        module_on(folder / "flickr8k", folder / "cache", ENCODER | {"weights": str(folder / "weights.pth")})
