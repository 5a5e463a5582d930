"""The compiled tanh network against torch's convolutions and derivatives by torch.func."""

import pytest
import torch
from tables import classifier, fit, pictures

from quintet.papers.influence.classifiers import module as classifier_module
from quintet.papers.influence.cnn.compiled_risk import CompiledRisk, compiles, network_of
from quintet.papers.influence.retrain.control import value_and_gradient
from quintet.papers.influence.risk.examples import Examples
from quintet.papers.influence.risk.gauss_newton import gauss_newton
from quintet.papers.influence.risk.linear_risk import make_risk
from quintet.papers.influence.risk.risk import EmpiricalRisk

# sides that the strides do not divide, images that do not fill a block of 16
NETWORKS = {
    "one_layer": ({"channels": [2], "strides": [1]}, 5),
    "stride_two_first": ({"channels": [4, 2], "strides": [2, 1]}, 7),
    "three_layers": ({"channels": [2, 4, 2], "strides": [1, 2, 2]}, 10),
    "maps_of_a_pixel": ({"channels": [2, 2], "strides": [2, 2]}, 3),
}
ROUNDING = {"float64": 1e-12, "float32": 2e-5}


def small(name, dtype="float64", optimizer=None):
    """(data, a classifier whose network has kernels, at random parameters)."""
    network, side = NETWORKS[name]
    data = pictures(rows=19, side=10)
    data.inputs = data.inputs[:, :, :side, 1 : side + 1].contiguous()
    module = classifier(data, optimizer, {"kind": "all_cnn", **network}, dtype=dtype, l2=0.01)
    with torch.no_grad():
        for part in module.parameters():
            part += 0.3 * torch.randn_like(part)
    return data, module


def near(found, wanted, dtype="float64"):
    torch.testing.assert_close(found, wanted, rtol=ROUNDING[dtype], atol=ROUNDING[dtype] * float(wanted.abs().max()))


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", NETWORKS)
def test_every_derivative_is_that_of_torch(name, dtype):
    data, module = small(name, dtype)
    compiled, plain = make_risk(module, Examples(data, "train")), EmpiricalRisk(module, Examples(data, "train"))
    assert isinstance(compiled, CompiledRisk)
    vectors_kp = torch.randn(3, plain.num_params, dtype=plain.dtype)
    near(compiled.gradient(), plain.gradient(), dtype)
    near(compiled.hvp(vectors_kp), plain.hvp(vectors_kp), dtype)
    near(gauss_newton(compiled), gauss_newton(plain), dtype)
    batch = plain.read(plain.train, slice(1, 18))
    near(compiled.example_gradients(batch), plain.example_gradients(batch), dtype)
    for weight_b in (None, torch.rand(17, dtype=plain.dtype)):
        found, wanted = (risk.sum_and_gradient(plain.theta, batch, weight_b) for risk in (compiled, plain))
        assert found[0] == pytest.approx(wanted[0], rel=ROUNDING[dtype])
        near(found[1], wanted[1], dtype)
    near(compiled.directional(batch, vectors_kp), plain.directional(batch, vectors_kp), dtype)
    rows = [torch.cat(list(parts)) for parts in (compiled.curvature_rows(batch), plain.curvature_rows(batch))]
    near(rows[0].T @ rows[0], rows[1].T @ rows[1], dtype)


def test_without_an_example_and_what_the_top_layer_sees():
    data, module = small("three_layers")
    compiled = make_risk(module, Examples(data, "train"), batch_size=6)
    plain = EmpiricalRisk(module, Examples(data, "train"), batch_size=7)
    moved = plain.theta + 0.1
    for removal in (None, 0, 17, 18):  # 18 is alone in its batch of 6
        found, wanted = (moved.clone().requires_grad_() for _ in range(2))
        values = value_and_gradient(compiled, found, removal), value_and_gradient(plain, wanted, removal)
        assert values[0] == pytest.approx(values[1], rel=1e-13)
        near(found.grad, wanted.grad)
    network, batch = network_of(module), data.batch()
    features = network.features_of(plain.theta.numpy(), network.pack(batch.inputs, batch.labels))
    near(torch.from_numpy(features), module.network.features(batch.inputs.double()).detach())


@pytest.mark.parametrize("settings", [{"max_iter": 3}, {"name": "adam", "lr": 1e-2}])
def test_training_takes_the_same_steps(settings, monkeypatch):
    ended = []
    for way in (True, False):
        monkeypatch.setattr(classifier_module, "compiles", lambda module, way=way: way)
        data, module = small("three_layers", optimizer=settings)
        fit(module, data, max_epochs=3)
        ended.append(torch.cat([part.detach().flatten() for part in module.parameters()]))
        assert (module._compiled is not None) == way
    torch.testing.assert_close(*ended, rtol=1e-7, atol=1e-9)


def test_what_there_are_no_kernels_for():
    data, module = small("one_layer")
    assert compiles(module) and not CompiledRisk.applies(module, Examples(data, "train"), "network.convolutions.*")
    for network in ({"channels": [3]}, {"kernel_size": 5}, {"channels": [2], "strides": [3]}):
        settings = {"kind": "all_cnn", "channels": [2], "strides": [1], **network}
        assert not compiles(classifier(data, network=settings))
    assert not compiles(classifier(data))  # linear
    two = pictures(classes=2)
    assert not compiles(classifier(two, network={"kind": "all_cnn", **NETWORKS["one_layer"][0]}, loss="logistic"))
