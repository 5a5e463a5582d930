"""Masks of every kind are the classes they mean, or one line that says what is wrong with which file."""

import numpy as np
import pytest
from devkit import coloured, labels_of, write_palette, write_picture
from PIL import Image
from scipy.io import savemat

from quintet.common.errors import UserError
from quintet.data.segmentation.labels import (
    LabelMap,
    colour_picture,
    plain_map,
    ranges,
    read_labels,
    read_rgb,
    voc_colours,
)

COLOURS = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 3: (128, 128, 0), 255: (224, 224, 192)}
FOUR = plain_map(["ground", "a", "b", "c"], COLOURS)
LABELS = labels_of(0)


def test_the_colours_are_vocs():
    """As the devkit's documentation lists them."""
    listed = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 8: (64, 0, 0), 12: (64, 0, 128), 15: (192, 128, 128),
              20: (0, 64, 128), 255: (224, 224, 192)}  # fmt: skip
    assert {n: tuple(voc_colours()[n].tolist()) for n in listed} == listed
    assert len(np.unique(voc_colours(), axis=0)) == 256
    assert colour_picture(np.array([[1, 255]])).tolist() == [[[128, 0, 0], [224, 224, 192]]]


def test_palette_grey_bits_sixteen_bits_and_colours_are_the_same_classes(tmp_path):
    ordinary = [
        write_palette(tmp_path / "palette.png", LABELS),
        write_picture(tmp_path / "grey.png", LABELS),
        write_picture(tmp_path / "sixteen.png", LABELS.astype(np.uint16)),
        write_picture(tmp_path / "alpha.png", np.stack([LABELS, np.full_like(LABELS, 255)], -1), "LA"),
        write_picture(tmp_path / "colour.png", voc_colours()[LABELS]),
        write_picture(tmp_path / "grey_as_rgb.png", np.repeat(LABELS[..., None], 3, -1)),
    ]
    for path in ordinary:
        found = read_labels(path, FOUR)
        assert found.dtype == np.uint8 and np.array_equal(found, LABELS), path.name
    two = write_picture(tmp_path / "bits.png", LABELS == 1)
    assert np.array_equal(read_labels(two, FOUR), LABELS == 1)


def test_a_palette_in_an_order_of_its_own_is_read_by_its_colours(tmp_path):
    """Image editors sort a palette by use when they save a mask again: its indices are no classes any more."""
    order = [3, 255, 0, 2, 1]  # file index -> class
    index_hw = np.zeros_like(LABELS)
    for place, number in enumerate(order):
        index_hw[number == LABELS] = place
    path = write_palette(tmp_path / "sorted.png", index_hw, [COLOURS[number] for number in order])
    assert np.array_equal(np.asarray(Image.open(path)), index_hw)
    assert np.array_equal(read_labels(path, FOUR), LABELS)
    # colours that are nobody's: the indices are what is meant
    jet = write_palette(tmp_path / "jet.png", LABELS, np.arange(768).reshape(256, 3) % 251)
    assert np.array_equal(read_labels(jet, FOUR), LABELS)
    assert np.array_equal(read_labels(path, plain_map(["0", "1", "2", "3", "4"])), index_hw)


def test_numbers_are_mapped(tmp_path):
    mapped = LabelMap(["road", "sky"], {0: 255, 7: 0, 23: 1, 255: 255})
    path = write_picture(tmp_path / "ids.png", np.array([[0, 7], [23, 255]], np.uint8))
    assert read_labels(path, mapped).tolist() == [[255, 0], [1, 255]]


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.array([[0, 1], [2, 9]], np.uint8), r"label 9 at row 1, column 1 is not a class; legal are 0-3, 255 \(4 cl"),
        (np.array([[0, 300], [2, 1]], np.uint16), r"label 300 at row 0, column 1 is not a class"),
        (np.array([[0, 4]], np.uint8), r"label 4 at row 0, column 1 is not a class"),
        (coloured(LABELS), r"is a color image: its color \(\d+, \d+, 9\) is none of the 4 classes'; save the num"),
    ],
)
def test_what_is_no_class_is_named(tmp_path, array, message):
    path = write_picture(tmp_path / "odd.png", array)
    with pytest.raises(UserError, match=rf"^mask .*odd\.png.*{message}") as error:
        read_labels(path, FOUR)
    assert "\n" not in str(error.value)


