"""Leave-one-out retraining of a linear problem: ours, all removals together, or scikit-learn, one refit after another.

    python -m benchmarks.influence.loo PROBLEM.npz OUT.npy REMOVALS.npy ours|lbfgs|newton-cg [--tolerance 1e-8]

OUT: changes (q, k) of the queries' losses. The last line printed is JSON. Both start from the fitted weights with the
data in memory, in float64. The tolerance is of the gradient's norm for ours, of its largest entry for scikit-learn,
which asks for less.
"""

import argparse
import json
import logging
import warnings
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from torch.nn import functional as F

from benchmarks.influence.ours import classifier, examples
from benchmarks.influence.peers import Clock, measure
from benchmarks.influence.problem import Problem, residuals
from quintet.papers.influence.retraining.leave_one_out import RetrainConfig, leave_one_out


def ours(problem: Problem, removals: list[int], tolerance: float, seen: dict) -> Tensor:
    """`leave_one_out`: Newton's steps of all removals share their sweeps over the data."""
    train, queries = examples(problem.x_train, problem.y_train), examples(problem.x_test, problem.y_test)
    config = RetrainConfig(tolerance=tolerance)
    found = leave_one_out(classifier(problem), train, queries, removals, config=config, keep_params=True)
    seen["gradient_norm"] = max(_norm(problem, r, w) for r, w in zip(removals[:3], found.params[:3], strict=True))
    return found.delta_test_loss.T


def scikit_learn(problem: Problem, removals: list[int], tolerance: float, solver: str, seen: dict) -> Tensor:
    """LogisticRegression warm-started at the fitted weights; a weight of zero removes an example without a copy."""
    (start_cd,) = problem.parameters
    x_nd, y_n = problem.x_train.numpy(), problem.y_train.numpy()
    before_q, changes, norms = _losses(problem, start_cd), [], []
    for removal in removals:
        model = LogisticRegression(C=1 / (problem.l2 * (len(y_n) - 1)), fit_intercept=False, tol=tolerance,
                                   max_iter=10_000, solver=solver, warm_start=True)  # fmt: skip
        model.coef_ = start_cd.numpy().copy()
        weight_n = np.ones(len(y_n))
        weight_n[removal] = 0
        model.fit(x_nd, y_n, sample_weight=weight_n)
        refitted_cd = torch.from_numpy(model.coef_)
        changes.append(_losses(problem, refitted_cd) - before_q)
        norms.append((removal, refitted_cd))
    seen["gradient_norm"] = max(_norm(problem, *one) for one in norms[:3])
    return torch.stack(changes, 1)


def _losses(problem: Problem, weight_cd: Tensor) -> Tensor:
    return F.cross_entropy(problem.x_test @ weight_cd.T, problem.y_test, reduction="none")


def _norm(problem: Problem, removal: int, weight: Tensor) -> float:
    """Norm of the gradient without one example."""
    weight_cd = weight.view(problem.parameters[0].shape)
    slope_nc = residuals(problem.x_train @ weight_cd.T, problem.y_train)
    slope_nc[removal] = 0
    return float((slope_nc.T @ problem.x_train / (len(slope_nc) - 1) + problem.l2 * weight_cd).norm())


def main() -> None:
    logging.basicConfig(level=logging.WARNING)
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("problem", "out", "removals"):
        made.add_argument(name, type=Path)
    made.add_argument("method", choices=["ours", "lbfgs", "newton-cg"])
    made.add_argument("--tolerance", type=float, default=1e-8)
    made.add_argument("--count", type=int, default=None, help="the first so many removals (default all)")
    args = made.parse_args()
    warnings.filterwarnings("ignore")
    problem, seen = Problem.load(args.problem, torch.float64), {}
    removals = np.load(args.removals)[: args.count].tolist()

    def compute(problem: Problem, clock: Clock) -> Tensor:
        with clock("all"):
            if args.method == "ours":
                return ours(problem, removals, args.tolerance, seen)
            return scikit_learn(problem, removals, args.tolerance, args.method, seen)

    print(json.dumps({**measure(compute, problem, args.out), **seen}))


if __name__ == "__main__":
    main()
