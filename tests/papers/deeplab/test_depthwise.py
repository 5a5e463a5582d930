"""Depthwise convolutions with holes: torch's own convolution and its gradients are the reference."""

from copy import deepcopy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from quintet.papers.deeplab.cpu_kernels import AtrousDepthwise, deinterlaced


def depthwise(rate=2, kernel=3, channels=4, **options):
    options = {"padding": rate * (kernel // 2), "bias": False, "groups": channels} | options
    return nn.Conv2d(channels, channels, kernel, dilation=rate, **options).double()


@settings(max_examples=40, deadline=None)
@given(rate=st.integers(2, 5), kernel=st.sampled_from([1, 3, 5]), rows=st.integers(1, 13), columns=st.integers(1, 13))
def test_outputs_and_gradients_are_torchs(rate, kernel, rows, columns):
    torch.manual_seed(rows)
    layer = depthwise(rate, kernel)
    ours = AtrousDepthwise.of(layer)
    assert isinstance(ours, AtrousDepthwise) and ours.weight is layer.weight
    x, slope = torch.randn(2, 2, 4, rows, columns, dtype=torch.float64)
    found = []
    for one in (layer, ours):
        image = x.clone().requires_grad_()
        output = one(image)
        found.append((output.detach(), *torch.autograd.grad(output, [image, one.weight], slope)))
    for expected, got in zip(*found, strict=True):
        assert torch.allclose(got, expected, rtol=1e-12, atol=1e-12)


def test_the_mixed_precision_of_training_is_the_same_as_torchs():
    layer = depthwise().float()
    ours, x = AtrousDepthwise.of(deepcopy(layer)), torch.randn(3, 4, 9, 9)
    for one in (layer, ours):
        with torch.autocast("cpu", torch.bfloat16):
            output = one(x)
        assert output.dtype == torch.bfloat16
        output.float().square().mean().backward()
    assert ours.weight.grad.dtype == torch.float32
    assert torch.allclose(
        ours.weight.grad, layer.weight.grad, rtol=0.02, atol=0.02 * float(layer.weight.grad.abs().max())
    )


@pytest.mark.parametrize(
    "layer",
    [
        depthwise(rate=1, padding=1),
        depthwise(padding=0),
        depthwise(stride=2),
        depthwise(bias=True),
        depthwise(groups=2),
        depthwise(padding_mode="reflect"),
        depthwise(kernel=4, padding=4),
        nn.Conv2d(4, 8, 3, dilation=2, padding=2, groups=4, bias=False),
        nn.MaxPool2d(3),
    ],
    ids=str,
)
def test_other_layers_stay_as_they_are(layer):
    assert AtrousDepthwise.of(layer) is layer


def test_deinterlaced_maps_hold_every_second_pixel():
    x = torch.arange(15.0).view(1, 1, 3, 5)
    maps = deinterlaced(x, 2)
    assert maps[0, 0].tolist() == [[0, 2, 4], [10, 12, 14]]
    assert maps[3, 0].tolist() == [[6, 8, 0], [0, 0, 0]]


def test_in_eval_mode_it_has_every_derivative():
    ours = AtrousDepthwise.of(depthwise()).eval()
    x = torch.randn(1, 4, 5, 5, dtype=torch.float64)
    _, along = torch.func.jvp(ours, (x,), (x,))
    assert torch.allclose(along, ours(x))
