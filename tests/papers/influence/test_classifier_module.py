"""The classifier module: its minimum is scikit-learn's, its checkpoints are exact, and what it refuses."""

import logging
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from tables import Tables, blobs, classifier, fit, pictures
from torch.func import functional_call

from quintet.common.checkpoints import load_checkpoint
from quintet.common.errors import UserError
from quintet.common.optim import OptimizerConfig, lr_factor
from quintet.harness.resume.checkpoint import LastCheckpoint
from quintet.papers.influence.classifiers.module import ClassifierModule
from quintet.papers.influence.classifiers.settings import check_labels

L2 = 0.02
CNN = {"kind": "all_cnn", "channels": [2, 2], "strides": [1, 2]}
ADAM = {"name": "adam", "lr": 0.05}


def flat(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()])


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("loss", "classes"), [("cross_entropy", 3), ("logistic", 2)])
def test_lbfgs_ends_at_scikit_learns_minimum(loss, classes, bias):
    data = blobs(classes=classes)
    module = classifier(data, network={"bias": bias}, loss=loss, l2=L2)
    trainer = fit(module, data, max_epochs=5)
    theirs = LogisticRegression(C=1 / (L2 * 60), tol=1e-12, max_iter=10**4, fit_intercept=bias)
    theirs.fit(data.inputs.double().numpy(), data.labels.numpy())
    found = module.network.top.weight.detach()
    # three classes: a constant may be added to all biases, which nothing decays
    np.testing.assert_allclose(found, theirs.coef_, rtol=1e-5, atol=1e-7)
    if bias:
        ours, wanted = (
            b - b.mean() * (classes > 2) for b in (module.network.top.bias.detach().numpy(), theirs.intercept_)
        )
        np.testing.assert_allclose(ours, wanted, rtol=1e-5, atol=1e-7)
    assert trainer.global_step == 1  # one step of many iterations, and it stops by itself
    metrics = trainer.callback_metrics
    assert metrics["train/gradient_norm"] < 1e-7
    nats = -theirs.predict_log_proba(data.inputs.double().numpy())[np.arange(60), data.labels.numpy()].mean()
    assert float(metrics["train/example_loss"]) == pytest.approx(nats, rel=1e-6)
    assert float(metrics["train/loss"]) == pytest.approx(nats + L2 / 2 * (theirs.coef_**2).sum(), rel=1e-6)
    assert float(metrics["train/accuracy"]) == pytest.approx(theirs.score(data.inputs.double(), data.labels))


def test_steps_of_few_iterations_go_on_where_the_last_ended_and_stop_at_the_minimum(tmp_path):
    data = blobs()
    module = classifier(data, {"max_iter": 3}, l2=L2)
    whole = fit(module, data, max_epochs=100)
    assert 2 < whole.global_step < 100 and whole.callback_metrics["train/gradient_norm"] < 1e-7
    half = classifier(data, {"max_iter": 3}, l2=L2)
    fit(half, data, LastCheckpoint(tmp_path), max_epochs=3)
    again = classifier(data, {"max_iter": 3}, l2=L2)
    resumed = fit(again, data, max_epochs=100, ckpt=tmp_path / "last.ckpt")
    assert resumed.global_step == whole.global_step and torch.equal(flat(again), flat(module))


def test_it_says_how_far_from_the_minimum_it_stopped(caplog):
    data = blobs()
    with caplog.at_level(logging.WARNING):
        trainer = fit(classifier(data, {"max_iter": 2}, l2=L2), data)
    norm = float(trainer.callback_metrics["train/gradient_norm"])
    assert norm > 1e-4 and f"not at the minimum: gradient norm {norm:.2g}" in caplog.text


def test_the_reported_gradient_is_that_of_the_whole_loss():
    data = blobs(rows=50)
    module = classifier(data, ADAM, loss="cross_entropy", l2=L2)
    data.batch_size = 20
    trainer = fit(module, data)
    assert trainer.global_step == 3
    loss = module.example_losses(data.batch()).mean() + module.regularisation()
    gradients = torch.autograd.grad(loss, list(module.parameters()))
    wanted = float(torch.cat([g.flatten() for g in gradients]).norm())
    assert float(trainer.callback_metrics["train/gradient_norm"]) == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("network", [{"bias": True}, CNN])
def test_a_checkpoint_comes_back_bit_for_bit_in_float64(tmp_path, network):
    data = pictures()
    module = classifier(data, {"max_iter": 5}, network, l2=L2)
    fit(module, data, LastCheckpoint(tmp_path))
    again = ClassifierModule.load_from_checkpoint(tmp_path / "last.ckpt", weights_only=True)
    assert flat(again).dtype == torch.float64 and torch.equal(flat(again), flat(module))
    assert (flat(again) - flat(again).float()).abs().max() > 0  # float32 would have lost digits
    assert torch.equal(again.example_losses(data.batch()), module.example_losses(data.batch()))


