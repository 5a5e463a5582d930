"""The real MNIST and dog-fish files; skipped where they are not there."""

import numpy as np
import pytest
import torch
from commands import REPOSITORY

from quintet.data.examples.datamodule import ExampleDataModule
from quintet.data.examples.features import FrozenBackbone
from quintet.data.examples.image_folder import ImageFolder
from quintet.data.examples.mnist import Mnist

REAL = REPOSITORY.parent / "shared" / "data"


def real(name):
    if not (REAL / name).exists():
        pytest.skip(f"real data {REAL / name} is not on this machine")
    return str(REAL / name)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return str(tmp_path_factory.mktemp("real"))


def ready(source, cache, **options):
    module = ExampleDataModule(source, cache, **options)
    module.setup()
    return module


def counts(module):
    return [module.num_examples(split) for split in ("train", "val", "test")]


def test_mnist(cache):
    module = ready(Mnist(real("mnist")), cache, flatten=True)
    assert counts(module) == [55000, 5000, 10000]
    inputs, labels = module.arrays("val")
    assert labels[:5].tolist() == [5, 0, 4, 1, 9], "the official file starts so"
    assert (inputs.min(), inputs.max()) == (0, 1) and module.data_info["input_shape"] == [784]
    train, test = module.arrays("train"), module.arrays("test")
    # the official counts of each digit, and the mean and deviation that everyone normalises with
    per_class = (torch.bincount(labels) + torch.bincount(train[1])).tolist()
    assert per_class == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert torch.bincount(test[1]).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    whole = torch.cat([inputs, train[0]]).double()
    assert whole.mean().item() == pytest.approx(0.1307, abs=5e-5) and whole.std().item() == pytest.approx(
        0.3081, abs=5e-5
    )


def test_one_against_seven(cache):
    module = ready(Mnist(real("mnist")), cache, classes=[1, 7])
    held_out = ready(Mnist(real("mnist"), val_size=0), cache, classes=[1, 7])
    assert held_out.num_examples("train") == 6742 + 6265 == 13007
    assert counts(module) == [13007 - module.num_examples("val"), 1113, 1135 + 1028]
    assert module.preview("test", 0).label == "7" and module.data_info["classes"] == ["1", "7"]


def test_the_small_mnist_of_the_cnn(cache):
    module = ready(Mnist(real("mnist")), cache, max_train=5500, seed=0)
    assert counts(module) == [5500, 5000, 10000] and module.data_info["input_shape"] == [1, 28, 28]


@pytest.fixture(scope="module")
def pictures():
    return ImageFolder(real("dogfish/dogfish.zip"), image_size=32, val=None, test="val")


def test_dog_against_fish(cache, pictures):
    module = ready(pictures, cache)
    assert counts(module) == [1800, 0, 600] and module.data_info["classes"] == ["dog", "fish"]
    assert [np.bincount(module.arrays(split)[1]).tolist() for split in ("train", "test")] == [[900, 900], [300, 300]]
    shown = module.preview("train", 900)
    assert shown.label == "fish" and shown.title.startswith("fish/") and shown.image.shape == (32, 32, 3)
    # two exposures of one picture in training and test would make the test easy
    train, test = (module.arrays(split)[0].flatten(1) for split in ("train", "test"))
    assert torch.cdist(test, train).min() > 0


@pytest.mark.slow
def test_the_weights_tell_dogs_from_fish(cache):
    """Twenty pictures of each class at 224 pixels, by ImageNet's own classes 217 and 0."""
    weights = real("weights/mobilenet_v2.pth")
    source = ImageFolder(real("dogfish/dogfish.zip"), image_size=224, train="val", val=None, test="train")
    module = ready(source, cache)
    chosen = [*range(0, 300, 15), *range(300, 600, 15)]
    network = FrozenBackbone("mobilenet_v2", weights).network()
    state = torch.load(weights, weights_only=True)
    with torch.no_grad():
        features = network(module.images("train", chosen))
    logits = features @ state["classifier.1.weight"].T + state["classifier.1.bias"]
    truth = torch.tensor([217] * 20 + [0] * 20)
    assert (logits[:, [217, 0]].argmax(1) == (truth == 0)).float().mean() >= 0.95
    assert (logits.argmax(1) == truth).float().mean() > 0.5  # of all 1,000 classes
