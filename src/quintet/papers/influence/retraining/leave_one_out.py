"""Leave-one-out retraining: the true change of losses without an example, which influence functions predict.

Warm-started at the trained parameters and resumable. A control is retrained in the same way with all examples, and the
change is counted from it: so what more training changes anyway is not attributed to the removal.
Legend: K removals, M measured losses, p parameters.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quintet.common.checkpoints import weights_digest
from quintet.common.errors import UserError
from quintet.papers.influence.kept import KeptResults
from quintet.papers.influence.retraining.chord_newton import ChordNewton, linear
from quintet.papers.influence.retraining.hinge_path import HingePath, is_hinge
from quintet.papers.influence.retraining.interface import Refit, Refitted, Removal
from quintet.papers.influence.retraining.optimizers import Adam, Lbfgs
from quintet.papers.influence.risk.examples import Examples
from quintet.papers.influence.risk.linear_risk import LinearRisk, make_risk
from quintet.papers.influence.risk.risk import EmpiricalRisk

log = logging.getLogger(__name__)
METHODS = ("auto", "newton", "hinge", "lbfgs", "adam")
FORMAT = 1  # raise when the meaning of the files changes
Measure = Callable[[Tensor], Tensor]  # parameters (p,) -> losses (M,)


@dataclass(frozen=True)
class RetrainConfig:
    """How to retrain.

    auto: hinge for a linear SVM fitted with the hinge itself, newton for other linear models, lbfgs for the rest.
    tolerance: of the gradient's norm (newton, lbfgs). max_iterations: of lbfgs. The others are adam's.
    """

    method: str = "auto"
    tolerance: float = 1e-8
    max_iterations: int = 1000
    steps: int = 30_000
    lr: float = 1e-6
    batch_size: int = 500
    together: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise UserError(f"retrain.method={self.method!r} is unknown: use one of {', '.join(METHODS)}")
        for key in ("max_iterations", "steps", "batch_size", "together"):
            if getattr(self, key) < 1:
                raise UserError(f"retrain.{key}={getattr(self, key)}: give 1 or more")
        for key in ("tolerance", "lr"):
            if not getattr(self, key) > 0:
                raise UserError(f"retrain.{key}={getattr(self, key)}: give a number above 0")


@dataclass(frozen=True)
class Retraining:
    """The effect of leaving each example out."""

    removals: list[int]  # positions in the training examples
    delta_test_loss: Tensor  # (K, M) change of each loss against the control's; > 0: removing it raises the loss
    losses: Tensor  # (M,) at the trained parameters
    control_change: Tensor  # (M,) what retraining with all examples changes
    residual: Tensor  # (K,) gradient norm reached; for the hinge itself the relative duality gap
    iterations: Tensor  # (K,)
    params: Tensor | None  # (K, p) where they were asked for
    method: str
    seconds: float  # of the removals that were not on disk


def leave_one_out(
    module: Any,
    train: Examples,
    queries: Examples,
    removals: Sequence[int],
    params: str | Sequence[str] = "*",
    config: RetrainConfig | None = None,
    batch_size: int | None = None,
    cache_dir: Path | None = None,
    keep_params: bool = False,
) -> Retraining:
    """The change of each query's loss (M of them) after retraining without each of `removals`, positions in `train`.

    params: only these are retrained. cache_dir: each finished removal is written there, and a second call goes on.
    Errors: UserError for positions that `train` does not have, and for a method that the model does not allow.
    """
    risk = make_risk(module, train, params, batch_size)
    measure = QueryLosses(risk, queries)
    return retrain(risk, removals, measure, config, cache_dir, (queries.fingerprint(),), keep_params)


def retrain(
    risk: EmpiricalRisk,
    removals: Sequence[int],
    measure: Measure,
    config: RetrainConfig | None = None,
    cache_dir: Path | None = None,
    measured: Sequence[str] = (),
    keep_params: bool = False,
) -> Retraining:
    """As `leave_one_out`, for any `measure` of the parameters; `measured` names it in the key of what is kept."""
    config = config or RetrainConfig()
    wanted = checked(removals, len(risk.train))
    method, refit = build_refit(config, risk)
    store = kept_removals(cache_dir, risk, method, config, measured)
    saved = {removal: store.load(file_name(removal)) for removal in (None, *wanted)}
    found = {removal: kept for removal, kept in saved.items() if kept and ("theta" in kept or not keep_params)}
    missing = [removal for removal in (None, *wanted) if removal not in found]
    started = time.perf_counter()
    for done, refitted in enumerate(refit.run(risk, missing) if missing else (), 1):
        found[refitted.removal] = record(refitted, measure, keep_params)
        store.save(file_name(refitted.removal), found[refitted.removal])
        if done * 10 // len(missing) > (done - 1) * 10 // len(missing):
            log.info("retrained %d of %d, %.0f s", done, len(missing), time.perf_counter() - started)
    seconds = time.perf_counter() - started if missing else 0.0
    control, each = found[None]["losses"], [found[removal] for removal in wanted]
    losses = measure(risk.theta).double().cpu()
    return Retraining(
        removals=wanted,
        delta_test_loss=torch.stack([one["losses"] for one in each]) - control,
        losses=losses,
        control_change=control - losses,
        residual=torch.tensor([one["residual"] for one in each], dtype=torch.float64),
        iterations=torch.tensor([one["iterations"] for one in each]),
        params=torch.stack([one["theta"] for one in each]) if keep_params else None,
        method=method,
        seconds=seconds,
    )


def checked(removals: Sequence[int], count: int) -> list[int]:
    """The removals as plain numbers. Errors: UserError for none, for one that is not there, for one given twice."""
    wanted = [int(removal) for removal in removals]
    if not wanted:
        raise UserError("no example to leave out: give at least one position of the training examples")
    outside = [removal for removal in wanted if not 0 <= removal < count]
    if outside:
        raise UserError(f"cannot leave out example {outside[0]}: there are {count} training examples, counted from 0")
    if len(set(wanted)) < len(wanted):
        raise UserError("an example is listed twice among those to leave out: list each once")
    if count < 2:
        raise UserError("there is only one training example: it cannot be left out")
    return wanted


def build_refit(config: RetrainConfig, risk: EmpiricalRisk) -> tuple[str, Refit]:
    """(name, way of retraining). Errors: UserError where the model does not allow it."""
    is_linear, corner = isinstance(risk, LinearRisk), is_hinge(risk.module)
    method, name = config.method, type(risk.module).__name__
    if method == "auto":
        method = "lbfgs" if not is_linear else "hinge" if corner else "newton"
    if method in ("newton", "hinge") and not is_linear:
        raise UserError(
            f"retrain.method={method} needs a model that is linear in all chosen params, which {name} is not here: use"
            " lbfgs or adam"
        )
    if (method == "hinge") != corner:
        why = "has no gradient at its corner: use auto or hinge" if corner else "is not the hinge: use auto or newton"
        raise UserError(f"retrain.method={method}: the loss of {name} {why}")
    if risk.dtype != torch.float64 and method == "lbfgs":
        log.warning("retraining in %s, whose gradients are accurate to about 1e-6 only: see model.dtype", risk.dtype)
    if method == "newton":
        return method, ChordNewton(config.tolerance, max_iterations=config.max_iterations)
    if method == "lbfgs":
        return method, Lbfgs(config.tolerance, config.max_iterations)
    if method == "adam":
        return method, Adam(config.steps, config.lr, config.batch_size, config.together, config.seed)
    return method, HingePath()


def record(refitted: Refitted, measure: Measure, keep_params: bool) -> dict[str, Any]:
    """What is kept of a finished removal."""
    kept = {"losses": measure(refitted.theta).double().cpu(), "residual": refitted.residual,
            "iterations": refitted.iterations}  # fmt: skip
    return kept | ({"theta": refitted.theta.cpu()} if keep_params else {})


def kept_removals(cache_dir: Path | None, risk: EmpiricalRisk, method: str, config: RetrainConfig,
                  measured: Sequence[str]) -> KeptResults:  # fmt: skip
    """A file for each finished removal, for exactly these weights, examples and settings."""
    with torch.no_grad():  # the L2 term and the loss are not part of the weights, so their values identify them
        values = risk.penalty(risk.theta), risk.losses(risk.theta, risk.read(risk.train, slice(0, 1)))[0]
    settings = asdict(config) | {"method": method, "risk": [f"{float(value):.5g}" for value in values]}
    depends_on = [FORMAT, weights_digest(risk.module), risk.selection.names, risk.train.fingerprint(), settings,
                  list(measured)]  # fmt: skip
    return KeptResults(cache_dir, depends_on)


def file_name(removal: Removal) -> str:
    return "control" if removal is None else f"without_{removal:09d}"


class QueryLosses:
    """Losses of the queries, without the L2 term, at any parameters; in float64 where the model is linear."""

    def __init__(self, risk: EmpiricalRisk, queries: Examples) -> None:
        self.risk, self.queries = risk, queries

    def __call__(self, theta_p: Tensor) -> Tensor:
        risk = self.risk
        if isinstance(risk, LinearRisk):
            return torch.cat([self._linear(risk, theta_p.double(), batch) for batch in self._batches()])
        with torch.no_grad():
            return torch.cat([risk.losses(theta_p.to(risk.theta), batch) for batch in self._batches()])

    def _batches(self) -> Any:
        return (batch for _, batch in self.queries.batches(self.risk.batch_size, self.risk.dtype, self.risk.device))

    def _linear(self, risk: LinearRisk, theta_p: Tensor, batch: Any) -> Tensor:
        design_bf, losses = linear(risk, batch)
        with torch.no_grad():
            return losses(design_bf @ risk.matrix(theta_p[None])[0].T)
