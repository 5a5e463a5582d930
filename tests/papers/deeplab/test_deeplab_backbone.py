"""Backbones: torchvision's features at an output stride, weights from files, frozen parts, normalisation."""

import pytest
import torch
from commands import REPOSITORY
from random_networks import random_network, saved
from torch import nn
from torchvision import models
from torchvision.transforms.functional import normalize

from quintet.backbones.frozen_norm import FrozenBatchNorm
from quintet.common.errors import UserError
from quintet.papers.deeplab.backbone import Backbone, BackboneConfig

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
WEIGHTS = REPOSITORY.parent / "shared" / "data" / "weights" / "mobilenet_v2.pth"


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
@torch.no_grad()
def test_torchvisions_features_at_its_own_stride_and_at_shared_positions(tmp_path, name):
    theirs = random_network(name)
    path = saved(theirs, tmp_path / "weights.pth")
    images = torch.rand(2, 3, 65, 65)
    kept = nn.Sequential(*list(theirs.children())[: -2 if name == "resnet18" else -1])
    expected = kept(normalize(images, MEAN, STD))
    for output_stride in (32, 16, 8):
        backbone = Backbone(BackboneConfig(name, path, output_stride)).train()
        features, step = backbone(images), 32 // output_stride
        assert features.shape == (2, backbone.channels, 64 // output_stride + 1, 64 // output_stride + 1)
        assert torch.allclose(features[..., ::step, ::step], expected, rtol=1e-3, atol=1e-4)


def test_vgg_is_the_authors():
    backbone = Backbone(BackboneConfig("vgg16", output_stride=8))
    pools = [m for m in backbone.modules() if isinstance(m, nn.MaxPool2d)]
    assert [(p.kernel_size, p.padding, p.dilation) for p in pools] == [(3, 1, 1)] * 5
    assert [p.stride if isinstance(p.stride, int) else p.stride[0] for p in pools] == [2, 2, 2, 1, 1]
    convolutions = [m for m in backbone.modules() if isinstance(m, nn.Conv2d)]
    assert [c.dilation[0] for c in convolutions] == [1] * 10 + [2] * 3
    with torch.no_grad():
        assert backbone(torch.rand(1, 3, 65, 65)).shape == (1, 512, 9, 9)


def test_frozen_batch_norm_survives_training_and_the_optimiser():
    backbone = Backbone(BackboneConfig("mobilenet_v2", output_stride=16))
    norms = [m for m in backbone.modules() if isinstance(m, FrozenBatchNorm)]
    assert len(norms) == 52 and not any(isinstance(m, nn.BatchNorm2d) for m in backbone.modules())
    before = {name: value.clone() for name, value in backbone.named_buffers()}
    images = torch.rand(2, 3, 33, 33)
    backbone.train()
    optimizer = torch.optim.SGD(backbone.parameters(), lr=0.1)
    backbone(images).square().mean().backward()
    optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in backbone.named_buffers())
    affine = {id(n.weight) for n in norms} | {id(n.bias) for n in norms}
    assert affine.isdisjoint(id(p) for p in backbone.parameters())
    assert torch.equal(backbone(images), backbone.eval()(images)), "no batch statistics, whatever the mode"


def test_batch_norm_may_be_trained():
    backbone = Backbone(BackboneConfig("resnet18", output_stride=16, frozen_bn=False)).train()
    norm = next(m for m in backbone.modules() if isinstance(m, nn.BatchNorm2d))
    before = norm.running_mean.clone()
    backbone(torch.rand(2, 3, 33, 33))
    assert norm.weight.requires_grad and not torch.equal(norm.running_mean, before)


@torch.no_grad()
def test_frozen_norm_is_torchs_in_evaluation():
    norm = random_network("resnet18").bn1
    x = torch.randn(2, 64, 5, 5)
    assert torch.equal(FrozenBatchNorm(norm).train()(x), norm(x))


def test_frozen_blocks_get_no_gradient():
    backbone = Backbone(BackboneConfig("mobilenet_v2", output_stride=16, frozen_blocks=5))
    backbone(torch.rand(1, 3, 33, 33)).sum().backward()
    have = {name.split(".")[2] for name, p in backbone.named_parameters() if p.grad is not None}
    assert have == {str(n) for n in range(5, 19)}
    resnet = Backbone(BackboneConfig("resnet18", output_stride=16, frozen_blocks=5))
    assert {n.split(".")[1] for n, p in resnet.named_parameters() if p.requires_grad} == {"layer2", "layer3", "layer4"}
    with pytest.raises(UserError, match=r"model\.backbone\.frozen_blocks=20: mobilenet_v2 has 19"):
        Backbone(BackboneConfig("mobilenet_v2", frozen_blocks=20))


