"""Does influence predict what leaving an example out does? Figures 2 and 3 of Koh & Liang 2017: predicted against true.

Legend: N training examples, K of them left out one at a time.
"""

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray

from quintet.common.errors import UserError
from quintet.common.optim import from_mapping
from quintet.common.tables import write_csv
from quintet.papers.influence.classifiers.losses import smoothed
from quintet.papers.influence.influence import influence
from quintet.papers.influence.protocols.scatter import Cloud, agreement, draw_clouds, shown
from quintet.papers.influence.retraining.leave_one_out import QueryLosses, RetrainConfig, Retraining, retrain
from quintet.papers.influence.risk.examples import Examples
from quintet.papers.influence.risk.linear_risk import make_risk

log = logging.getLogger(__name__)
PICKS = ("largest", "random", "both")


class Prediction(NamedTuple):
    """A solver's prediction for every training example."""

    label: str  # the solver's name, with the hinge's smoothness where that is varied
    smoothness: float | None  # that the module had
    delta_n: NDArray  # (N,) change of the query's loss if removed
    relative_residual: float
    seconds: float


class LeaveOneOut:
    """Retrains without each of `count` training examples and compares the loss of one held-out example with influence.

    solvers: by name, of the inverse Hessian; null leaves one out. pick: the `largest` in size by the first solver, as
    in the paper, `random` ones, or `both`. retrain: see RetrainConfig. smoothness: for an SVM, the t of SmoothHinge
    to predict with, though it is fitted and retrained with the model's own (section 4.3); the first one picks.
    Writes leave_one_out/removals.csv and scatter.png under `run_dir`; what is finished is kept in leave_one_out/cache.
    """

    picture = "leave_one_out/scatter.png"

    def __init__(
        self,
        solvers: dict,
        retrain: RetrainConfig | Mapping[str, Any] | None = None,
        test_index: int = 8,
        split: str = "test",
        count: int = 500,
        pick: str = "largest",
        smoothness: list[float] | None = None,
        params: str | list[str] = "*",
        batch_size: int | None = None,
        seed: int = 0,
    ) -> None:
        self.solvers = {name: solver for name, solver in solvers.items() if solver is not None}
        if not self.solvers:
            raise UserError("protocol.solvers is empty: give at least one, such as protocol.solvers.cg")
        if pick not in PICKS:
            raise UserError(f"protocol.pick={pick!r} is unknown: use one of {', '.join(PICKS)}")
        if count < 2:
            raise UserError(f"protocol.count={count}: give 2 or more, a correlation needs them")
        if smoothness is not None and (not smoothness or min(smoothness) < 0):
            raise UserError(f"protocol.smoothness={list(smoothness)}: give numbers of 0 or more, or null")
        self.config = cast(RetrainConfig, from_mapping(RetrainConfig, retrain or {}, "protocol.retrain"))
        self.test_index, self.split, self.count, self.pick = test_index, split, count, pick
        self.smoothness, self.params, self.batch_size, self.seed = smoothness, params, batch_size, seed

    def __call__(self, module, datamodule, run_dir: Path) -> dict[str, float]:
        out_dir = Path(run_dir) / "leave_one_out"
        train = Examples(datamodule, "train")
        query = Examples(datamodule, self.split, [self.test_index], name="protocol.test_index")
        self._check(module, len(train))
        predictions = self._predict(module, train, query, out_dir / "cache")
        picked = self._picked(predictions[0].delta_n)
        own, times = getattr(module, "smoothness", None), [p.smoothness for p in predictions]
        measured = list(dict.fromkeys([own, *times] if self.smoothness else [own]))
        removals = list(dict.fromkeys(int(i) for rows in picked.values() for i in rows))
        found = self._retrain(module, train, query, removals, measured, out_dir / "cache")
        report = Report(predictions, picked, found, measured)
        report.write(out_dir, datamodule)
        report.draw(out_dir, datamodule, self.split, self.test_index)
        return report.metrics()

    def _check(self, module: Any, total: int) -> None:
        if self.count >= total:
            raise UserError(f"protocol.count={self.count}: there are {total} training examples, leave out fewer")
        if self.smoothness and getattr(module, "loss", None) != "smooth_hinge":
            raise UserError("protocol.smoothness is for model.loss=smooth_hinge: give null")

    def _predict(self, module: Any, train: Examples, query: Examples, cache_dir: Path) -> list[Prediction]:
        """Of every solver, at every smoothness."""
        found = []
        times: list[float | None] = [*self.smoothness] if self.smoothness else [None]
        for t in times:
            for name, solver in self.solvers.items():
                started, ending = time.perf_counter(), "" if t is None else f"_t{t:g}"
                with smoothed(module, t):
                    result = influence(module, train, query, self.params, solver, self.batch_size,
                                       cache_dir / f"influence{ending}")  # fmt: skip
                scores_n = result.delta_test_loss_if_removed[0].double().numpy()
                seconds, residual = time.perf_counter() - started, float(result.relative_residual.max())
                log.info("influence by %s%s: %.1f s, relative residual %.2g", name, ending, seconds, residual)
                found.append(Prediction(name + ending, t, scores_n, residual, seconds))
        return found

    def _picked(self, scores_n: NDArray) -> dict[str, NDArray]:
        """Training positions by kind of choice, those of the largest influence first."""
        largest = np.argsort(-np.abs(scores_n), kind="stable")[: self.count]
        random = np.random.default_rng(self.seed).permutation(len(scores_n))[: self.count]
        both = {"largest": largest, "random": random}
        return both if self.pick == "both" else {self.pick: both[self.pick]}

    def _retrain(self, module: Any, train: Examples, query: Examples, removals: list[int],
                 measured: list[float | None], cache_dir: Path) -> Retraining:  # fmt: skip
        risk = make_risk(module, train, self.params, self.batch_size)
        losses = QueryLosses(risk, query)

        def at_each_smoothness(theta_p: torch.Tensor) -> torch.Tensor:
            parts = []
            for t in measured:
                with smoothed(module, t):
                    parts.append(losses(theta_p))
            return torch.cat(parts)

        names = [query.fingerprint(), *map(str, measured)]
        return retrain(risk, removals, at_each_smoothness, self.config, cache_dir / "retraining", names)