def test_a_colour_picture_without_known_colours_asks_for_them(tmp_path):
    path = write_picture(tmp_path / "colour.png", coloured(LABELS))
    with pytest.raises(UserError, match=r"colour\.png is a color image: give the colour of every class in data\.so"):
        read_labels(path, plain_map(["0", "1", "2", "3"]))


def test_a_jpeg_is_no_mask(tmp_path):
    path = write_picture(tmp_path / "mask.png", LABELS, format="JPEG")
    with pytest.raises(UserError, match=r"mask\.png is a JPEG, which blurs the numbers"):
        read_labels(path, FOUR)


@pytest.mark.parametrize("change", [lambda data: b"no picture", lambda data: b"", lambda data: data[: len(data) // 2]])
def test_corrupt_files_are_named(tmp_path, change):
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    for kind, array, read in (("image", noise, read_rgb), ("mask", LABELS, lambda path: read_labels(path, FOUR))):
        path = write_picture(tmp_path / ("a.jpg" if kind == "image" else "a.png"), array)
        path.write_bytes(change(path.read_bytes()))
        with pytest.raises(UserError, match=rf"^corrupt {kind} .*a\..*; replace it, or take it out") as error:
            read(path)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"^mask .*gone\.png is missing"):
        read_labels(tmp_path / "gone.png", FOUR)


def test_every_kind_of_picture_is_rgb(tmp_path):
    grey = np.full((3, 5), 77, np.uint8)
    assert read_rgb(write_picture(tmp_path / "grey.png", grey)).tolist() == [[[77] * 3] * 5] * 3
    deep = write_picture(tmp_path / "deep.png", np.full((3, 5), 257 * 100, np.uint16))
    assert (read_rgb(deep) == 100).all()
    clear = write_picture(tmp_path / "clear.png", np.zeros((3, 5, 4), np.uint8))
    assert (read_rgb(clear) == 255).all()
    cyan = write_picture(tmp_path / "cmyk.jpg", np.full((8, 8, 4), (255, 0, 0, 0), np.uint8), "CMYK")
    assert read_rgb(cyan).shape == (8, 8, 3) and read_rgb(cyan)[..., 0].max() < 30
    thin = write_picture(tmp_path / "thin.jpg", np.zeros((9, 1, 3), np.uint8))
    assert read_rgb(thin).shape == (9, 1, 3)


def test_levels_that_are_no_colours_are_refused(tmp_path):
    for array, levels in ((np.full((2, 3), 0.5, np.float32), "floating-point"), (np.full((2, 3), -5, np.int32), "-5")):
        path = write_picture(tmp_path / "depth.tif", array)
        with pytest.raises(UserError, match=rf"^image .*depth\.tif: .*{levels}.*: save it with 8 or 16 bits$"):
            read_rgb(path)


def test_whole_numbers_in_floating_point_are_numbers(tmp_path):
    path = write_picture(tmp_path / "float.tif", LABELS.astype(np.float32))
    assert np.array_equal(read_labels(path, FOUR), LABELS)
    for wrong, told in (
        (0.5, r"label 0\.5 at row 0, column 1 is not a class"),
        (300, "label 300"),
        (np.nan, "contains NaN"),
    ):
        write_picture(path, np.array([[0, wrong]], np.float32))
        with pytest.raises(UserError, match=rf"^mask .*float\.tif:? {told}"):
            read_labels(path, FOUR)


def test_black_and_white_are_two_classes_once_they_are_named_as_colours(tmp_path):
    """By default 255 is not scored, whatever the picture looks like."""
    path = write_picture(tmp_path / "white.png", np.array([[0, 255], [255, 0]], np.uint8))
    assert read_labels(path, plain_map(["ground", "thing"])).tolist() == [[0, 255], [255, 0]]
    named = plain_map(["ground", "thing"], {0: (0, 0, 0), 1: (255, 255, 255)})
    assert read_labels(path, named).tolist() == [[0, 1], [1, 0]]
    three = write_picture(tmp_path / "three.png", np.array([[0, 128]], np.uint8))
    with pytest.raises(UserError, match=r"three\.png: label 128 at row 0, column 1 is not a class"):
        read_labels(three, named)


def struct(**fields):
    return {name: np.array(value, object) if isinstance(value, list) else value for name, value in fields.items()}


def test_matlab_files_of_the_three_sets(tmp_path):
    inside = LABELS.copy()
    savemat(tmp_path / "context.mat", {"LabelMap": inside.astype(np.uint16)})
    savemat(tmp_path / "sbd.mat", {"GTcls": struct(Segmentation=inside, CategoriesPresent=np.array([1, 2]))})
    for name in ("context.mat", "sbd.mat"):
        assert np.array_equal(read_labels(tmp_path / name, FOUR), inside)
    (tmp_path / "broken.mat").write_bytes((tmp_path / "sbd.mat").read_bytes()[:200])
    with pytest.raises(UserError, match=r"^corrupt mask .*broken\.mat"):
        read_labels(tmp_path / "broken.mat", FOUR)
    savemat(tmp_path / "double.mat", {"LabelMap": inside.astype(float)})
    assert np.array_equal(read_labels(tmp_path / "double.mat", FOUR), inside)
    odd = {"LabelMap": np.zeros((2, 3, 3)), "GTcls": np.zeros((2, 3)), "anno": {"imname": "x"}}
    for name, value in odd.items():
        savemat(tmp_path / "odd.mat", {name: value})
        with pytest.raises(UserError, match=rf"^mask .*odd\.mat: its {name} is ") as error:
            read_labels(tmp_path / "odd.mat", FOUR)
        assert "\n" not in str(error.value)
    savemat(tmp_path / "other.mat", {"scores": inside})
    with pytest.raises(UserError, match=r"other\.mat has no variable LabelMap or GTcls or anno, only scores"):
        read_labels(tmp_path / "other.mat", FOUR)


def box(top, left, bottom, right):
    mask = np.zeros((10, 12), np.uint8)
    mask[top:bottom, left:right] = 1
    return mask


def test_pascal_part_becomes_six_parts_of_all_people(tmp_path):
    def parts(**boxes):
        return np.array([{"part_name": name, "mask": box(*corners)} for name, corners in boxes.items()])

    first = parts(head=(0, 0, 2, 2), reye=(0, 0, 1, 1), neck=(2, 0, 3, 2), lhand=(5, 0, 6, 2))
    second = parts(rfoot=(8, 6, 9, 8), ruarm=(3, 6, 4, 8), luleg=(5, 6, 6, 8))
    people = [
        {"class": "person", "mask": box(0, 0, 9, 4), "parts": first},
        {"class": "person", "mask": box(0, 6, 9, 9), "parts": second},
        {"class": "dog", "mask": box(0, 10, 9, 12), "parts": parts(head=(0, 10, 2, 12))},
    ]
    savemat(tmp_path / "people.mat", {"anno": {"imname": "x", "objects": np.array(people)}})
    expected = np.zeros((10, 12), int)
    for number, (top, left, bottom, right) in ((1, (0, 0, 2, 2)), (2, (2, 0, 3, 2)), (4, (5, 0, 6, 2)),
                                               (6, (8, 6, 9, 8)), (3, (3, 6, 4, 8)), (5, (5, 6, 6, 8))):  # fmt: skip
        expected[top:bottom, left:right] = number
    assert np.array_equal(read_labels(tmp_path / "people.mat", plain_map([str(n) for n in range(7)])), expected)


def test_one_person_without_parts(tmp_path):
    savemat(tmp_path / "one.mat", {"anno": {"objects": {"class": "person", "mask": box(0, 0, 9, 4), "parts": []}}})
    found = read_labels(tmp_path / "one.mat", plain_map([str(n) for n in range(7)]))
    assert found.shape == (10, 12) and not found.any()


def test_ranges():
    assert ranges(dict.fromkeys([0, 1, 2, 5, 7, 8, 255])) == "0-2, 5, 7-8, 255"
