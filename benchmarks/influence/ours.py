"""Influence by quintet's engine on the same problem file as the peers, and leave-one-out retraining.

python -m benchmarks.influence.ours PROBLEM.npz OUT.npy cg [--dtype float64] [--set tolerance=1e-4]
"""

import json
import logging

import torch
from torch import Tensor

from benchmarks.influence.peers import Clock, measure, parser
from benchmarks.influence.problem import Problem
from quintet.data.batches import ExampleBatch
from quintet.papers.influence.classifiers.module import ClassifierModule
from quintet.papers.influence.influence import influence
from quintet.papers.influence.risk.examples import Examples
from quintet.papers.influence.solvers.arnoldi import Arnoldi
from quintet.papers.influence.solvers.cg import ConjugateGradient
from quintet.papers.influence.solvers.direct import Direct
from quintet.papers.influence.solvers.ekfac import Ekfac
from quintet.papers.influence.solvers.lissa import Lissa

SOLVERS = {"cg": ConjugateGradient, "direct": Direct, "lissa": Lissa, "arnoldi": Arnoldi, "ekfac": Ekfac}


def classifier(problem: Problem) -> ClassifierModule:
    """The module with the problem's parameters; the L2 term is on all of them, as the peers' damping is."""
    dtype = problem.parameters[0].dtype
    module = ClassifierModule(
        network={"kind": "linear" if len(problem.layers) == 1 else "all_cnn"},
        optimizer={"name": "lbfgs"},
        data_info={"input_shape": list(problem.x_train.shape[1:]), "num_classes": 10, "classes": list("0123456789")},
        l2=problem.l2,
        decay_bias=True,
        dtype=str(dtype).removeprefix("torch."),
    )
    with torch.no_grad():
        for own, value in zip(module.network.parameters(), problem.parameters, strict=True):
            own.copy_(value)
    return module


def examples(x: Tensor, y: Tensor) -> Examples:
    return Examples.of_batch(ExampleBatch(x, y, torch.arange(len(x))))


def scores(name: str, problem: Problem, clock: Clock, **settings) -> Tensor:
    """Scores (q, n) as the peers give them: without the constant of the L2 term's gradient."""
    solver = SOLVERS[name](damping=problem.damping, **settings)
    with clock("all"):
        module = classifier(problem)
        train, queries = (
            examples(x, y) for x, y in [(problem.x_train, problem.y_train), (problem.x_test, problem.y_test)]
        )
        found = influence(module, train, queries, solver=solver)
    theta_p = torch.cat([p.flatten() for p in problem.parameters])
    print(f"{found.iterations} iterations, residual {float(found.relative_residual.max()):.1e}")
    constant_q = problem.l2 * (found.s_test @ theta_p) / len(train)
    return found.delta_test_loss_if_removed - constant_q[:, None]


def main() -> None:
    logging.disable(logging.WARNING)  # float32 weights of a float64 fit are not at the minimum to the last digit
    args = parser().parse_args()
    settings = {name: json.loads(value) for name, _, value in (word.partition("=") for word in args.set)}
    torch.manual_seed(0)
    problem = Problem.load(args.problem, getattr(torch, args.dtype), args.queries, args.train)
    print(json.dumps(measure(lambda *inputs: scores(args.candidate, *inputs, **settings), problem, args.out)))


if __name__ == "__main__":
    main()
