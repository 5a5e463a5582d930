"""Batched refits of logistic regression with replaced rows, against scikit-learn and dense linear algebra."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from quintet.common.errors import UserError
from quintet.papers.influence.attack.replaced_rows import ReplacedRowFits, RowReplacements

N, FEATURES, L2 = 60, 7, 0.02
SETS = {0: {3: 1.0, 9: -2.0, 40: 0.5}, 2: {3: 6.0}}  # set -> row -> shift; set 1 is unchanged


def problem(bias: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(rows, signs, decay); the bias is not decayed."""
    generator = torch.Generator().manual_seed(0)
    rows_np = torch.randn(N, FEATURES, generator=generator, dtype=torch.float64)
    noise = 0.7 * torch.randn(N, generator=generator, dtype=torch.float64)
    signs_n = torch.sign(rows_np[:, 0] - rows_np[:, 1] + 0.4 + noise)
    decay_p = torch.full((FEATURES,), L2, dtype=torch.float64)
    if bias:
        rows_np = torch.cat([rows_np, torch.ones(N, 1, dtype=torch.float64)], 1)
        decay_p = torch.cat([decay_p, torch.zeros(1, dtype=torch.float64)])
    return rows_np, signs_n, decay_p


def replaced_rows(rows_np: torch.Tensor) -> RowReplacements:
    generator = torch.Generator().manual_seed(1)
    sets, rows, new = [], [], []
    for place, shifts in SETS.items():
        for row, shift in shifts.items():
            changed = rows_np[row].clone()
            changed[:FEATURES] += shift * torch.randn(FEATURES, generator=generator, dtype=torch.float64)
            sets.append(place), rows.append(row), new.append(changed)
    return RowReplacements(torch.tensor(sets), torch.tensor(rows), torch.stack(new))


def written_out(rows_np: torch.Tensor, replaced: RowReplacements, place: int) -> torch.Tensor:
    """The rows of one set."""
    whole = rows_np.clone()
    for of, row, new in zip(*replaced, strict=True):
        if int(of) == place:
            whole[row] = new
    return whole


def by_sklearn(rows_np: torch.Tensor, signs_n: torch.Tensor, bias: bool) -> np.ndarray:
    model = LogisticRegression(C=1 / (N * L2), fit_intercept=bias, tol=1e-12, max_iter=1000, solver="newton-cg")
    model.fit(rows_np[:, :FEATURES], signs_n)
    return np.concatenate([model.coef_[0], model.intercept_[: int(bias)]])


@pytest.mark.parametrize("bias", [False, True])
def test_each_set_is_fitted_to_its_own_minimum(bias):
    rows_np, signs_n, decay_p = problem(bias)
    replaced = replaced_rows(rows_np)
    fits = ReplacedRowFits(rows_np, signs_n, decay_p, torch.zeros_like(decay_p), tolerance=1e-11)
    found_mp = fits.fit(replaced, fits.theta.repeat(3, 1))
    np.testing.assert_allclose(fits.theta, by_sklearn(rows_np, signs_n, bias), atol=1e-7)
    np.testing.assert_allclose(found_mp[1], fits.theta, atol=1e-9)
    for place in SETS:
        wanted = by_sklearn(written_out(rows_np, replaced, place), signs_n, bias)
        np.testing.assert_allclose(found_mp[place], wanted, atol=1e-7)
        assert np.abs(wanted - fits.theta.numpy()).max() > 0.01  # there was something to do


def test_solves_with_each_set_s_own_hessian():
    rows_np, signs_n, decay_p = problem(True)
    replaced = replaced_rows(rows_np)
    fits = ReplacedRowFits(rows_np, signs_n, decay_p, torch.zeros_like(decay_p))
    generator = torch.Generator().manual_seed(2)
    theta_mp, right_mp = (torch.randn(3, FEATURES + 1, generator=generator, dtype=torch.float64) for _ in range(2))
    solved_mp = fits.solve(theta_mp, replaced, right_mp, torch.zeros_like(right_mp), tolerance=1e-11)
    again_mp = fits.solve(theta_mp, replaced, right_mp, right_mp, tolerance=1e-11)  # from somewhere else
    for place in range(3):
        rows = written_out(rows_np, replaced, place).numpy()
        chance = 1 / (1 + np.exp(-rows @ theta_mp[place].numpy()))
        hessian = rows.T @ (rows * (chance * (1 - chance))[:, None]) / N + np.diag(decay_p)
        wanted = np.linalg.solve(hessian, right_mp[place].numpy())
        np.testing.assert_allclose(solved_mp[place], wanted, rtol=1e-8)
        np.testing.assert_allclose(again_mp[place], wanted, rtol=1e-8)


def test_an_example_that_becomes_extreme_needs_shorter_steps():
    """Newton's full step overshoots when a row grows a thousandfold on the wrong side."""
    rows_np, signs_n, decay_p = problem(False)
    fits = ReplacedRowFits(rows_np, signs_n, decay_p, torch.zeros_like(decay_p), tolerance=1e-9)
    far_p = -1000 * signs_n[5] * fits.theta
    replaced = RowReplacements(torch.tensor([0]), torch.tensor([5]), far_p[None])
    found_p = fits.fit(replaced, fits.theta[None])[0]
    rows = written_out(rows_np, replaced, 0)
    slope_n = -signs_n * torch.sigmoid(-signs_n * (rows @ found_p))
    assert float((rows.T @ slope_n / N + decay_p * found_p).norm()) < 1e-8


def test_a_singular_hessian_is_said_so():
    rows_np, signs_n, _ = problem(False)
    rows_np = torch.cat([rows_np, torch.zeros_like(rows_np[:, :1])], 1)
    with pytest.raises(UserError, match=r"singular: fit the run with model\.l2 above 0"):
        ReplacedRowFits(
            rows_np, signs_n, torch.zeros(FEATURES + 1, dtype=torch.float64), torch.zeros(FEATURES + 1).double()
        )
