"""One product for all branches against the convolutions themselves: values, gradients, precision."""

import copy
from dataclasses import fields

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from quintet.common.errors import UserError
from quintet.papers.deeplab.backbone import BackboneConfig
from quintet.papers.deeplab.fused_aspp import FusedASPP, summed
from quintet.papers.deeplab.heads import ASPP, DeepLabConfig, atrous
from quintet.papers.deeplab.network import DeepLab, make_head


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
    ours, theirs = summed(features, layers), sum(layer(features) for layer in layers)
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
        ours, theirs = summed(features, layers), sum(layer(features) for layer in layers)
    assert ours.dtype == theirs.dtype == torch.bfloat16 and ours.shape == theirs.shape
    apart, before = ((scores.double() - truth).square().mean().sqrt() for scores in (ours, theirs))
    assert apart < 1.2 * before


VALUES = {  # of every key of the configuration; None: no head with this value has a fused form
    "head": ["large_fov", "aspp_s", "aspp_l"],
    "form": None,
    "rates": [(1,), (2, 5), (3, 3)],
    "kernel_size": [1, 5],
    "channels": [3],
    "dropout": [0.9],
    "scales": [(1.0, 0.5)],
    "fused": [True],
}


def test_every_key_has_values():
    assert set(VALUES) == {field.name for field in fields(DeepLabConfig)}


@pytest.mark.parametrize(("key", "value"), [(k, value) for k, values in VALUES.items() for value in values or ()])
@pytest.mark.parametrize("training", [True, False])
def test_the_fused_head_is_the_plain_one_for_every_key(key, value, training):
    torch.manual_seed(0)
    plain = DeepLab(BackboneConfig("squeezenet1_1", output_stride=16), DeepLabConfig(**{key: value, "fused": False}), 3)
    fused = DeepLab(
        BackboneConfig("squeezenet1_1", output_stride=16), DeepLabConfig(**{key: value} | {"fused": True}), 3
    )
    fused.load_state_dict(plain.state_dict())  # the same names
    assert isinstance(fused.head, FusedASPP) and not isinstance(plain.head, FusedASPP)
    images = torch.rand(2, 3, 65, 49)
    ours, theirs = fused.train(training)(images), plain.train(training)(images)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    slopes = [torch.autograd.grad(x.square().sum(), list(n.parameters())) for n, x in ((fused, ours), (plain, theirs))]
    for mine, other in zip(*slopes, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-4)


def test_hooks_see_each_branch_of_the_plain_head():
    made = make_head(DeepLabConfig("aspp_l"), 6, 3, 16)
    features, seen = torch.randn(1, 6, 9, 9), []
    for branch in made.branches:
        branch["fc8"].register_forward_hook(lambda layer, given, scores: seen.append(scores))
    torch.testing.assert_close(made(features), sum(seen))
    assert isinstance(made, ASPP) and len(seen) == 4


@pytest.mark.parametrize("options", [{"form": "vgg"}, {"head": "none"}])
def test_what_has_no_fused_form(options):
    with pytest.raises(UserError, match=r"model\.network\.fused=true is for form=resnet"):
        DeepLabConfig(**options, fused=True)
