"""The CPU kernels compared with plain convolutions: each by itself, and the network over every key of its settings."""

import copy
from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from quintet.papers.deeplab.backbone import BackboneConfig
from quintet.papers.deeplab.config import DeepLabConfig
from quintet.papers.deeplab.cpu_kernels import AtrousDepthwise, FusedASPP, fused_sum
from quintet.papers.deeplab.heads import atrous
from quintet.papers.deeplab.network import DeepLab


def layers_of(kernels, channels=4, classes=3, dtype=torch.float64):
    torch.manual_seed(0)
    return nn.ModuleList(atrous(channels, classes, size, rate) for size, rate in kernels).to(dtype)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 13),
    st.integers(1, 13),
    st.lists(
        st.tuples(st.sampled_from([1, 3, 5]), st.integers(1, 14)) | st.tuples(st.just(4), st.sampled_from([2, 4, 8])),
        min_size=1,
        max_size=4,
    ),
)
def test_values_and_gradients_are_the_convolutions(height, width, kernels):
    layers = layers_of(kernels)
    features = torch.randn(2, 4, height, width, dtype=torch.float64, requires_grad=True)
    ours, theirs = fused_sum(features, layers), sum(layer(features) for layer in layers)
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-12)
    wanted, towards = [features, *layers.parameters()], torch.randn_like(theirs)
    for mine, other in zip(
        torch.autograd.grad(ours, wanted, towards, allow_unused=True, materialize_grads=True),
        torch.autograd.grad(theirs, wanted, towards),
        strict=True,
    ):
        assert torch.allclose(mine, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("mixed", [True, False])
def test_half_precision_is_no_further_from_the_truth(layout, mixed):
    layers = layers_of([(3, rate) for rate in (2, 4, 6, 8)], 64, 21, torch.float32)
    features = torch.randn(2, 64, 17, 19).relu().to(memory_format=layout)
    truth = sum(layer.double()(features.double()) for layer in layers)
    layers.float()
    if not mixed:
        layers, features = layers.bfloat16(), features.bfloat16()
        truth = sum(layer.double()(features.double()) for layer in copy.deepcopy(layers))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        ours, theirs = fused_sum(features, layers), sum(layer(features) for layer in layers)
    assert ours.dtype == theirs.dtype == torch.bfloat16 and ours.shape == theirs.shape
    apart, before = ((scores.double() - truth).square().mean().sqrt() for scores in (ours, theirs))
    assert apart < 1.2 * before


SETTINGS = {
    "head": ["large_fov", "aspp_s", "aspp_l"],
    "form": ["vgg"],
    "rates": [(2,), (1, 2, 5), (3, 3)],
    "kernel_size": [1, 5],
    "channels": [5],
    "dropout": [0.0],
    "scales": [(1.0, 0.5)],
    "cpu_kernels": [],  # the setting under test
}
NETWORKS = [{}, *({key: value} for key, values in SETTINGS.items() for value in values)]


def test_no_setting_of_the_network_is_left_out():
    assert set(SETTINGS) == {field.name for field in fields(DeepLabConfig)}, "give the new setting values in SETTINGS"


@pytest.mark.parametrize("options", NETWORKS, ids=str)
@pytest.mark.parametrize("backbone", ["mobilenet_v2", pytest.param("resnet18", marks=pytest.mark.slow)])
def test_networks_with_cpu_kernels_have_the_same_scores_and_gradients(backbone, options):
    config = DeepLabConfig(**options)
    torch.manual_seed(0)
    plain = DeepLab(BackboneConfig(backbone, output_stride=16), config, 3).double()
    with torch.random.fork_rng():
        fast = DeepLab(plain.backbone.config, replace(config, cpu_kernels=True), 3).double()
    fast.load_state_dict(plain.state_dict())
    assert [name for name, _ in fast.named_parameters()] == [name for name, _ in plain.named_parameters()]
    images, found = torch.rand(2, 3, 49, 65, dtype=torch.float64), []
    for network in (plain, fast):
        torch.manual_seed(1)  # of dropout
        scores = network(images)
        found.append((scores.detach(), *torch.autograd.grad(scores.square().sum(), list(network.parameters()))))
    for expected, got in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-10)


def test_only_the_setting_chooses_them():
    kinds = []
    for cpu_kernels in (False, True):
        network = DeepLab(BackboneConfig("mobilenet_v2", output_stride=8), DeepLabConfig(cpu_kernels=cpu_kernels), 3)
        layers = list(network.modules())
        kinds.append([sum(isinstance(layer, kind) for layer in layers) for kind in (FusedASPP, AtrousDepthwise)])
    assert kinds[0] == [0, 0] and kinds[1][0] == 1 and kinds[1][1] > 5
