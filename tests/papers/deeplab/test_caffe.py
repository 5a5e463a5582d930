"""Converted Caffe weights under three spellings against a network written from the Caffe definition."""

import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision import models

from quintet.common.errors import UserError
from quintet.papers.deeplab.backbone import Backbone, BackboneConfig
from quintet.papers.deeplab.caffe import from_caffe
from quintet.papers.deeplab.config import DeepLabConfig
from quintet.papers.deeplab.heads import build_head

MEAN_BGR = torch.tensor([104.008, 116.669, 122.675]).view(3, 1, 1)
LETTERS = "abcdef"


def torchvision_state(name, seed=0):
    torch.manual_seed(seed)
    network = models.get_model(name, weights=None)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.1)
    return {k: v for k, v in network.state_dict().items() if not k.startswith("fc.")}


def prefixed(state):
    """As in isht7's deeplab_resnet: torchvision's names, a scale in front, the classifier layer5."""
    return {f"Scale.{k}": v for k, v in state.items()} | {
        "Scale.layer5.conv2d_list.0.weight": torch.zeros(21, 2048, 3, 3)
    }


def nakashima(state):
    """layer<n+1>.block<m>.{reduce,conv3x3,increase,shortcut}.{conv,bn}."""
    made = {"base.aspp.c0.weight": torch.zeros(21, 2048, 3, 3)}
    for key, value in state.items():
        found = re.fullmatch(r"layer(\d)\.(\d+)\.(?:(conv|bn)(\d)|downsample\.(\d))\.(\w+)", key)
        if not found:
            kind, rest = re.fullmatch(r"(conv|bn)1\.(\w+)", key).groups()
            made[f"base.layer1.conv1.{kind}.{rest}"] = value
            continue
        stage, block, kind, number, shortcut, rest = found.groups()
        part = "shortcut" if kind is None else ("reduce", "conv3x3", "increase")[int(number) - 1]
        kind = kind or ("conv", "bn")[int(shortcut)]
        made[f"base.layer{int(stage) + 1}.block{int(block) + 1}.{part}.{kind}.{rest}"] = value
    return made


def caffe_layers(state):
    """res3b2_branch2a, bn3b2_branch2a (statistics), scale3b2_branch2a (affine); blocks a, b, c or a, b1, b2, ..."""
    blocks = {stage: len({k.split(".")[1] for k in state if k.startswith(f"layer{stage}.")}) for stage in range(1, 5)}
    made = {"fc1_voc12_c0.weight": torch.zeros(21, 2048, 3, 3)}
    for key, value in state.items():
        found = re.fullmatch(r"layer(\d)\.(\d+)\.(?:(conv|bn)(\d)|downsample\.(\d))\.(\w+)", key)
        affine = key.split(".")[-1] in ("weight", "bias")
        if not found:
            kind, rest = re.fullmatch(r"(conv|bn)1\.(\w+)", key).groups()
            prefix = "conv1" if kind == "conv" else "scale_conv1" if affine else "bn_conv1"
            made[f"{prefix}.{rest}"] = value
            continue
        stage, block, kind, number, shortcut, rest = found.groups()
        kind = kind or ("conv", "bn")[int(shortcut)]
        branch = "branch1" if number is None else f"branch2{LETTERS[int(number) - 1]}"
        name = LETTERS[int(block)] if blocks[int(stage)] < 5 or block == "0" else f"b{block}"
        prefix = "res" if kind == "conv" else "scale" if affine else "bn"
        made[f"{prefix}{int(stage) + 1}{name}_{branch}.{rest}"] = value
    return made