def test_normalisation_is_that_of_the_weights(monkeypatch):
    """torchvision's IMAGENET1K_FEATURES come from Caffe: another mean, and nan where fc6 and fc7 would be."""
    network = models.vgg16(weights=None)
    state = network.state_dict() | {
        k: v * float("nan") for k, v in network.classifier.state_dict(prefix="classifier.").items()
    }
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda url, **options: state)
    monkeypatch.setattr("torchvision.models.get_model", lambda name, weights: network)
    ours = Backbone(BackboneConfig("vgg16", "IMAGENET1K_FEATURES"))
    told = models.VGG16_Weights.IMAGENET1K_FEATURES.transforms()
    assert ours.mean.flatten().tolist() == pytest.approx(told.mean)
    assert ours.std.flatten().tolist() == pytest.approx(told.std) and not ours.classifier
    assert Backbone(BackboneConfig("resnet18")).mean.flatten().tolist() == pytest.approx(MEAN)


def test_any_classifier_will_do_for_its_body(tmp_path):
    ten = random_network("resnet18", num_classes=10)
    backbone = Backbone(BackboneConfig("resnet18", saved(ten, tmp_path / "ten.pth")))
    assert torch.equal(backbone.body.layer4[1].conv2.weight, ten.layer4[1].conv2.weight)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"model\.backbone\.weights=\S+: no such file; give one, or IMAGENET1K_V1, or null"),
        (
            "mobilenet_v2",
            r"is no resnet18 of torchvision: missing: conv1\.weight, .*; unknown: features\.0\.0\.weight, ",
        ),
        ("resnet34", r"is no resnet18 of torchvision: unknown: layer1\.2\.conv1\.weight, "),
        ("resnet50", r"is no resnet18 of torchvision: unknown: .*of another shape: layer1\.0\.conv1\.weight"),
    ],
)
def test_weights_of_another_network(tmp_path, content, message):
    path = tmp_path / "weights.pth"
    if content is not None:
        saved(random_network(content), path)
    with pytest.raises(UserError, match=message) as error:
        Backbone(BackboneConfig("resnet18", str(path)))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            lambda state: {"state_dict": state, "epoch": 3},
            r"is no state_dict: 'state_dict' is no tensor; save what is un",
        ),
        (
            lambda state: {"epoch": 3, "model": state},
            r"'epoch' is no tensor; save what is under 'model' as a file of its",
        ),
        (lambda state: {0: state["conv1.weight"]}, r"is no state_dict: 0 is no tensor; save the state_dict alone"),
        (
            lambda state: state | {"bn1.weight": state["bn1.weight"] / 0},
            r"torchvision: NaN or infinity in bn1\.weight;",
        ),
        (lambda state: [state], r"holds no state_dict but a list"),
        (lambda state: {"module." + k: v for k, v in state.items()}, r"unknown: module\.conv1\.weight, module\.bn1"),
    ],
)
def test_files_that_hold_something_else(tmp_path, content, message):
    path = tmp_path / "weights.pth"
    torch.save(content(models.resnet18(weights=None).state_dict()), path)
    with pytest.raises(UserError, match=rf"^model\.backbone\.weights=\S+weights\.pth .*{message}") as error:
        Backbone(BackboneConfig("resnet18", str(path)))
    assert "\n" not in str(error.value)


def test_a_file_of_other_bytes(tmp_path):
    (tmp_path / "weights.pth").write_bytes(b"no weights")
    with pytest.raises(UserError, match=r"cannot be read: it is no file of torch\.save that holds tensors alone$"):
        Backbone(BackboneConfig("resnet18", str(tmp_path / "weights.pth")))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "vit_b_16"}, r"model\.backbone\.name=vit_b_16: give a torchvision network of vgg, resnet"),
        ({"name": "resnet19"}, r"model\.backbone\.name=resnet19: torchvision has .*resnet18"),
        ({"name": "resnet18", "layout": "tf"}, r"model\.backbone\.layout=tf: use torchvision or caffe"),
        ({"name": "resnet18", "layout": "caffe"}, r"layout=caffe is for vgg16, resnet50, resnet101"),
        ({"name": "resnet18", "output_stride": 64}, r"model\.backbone\.output_stride=64: the network's own is 32"),
        ({"frozen_blocks": -1}, r"model\.backbone\.frozen_blocks=-1"),
    ],
)
def test_impossible_settings(options, message):
    with pytest.raises(UserError, match=message):
        Backbone(BackboneConfig(**options))


@pytest.mark.skipif(not WEIGHTS.is_file(), reason="shared/data/weights is not on this machine")
@torch.no_grad()
def test_real_weights_load_and_tell_pictures_apart():
    backbone = Backbone(BackboneConfig("mobilenet_v2", str(WEIGHTS), 16))
    one, other = backbone(torch.rand(2, 3, 65, 65)).flatten(1)
    assert one.isfinite().all() and (one - other).abs().max() > 0.1
