"""Whose training examples are alike? An RBF SVM against a network, section 5.1, figure 4 of Koh & Liang 2017.

Legend: N training examples, Q test examples that both models get right and the SVM has within its margin.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from quintet.common.errors import UserError
from quintet.common.tables import write_csv
from quintet.harness.run.second_run import load_run
from quintet.papers.influence.classifiers.losses import signs, smoothed
from quintet.papers.influence.classifiers.rbf import RbfMachine
from quintet.papers.influence.influence import influence
from quintet.papers.influence.protocols.rbf_picture import Half, draw_halves
from quintet.papers.influence.risk.examples import Examples
from quintet.papers.influence.solvers.interface import Solver

RBF, NETWORK = "rbf", "network"
BATCH = 200  # images at a time: one is 1.2 MB in float64
TOUCHED = 1e-6  # training loss from which an example counts as one that the model has to do with


class Model(NamedTuple):
    """One of the two runs."""

    module: Any
    datamodule: Any


class Scores(NamedTuple):
    """Influence of every training example on the test examples by one model."""

    delta_qn: NDArray  # change of the test loss if removed: > 0 is helpful
    losses_n: NDArray  # of the training examples
    relative_residual: float


class RbfVsNetwork:
    """Influence against the distance of the pixels, for a run of model=rbf_svm and a run on a network's features.

    `run=` is one of the two, other_run the other; other_root: where that one's data is now. test_index: the test image
    that is shown; null: the first of `queries`, over which medians are taken. They are drawn by `seed` of those that
    both models get right and that are within the SVM's margin: beyond it the hinge is 0, and nothing has influence.
    smoothness: t of the SmoothHinge used in place of the SVM's hinge (section 4.3).
    Writes rbf_vs_network/influence.csv, queries.csv and figure.png under `run_dir`.
    """

    def __init__(
        self,
        solver: Solver,
        other_run: str | None = None,
        other_root: str | None = None,
        test_index: int | None = None,
        queries: int = 50,
        split: str = "test",
        smoothness: float = 0.001,
        top: int = 5,
        seed: int = 0,
    ) -> None:
        for key, value in {"queries": queries, "top": top}.items():
            if value < 1:
                raise UserError(f"protocol.{key}={value}: give 1 or more")
        if smoothness <= 0:
            raise UserError(
                f"protocol.smoothness={smoothness}: give more than 0, the hinge itself has no second derivative"
            )
        self.solver, self.other_run, self.other_root = solver, other_run, other_root
        self.test_index, self.queries, self.split = test_index, queries, split
        self.smoothness, self.top, self.seed = smoothness, top, seed

    def __call__(self, module, datamodule, run_dir: Path) -> dict[str, float]:
        other = Model(*load_run(self.other_run, self.other_root, next(module.parameters()).device))
        models = told_apart(Model(module, datamodule), other)
        self._check_same(models)
        right, eligible = zip(*(self._right(model) for model in models.values()), strict=True)
        queries = self._drawn(eligible[0] & eligible[1])
        out_dir = Path(run_dir) / "rbf_vs_network"
        found = {name: self._scores(model, queries, out_dir / "cache" / name) for name, model in models.items()}
        data = models[RBF].datamodule
        like_qn = labels_of(data, self.split)[queries][:, None] == labels_of(data, "train")
        distance_qn = distances(data, self.split, queries)
        rows = {
            name: [
                described(s.delta_qn[q], s.losses_n > TOUCHED, distance_qn[q], like_qn[q]) for q in range(len(queries))
            ]
            for name, s in found.items()
        }
        self._write(out_dir, data, queries, found, distance_qn[0], rows)
        self._draw(out_dir, data, queries[0], found, distance_qn[0], like_qn[0], rows)
        accuracies = {f"{name}_accuracy": float(of.mean()) for name, of in zip(models, right, strict=True)}
        counts = {
            "both_right": float((right[0] & right[1]).sum()),
            "eligible": float((eligible[0] & eligible[1]).sum()),
        }
        return self._metrics(accuracies | counts, found, rows)

    def _check_same(self, models: dict[str, Model]) -> None:
        """Both runs must have the same examples in the same order."""
        a, b = (model.datamodule for model in models.values())
        for split in ("train", self.split):
            same = np.array_equal(labels_of(a, split), labels_of(b, split))
            ends = [0, a.num_examples(split) - 1]
            if not same or not torch.equal(a.images(split, ends), b.images(split, ends)):
                raise UserError(f"the two runs have other {split} examples: train both on the same data and image_size")

    @torch.no_grad()
    def _right(self, model: Model) -> tuple[NDArray, NDArray]:
        """Which test examples the model gets right, and which of them have a loss that influence could change."""
        weight, right, eligible = next(model.module.parameters()), [], []
        hinge = getattr(model.module, "loss", None) == "smooth_hinge"
        batches = Examples(model.datamodule, self.split).batches(BATCH, weight.dtype, weight.device, keep=False)
        for _, batch in batches:
            scores = model.module(batch)
            right.append(model.module.classes_of(scores) == batch.labels)
            inside = signs(batch.labels, scores.dtype) * scores < 1 if hinge else torch.ones_like(right[-1])
            eligible.append(right[-1] & inside)
        return torch.cat(right).cpu().numpy(), torch.cat(eligible).cpu().numpy()

    def _drawn(self, eligible: NDArray) -> list[int]:
        order = np.random.default_rng(self.seed).permutation(len(eligible))
        drawn = [int(i) for i in order if eligible[i]][: self.queries]
        what = f"examples of {self.split} that both models get right, within the SVM's margin"
        if not drawn:
            raise UserError(f"there are no {what}")
        if self.test_index is None:
            return drawn
        if not 0 <= self.test_index < len(eligible) or not eligible[self.test_index]:
            raise UserError(
                f"protocol.test_index={self.test_index} is none of the {int(eligible.sum())} {what}; {drawn[0]} is"
            )
        return [self.test_index, *(i for i in drawn if i != self.test_index)][: self.queries]

    def _scores(self, model: Model, queries: Sequence[int], cache_dir: Path) -> Scores:
        train, test = Examples(model.datamodule, "train"), Examples(model.datamodule, self.split, queries)
        hinge = getattr(model.module, "loss", None) == "smooth_hinge"
        with smoothed(model.module, self.smoothness if hinge else None):
            result = influence(model.module, train, test, "*", self.solver, BATCH, cache_dir)
        scores_qn, losses_n = (
            part.double().cpu().numpy() for part in (result.delta_test_loss_if_removed, result.train_losses)
        )
        return Scores(scores_qn, losses_n, float(result.relative_residual.max()))

    def _write(self, out_dir: Path, data: Any, queries: Sequence[int], found: dict[str, Scores], distance_n: NDArray,
               rows: dict[str, list[dict[str, float]]]) -> None:  # fmt: skip
        """influence.csv: every training example and the test image that is shown. queries.csv: all test images."""
        names, table = data.data_info["classes"], []
        for n, label in enumerate(labels_of(data, "train")):
            scores = [float(value) for s in found.values() for value in (s.delta_qn[0, n], s.losses_n[n])]
            table.append([n, names[label], float(distance_n[n]), *scores])
        columns = [f"{name}_{what}" for name in found for what in ("delta_test_loss_if_removed", "train_loss")]
        write_csv(out_dir / "influence.csv", ["train_index", "label", "distance", *columns], table)
        of = {name: list(described_of[0]) for name, described_of in rows.items()}
        header = ["query", "label", *(f"{name}_{key}" for name in rows for key in of[name])]
        test = labels_of(data, self.split)
        lines = [[query, names[test[query]], *(rows[name][q][key] for name in rows for key in of[name])]
                 for q, query in enumerate(queries)]  # fmt: skip
        write_csv(out_dir / "queries.csv", header, lines)

    def _draw(self, out_dir: Path, data: Any, query: int, found: dict[str, Scores], distance_n: NDArray,
              like_n: NDArray, rows: dict[str, list[dict[str, float]]]) -> None:  # fmt: skip
        halves = []
        for name, scores in found.items():
            delta_n = scores.delta_qn[0]
            best = np.argsort(-delta_n, kind="stable")[: self.top]
            tops = [(data.preview("train", int(n)), float(delta_n[n])) for n in best]
            title = (
                f"RBF SVM, t = {self.smoothness:g}" if name == RBF else "logistic regression on a network's features"
            )
            halves.append(Half(title, delta_n, rows[name][0]["spearman_touched"], tops))
        draw_halves(out_dir / "figure.png", data.preview(self.split, query), halves, distance_n, like_n)

    def _metrics(self, values: dict[str, float], found: dict[str, Scores],
                 rows: dict[str, list[dict[str, float]]]) -> dict[str, float]:  # fmt: skip
        """Of the test image that is shown, and medians over all."""
        values = values | {"queries": float(len(rows[RBF]))}
        for name, scores in found.items():
            values |= {f"{name}_{key}": value for key, value in rows[name][0].items()}
            medians = {key: float(np.median([row[key] for row in rows[name]])) for key in rows[name][0]}
            values |= {f"{name}_{key}_median": value for key, value in medians.items()}
            values[f"{name}_relative_residual"] = scores.relative_residual
        return {f"rbf_vs_network/{key}": value for key, value in values.items()}


def told_apart(one: Model, other: Model) -> dict[str, Model]:
    """Which of the two is the kernel machine. Errors: UserError when both or none is."""
    kernels = [isinstance(getattr(model.module, "network", None), RbfMachine) for model in (one, other)]
    if sum(kernels) != 1:
        raise UserError(
            "protocol=rbf_vs_network compares a run of model=rbf_svm with one of another model: of run and"
            f" protocol.other_run {'both are' if all(kernels) else 'none is'} an rbf_svm"
        )
    return {RBF: one, NETWORK: other} if kernels[0] else {RBF: other, NETWORK: one}


def labels_of(datamodule: Any, split: str) -> NDArray:
    """Classes (N,)."""
    return datamodule.examples(split).labels


def distances(datamodule: Any, split: str, queries: Sequence[int]) -> NDArray:
    """Euclidean, between the pixels in [0, 1] of test and training images, (Q, N)."""
    mine_qd = datamodule.images(split, queries).flatten(1)
    parts, total = [], datamodule.num_examples("train")
    for start in range(0, total, BATCH):
        theirs_nd = datamodule.images("train", range(start, min(start + BATCH, total))).flatten(1)
        parts.append(torch.cdist(mine_qd, theirs_nd, compute_mode="donot_use_mm_for_euclid_dist"))
    return torch.cat(parts, 1).double().numpy()


def described(delta_n: NDArray, touched_n: NDArray, distance_n: NDArray, like_n: NDArray) -> dict[str, float]:
    """Relation of influence to distance, by the class of the training image.

    touched_n: has a loss; the others have the influence of the L2 term only, the same for all. like_n: is of the test
    example's class. near_over_far: mean size in the nearest tenth over that in the farthest.
    """
    from scipy.stats import spearmanr

    size_n, order = np.abs(delta_n), np.argsort(distance_n, kind="stable")
    tenth, best = max(1, len(order) // 10), np.argsort(-delta_n, kind="stable")
    helps_n, harms_n = np.maximum(delta_n, 0), np.maximum(-delta_n, 0)
    return {
        "spearman": float(spearmanr(size_n, distance_n).statistic),
        "spearman_touched": float(spearmanr(size_n[touched_n], distance_n[touched_n]).statistic),
        "near_over_far": float(size_n[order[:tenth]].mean() / size_n[order[-tenth:]].mean()),
        "helpful_same": float((helps_n[like_n & touched_n] > 0).sum()),
        "helpful_other": float((helps_n[~like_n & touched_n] > 0).sum()),
        "harmful_same": float((harms_n[like_n & touched_n] > 0).sum()),
        "harmful_other": float((harms_n[~like_n & touched_n] > 0).sum()),
        "share_of_help_by_other": float(helps_n[~like_n].sum() / helps_n.sum()),
        "share_of_harm_by_same": float(harms_n[like_n].sum() / harms_n.sum()),
        "top20_helpful_other": float((~like_n[best[:20]]).sum()),
    }
