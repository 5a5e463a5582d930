"""Folded backbones do the same as they did, in value and in the gradient of the pixels."""

import pytest
import torch
from torch import nn

from quintet.data.examples.features import Backbone, FrozenBackbone
from quintet.papers.influence.attack.folded import Relu6, fold


def with_statistics(backbone: Backbone) -> Backbone:
    """Batch norms as training leaves them, instead of those of a new network."""
    generator = torch.Generator().manual_seed(0)
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.copy_(0.3 * torch.randn(module.num_features, generator=generator))
            module.running_var.copy_(0.5 + torch.rand(module.num_features, generator=generator))
            module.weight.data.copy_(0.5 + torch.rand(module.num_features, generator=generator))
            module.bias.data.copy_(0.3 * torch.randn(module.num_features, generator=generator))
    return backbone


def slope(backbone: Backbone, images: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    images = images.clone().requires_grad_()
    features = backbone(images)
    return features.detach(), torch.autograd.grad(features, images, weights)[0]


@pytest.mark.filterwarnings("ignore:data.features.weights=null")
@pytest.mark.parametrize("name", ["mobilenet_v2", "resnet18"])
def test_the_same_features_and_pixel_gradients(name):
    backbone = with_statistics(FrozenBackbone(name, weights=None, image_size=40).network()).double()
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(2, 3, 20, 20, generator=generator, dtype=torch.float64)  # resized inside
    folded = fold(backbone).double()
    weights = torch.randn(backbone(images).shape, generator=generator, dtype=torch.float64)
    features, gradient = slope(folded, images, weights)
    wanted_features, wanted = slope(backbone, images, weights)
    torch.testing.assert_close(features, wanted_features, rtol=1e-6, atol=1e-6 * float(wanted_features.abs().max()))
    torch.testing.assert_close(gradient, wanted, rtol=1e-5, atol=1e-5 * float(wanted.abs().max()))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert any(isinstance(module, nn.BatchNorm2d) for module in backbone.modules())  # a copy was folded
    assert any(isinstance(module, Relu6) for module in folded.modules()) == (name == "mobilenet_v2")


def test_relu6_has_the_slopes_of_torch_s():
    x = torch.tensor([-1.0, 0.5, 5.75, 7.0])
    for activation in (Relu6(), nn.ReLU6()):
        given = x.clone().requires_grad_()
        value = activation(given * 1)  # in place, which a leaf refuses
        assert value.tolist() == [0.0, 0.5, 5.75, 6.0]
        assert torch.autograd.grad(value.sum(), given)[0].tolist() == [0, 1, 1, 0]
