"""The sample: scikit-learn's digits through MNIST's files, pixel for pixel."""

import numpy as np
import pytest
from sklearn.datasets import load_digits

from quintet.common.errors import UserError
from quintet.data.examples.datamodule import ExampleDataModule
from quintet.data.samples.digits import SampleDigits, write_digits


def test_every_digit_in_its_place(tmp_path):
    module = ExampleDataModule(SampleDigits(str(tmp_path / "root")), str(tmp_path / "cache"), flatten=True)
    module.setup()
    digits = load_digits()
    for split, rows in (("val", slice(0, 200)), ("train", slice(200, 1397)), ("test", slice(1397, 1797))):
        inputs, labels = module.arrays(split)
        assert np.array_equal(labels, digits.target[rows])
        assert np.abs(inputs.numpy() - digits.data[rows] / 16).max() <= 0.5 / 255 + 1e-6  # one of 256 levels
    assert module.data_info["input_shape"] == [64] and module.data_info["num_train"] == 1197


def test_larger_images_keep_their_ink(tmp_path):
    module = ExampleDataModule(SampleDigits(str(tmp_path / "root"), image_size=28), str(tmp_path / "cache"))
    module.setup()
    inputs, _ = module.arrays("test")
    assert inputs.shape == (400, 1, 28, 28) and inputs.max() <= 1
    small = load_digits().images[1397:] / 16
    assert np.abs(inputs.numpy().mean((1, 2, 3)) - small.mean((1, 2))).max() < 0.03


def test_the_same_files_on_every_machine(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        write_digits(tmp_path / name, 8, 100)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


@pytest.mark.parametrize(("key", "value"), [("image_size", 7), ("image_size", 65), ("num_test", 0), ("num_test", 1797)])
def test_impossible_sizes(tmp_path, key, value):
    with pytest.raises(UserError, match=rf"data\.source\.{key}={value}: give"):
        SampleDigits(str(tmp_path), **{key: value}).find(tmp_path)
