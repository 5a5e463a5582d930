"""One product for all branches against the convolutions themselves: values, gradients, precision."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from quintet.papers.deeplab import heads
from quintet.papers.deeplab.heads import Head, NetworkConfig, atrous
from quintet.papers.deeplab.taps import summed


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


def test_the_head_takes_it_where_branches_are_linear(monkeypatch):
    taken = []
    monkeypatch.setattr(heads, "summed", lambda *given: taken.append(len(given[1])) or summed(*given))
    features = torch.randn(1, 6, 9, 9)
    for options, count in (({}, 4), ({"head": "large_fov"}, 1)):
        made = Head(NetworkConfig(**options), 6, 3, 16)
        assert torch.allclose(made(features), made.separately(features), atol=1e-6)
        assert taken.pop() == count and set(made.state_dict()) == {
            f"branches.{n}.fc8.{kind}" for n in range(count) for kind in ("weight", "bias")
        }
    seen = []  # influence functions watch the calls of each layer
    for branch in made.branches:
        branch["fc8"].register_forward_hook(lambda layer, given, scores: seen.append(scores))
    assert torch.allclose(made(features), sum(seen), atol=1e-6) and len(seen) == 1 and not taken
    for config in (NetworkConfig("aspp_s", form="vgg", channels=2), NetworkConfig("none")):
        Head(config, 6, 3, 16)(features)
    assert not taken
