"""One of the two processes of test_influence_ranks.py: `python influence_ranks.py RANK FOLDER`."""

import sys
from pathlib import Path

import torch
from small_models import Net, Softmax, examples
from torch import distributed

from quintet.papers.influence.influence import influence, self_influence
from quintet.papers.influence.risk.linear_risk import make_risk
from quintet.papers.influence.solvers.arnoldi import Arnoldi
from quintet.papers.influence.solvers.cg import ConjugateGradient
from quintet.papers.influence.solvers.direct import Direct
from quintet.papers.influence.solvers.ekfac import Ekfac

SOLVERS = {
    "cg": ConjugateGradient(damping=5.0),
    "direct": Direct(damping=5.0),
    "ekfac": Ekfac(damping=5.0),
    "arnoldi": Arnoldi(damping=5.0, iterations=9, rank=9),
}


def everything(folder: Path | None = None) -> dict[str, torch.Tensor]:
    """Scores of a linear model and of a network by every solver that sweeps, and self-influence."""
    found = {}
    for name, solver in SOLVERS.items():
        for module in (Softmax(linear=True), Net()):
            torch.manual_seed(0)
            torch.nn.init.normal_(module.layer.weight)
            result = influence(module, examples(), examples(3, 5), solver=solver, batch_size=7, cache_dir=folder)
            found[f"{name} {type(module).__name__}"] = result.delta_test_loss_if_removed
    risk = make_risk(module, examples(), batch_size=7)
    found["self"] = self_influence(risk, Direct(damping=5.0).prepare(risk))
    return found


def main(rank: int, folder: Path) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.save(everything(folder / "cache"), folder / f"rank{rank}.pt")
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
