"""Sizes, fusion and losses of several scales, against hand computations and scikit-learn."""

import pytest
import torch
from sklearn.metrics import log_loss
from torch.nn import functional as F

from quintet.papers.deeplab.backbone import BackboneConfig
from quintet.papers.deeplab.config import DeepLabConfig
from quintet.papers.deeplab.multi_scale import (
    at_scales,
    coarse_labels,
    fuse,
    mean_losses,
    resize,
    scaled_size,
    size_step,
    summed_losses,
)
from quintet.papers.deeplab.network import DeepLab


def test_sizes_are_those_of_the_paper():
    assert [scaled_size((321, 513), s) for s in (1, 0.75, 0.5)] == [(321, 513), (241, 385), (161, 257)]
    network = DeepLab(BackboneConfig("resnet18", output_stride=8), DeepLabConfig("none", scales=(1, 0.75, 0.5)), 3)
    with torch.no_grad():
        scores = network.pyramid(torch.rand(1, 3, 321, 65))
    assert [tuple(s.shape[-2:]) for s in scores] == [(41, 9), (31, 7), (21, 5)]


def test_resize_is_linear_between_corners():
    ramp = torch.arange(5.0).expand(1, 1, 3, 5)
    assert torch.allclose(resize(ramp, (7, 9))[0, 0], torch.linspace(0, 4, 9).expand(7, 9))
    assert torch.equal(resize(ramp.bfloat16(), (3, 9))[0, 0, 0], torch.linspace(0, 4, 9)), "in float32"
    assert resize(ramp, (3, 5)) is ramp


@torch.no_grad()
def test_every_scale_runs_the_same_network_on_a_resized_image_and_the_largest_score_counts():
    torch.manual_seed(0)
    network = DeepLab(BackboneConfig("resnet18", output_stride=8), DeepLabConfig("aspp_l", scales=(1, 0.75, 0.5)), 3)
    network.eval()
    images = torch.rand(2, 3, 65, 97)
    single = [network.head(network.backbone(F.interpolate(images, size, mode="bilinear", align_corners=True)))
              for size in ((65, 97), (49, 73), (33, 49))]  # fmt: skip
    same = [F.interpolate(s, (9, 13), mode="bilinear", align_corners=True) for s in single]
    expected = torch.maximum(torch.maximum(same[0], same[1]), same[2])
    assert torch.allclose(network(images), expected, atol=1e-5)
    assert not torch.allclose(network(images), single[0], atol=1e-3)


def test_grid_keeps_every_scale_on_pixels():
    assert size_step(8, [1]) == 8 and size_step(8, [1, 0.5]) == 16 and size_step(16, [1.0, 0.75, 0.5]) == 64
    for scale in (1, 0.75, 0.5):
        assert (scaled_size((321, 321), scale)[0] - 1) % 8 == 0


def test_labels_are_every_eighth_at_8k_plus_1():
    labels = torch.randint(0, 9, (2, 65, 33))
    assert torch.equal(coarse_labels(labels, (9, 5)), labels[:, ::8, ::8])
    assert torch.equal(coarse_labels(labels, (5, 3)), labels[:, ::16, ::16])
    assert torch.equal(coarse_labels(labels, (1, 1)), labels[:, :1, :1])
    assert coarse_labels(labels, (7, 5))[0, 1, 0] == labels[0, 11, 0], "64 / 6 = 10.67"


def test_loss_is_the_mean_over_labelled_positions():
    torch.manual_seed(0)
    scores, labels = torch.randn(3, 4, 5, 5), torch.randint(0, 4, (3, 33, 33))
    labels[0, :20] = 255
    labels[2] = 255
    losses = mean_losses(scores, labels)
    for b in (0, 1):
        true = labels[b, ::8, ::8].flatten()
        chances = scores[b].softmax(0).flatten(1).T[true != 255].double().numpy()
        chances /= chances.sum(1, keepdims=True)
        expected = log_loss(true[true != 255].numpy(), chances, labels=range(4))
        assert losses[b].item() == pytest.approx(expected, rel=1e-5)
    assert losses[2] == 0


def test_losses_of_the_fused_and_of_every_scale_add_up():
    torch.manual_seed(0)
    labels = torch.randint(0, 4, (2, 65, 65))
    one, three_quarters, half = (torch.randn(2, 4, n, n) for n in (9, 7, 5))
    scores = [one, three_quarters, half]
    up = F.interpolate(three_quarters, (9, 9), mode="bilinear", align_corners=True)
    at = {"fine": labels[:, ::8, ::8], "coarse": labels[:, ::16, ::16]}
    expected = (
        F.cross_entropy(fuse(scores), at["fine"])
        + F.cross_entropy(one, at["fine"])
        + F.cross_entropy(up, at["fine"])
        + F.cross_entropy(half, at["coarse"])
    )
    assert summed_losses(scores, labels).mean().item() == pytest.approx(expected.item(), rel=1e-6)
    assert torch.equal(summed_losses([one], labels), mean_losses(one, labels))


def test_images_at_scales_keep_their_corners():
    images = torch.rand(1, 3, 33, 65)
    for scaled in at_scales(images, (1, 0.75, 0.5)):
        for row in (0, -1):
            for column in (0, -1):
                assert torch.allclose(scaled[..., row, column], images[..., row, column], atol=1e-6)
