"""Influence by pip-installed peers: each adapter hands the problem to the peer's own code and takes its scores.

    <python of requirements-influence.txt> -m benchmarks.influence.peers PROBLEM.npz OUT.npy pydvl_cg [--set rtol=1e-6]

The last line printed is JSON: seconds of each phase, peak memory, version. Seconds begin with the data in memory and
the packages imported, and end with all scores in memory. Nobody's loss holds the L2 term: every peer gets lambda as its
own damping, so that all of them solve (H + damping I) s = g. Examples come as whole slices, which costs no peer time.
"""

import argparse
import gc
import json
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.influence.problem import Problem


class Clock:
    """Seconds of named phases."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - began


def slices(x: Tensor, y: Tensor, size: int) -> DataLoader:
    """A loader of views: no example is copied."""
    return DataLoader([(x[a : a + size], y[a : a + size]) for a in range(0, len(x), size)], batch_size=None)


def pydvl(method: str, problem: Problem, clock: Clock, batch: int = 5500, nystroem: int = 0, **settings) -> Tensor:
    """pyDVL's CgInfluence, DirectInfluence, LissaInfluence, ArnoldiInfluence: factors first, then one sweep.

    `influences(test, train)` would solve again for every training batch. The batch has to divide the training set: it
    averages over batches, not over examples.
    """
    import pydvl.influence.torch as peer

    if nystroem:
        from pydvl.influence.torch.preconditioner import NystroemPreconditioner

        settings["preconditioner"] = NystroemPreconditioner(rank=nystroem)
    train = slices(problem.x_train, problem.y_train, batch)
    if method == "Lissa":  # makes its own shuffled loader of the same data set, so that it needs single examples
        train = DataLoader(TensorDataset(problem.x_train, problem.y_train), batch_size=batch)
    with clock("prepare"):
        model = problem.network()
        made = getattr(peer, f"{method}Influence")(model, F.cross_entropy, problem.total_damping, **settings)
        made = made.fit(train)
    with clock("solve"):
        factors_qp = made.influence_factors(problem.x_test, problem.y_test)
    with clock("sweep"):
        parts = [made.influences_from_factors(factors_qp, x, y) for x, y in _views(problem)]
        scores_qn = torch.cat(parts, 1) / len(problem.x_train)
    return scores_qn


def dattri(method: str, problem: Problem, clock: Clock, group: int = 100, sweep: int = 1000, **settings) -> Tensor:
    """dattri's IFAttributorCG, IFAttributorLiSSA, IFAttributorExplicit by their public parts, each query solved once.

    `attribute` would solve every query again for every training batch. The Hessian's loader gives all examples at once,
    because its solvers add up one inverse a batch.
    """
    from dattri.algorithm import influence_function as peer
    from dattri.task import AttributionTask

    dtype, model = problem.x_train.dtype, problem.network()
    torch.set_default_dtype(dtype)

    def loss(params: dict[str, Tensor], data: tuple[Tensor, Tensor]) -> Tensor:
        x, y = data  # LiSSA hands everything over as float32
        return F.cross_entropy(torch.func.functional_call(model, params, x.to(dtype)), y.long())

    with clock("prepare"):
        task = AttributionTask(loss_func=loss, model=model, checkpoints=model.state_dict())
        rule = "regularization"
        damping = problem.total_damping
        if method == "LiSSA":
            rule, damping = "damping", damping / settings.get("scaling", 50.0)
        made = getattr(peer, f"IFAttributor{method}")(task, **{rule: damping}, **settings)
        made.cache(slices(problem.x_train, problem.y_train, len(problem.x_train)))
    with clock("solve"):
        solved = []
        for x, y in zip(problem.x_test.split(group), problem.y_test.split(group), strict=True):
            solved.append(made.transform_test_rep(0, made.generate_test_rep(0, (x[None], y[None]))))
        solution_qp = torch.cat(solved)
    with clock("sweep"):
        parts = [made.generate_train_rep(0, (x[None], y[None])) @ solution_qp.T for x, y in _views(problem, sweep)]
        scores_qn = torch.cat(parts).T / len(problem.x_train)
    return scores_qn


def captum_arnoldi(problem: Problem, clock: Clock, batch: int = 1000, hessian_batch: int = 5500, **settings) -> Tensor:
    """captum's ArnoldiInfluenceFunction: it works with the sum of the losses, so that damping is n lambda."""
    from captum.influence._core.arnoldi_influence_function import ArnoldiInfluenceFunction

    n = len(problem.x_train)
    with clock("prepare"):
        made = ArnoldiInfluenceFunction(
            problem.network(),
            slices(problem.x_train, problem.y_train, batch),
            checkpoint="",
            checkpoints_load_func=lambda model, path: 1.0,
            loss_fn=torch.nn.CrossEntropyLoss(reduction="sum"),
            hessian_dataset=slices(problem.x_train, problem.y_train, hessian_batch),
            sample_wise_grads_per_batch=True,
            hessian_reg=n * problem.total_damping,
            **settings,
        )
    with clock("sweep"):
        return made.influence((problem.x_test, problem.y_test))


