"""Folders of pictures: every colour mode, sizes, layouts, and what each mistake is answered with."""

import io
import shutil

import numpy as np
import pytest
from PIL import Image

from quintet.common.errors import UserError
from quintet.data.examples import image_folder
from quintet.data.examples.image_folder import ImageFolder
from quintet.data.examples.pictures import read_picture


def encoded(array, kind="PNG", mode=None, **options):
    file = io.BytesIO()
    Image.fromarray(array, mode).save(file, kind, **options)
    return file.getvalue()


def pixel(data, size=4):
    """The one colour of a picture of one colour."""
    picture = read_picture(data, "here", size)
    assert picture.shape == (3, size, size) and picture.dtype == np.uint8
    assert (picture == picture[:, :1, :1]).all()
    return picture[:, 0, 0].tolist()


def full(colour, dtype=np.uint8, side=4):
    return np.full((side, side, *np.shape(colour)), colour, dtype)


def test_every_colour_mode_becomes_rgb():
    assert pixel(encoded(full((10, 20, 30)))) == [10, 20, 30]
    assert pixel(encoded(full(77))) == [77, 77, 77]
    assert pixel(encoded(full(True, bool))) == [255, 255, 255]
    assert pixel(encoded(full((77, 255)), mode="LA")) == [77, 77, 77]
    # transparent parts lie on white, whatever colour is stored under them
    assert pixel(encoded(full((10, 20, 30, 0)))) == [255, 255, 255]
    half = pixel(encoded(full((0, 100, 200, 51))))  # a fifth of it
    assert np.abs(np.array(half) - [204, 224, 244]).max() <= 1
    # white ink on nothing, in CMYK: cyan 255 takes all red away
    cmyk = pixel(encoded(full((255, 0, 0, 0)), "TIFF", "CMYK"))
    assert cmyk[0] < 5 and min(cmyk[1:]) > 150


def test_a_palette_with_a_transparent_entry_lies_on_white():
    picture = Image.new("P", (4, 4), 1)
    picture.putpalette([0, 0, 0, 200, 10, 20])
    solid, file = io.BytesIO(), io.BytesIO()
    picture.save(solid, "PNG")
    picture.save(file, "PNG", transparency=1)
    assert pixel(solid.getvalue()) == [200, 10, 20] and pixel(file.getvalue()) == [255, 255, 255]


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_and_not_cut_off(kind):
    for level, expected in ((0, 0), (257 * 100, 100), (65535, 255), (300, 1)):
        assert pixel(encoded(full(level, np.uint16), kind)) == [expected] * 3


def test_the_middle_of_the_resized_picture():
    # 8 x 16 with a white left quarter and a black right quarter; the middle half is grey
    columns = np.repeat([255, 128, 128, 0], 4).astype(np.uint8)
    data = encoded(np.tile(columns, (8, 1)))
    assert pixel(data, 8) == [128] * 3
    small = read_picture(data, "here", 4)
    assert small.shape == (3, 4, 4) and abs(int(small[0, 0, 1]) - 128) <= 1
    tall = read_picture(encoded(np.tile(columns, (8, 1)).T.copy()), "here", 8)
    assert (tall == 128).all()
    noise = np.random.default_rng(0).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    assert np.array_equal(read_picture(encoded(noise), "here", 5), noise.transpose(2, 0, 1)), "its own size: untouched"
    grey = read_picture(encoded(full(9, side=6)), "here", 3, "L")
    assert grey.shape == (1, 3, 3) and (grey == 9).all()


def test_resizing_is_torchvisions():
    from torchvision.transforms import CenterCrop, Compose, Resize

    noise = np.random.default_rng(1).integers(0, 256, (37, 53, 3), dtype=np.uint8)
    for size in (16, 60):
        expected = Compose([Resize(size), CenterCrop(size)])(Image.fromarray(noise))
        mine = read_picture(encoded(noise), "here", size)
        assert np.array_equal(mine.transpose(1, 2, 0), np.asarray(expected))


def write_folder(root, **parts):
    """`train={"dog": 3}` -> root/train/dog/0.png ... each of a colour of its own, and files that are no pictures."""
    for part, classes in parts.items():
        for position, (name, count) in enumerate(classes.items()):
            folder = root / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                colour = (10 * position, 10 * number, 50 * len(part))
                (folder / f"{number}.PNG").write_bytes(encoded(full(colour)))
            (folder / "Thumbs.db").write_bytes(b"x")
            (folder / "._0.PNG").write_bytes(b"x")
    return root


