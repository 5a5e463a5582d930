"""Kernel features against the kernel itself, and the machine on them against scikit-learn's kernel SVM."""

import numpy as np
import pytest
import torch
from sklearn.metrics.pairwise import rbf_kernel
from sklearn.svm import SVC
from tables import blobs, classifier, fit, pictures

from quintet.common.errors import UserError
from quintet.harness.resume.checkpoint import LastCheckpoint
from quintet.papers.influence.classifiers import rbf
from quintet.papers.influence.classifiers.module import ClassifierModule
from quintet.papers.influence.classifiers.network import ClassifierConfig
from quintet.papers.influence.classifiers.rbf import RbfMachine

GAMMA, L2 = 0.3, 0.02


def machine(inputs, **more):
    config = ClassifierConfig(kind="rbf", gamma=GAMMA, **more)
    found = RbfMachine(config, len(inputs), inputs.flatten(1).shape[1], 1, torch.float64)
    found.fill(inputs)
    return found


def svm_module(data, **more):
    return classifier(data, {"name": "exact_hinge"}, {"kind": "rbf", "gamma": GAMMA} | more, loss="smooth_hinge", l2=L2)


def test_products_of_features_are_the_kernel(monkeypatch):
    monkeypatch.setattr(rbf, "BLOCK", 30)  # so that several blocks of the inputs are summed
    train, new = torch.randn(9, 7), torch.randn(4, 7)
    network = machine(train)
    wanted = rbf_kernel(train.double().numpy(), gamma=GAMMA)
    phi = network.features(train)
    np.testing.assert_allclose(phi @ phi.T, wanted, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(network.train_features(), np.linalg.cholesky(wanted), rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(network.features(new) @ phi.T, rbf_kernel(new.double(), train.double(), gamma=GAMMA),
                               rtol=1e-9, atol=1e-12)  # fmt: skip


def test_pixels_are_kept_as_bytes_and_lose_nothing():
    data = pictures(16, classes=2)
    data.inputs = torch.randint(0, 256, data.inputs.shape, generator=torch.Generator().manual_seed(0)).float() * (
        1 / 255
    )
    plain, packed = svm_module(data, gamma=0.02), svm_module(data, gamma=0.02, pixels=True)
    for module in (plain, packed):
        fit(module, data)
    assert packed.network.inputs.dtype == torch.uint8
    assert torch.equal(plain(data.batch()), packed(data.batch()))
    data.inputs += 0.001
    with pytest.raises(UserError, match=r"inputs are not k / 255: set model\.network\.pixels=false"):
        fit(svm_module(data, gamma=0.02, pixels=True), data)


def test_jitter_makes_equal_inputs_possible_and_stays_small():
    train = torch.randn(6, 3)
    twice = torch.cat([train, train[:1]])
    with pytest.raises(UserError, match=r"singular at training example 6 .*model\.network\.jitter=0"):
        machine(twice)
    network = machine(twice, jitter=1e-8)
    phi = network.features(twice)
    np.testing.assert_allclose(phi @ phi.T, rbf_kernel(twice.double(), gamma=GAMMA), atol=1e-7)
    torch.testing.assert_close(network.train_features(), phi, atol=1e-7, rtol=0)


def test_it_is_scikit_learns_kernel_svm():
    data = blobs(60, classes=2, features=3, spread=1.5)
    module = svm_module(data, bias=True)
    trainer = fit(module, data)
    assert abs(trainer.callback_metrics["train/duality_gap"]) < 1e-12
    x, new = data.inputs.double().numpy(), torch.randn(20, 3)
    theirs = SVC(kernel="precomputed", C=1 / (len(x) * L2), tol=1e-12)
    theirs.fit(rbf_kernel(x, gamma=GAMMA), data.labels.numpy())
    for points in (data.inputs, new):
        wanted = theirs.decision_function(rbf_kernel(points.double().numpy(), x, gamma=GAMMA))
        found = module.eval()(data.batch()._replace(inputs=points)).detach()
        np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-7)


def test_lbfgs_trains_on_the_features_of_training_inputs():
    data = pictures(16, classes=2)
    more = {"loss": "smooth_hinge", "l2": L2, "smoothness": 0.1}
    module = classifier(data, {}, {"kind": "rbf", "gamma": 0.02}, **more)
    trainer = fit(module, data)
    exact = classifier(data, {"name": "exact_hinge"}, {"kind": "rbf", "gamma": 0.02}, **more)
    fit(exact, data)
    assert trainer.callback_metrics["train/gradient_norm"] < 1e-7
    torch.testing.assert_close(module.network.top.weight, exact.network.top.weight, rtol=1e-5, atol=1e-6)


def test_a_checkpoint_scores_without_the_training_data(tmp_path):
    data = pictures(16, classes=2)
    module = svm_module(data, gamma=0.02)
    fit(module, data, LastCheckpoint(tmp_path))
    again = ClassifierModule.load_from_checkpoint(tmp_path / "last.ckpt", weights_only=True)
    new = data.batch()._replace(inputs=torch.rand(16, 1, 8, 8))
    assert torch.equal(again(new), module(new)) and again(new).dtype == torch.float64
    assert torch.equal(again.network.inputs.view(-1, 1, 8, 8), data.inputs)


def test_scores_can_be_differentiated_in_the_input():
    data = blobs(12, classes=2, features=3)
    network = machine(data.inputs)
    torch.nn.init.normal_(network.top.weight)
    x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(network, (x,))
