"""Features of frozen networks against torchvision's own way to them, their cache, and weights that do not fit."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from idx_files import write_idx
from random_networks import random_network, saved
from torchvision import models
from torchvision.transforms.functional import normalize

from quintet.common.errors import UserError
from quintet.data.examples.datamodule import ExampleDataModule
from quintet.data.examples.features import FrozenBackbone
from quintet.data.examples.mnist import Mnist

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("backbone")


@pytest.fixture(scope="module")
def resnet(folder):
    return saved(random_network("resnet18"), folder / "resnet18.pth")


def module_on(folder, features, **options):
    source = Mnist(str(write_idx(folder / "digits", 120, 60)), val_size=20)
    module = ExampleDataModule(source, str(folder / "cache"), features=features, **options)
    module.setup()
    return module


@pytest.mark.parametrize("name", ["mobilenet_v2", "resnet18"])
@torch.no_grad()
def test_features_are_what_the_last_layer_of_torchvision_reads(folder, name):
    network = random_network(name)
    last = network.classifier[1] if name == "mobilenet_v2" else network.fc
    seen = []
    last.register_forward_hook(lambda layer, inputs, output: seen.append(inputs[0]))
    images = torch.rand(3, 3, 48, 48)
    network(normalize(images, MEAN, STD))
    backbone = FrozenBackbone(name, saved(network, folder / f"{name}.pth"), image_size=48).network()
    assert torch.allclose(backbone(images), seen[0], atol=1e-5) and seen[0].std() > 1e-3


@torch.no_grad()
def test_inception_with_and_without_its_second_classifier(folder):
    network = models.inception_v3(weights=None, init_weights=False, transform_input=True).half().float().eval()
    last = []
    network.fc.register_forward_hook(lambda layer, inputs, output: last.append(inputs[0]))
    images = torch.rand(2, 3, 80, 80)
    network(normalize(images, MEAN, STD))  # torchvision's own input, which it turns into that of the weights
    state = {key: value.half() for key, value in network.state_dict().items()}
    for lacking in ("nothing", "AuxLogits."):
        path = folder / "inception.pth"
        torch.save({key: value for key, value in state.items() if not key.startswith(lacking)}, path)
        backbone = FrozenBackbone("inception_v3", str(path), image_size=80).network()
        features = backbone(images)
        assert features.shape == (2, 2048) and torch.allclose(features, last[0], rtol=1e-3, atol=1e-4)
    assert FrozenBackbone("inception_v3").size == 299 and FrozenBackbone("resnet50").size == 224


def test_a_network_resizes_and_lets_gradients_through_to_the_pixels(resnet):
    network = FrozenBackbone("resnet18", resnet, image_size=32).network()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    network.train()
    pixels = torch.rand(2, 3, 50, 40, requires_grad=True)
    (gradient,) = torch.autograd.grad(network(pixels).square().sum(), pixels)
    assert gradient.shape == pixels.shape and (gradient != 0).float().mean() > 0.9
    assert not any(p.requires_grad for p in network.parameters()) and not network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    resized = torch.nn.functional.interpolate(pixels, (32, 32), mode="bilinear", antialias=True)
    assert torch.equal(network(pixels), network(resized))


def test_the_module_gives_the_features_of_its_images(folder, resnet):
    module = module_on(folder, FrozenBackbone("resnet18", resnet, image_size=32, batch_size=64), classes=[1, 7])
    assert module.data_info["input_shape"] == [512] and module.feature_names is None
    for split, wanted in (("train", [3, 0]), ("val", [2]), ("test", [9, 7, 7])):
        batch, images = module.example_batch(split, wanted), module.images(split, wanted)
        assert images.shape == (len(wanted), 3, 4, 4) and torch.equal(images[:, 0], images[:, 2])
        with torch.no_grad():
            assert torch.allclose(module.features.network()(images), batch.inputs, atol=1e-4)
        shown = module.preview(split, wanted[0])
        assert np.array_equal(shown.image, images[0, 0].numpy()) and shown.label == "17"[batch.labels[0]]
    assert module.arrays("test")[0].shape == (module.num_examples("test"), 512)
    assert module.arrays("train")[0].std(0).max() > 1e-3


def test_computed_once_for_these_weights_this_size_and_these_images(tmp_path, resnet, monkeypatch):
    calls = []
    original = FrozenBackbone.network
    monkeypatch.setattr(FrozenBackbone, "network", lambda self: calls.append(self) or original(self))
    root = write_idx(tmp_path / "mnist")

    def features(weights=resnet, size=32, batch_size=50, val_size=5):
        module = ExampleDataModule(Mnist(str(root), val_size), str(tmp_path / "cache"),
                                   features=FrozenBackbone("resnet18", weights, size, batch_size))  # fmt: skip
        module.setup()
        return module.arrays("test")[0]

    first = features()
    assert len(calls) == 1
    copy = tmp_path / "copy.pth"
    copy.write_bytes(Path(resnet).read_bytes())
    assert torch.equal(features(), first) and torch.equal(features(str(copy), batch_size=7), first)
    assert len(calls) == 1, "neither the file's place nor the size of the batches matters"
    features(size=33)
    features(val_size=6)
    assert len(calls) == 3, "another size, other images"
    saved(random_network("resnet18", seed=1), copy)
    assert not torch.equal(features(str(copy)), first) and len(calls) == 4, "other weights in the same place"


def test_the_array_is_mapped_and_not_sent_to_workers(folder, resnet):
    module = module_on(folder, FrozenBackbone("resnet18", resnet, image_size=32))
    inputs = module.examples("test").inputs
    assert isinstance(inputs._array, np.memmap) and len(pickle.dumps(inputs)) < 1000
    assert np.array_equal(pickle.loads(pickle.dumps(inputs)).gather(np.array([5])), inputs.gather(np.array([5])))


def test_random_weights_warn_and_are_always_the_same_ones():
    with pytest.warns(UserWarning, match=r"data\.features\.weights=null.*random network"):
        backbone = FrozenBackbone("resnet18", image_size=32)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    images = torch.rand(1, 3, 32, 32)
    torch.set_rng_state(before)
    one = backbone.network()(images)
    assert torch.equal(torch.get_rng_state(), before), "a run's own random numbers are left alone"
    torch.manual_seed(6)
    assert torch.equal(backbone.network()(images), one)


def test_names_of_torchvisions_weights_are_downloaded(folder, resnet, monkeypatch):
    asked = []

    def download(url, **options):
        asked.append(url)
        return torch.load(resnet)

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", download)
    images = torch.rand(1, 3, 32, 32)
    named = FrozenBackbone("resnet18", "IMAGENET1K_V1", image_size=32)
    assert torch.equal(named.network()(images), FrozenBackbone("resnet18", resnet, image_size=32).network()(images))
    assert asked == [models.ResNet18_Weights.IMAGENET1K_V1.url] == [named._weights_key()]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"data\.features\.weights=\S+: no such file; give one, or IMAGENET1K_V1, or null"),
        (b"no weights", r"data\.features\.weights=\S+ cannot be read"),
        (b"", r"data\.features\.weights=\S+ cannot be read"),
        ([1, 2], r"data\.features\.weights=\S+ holds no state_dict but a list"),
        (
            "mobilenet_v2",
            r"is no resnet18 of torchvision: missing: conv1\.weight, .*; unknown: features\.0\.0\.weight, ",
        ),
        ("ten classes", r"is no resnet18 of torchvision: of another shape: fc\.weight, fc\.bias$"),
    ],
)
def test_weights_that_do_not_fit(tmp_path, content, message):
    path = tmp_path / "weights.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, list):
        torch.save(content, path)
    elif content is not None:
        options = {"name": "resnet18", "num_classes": 10} if content == "ten classes" else {"name": content}
        saved(random_network(**options), path)
    with pytest.raises(UserError, match=message) as error:
        FrozenBackbone("resnet18", str(path)).network()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "vgg"}, r"data\.features\.name=vgg: choose mobilenet_v2, inception_v3, resnet18"),
        ({"image_size": 0}, r"data\.features\.image_size=0"),
        ({"batch_size": 0}, r"data\.features\.batch_size=0"),
    ],
)
def test_impossible_settings(options, message):
    with pytest.raises(UserError, match=message):
        FrozenBackbone(**options)