def kronfluence_ekfac(problem: Problem, clock: Clock, query_batch: int = 100, train_batch: int = 500, **settings):
    """kronfluence's EK-FAC of the true Fisher (labels drawn from the model), the damping given instead of guessed."""
    from kronfluence.analyzer import Analyzer, prepare_model
    from kronfluence.arguments import FactorArguments, ScoreArguments
    from kronfluence.task import Task

    class Classification(Task):
        def compute_train_loss(self, batch, model, sample=False):
            x, y = batch
            logits = model(x)
            if sample:
                with torch.no_grad():
                    y = torch.multinomial(torch.softmax(logits, 1), 1).flatten()
            return F.cross_entropy(logits, y, reduction="sum")

        def compute_measurement(self, batch, model):
            return self.compute_train_loss(batch, model)

    train, test = TensorDataset(problem.x_train, problem.y_train), TensorDataset(problem.x_test, problem.y_test)
    with tempfile.TemporaryDirectory() as folder:
        with clock("prepare"):
            task = Classification()
            model = prepare_model(problem.network(), task)
            quiet = {"cpu": True, "disable_tqdm": True, "output_dir": folder}
            made = Analyzer("benchmark", model, task, **quiet)
            factors = FactorArguments(strategy="ekfac", **settings)
            made.fit_all_factors("f", train, per_device_batch_size=train_batch, factor_args=factors)
        with clock("sweep"):
            sizes = {"per_device_query_batch_size": query_batch, "per_device_train_batch_size": train_batch}
            args = ScoreArguments(damping_factor=problem.total_damping)
            made.compute_pairwise_scores("s", "f", test, train, score_args=args, **sizes)
            return made.load_pairwise_scores("s")["all_modules"] / len(train)


def _views(problem: Problem, size: int = 1000) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(problem.x_train.split(size), problem.y_train.split(size), strict=True)


ADAPTERS: dict[str, tuple[str, Callable[..., Tensor]]] = {
    "pydvl_cg": ("pydvl", lambda *a, **k: pydvl("Cg", *a, **k)),
    "pydvl_direct": ("pydvl", lambda *a, **k: pydvl("Direct", *a, **k)),
    "pydvl_lissa": ("pydvl", lambda *a, **k: pydvl("Lissa", *a, **k)),
    "pydvl_arnoldi": ("pydvl", lambda *a, **k: pydvl("Arnoldi", *a, **k)),
    "captum_arnoldi": ("captum", captum_arnoldi),
    "dattri_cg": ("dattri", lambda *a, **k: dattri("CG", *a, **k)),
    "dattri_explicit": ("dattri", lambda *a, **k: dattri("Explicit", *a, **k)),
    "dattri_lissa": ("dattri", lambda *a, **k: dattri("LiSSA", *a, **k)),
    "kronfluence_ekfac": ("kronfluence", kronfluence_ekfac),
}


def memory_mb(reset: bool = False) -> float:
    """Peak resident memory of this process since the last reset (Linux)."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) / 1024


def warm_up(problem: Problem) -> None:
    """What torch imports at the first use of torch.func (seconds) is no candidate's time."""
    model = problem.network()

    def loss(params: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(torch.func.functional_call(model, params, x[None]), y[None])

    params = {name: value.detach() for name, value in model.named_parameters()}
    gradient = torch.func.grad(loss)
    torch.func.vmap(gradient, in_dims=(None, 0, 0))(params, problem.x_train[:2], problem.y_train[:2])
    torch.func.jvp(lambda p: gradient(p, problem.x_train[0], problem.y_train[0]), (params,), (params,))
    torch.func.vjp(lambda p: gradient(p, problem.x_train[0], problem.y_train[0]), params)[1](params)
    torch.func.hessian(lambda v: v.square().sum())(torch.ones(2))


def measure(compute: Callable[[Problem, Clock], Tensor], problem: Problem, out: Path) -> dict:
    """Run, save the scores (q, n), return seconds of each phase and memory in MB, also that of the data alone."""
    warm_up(problem)
    gc.collect()
    before, clock, cpu = memory_mb(reset=True), Clock(), time.process_time()
    scores_qn = compute(problem, clock)
    peak, cpu = memory_mb(), time.process_time() - cpu
    np.save(out, scores_qn.detach().numpy())
    return {"seconds": clock.seconds, "cpu_seconds": cpu, "peak_mb": peak, "before_mb": before}


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    made.add_argument("problem", type=Path)
    made.add_argument("out", type=Path)
    made.add_argument("candidate")
    made.add_argument("--dtype", default="float32", choices=["float32", "float64"])
    made.add_argument("--queries", type=int, default=None, help="the first so many (default all)")
    made.add_argument("--train", type=int, default=None, help="the first so many (default all)")
    made.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="settings, JSON values")
    return made


def main() -> None:
    warnings.filterwarnings("ignore")
    args = parser().parse_args()
    package, adapter = ADAPTERS[args.candidate]
    settings = {name: json.loads(value) for name, _, value in (word.partition("=") for word in args.set)}
    __import__({"pydvl": "pydvl.influence.torch"}.get(package, package))
    torch.manual_seed(0)
    problem = Problem.load(args.problem, getattr(torch, args.dtype), args.queries, args.train)
    report = measure(lambda *inputs: adapter(*inputs, **settings), problem, args.out)
    print(json.dumps({**report, "version": version(package)}))


if __name__ == "__main__":
    main()
