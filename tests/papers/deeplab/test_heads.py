"""LargeFOV and ASPP against convolutions written out; the paper's parameter counts; fc6 and fc7 from VGG-16."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from quintet.common.errors import UserError
from quintet.papers.deeplab.backbone import BackboneConfig
from quintet.papers.deeplab.config import DeepLabConfig
from quintet.papers.deeplab.heads import build_head, decimated
from quintet.papers.deeplab.network import DeepLab

FEATURES = torch.randn(2, 6, 11, 13, generator=torch.Generator().manual_seed(0))


def head(output_stride=8, **options):
    torch.manual_seed(0)
    made = build_head(DeepLabConfig(channels=5, **options), 6, 3, output_stride).eval()
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.3)
    return made


def spread_kernel(kernel, rate):
    """The kernel with rate - 1 zeros between its entries: an ordinary convolution with it is the atrous one."""
    rows, columns = kernel.shape[-2:]
    made = torch.zeros(*kernel.shape[:2], rate * (rows - 1) + 1, rate * (columns - 1) + 1)
    made[..., ::rate, ::rate] = kernel
    return made


@pytest.mark.parametrize(
    ("kind", "rates"), [("large_fov", [12]), ("aspp_s", [2, 4, 8, 12]), ("aspp_l", [6, 12, 18, 24])]
)
@torch.no_grad()
def test_resnet_form_sums_one_convolution_a_rate(kind, rates):
    made = head(head=kind)
    assert len(made.branch_list()) == len(rates)
    expected = 0
    for branch, rate in zip(made.branch_list(), rates, strict=True):
        kernel = spread_kernel(branch.classifier.weight, rate)
        expected = expected + F.conv2d(FEATURES, kernel, branch.classifier.bias, padding=rate)
    assert torch.allclose(made(FEATURES), expected, atol=1e-5)


@torch.no_grad()
def test_vgg_form_has_three_layers_a_branch():
    made = head(head="aspp_s", form="vgg", rates=[2, 3])
    expected = 0
    for branch, rate in zip(made.branch_list(), (2, 3), strict=True):
        x = F.conv2d(FEATURES, branch.fc6.weight, branch.fc6.bias, padding=rate, dilation=rate).relu()
        x = torch.einsum("oi,bihw->bohw", branch.fc7.weight[..., 0, 0], x) + branch.fc7.bias[:, None, None]
        expected = expected + F.conv2d(x.relu(), branch.classifier.weight, branch.classifier.bias)
    assert torch.allclose(made(FEATURES), expected, atol=1e-5)
    made.train()
    assert not torch.allclose(made(FEATURES), made(FEATURES)), "dropout"


@torch.no_grad()
def test_none_looks_at_one_position():
    made = head(head="none", form="vgg")
    changed = FEATURES.clone()
    changed[:, :, 5, 5] += 1
    moved = (made(changed) - made(FEATURES)).abs().sum((0, 1)) > 1e-6
    assert moved.sum() == 1 and moved[5, 5]


def test_rates_cover_as_much_of_the_image_at_other_strides():
    assert DeepLabConfig(head="aspp_l").rates_at(8) == [6, 12, 18, 24]
    assert DeepLabConfig(head="aspp_l").rates_at(16) == [3, 6, 9, 12]
    assert DeepLabConfig(head="aspp_s").rates_at(32) == [1, 1, 2, 3]
    assert DeepLabConfig(head="large_fov", rates=[4]).rates_at(8) == [4]


def test_scores_start_near_zero():
    made = build_head(DeepLabConfig(form="vgg"), 512, 21, 8)
    for branch in made.branch_list():
        assert branch.classifier.weight.std().item() == pytest.approx(0.01, rel=0.05)
        assert all(not layer.bias.any() for layer in branch.layers())


@pytest.mark.parametrize(
    ("options", "millions"),
    # table 1: 134.3M, 65.1M, 65.1M, 20.5M
    [
        ({"kernel_size": 7, "rates": [4], "channels": 4096}, 134.3),
        ({"kernel_size": 4, "rates": [4], "channels": 4096}, 65.1),
        ({"kernel_size": 4, "rates": [8], "channels": 4096}, 65.1),
        ({"kernel_size": 3, "rates": [12], "channels": 1024}, 20.5),
    ],
)
def test_parameters_of_table_1(options, millions):
    with torch.device("meta"):
        made = build_head(DeepLabConfig(head="large_fov", form="vgg", **options), 512, 21, 8)
    count = 14_714_688 + sum(p.numel() for p in made.parameters())  # VGG-16's convolutions
    assert round(count / 1e6, 1) == pytest.approx(millions, abs=0.11)
    layer = made.fc6
    assert layer(torch.empty(1, 512, 41, 41, device="meta")).shape[-2:] == (41, 41)


def test_fc6_and_fc7_are_decimated_from_vgg():
    torch.manual_seed(0)
    classifier = {"classifier.0.weight": torch.randn(9, 4 * 49), "classifier.0.bias": torch.arange(9.0),
                  "classifier.3.weight": torch.randn(9, 9), "classifier.3.bias": torch.arange(9.0)}  # fmt: skip
    made = build_head(DeepLabConfig(head="aspp_s", form="vgg", channels=5), 4, 3, 8)
    for branch in made.branches:
        branch.load_fc(classifier)
    every_third = classifier["classifier.0.weight"].view(9, 4, 7, 7)[::2, :, ::3, ::3]
    for branch in made.branch_list():
        assert torch.equal(branch.fc6.weight, every_third)
        assert torch.equal(branch.fc7.weight[..., 0, 0], classifier["classifier.3.weight"][::2, ::2])
        assert branch.fc6.bias.tolist() == branch.fc7.bias.tolist() == [0, 2, 4, 6, 8]
    with pytest.raises(UserError, match=r"7 of 9|11 of 9"):
        decimated(torch.zeros(9), (11,))


def test_only_new_layers_learn_faster():
    for backbone, count in (("vgg11", 4), ("resnet18", 12)):
        config = DeepLabConfig(head="aspp_s", form="vgg", channels=4)
        assert len(DeepLab(BackboneConfig(backbone), config, 3).new_layers()) == count


@pytest.mark.parametrize("size", [(65, 65), (50, 71), (1, 9)])
@torch.no_grad()
def test_full_resolution_of_any_size(size):
    torch.manual_seed(0)
    network = DeepLab(BackboneConfig("resnet18", output_stride=16), DeepLabConfig("none", scales=(1, 0.5)), 4).eval()
    images = torch.rand(1, 3, *size)
    scores = network.full_resolution(images)
    assert scores.shape == (1, 4, *size) and scores.isfinite().all()
    padded = network.pad_to_stride(images)
    assert all((side - 1) % 32 == 0 for side in padded.shape[-2:]) and torch.equal(
        padded[..., : size[0], : size[1]], images
    )
    border = padded[..., size[1] :]
    assert torch.equal(border, network.backbone.mean.expand_as(border)) and (size == (65, 65)) == (border.numel() == 0)
    low = network(padded)[..., : (size[0] - 1) // 16 + 1, : (size[1] - 1) // 16 + 1]
    assert torch.allclose(scores[..., ::16, ::16], low, atol=1e-5), "corners on corners, every 16th pixel on a score"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head": "aspp"}, r"model\.network\.head='aspp' is unknown: use one of none, large_fov, aspp_s, aspp_l"),
        ({"form": "x"}, r"model\.network\.form='x'"),
        ({"rates": []}, r"model\.network\.rates=\[\]"),
        ({"rates": [0]}, r"model\.network\.rates=\[0\]"),
        ({"kernel_size": 0}, r"model\.network\.kernel_size=0"),
        ({"channels": 0}, r"model\.network\.channels=0"),
        ({"dropout": 1.0}, r"model\.network\.dropout=1\.0"),
        ({"scales": [0.5, 1]}, r"model\.network\.scales=\[0\.5, 1\]: give 1 first"),
        ({"head": "large_fov", "kernel_size": 4, "rates": [3]}, r"kernel_size=4 with rate 3"),
    ],
)
def test_impossible_heads(options, message):
    with pytest.raises(UserError, match=message):
        build_head(DeepLabConfig(**options), 6, 3, 8)
