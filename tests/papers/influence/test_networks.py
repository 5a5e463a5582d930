"""Sizes of the networks, the convolutional one by hand, and that torch.func gets through them."""

import numpy as np
import pytest
import torch
from scipy.signal import correlate
from torch.func import functional_call, grad, jvp, vmap

from quintet.common.errors import UserError
from quintet.papers.influence.classifiers.network import AllCnn, ClassifierConfig, Linear


def test_the_papers_network_has_2616_parameters():
    network = AllCnn(ClassifierConfig(kind="all_cnn"), (1, 28, 28), 10, torch.float64)
    assert sum(p.numel() for p in network.parameters()) == 2616
    assert network(torch.rand(2, 1, 28, 28, dtype=torch.float64)).shape == (2, 10)


def test_all_cnn_by_scipy():
    torch.manual_seed(0)
    config = ClassifierConfig(kind="all_cnn", channels=(2, 3), strides=(1, 2))
    network, image = AllCnn(config, (1, 6, 6), 4, torch.float64), torch.rand(1, 6, 6, dtype=torch.float64)
    maps = image.numpy()
    for layer, stride in zip(network.convolutions[::2], (1, 2, 1), strict=True):
        side = layer.kernel_size[0] // 2
        padded = np.pad(maps, ((0, 0), (side, side), (side, side)))
        weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
        full = [correlate(padded, w, mode="valid")[0] + b for w, b in zip(weight, bias, strict=True)]
        maps = np.tanh(np.stack(full)[:, ::stride, ::stride])
    assert maps.shape == (4, 3, 3)  # as many maps as outputs
    wanted = network.top.weight.detach().numpy() @ maps.mean((1, 2)) + network.top.bias.detach().numpy()
    np.testing.assert_allclose(network(image[None])[0].detach(), wanted, rtol=1e-12)


def test_initial_weights_are_cut_normals_of_one_over_root_fan_in():
    torch.manual_seed(0)
    network = AllCnn(ClassifierConfig(kind="all_cnn", channels=(64, 64), strides=(1, 1)), (1, 8, 8), 10, torch.float32)
    weight = network.convolutions[2].weight.detach()
    std = (64 * 9) ** -0.5
    assert weight.abs().max() <= 2 * std and weight.std() == pytest.approx(0.88 * std, rel=0.02)
    assert not network.convolutions[2].bias.any()


@pytest.mark.parametrize("kind", ["linear", "all_cnn"])
def test_hessian_vector_products_and_example_gradients(kind):
    torch.manual_seed(0)
    config = ClassifierConfig(kind=kind, channels=(2, 2), strides=(1, 2))
    make = {"linear": lambda: Linear(25, 3, True, torch.float64),
            "all_cnn": lambda: AllCnn(config, (1, 5, 5), 3, torch.float64)}  # fmt: skip
    network, images = make[kind](), torch.rand(4, 1, 5, 5, dtype=torch.float64)
    theta = {name: p.detach() + 0.1 for name, p in network.named_parameters()}
    vector = {name: torch.randn_like(p) for name, p in theta.items()}

    def total(parameters, x):
        return functional_call(network, parameters, (x,)).logsumexp(1).sum()

    gradient = grad(total)
    product = jvp(lambda t: gradient(t, images), (theta,), (vector,))[1]
    h = 1e-6
    up, down = (gradient({n: theta[n] + d * vector[n] for n in theta}, images) for d in (h, -h))
    for name in theta:
        torch.testing.assert_close(product[name], (up[name] - down[name]) / (2 * h), rtol=1e-6, atol=1e-7)
    each = vmap(lambda x: gradient(theta, x[None]))(images)
    for name, whole in gradient(theta, images).items():
        torch.testing.assert_close(each[name].sum(0), whole)


def test_a_linear_network_starts_at_zero_and_has_a_bias_if_told():
    network = Linear(4, 3, True, torch.float64)
    assert [p.shape for p in network.parameters()] == [(3, 4), (3,)]
    assert not any(p.any() for p in network.parameters())
    assert len(list(Linear(4, 3, False, torch.float64).parameters())) == 1


def test_refusals():
    with pytest.raises(UserError, match=r"model\.network\.kind='resnet' is unknown: use one of linear, all_cnn, rbf"):
        ClassifierConfig(kind="resnet")
    with pytest.raises(UserError, match=r"channels and \.strides"):
        ClassifierConfig(channels=(8, 8), strides=(1,))
    with pytest.raises(UserError, match=r"kernel_size=4 must be odd"):
        ClassifierConfig(kernel_size=4)
    with pytest.raises(UserError, match=r"gamma must be above 0"):
        ClassifierConfig(gamma=0.0)
    with pytest.raises(UserError, match=r"all_cnn needs images \(C, H, W\), the data has \[784\]"):
        AllCnn(ClassifierConfig(kind="all_cnn"), (784,), 10, torch.float64)
