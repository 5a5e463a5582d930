"""The last layer at its own minimum: that minimum against L-BFGS, the rest's gradient, and where training ends."""

import pytest
import torch
from tables import classifier, fit, pictures
from torch import nn

from quintet.common.errors import UserError
from quintet.harness.resume.checkpoint import LastCheckpoint
from quintet.papers.influence.fit.lbfgs import FitConfig
from quintet.papers.influence.fit.projection import fit_top

CNN = {"kind": "all_cnn", "channels": [3, 3], "strides": [1, 2]}
COMPILED = CNN | {"channels": [2, 4]}
PROJECTED = {"max_iter": 40, "project_top": True}


def flat(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()])


@pytest.mark.parametrize("bias_l2", [0.0, 0.02])
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_the_last_layers_minimum_from_far_off(bias_l2, scale):
    torch.manual_seed(0)
    features, labels = torch.randn(50, 4, dtype=torch.float64), torch.randint(3, (50,))
    top = nn.Linear(4, 3, dtype=torch.float64)
    with torch.no_grad():
        top.weight *= scale
    fit_top(top, features, labels, 0.02, bias_l2)
    loss = nn.functional.cross_entropy(top(features), labels) + 0.01 * top.weight.square().sum()
    (loss + bias_l2 / 2 * top.bias.square().sum()).backward()
    assert max(float(part.grad.abs().max()) for part in top.parameters()) < 1e-10


@pytest.mark.parametrize("preconditioner", ["none", "ekfac", "gauss_newton"])
@pytest.mark.parametrize("network", [CNN, COMPILED])
def test_training_ends_at_a_minimum_of_all_parameters(network, preconditioner):
    data = pictures(rows=60)
    module = classifier(data, PROJECTED | {"preconditioner": preconditioner}, network, l2=0.02, decay_bias=True)
    trainer = fit(module, data, max_epochs=15)
    assert trainer.callback_metrics["train/gradient_norm"] < 1e-6


def test_a_network_comes_further_with_as_many_iterations():
    data, losses = pictures(rows=60), []
    for more in ({}, {"project_top": True}, {"project_top": True, "preconditioner": "ekfac"}):
        module = classifier(data, {"max_iter": 10} | more, CNN, l2=1e-3)
        losses.append(float(fit(module, data, max_epochs=3).callback_metrics["train/loss"]))
    assert losses[1] < 0.9 * losses[0] and losses[2] < losses[1]


def test_a_resumed_run_is_the_same(tmp_path):
    data = pictures()
    whole, half, again = (
        classifier(data, PROJECTED | {"max_iter": 3, "preconditioner": "ekfac"}, CNN, l2=1e-3) for _ in range(3)
    )
    fit(whole, data, max_epochs=4)
    fit(half, data, LastCheckpoint(tmp_path), max_epochs=2)
    fit(again, data, max_epochs=4, ckpt=tmp_path / "last.ckpt")
    assert torch.equal(flat(again), flat(whole)) and not torch.equal(flat(half), flat(whole))


def test_refusals():
    with pytest.raises(UserError, match=r"model\.optimizer\.project_top is for model\.optimizer\.name=lbfgs"):
        FitConfig(project_top=True, name="adam")
    with pytest.raises(UserError, match="project_top is for model=all_cnn"):
        classifier(pictures(), PROJECTED)
