"""L-BFGS in the coordinates of the curvature: the same minimum, sooner, and resumed to the bit."""

import pytest
import torch
from tables import blobs, classifier, fit, pictures

from quintet.common.errors import UserError
from quintet.harness.resume.checkpoint import LastCheckpoint
from quintet.papers.influence.fit.lbfgs import FitConfig

CNN = {"kind": "all_cnn", "channels": [3, 3], "strides": [1, 2]}
EKFAC = {"max_iter": 10, "preconditioner": "ekfac"}


def flat(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()])


@pytest.mark.parametrize("scale", [1.0, 10.0])
def test_it_ends_at_the_minimum_that_plain_lbfgs_finds(scale):
    data = blobs()
    data.inputs[:, 0] *= scale
    plain, ours = classifier(data, {"max_iter": 5000}, l2=0.02), classifier(data, EKFAC, l2=0.02)
    fit(plain, data, max_epochs=5)
    trainer = fit(ours, data, max_epochs=60)
    assert trainer.callback_metrics["train/gradient_norm"] < 1e-6
    torch.testing.assert_close(flat(ours), flat(plain), rtol=1e-4, atol=1e-6)
    assert trainer.global_step < 20  # ten iterations each


def test_a_network_comes_further_with_as_many_iterations():
    data = pictures(rows=60)
    plain, ours = classifier(data, {"max_iter": 10}, CNN, l2=1e-3), classifier(data, EKFAC, CNN, l2=1e-3)
    losses = [float(fit(m, data, max_epochs=3).callback_metrics["train/loss"]) for m in (plain, ours)]
    assert losses[1] < 0.9 * losses[0]
    assert ours.training is False or all(part.training for part in ours.modules())


def test_a_resumed_run_is_the_same(tmp_path):
    data = pictures()
    whole, half, again = (classifier(data, {**EKFAC, "max_iter": 3}, CNN, l2=1e-3) for _ in range(3))
    fit(whole, data, max_epochs=4)
    fit(half, data, LastCheckpoint(tmp_path), max_epochs=2)
    fit(again, data, max_epochs=4, ckpt=tmp_path / "last.ckpt")
    assert torch.equal(flat(again), flat(whole)) and not torch.equal(flat(half), flat(whole))


def test_refusals():
    with pytest.raises(UserError, match="use one of none, ekfac, gauss_newton, hessian"):
        FitConfig(preconditioner="kfac")
    with pytest.raises(UserError, match=r"model\.optimizer\.name=lbfgs"):
        FitConfig(name="adam", preconditioner="ekfac")