def test_float32_if_told():
    data = pictures()
    module = classifier(data, ADAM, CNN, dtype="float32")
    assert fit(module, data, max_epochs=2).global_step == 2
    assert flat(module).dtype == torch.float32 and module.example_losses(data.batch()).dtype == torch.float32


@pytest.mark.parametrize("decay_bias", [False, True])
def test_regularisation_counts_weights_and_biases_if_told(decay_bias):
    data = blobs()
    module = classifier(data, network={"bias": True}, l2=0.3, decay_bias=decay_bias)
    weight, bias = torch.randn(3, 4).double(), torch.randn(3).double()
    given = {"network.top.weight": weight, "network.top.bias": bias}

    def penalty(parameters):
        call = torch.nn.Module()
        call.module, call.forward = module, lambda: module.regularisation()
        return functional_call(call, {f"module.{name}": p for name, p in parameters.items()}, ())

    wanted = 0.15 * (weight.square().sum() + decay_bias * bias.square().sum())
    torch.testing.assert_close(penalty(given), wanted)
    slopes = torch.func.grad(penalty)(given)
    torch.testing.assert_close(slopes["network.top.weight"], 0.3 * weight)
    torch.testing.assert_close(slopes["network.top.bias"], 0.3 * decay_bias * bias)


@pytest.mark.parametrize(("network", "loss", "classes"), [(CNN, "cross_entropy", 3), ({"bias": True}, "logistic", 2),
                                                          ({}, "smooth_hinge", 2)])  # fmt: skip
def test_linear_parts_are_the_losses(network, loss, classes):
    data = pictures(classes=classes)
    module = classifier(data, ADAM, network, loss=loss, smoothness=0.1 * (loss == "smooth_hinge"))
    for p in module.parameters():
        torch.nn.init.normal_(p)
    parts, named = module.linear_parts(data.batch()), dict(module.named_parameters())
    outputs = parts.design @ named[parts.weight].T + (0 if parts.bias is None else named[parts.bias])
    torch.testing.assert_close(parts.losses(outputs), module.example_losses(data.batch()))


def test_labels_are_drawn_from_the_prediction():
    for loss, classes in (("cross_entropy", 3), ("logistic", 2)):
        data = Tables(torch.ones(1, 2), torch.zeros(1, dtype=torch.int64), classes=classes)
        module, many = classifier(data, loss=loss), data.example_batch("train", [0] * 20000)
        torch.nn.init.normal_(module.network.top.weight)
        drawn = module.sample_labels(many, torch.Generator().manual_seed(0))
        outputs = module(data.batch())[0]
        chances = outputs.softmax(0) if classes == 3 else torch.stack([-outputs, outputs]).sigmoid()
        torch.testing.assert_close(drawn.labels.bincount() / 20000, chances.detach().float(), atol=0.015, rtol=0)
        assert drawn.inputs is many.inputs and torch.equal(drawn.labels, module.sample_labels(
            many, torch.Generator().manual_seed(0)).labels)  # fmt: skip
    hinge = classifier(blobs(classes=2), ADAM, loss="smooth_hinge")
    assert hinge.sample_labels(many, torch.Generator()) is many


def test_the_hinges_smoothness_can_be_changed_after_the_fit():
    data = blobs(classes=2)
    module = classifier(data, {"name": "exact_hinge"}, loss="smooth_hinge", l2=L2)
    fit(module, data)
    hinge = module.example_losses(data.batch())
    module.smoothness = 0.1
    above = module.example_losses(data.batch()) - hinge
    assert (above >= 0).all() and 0 < above.max() <= 0.1 * np.log(2) + 1e-12


def test_test_metrics_by_hand():
    data = blobs(classes=2, spread=2.0)
    module = classifier(data, loss="logistic", l2=L2)
    trainer = fit(module, data)
    result = trainer.test(module, datamodule=data, verbose=False)[0]  # in batches of 7
    score = (data.inputs.double() @ module.network.top.weight[0].detach()).numpy()
    y = 2 * data.labels.numpy() - 1
    assert result["test/loss"] == pytest.approx(np.logaddexp(0, -y * score).mean(), rel=1e-6)
    assert result["test/accuracy"] == pytest.approx((y * score > 0).mean())
    assert trainer.callback_metrics["test/loss"] == result["test/loss"]