def caffe_resnet(images_rgb, state, blocks):
    """The prototxt in functional form: BGR, mean subtracted, stride in the first 1x1 of a stage, holes at stride 8."""
    x = 255 * images_rgb.flip(1) - MEAN_BGR

    def conv_bn(x, conv, norm, **options):
        x = F.conv2d(x, state[f"{conv}.weight"], **options)
        values = (state[f"{norm}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, *values, eps=1e-5)

    x = F.max_pool2d(conv_bn(x, "conv1", "bn1", stride=2, padding=3).relu(), 3, 2, 1)
    for stage, (count, stride, holes) in enumerate(zip(blocks, (1, 2, 1, 1), (1, 1, 2, 4), strict=True), 1):
        for number in range(count):
            at, step = f"layer{stage}.{number}", stride if number == 0 else 1
            y = conv_bn(x, f"{at}.conv1", f"{at}.bn1", stride=step).relu()
            y = conv_bn(y, f"{at}.conv2", f"{at}.bn2", padding=holes, dilation=holes).relu()
            y = conv_bn(y, f"{at}.conv3", f"{at}.bn3")
            if number == 0:
                x = conv_bn(x, f"{at}.downsample.0", f"{at}.downsample.1", stride=step)
            x = (x + y).relu()
    return x


@pytest.mark.parametrize("spelling", [prefixed, nakashima, caffe_layers])
@torch.no_grad()
def test_a_converted_resnet_is_the_prototxt(tmp_path, spelling):
    state = torchvision_state("resnet50")
    path = tmp_path / "caffe.pth"
    torch.save(spelling(state), path)
    backbone = Backbone(BackboneConfig("resnet50", str(path), 8, layout="caffe"))
    images = torch.rand(1, 3, 65, 65)
    expected = caffe_resnet(images, state, (3, 4, 6, 3))
    assert torch.allclose(backbone(images), expected, rtol=1e-3, atol=1e-4 * float(expected.std()))


def test_blocks_of_resnet101_are_numbered():
    with torch.device("meta"):
        keys = [k for k in models.resnet101(weights=None).state_dict() if not k.startswith("fc.")]
    state = {key: torch.full((1, 1, 1, 1), float(number)) for number, key in enumerate(keys)}
    for spelling in (prefixed, nakashima, caffe_layers):
        named = from_caffe(spelling(state), "resnet101")
        kept = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
        assert named.keys() == kept.keys() and all(torch.equal(named[k], kept[k]) for k in kept)


def test_a_converted_vgg_under_torchvisions_names():
    with torch.device("meta"):
        network = models.vgg16(weights=None)
    names = [f"conv{block}_{n}" for block, count in enumerate((2, 2, 3, 3, 3), 1) for n in range(1, count + 1)]
    theirs = [f"features.{n}" for n, m in network.features.named_children() if isinstance(m, nn.Conv2d)]
    pairs = list(zip([*names, "fc6", "fc7"], [*theirs, "classifier.0", "classifier.3"], strict=True))
    state = {f"{caffe}.{kind}": torch.full((2, 3, 1, 1), float(n)) for n, (caffe, _) in enumerate(pairs)
             for kind in ("weight", "bias")}  # fmt: skip
    state["conv1_1.weight"] = torch.arange(3.0).view(1, 3, 1, 1)
    named = from_caffe(state | {"fc8_voc12.weight": torch.zeros(1)}, "vgg16")
    assert set(named) == {f"{key}.{kind}" for key in dict(pairs).values() for kind in ("weight", "bias")}
    assert set(named) <= set(network.state_dict())
    for number, (_, key) in enumerate(pairs[1:], 1):
        assert (named[f"{key}.weight"] == number).all() and (named[f"{key}.bias"] == number).all()
    assert named["features.0.weight"].flatten().tolist() == [2, 1, 0], "BGR turned round"
    assert named["classifier.0.weight"].shape == (2, 3), "a convolution becomes a matrix"


def test_deeplabs_own_vgg_with_its_small_fc6():
    """VGG-16 as DeepLab-LargeFOV starts from it and is released: fc6 is 3 x 3 x 512 x 1024, not 7 x 7 x 512 x 4096."""
    torch.manual_seed(0)
    shapes = {"fc6.weight": (6, 512, 3, 3), "fc6.bias": (6,), "fc7.weight": (6, 6, 1, 1), "fc7.bias": (6,)}
    state = {name: torch.randn(shape) for name, shape in shapes.items()}
    head = build_head(DeepLabConfig("large_fov", form="vgg", channels=6), 512, 21, 8)
    head.load_fc(from_caffe(state, "vgg16"))
    for name in ("fc6", "fc7"):
        assert torch.equal(getattr(head, name).weight, state[f"{name}.weight"])
        assert torch.equal(getattr(head, name).bias, state[f"{name}.bias"])
    with pytest.raises(
        UserError, match=r"fc6 of model\.backbone\.weights has 3072 inputs, which is not a square kernel"
    ):
        head.load_fc(from_caffe(state | {"fc6.weight": torch.randn(6, 512, 3, 2)}, "vgg16"))


def test_other_weights_are_refused(tmp_path):
    path = tmp_path / "mobile.pth"
    torch.save(models.mobilenet_v2(weights=None).state_dict(), path)
    with pytest.raises(
        UserError, match=r"is no resnet50 converted from Caffe: missing: conv1.weight, .*; unknown: fea"
    ):
        Backbone(BackboneConfig("resnet50", str(path), layout="caffe"))
