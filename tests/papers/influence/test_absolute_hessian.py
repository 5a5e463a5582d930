"""The Hessian without its signs, against an eigendecomposition; training with it is in test_gauss_newton.py."""

import numpy as np
import pytest
import torch
from small_models import dense
from tables import classifier, pictures

from quintet.common.errors import UserError
from quintet.papers.influence.fit import absolute_hessian
from quintet.papers.influence.fit.absolute_hessian import AbsoluteHessian
from quintet.papers.influence.risk import gauss_newton
from quintet.papers.influence.risk.examples import Examples, rows_of
from quintet.papers.influence.risk.linear_risk import make_risk
from quintet.papers.influence.risk.risk import EmpiricalRisk

CNN = {"kind": "all_cnn", "channels": [3, 3], "strides": [1, 2]}
SETTINGS = {"max_iter": 10, "preconditioner": "hessian", "tolerance_grad": 1e-7}
L2 = {"l2": 0.005, "decay_bias": True}


@pytest.fixture(scope="module")
def data():
    return pictures(rows=40)


def doubled(data):
    batch = data.batch()
    return batch._replace(inputs=batch.inputs.double())


def test_the_root_inverts_the_hessian_without_its_signs(data):
    """At random weights, where the Hessian is indefinite."""
    module = classifier(data, SETTINGS, CNN, **L2)
    with torch.no_grad():
        for part in module.parameters():
            part.mul_(2)
    root = AbsoluteHessian(make_risk(module, Examples(data, "train")))
    _, hessian = dense(module, doubled(data))
    values, vectors = np.linalg.eigh(hessian.numpy())
    assert values[0] < -0.01 < 0.01 < values[-1]
    torch.testing.assert_close(root.eigenvalues, torch.from_numpy(values), rtol=1e-6, atol=1e-9)
    size = np.maximum(np.abs(values), absolute_hessian.FLOOR * np.abs(values).max())
    vector = torch.randn(2, len(values), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    wanted = torch.from_numpy((vectors / size) @ vectors.T)
    torch.testing.assert_close(root.root(root.root_transposed(vector)), vector @ wanted, rtol=1e-6, atol=1e-8)


def test_some_examples_stand_for_all(data, monkeypatch):
    module = classifier(data, SETTINGS, CNN, **L2)
    monkeypatch.setattr(absolute_hessian, "EXAMPLES", 15)  # of 40: every third
    root = AbsoluteHessian(make_risk(module, Examples(data, "train")))
    _, hessian = dense(module, rows_of(doubled(data), torch.arange(0, 40, 3)))
    torch.testing.assert_close(root.eigenvalues, torch.linalg.eigvalsh(hessian), rtol=1e-6, atol=1e-9)


def test_a_large_network_is_refused(data, monkeypatch):
    monkeypatch.setattr(gauss_newton, "MAX_PARAMS", 100)
    with pytest.raises(UserError, match=r"preconditioner=hessian is for 100 parameters at most, not \d+: use ekfac"):
        AbsoluteHessian(EmpiricalRisk(classifier(data, SETTINGS, CNN, **L2), Examples(data, "train")))