@pytest.fixture
def animals(tmp_path):
    return write_folder(tmp_path / "animals", train={"fish": 3, "dog": 2}, val={"dog": 1, "fish": 2})


def split(root, cache, **options):
    source = ImageFolder(str(root), **({"image_size": 4, "val": None, "test": "val"} | options))
    return source, source.splits(cache)


def first_pixels(dataset):
    return dataset.with_format("numpy")["inputs"][:].reshape(len(dataset), 3, -1)[:, :, 0].tolist()


def test_classes_are_sorted_and_rows_are_by_class_and_name(animals, tmp_path, monkeypatch):
    monkeypatch.setattr(image_folder, "BLOCK", 2)  # blocks across the border of two classes
    source, splits = split(animals, tmp_path / "cache")
    assert splits["train"].features["label"].names == ["dog", "fish"]
    assert list(splits["train"]["name"]) == [
        f"{c}/{n}.PNG" for c, n in (("dog", 0), ("dog", 1), *(("fish", n) for n in range(3)))
    ]
    assert list(splits["train"]["label"]) == [0, 0, 1, 1, 1] and list(splits["test"]["label"]) == [0, 1, 1]
    assert first_pixels(splits["train"]) == [[10, 0, 250], [10, 10, 250], [0, 0, 250], [0, 10, 250], [0, 20, 250]]
    assert first_pixels(splits["test"]) == [[0, 0, 150], [10, 0, 150], [10, 10, 150]]
    assert len(splits["val"]) == 0 and source.input_shape == (3, 4, 4)


def test_three_parts_and_a_zip_with_or_without_its_own_folder(animals, tmp_path):
    write_folder(animals, test={"dog": 1})
    _, splits = split(animals, tmp_path / "cache", val="val", test="test")
    assert [len(splits[name]) for name in ("train", "val", "test")] == [5, 3, 1]
    inside = shutil.make_archive(str(tmp_path / "inside"), "zip", animals)
    around = shutil.make_archive(str(tmp_path / "around"), "zip", animals.parent, "animals")
    for archive in (inside, around):
        _, zipped = split(archive, tmp_path / "cache", val="val", test="test")
        assert first_pixels(zipped["train"]) == first_pixels(splits["train"])


def test_decoded_once_and_again_when_a_picture_changes(animals, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(image_folder, "read_picture", lambda *args: calls.append(args) or read_picture(*args))
    split(animals, tmp_path / "cache")
    split(animals, tmp_path / "cache")
    assert len(calls) == 8
    (animals / "val" / "fish" / "1.PNG").write_bytes(encoded(full((1, 2, 3), side=9)))
    assert first_pixels(split(animals, tmp_path / "cache")[1]["test"])[2] == [1, 2, 3]


@pytest.mark.parametrize("change", [lambda data: b"no picture", lambda data: b"", lambda data: data[: len(data) - 60]])
def test_a_corrupt_picture_is_named(animals, tmp_path, change):
    path = animals / "train" / "fish" / "1.PNG"
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    path.write_bytes(change(encoded(noise, "JPEG")))
    with pytest.raises(UserError, match=r"corrupt image .*train/fish/1\.PNG: .*; replace or delete it") as error:
        split(animals, tmp_path / "cache")
    assert "\n" not in str(error.value) and not list((tmp_path / "cache" / "examples").glob("*/"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"test": "test"}, r"data\.source\.test=test: .*animals has the folders train, val"),
        ({"train": "training"}, r"data\.source\.train=training: .* has the folders train, val"),
        ({"val": "val"}, r"data\.source\.train=train, val=val, test=val: name different folders"),
        ({"test": None}, r"test=None: name different folders"),
        ({"image_size": 0}, r"data\.source\.image_size=0"),
    ],
)
def test_impossible_settings(animals, tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        split(animals, tmp_path / "cache", **options)


def test_folders_without_pictures_or_with_other_classes(animals, tmp_path):
    write_folder(animals, odd={"cat": 1})
    with pytest.raises(UserError, match=r"animals/odd has a class cat, train only dog, fish"):
        split(animals, tmp_path / "cache", test="odd")
    (animals / "none").mkdir()
    with pytest.raises(UserError, match=r"animals/none has no <class>/<picture>"):
        split(animals, tmp_path / "cache", test="none")
    with pytest.raises(UserError, match=r"no image folder at data\.root=/nowhere"):
        split("/nowhere", tmp_path / "cache")