class Report:
    """Predictions beside what retraining gave. measured: smoothness of each column of changes, the model's first."""

    def __init__(self, predictions: list[Prediction], picked: dict[str, NDArray], found: Retraining,
                 measured: list[float | None]) -> None:  # fmt: skip
        self.predictions, self.picked, self.found, self.measured = predictions, picked, found, measured
        self.actual_km = found.delta_test_loss.numpy()
        self.row_of = {removal: k for k, removal in enumerate(found.removals)}

    def _pairs(self, prediction: Prediction, rows: NDArray, column: int = 0) -> tuple[NDArray, NDArray]:
        """(predicted, actual) change of the loss of that column."""
        return prediction.delta_n[rows], self.actual_km[[self.row_of[int(i)] for i in rows], column]

    def metrics(self) -> dict[str, float]:
        """Agreement by kind of choice and prediction; `own_` against the change of the loss it was made of."""
        values: dict[str, float] = {}
        for kind, rows in self.picked.items():
            start = "leave_one_out/" + ("" if kind == "largest" else f"{kind}_")
            for one in self.predictions:
                found = agreement(*self._pairs(one, rows))
                values |= {f"{start}{name}_{one.label}": value for name, value in found.items()}
                if one.smoothness is not None and one.smoothness != self.measured[0]:
                    own = agreement(*self._pairs(one, rows, self.measured.index(one.smoothness)))
                    values[f"{start}own_pearson_{one.label}"] = own["pearson"]
        for one in self.predictions:
            values[f"leave_one_out/relative_residual_{one.label}"] = one.relative_residual
        return values | {
            "leave_one_out/removals": float(len(self.found.removals)),
            "leave_one_out/query_loss": float(self.found.losses[0]),
            "leave_one_out/largest_change": float(np.abs(self.actual_km[:, 0]).max()),
            "leave_one_out/control_change": float(self.found.control_change[0]),
            "leave_one_out/retrained_residual": float(self.found.residual.max()),
            "leave_one_out/seconds_influence": sum(one.seconds for one in self.predictions),
            "leave_one_out/seconds_retraining": self.found.seconds,
        }

    def write(self, out_dir: Path, datamodule: Any) -> None:
        """removals.csv: every removal."""
        others = [f"actual_t{t:g}" for t in self.measured[1:]]
        header = ["train_index", "title", "label", "picked", "actual", *others,
                  *(f"predicted_{one.label}" for one in self.predictions), "residual", "iterations"]  # fmt: skip
        kinds = {kind: {int(i) for i in rows} for kind, rows in self.picked.items()}
        rows = []
        for k, removal in enumerate(self.found.removals):
            example = datamodule.preview("train", removal)
            picked_as = " ".join(kind for kind in kinds if removal in kinds[kind])
            rows.append([removal, example.title, example.label, picked_as,
                         *map(float, self.actual_km[k]), *(float(one.delta_n[removal]) for one in self.predictions),
                         float(self.found.residual[k]), int(self.found.iterations[k])])  # fmt: skip
        write_csv(out_dir / "removals.csv", header, rows)

    def draw(self, out_dir: Path, datamodule: Any, split: str, index: int) -> Path:
        """scatter.png: a row for each kind of choice, a panel for each prediction."""
        query = datamodule.preview(split, index)
        panels, same = [], []
        for kind, rows in self.picked.items():
            same.append(np.array([datamodule.preview("train", int(i)).label == query.label for i in rows]))
            panels.append([self._cloud(one, rows, kind) for one in self.predictions])
        named = f"{query.label or query.title}"
        headline = f"loss of {split} example {index} ({named}) without each of {len(rows)} training examples"
        return draw_clouds(out_dir / "scatter.png", panels, same, (f"{named}, like it", "another class"), headline)

    def _cloud(self, one: Prediction, rows: NDArray, kind: str) -> Cloud:
        predicted, actual = self._pairs(one, rows)
        pearson, spearman, ratio = agreement(predicted, actual).values()
        notes = f"Pearson {shown(pearson)}\nSpearman {shown(spearman)}\nRMS ratio {ratio:.3g}"
        chosen = "largest influence" if kind == "largest" else "drawn at random"
        return Cloud(f"{one.label.replace('_t', ', t = ')}: {chosen}", actual, predicted, notes,
                     "actual change of the loss", "predicted change of the loss")  # fmt: skip
