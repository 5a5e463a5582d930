"""LiSSA looks the examples of a linear model up where they are linearised: the series of the model's derivatives."""

import pytest
import torch
from small_models import Softmax, data, examples, fit

from quintet.papers.influence.risk.linear_risk import LinearRisk
from quintet.papers.influence.risk.risk import EmpiricalRisk
from quintet.papers.influence.solvers.lissa import Lissa


@pytest.mark.parametrize("scale", [4.0, None])
@pytest.mark.parametrize("size", [1, 7])  # one part of the training set, several
@pytest.mark.parametrize("bias", [False, True])
def test_the_same_draws_give_the_same_series(bias, size, scale):
    module = fit(Softmax(bias=bias, linear=True), data())
    solver = Lissa(damping=0.2, batch_size=size, depth=60, repeats=2, scale=scale, seed=7)
    looked_up, derived = LinearRisk(module, examples(), batch_size=9), EmpiricalRisk(module, examples())
    vectors_kp = torch.randn(3, looked_up.num_params, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found, wanted = solver.solve(looked_up, vectors_kp), solver.solve(derived, vectors_kp)
    torch.testing.assert_close(found.vectors, wanted.vectors, rtol=1e-9, atol=1e-12)