def test_start_continues_from_another_run_in_another_precision(tmp_path):
    data = pictures()
    first = classifier(data, ADAM, CNN, dtype="float32", l2=L2)
    fit(first, data, LastCheckpoint(tmp_path / "first"), max_epochs=3)
    second = classifier(data, {"max_iter": 4}, CNN, l2=L2, start=str(tmp_path / "first" / "last.ckpt"))
    assert torch.equal(flat(second), flat(first).double())
    fit(second, data, LastCheckpoint(tmp_path / "second"))
    (tmp_path / "first" / "last.ckpt").unlink()
    again = ClassifierModule.load_from_checkpoint(tmp_path / "second" / "last.ckpt")  # needs no other file
    assert torch.equal(flat(again), flat(second)) and not torch.equal(flat(again), flat(first).double())
    with pytest.raises(UserError, match="not of this Classifier"):
        classifier(data, network={}, start=str(tmp_path / "second" / "last.ckpt"))


def test_step_down_and_momentum():
    config = OptimizerConfig(schedule="step_down", step_down_at=(10, 30))
    assert [lr_factor(config, step) for step in (0, 9, 10, 29, 30)] == pytest.approx([1, 1, 0.1, 0.1, 0.01])
    with pytest.raises(UserError, match="rising order"):
        OptimizerConfig(step_down_at=(30, 10))
    data = blobs()
    module = classifier(data, {"name": "sgd", "lr": 0.1, "momentum": 0.5}, l2=L2)
    fit(module, data, max_epochs=2)
    theta, velocity, start = torch.zeros(3, 4).double(), 0, classifier(data, l2=L2)
    for _ in range(2):
        torch.nn.init.zeros_(start.network.top.weight).data.add_(theta)
        loss = start.example_losses(data.batch()).mean() + start.regularisation()
        velocity = 0.5 * velocity + torch.autograd.grad(loss, start.network.top.weight)[0]
        theta = theta - 0.1 * velocity
    torch.testing.assert_close(module.network.top.weight.detach(), theta)


def test_weights_of_a_linear_classifier_as_pictures(tmp_path):
    data = pictures(classes=2)
    for loss in ("cross_entropy", "logistic"):
        files = classifier(data, loss=loss).make_media(data, tmp_path)
        assert [f.name for f in files] == ["weights.png"] and files[0].stat().st_size > 1000
    assert classifier(data, network=CNN).make_media(data, tmp_path) == []
    assert classifier(blobs()).make_media(blobs(), tmp_path) == []


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"optimizer": {"weight_decay": 0.1}}, r"model\.optimizer\.weight_decay=0\.1 .* model\.l2"),
        ({"optimizer": {"name": "adamw"}}, r"name='adamw' is unknown: use one of lbfgs, exact_hinge, adam, sgd"),
        ({"optimizer": {"max_iter": 0}}, r"max_iter.* above 0"),
        ({"optimizer": {"tolerance": 1}}, r"model\.optimizer has no key 'tolerance'"),
        ({"loss": "hinge"}, r"model\.loss='hinge' is unknown: use one of cross_entropy, logistic, smooth_hinge"),
        ({"loss": "logistic"}, r"two classes apart, the data has 3: set data\.classes"),
        ({"loss": "smooth_hinge"}, "no gradient at its corner"),
        ({"optimizer": {"name": "exact_hinge"}}, r"exact_hinge is for model\.loss=smooth_hinge"),
        ({"l2": -1.0}, r"model\.l2=-1\.0"),
        ({"dtype": "float16"}, r"model\.dtype='float16'"),
    ],
)
def test_refusals(settings, said):
    with pytest.raises(UserError, match=said):
        classifier(blobs(), **settings)


def test_refusals_at_the_start_of_a_run():
    data = blobs()
    data.batch_size = 10
    with pytest.raises(UserError, match=r"in one batch, and there are 6: set data\.batch_size=null"):
        fit(classifier(data), data)
    with pytest.raises(UserError, match=r"runs on one device: set trainer\.devices=1"):
        module = classifier(data)
        module._trainer = SimpleNamespace(world_size=2, datamodule=data)
        module.setup("fit")
    one_class = Tables(torch.randn(5, 2), torch.ones(5, dtype=torch.int64))
    with pytest.raises(UserError, match="all training labels are class 1"):
        fit(classifier(one_class), one_class)
    with pytest.raises(UserError, match=r"go from 0 to 3, the model has classes 0\.\.2"):
        check_labels(torch.tensor([0, 3]), 3)
    with pytest.raises(UserError, match=r"data has input_shape=\[4\], the model was built for input_shape=\[5\]"):
        fit(classifier(blobs(features=5)), blobs(features=4))
    broken = blobs()
    broken.inputs[3, 1] = torch.inf
    with pytest.raises(UserError, match=r"training loss is nan .* look for inf or nan in the data"):
        fit(classifier(broken, ADAM), broken)


def test_only_plain_values_are_stored(tmp_path):
    data = blobs()
    fit(classifier(data), data, LastCheckpoint(tmp_path))
    stored = load_checkpoint(tmp_path / "last.ckpt")["hyper_parameters"]
    assert stored["data_info"] == {"input_shape": [4], "num_classes": 3} and "start" not in stored
