"""MNIST's idx files: what is read from them, and what each kind of broken file is answered with."""

import gzip

import numpy as np
import pytest
from idx_files import SIDE, idx, images, labels, write_idx

from quintet.common.errors import UserError
from quintet.data.examples.mnist import Mnist

IMAGES, LABELS = "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"


@pytest.fixture
def root(tmp_path):
    return write_idx(tmp_path / "mnist")


def read(root, cache, **options):
    source = Mnist(str(root), **({"val_size": 5} | options))
    return source, source.splits(cache)


def test_the_first_images_are_the_validation_part_and_all_keep_their_pixels(root, tmp_path):
    source, splits = read(root, tmp_path / "cache")
    assert {name: len(split) for name, split in splits.items()} == {"train": 25, "val": 5, "test": 12}
    pixels, digits = images("train", 30).reshape(30, -1), labels(30)
    for split, rows in (("val", slice(0, 5)), ("train", slice(5, 30))):
        assert np.array_equal(splits[split].with_format("numpy")["inputs"][:], pixels[rows])
        assert list(splits[split]["label"]) == digits[rows].tolist()
    assert np.array_equal(splits["test"].with_format("numpy")["inputs"][:], images("t10k", 12).reshape(12, -1))
    assert splits["train"][0]["name"] == "train/00005" and splits["test"][0]["name"] == "test/00000"
    assert splits["train"].features["label"].names == list("0123456789")
    assert source.input_shape == (1, SIDE, SIDE) and source.scale == 1 / 255 and source.feature_names is None


def test_many_blocks_are_one_split(tmp_path, monkeypatch):
    monkeypatch.setattr("quintet.data.examples.mnist.BLOCK", 7)
    _, splits = read(write_idx(tmp_path / "mnist"), tmp_path / "cache")
    assert splits["train"].data.column("inputs").num_chunks == 4
    assert np.array_equal(splits["train"].with_format("numpy")["inputs"][:], images("train", 30).reshape(30, -1)[5:])


def test_packed_unpacked_and_torchvisions_folder_read_the_same(root, tmp_path):
    contents = {read(root, tmp_path / "cache")[0].content}
    write_idx(tmp_path / "plain", packed=False)
    write_idx(tmp_path / "dots", packed=False, dot=True)
    write_idx(tmp_path / "vision" / "MNIST" / "raw")
    for name in ("plain", "dots", "vision"):
        _, splits = read(tmp_path / name, tmp_path / "cache" / name)
        assert np.array_equal(splits["val"].with_format("numpy")["inputs"][:], images("train", 30).reshape(30, -1)[:5])
        contents.add(read(tmp_path / name, tmp_path / "cache" / name)[0].content)
    assert len(contents) == 2, "the key is of the bytes: packed or not, wherever they lie"


def test_read_once_and_again_when_a_file_or_an_option_changes(root, tmp_path):
    cache = tmp_path / "cache"
    first, _ = read(root, cache)
    stamp = (first.folder / "train.arrow").stat().st_mtime_ns
    again, _ = read(root, cache)
    assert again.folder == first.folder and (again.folder / "train.arrow").stat().st_mtime_ns == stamp
    assert read(root, cache, val_size=6)[0].folder != first.folder
    (root / LABELS).write_bytes(gzip.compress(idx(2049, labels(30)[::-1])))
    _, changed = read(root, cache)
    assert list(changed["val"]["label"]) == labels(30)[::-1][:5].tolist()


def damage(root, name, change):
    path = root / name
    path.write_bytes(change(path.read_bytes()))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (IMAGES, lambda data: data[: len(data) // 2], r"cannot unpack .*train-images.*download it again"),
        (IMAGES, lambda data: data[:-2], r"cannot unpack .*train-images.*download it again"),
        (IMAGES, lambda data: b"<html>", r"cannot unpack .*train-images.*Not a gzipped file.*download it again"),
        (IMAGES, lambda data: gzip.compress(idx(2049, labels(30))), r"train-images\S* is not an idx file of images"),
        (
            LABELS,
            lambda data: gzip.compress(idx(2051, images("train", 30))),
            r"train-labels\S* is not an idx .*labels",
        ),
        (LABELS, lambda data: gzip.compress(b"\0\0\x08"), r"train-labels\S* is not an idx file of labels"),
        (LABELS, lambda data: b"", r"train-labels\S* is not an idx file of labels"),
        (
            IMAGES,
            lambda data: gzip.compress(gzip.decompress(data)[:-1]),
            r"train-images\S* holds 479 bytes .* promises 30 x 4 x 4 = 480; download it again",
        ),
        (IMAGES, lambda data: gzip.compress(gzip.decompress(data) + b"!"), r"train-images\S* holds 481 bytes"),
        (LABELS, lambda data: gzip.compress(idx(2049, labels(29))), r"has 30 images, .*train-labels\S* 29 labels"),
        (
            LABELS,
            lambda data: gzip.compress(idx(2049, np.r_[labels(29), np.uint8(10)])),
            r"train-labels\S* label 10 at row 29 is not a digit 0\.\.9",
        ),
        (
            IMAGES,
            lambda data: gzip.compress(idx(2051, np.zeros((30, 5, 5), np.uint8))),
            r"train-images\S* has images of 5 x 5, .*t10k-images\S* of 4 x 4",
        ),
    ],
)
def test_broken_files_are_named_in_one_line(root, tmp_path, name, change, message):
    damage(root, name, change)
    with pytest.raises(UserError, match=message) as error:
        read(root, tmp_path / "cache")
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "cache").glob("examples/*/*.arrow")), "a failed build must leave nothing behind"


def test_missing_files_and_folders(root, tmp_path):
    (root / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(UserError, match=r"t10k-labels-idx1-ubyte\.gz is missing: .*data\.root="):
        read(root, tmp_path)
    with pytest.raises(UserError, match=r"no MNIST at data\.root=/nowhere: put train-images.*data=digits_sample"):
        read("/nowhere", tmp_path)


@pytest.mark.parametrize("val_size", [-1, 30])
def test_validation_has_to_leave_some_for_training(root, tmp_path, val_size):
    with pytest.raises(UserError, match=rf"data\.source\.val_size={val_size}: give 0 to 29 of the 30 images"):
        read(root, tmp_path, val_size=val_size)
