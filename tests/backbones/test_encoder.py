"""The encoder: torchvision's own features, frozen for good in stage 1, batch norm as the weights have it."""

from pathlib import Path

import pytest
import torch
from commands import REPOSITORY
from random_networks import random_network, saved
from torch import nn
from torchvision.transforms.functional import normalize

from quintet.backbones.encoder import Encoder, EncoderConfig
from quintet.common.errors import UserError

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
WEIGHTS = REPOSITORY.parent / "shared" / "data" / "weights" / "mobilenet_v2.pth"


@pytest.mark.parametrize(
    ("name", "size"), [("mobilenet_v2", 64), ("resnet18", 64), ("googlenet", 64), ("inception_v3", 75)]
)
@torch.no_grad()
def test_features_are_what_the_last_layer_of_torchvision_reads(tmp_path, name, size):
    """With the classifiers on the way in the file, and torchvision's own normalisation."""
    ported = name in ("googlenet", "inception_v3")
    options = {"init_weights": False, "transform_input": True} if ported else {}
    theirs = random_network(name, **options)
    last = theirs.classifier[1] if name == "mobilenet_v2" else theirs.fc
    seen = []
    last.register_forward_hook(lambda layer, inputs, output: seen.append(inputs[0]))
    images = torch.rand(2, 3, size, size)
    theirs(normalize(images, MEAN, STD))
    encoder = Encoder(EncoderConfig(name, saved(theirs, tmp_path / "weights.pth"), size))
    assert encoder(images).shape == (2, encoder.width)
    assert torch.allclose(encoder(images), seen[0], rtol=1e-3, atol=1e-4) and seen[0].std() > 1e-3


@pytest.mark.parametrize("frozen_bn", [True, False])
def test_frozen_means_eval_mode_and_no_gradient_whatever_lightning_says(frozen_bn):
    encoder = Encoder(EncoderConfig("resnet18", image_size=32, frozen_bn=frozen_bn))
    around = nn.Sequential(encoder, nn.Linear(encoder.width, 2)).train()
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    images = torch.rand(4, 3, 32, 32)
    around(images).sum().backward()
    assert around.training and not any(module.training for module in encoder.modules())
    assert all(p.grad is None and not p.requires_grad for p in encoder.parameters())
    assert all(torch.equal(v, before[k]) for k, v in encoder.state_dict().items()), "no statistic moved"
    assert not encoder.trained and around[1].weight.grad is not None


def test_thawed_it_learns_and_batch_norm_as_configured():
    for frozen_bn in (True, False):
        encoder = Encoder(EncoderConfig("resnet18", image_size=32, frozen_bn=frozen_bn))
        encoder.thaw()
        encoder.train()
        before = {k: v.clone() for k, v in encoder.state_dict().items() if "running" in k}
        encoder(torch.rand(4, 3, 32, 32)).sum().backward()
        moved = [k for k, v in encoder.state_dict().items() if k in before and not torch.equal(v, before[k])]
        assert bool(moved) != frozen_bn
        assert encoder.trained and all(p.grad is not None for p in encoder.parameters())


def test_other_sizes_are_resized_and_random_weights_are_always_the_same():
    torch.manual_seed(3)
    one = Encoder(EncoderConfig("resnet18", image_size=32))
    torch.manual_seed(4)
    other = Encoder(EncoderConfig("resnet18", image_size=32))
    images = torch.rand(2, 3, 50, 40)
    small = nn.functional.interpolate(images, (32, 32), mode="bilinear", antialias=True)
    assert torch.equal(one(images), other(small))
    assert EncoderConfig("inception_v3").size == 299 and EncoderConfig("googlenet").size == 224


def test_what_cached_features_depend_on(tmp_path):
    path = saved(random_network("resnet18"), tmp_path / "a.pth")
    copy = tmp_path / "b.pth"
    copy.write_bytes(Path(path).read_bytes())
    key = EncoderConfig("resnet18", path).cache_key()
    assert key == EncoderConfig("resnet18", str(copy), 224, frozen_bn=False).cache_key()
    saved(random_network("resnet18", seed=1), copy)
    others = [EncoderConfig("resnet18", str(copy)), EncoderConfig("resnet18"), EncoderConfig("resnet18", path, 64)]
    assert all(other.cache_key() != key for other in others)


def test_any_classifier_will_do_for_its_body(tmp_path):
    ten = random_network("resnet18", num_classes=10)
    encoder = Encoder(EncoderConfig("resnet18", saved(ten, tmp_path / "ten.pth")))
    assert torch.equal(encoder.body.layer4[1].conv2.weight, ten.layer4[1].conv2.weight)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "vit_b_16"}, r"model\.encoder\.name=vit_b_16: give a torchvision network of googlenet"),
        ({"name": "resnet19"}, r"model\.encoder\.name=resnet19: torchvision has .*resnet18"),
        ({"image_size": 8}, r"model\.encoder\.image_size=8"),
        (
            {"name": "resnet18", "weights": "no.pth"},
            r"model\.encoder\.weights=no\.pth: no such file; give one, or IMAG",
        ),
    ],
)
def test_impossible_settings(options, message):
    with pytest.raises(UserError, match=message):
        Encoder(EncoderConfig(**options))


def test_weights_of_another_network(tmp_path):
    path = saved(random_network("mobilenet_v2"), tmp_path / "weights.pth")
    with pytest.raises(UserError, match=r"is no resnet18 of torchvision: missing: conv1\.weight"):
        Encoder(EncoderConfig("resnet18", path))


@pytest.mark.skipif(not WEIGHTS.is_file(), reason="shared/data/weights is not on this machine")
@torch.no_grad()
def test_real_weights_load_and_tell_pictures_apart():
    encoder = Encoder(EncoderConfig("mobilenet_v2", str(WEIGHTS), 96))
    one, other = encoder(torch.rand(2, 3, 96, 96))
    assert one.shape == (1280,) and (one - other).abs().max() > 0.1
