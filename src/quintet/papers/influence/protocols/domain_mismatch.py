"""Domain mismatch, section 5.3 of Koh & Liang 2017: the influence of a small group on errors on its own members.

Children are rare in the hospital data, and training has left most out who were not readmitted: those that remain are
what a wrong prediction for a child rests on, which shows in their influence and not in the model's weights.
Legend: N training examples.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from quintet.common.errors import UserError
from quintet.common.tables import write_csv
from quintet.data.preview import Preview
from quintet.papers.influence.classifiers.report import training_report
from quintet.papers.influence.influence import InfluenceResult, influence
from quintet.papers.influence.risk.examples import Examples
from quintet.papers.influence.solvers.interface import Solver

BATCH = 2000  # examples predicted at a time
TABLE_ROWS = 100  # of influence.csv, beside the whole group; scores.npz has all
BARS = 20  # of the picture
HEADER = ("rank", "train_index", "title", "label", "in_group", "delta_test_loss_if_removed", "train_loss")
GROUP, REST = "#d62728", "#7f9fbf"


class DomainMismatch:
    """Ranks all training examples by the size of their influence on one query; reports the ranks of a group.

    feature, value: the group is every example whose column `feature` (a feature's name) equals `value`; columns of a
    category are 1 where it applies. query: an index in `split`; null: the first example of the group there that the
    model gets wrong. params: names or patterns of the parameters that removing an example would move.
    Writes under <run_dir>/domain_mismatch: influence.csv, scores.npz and domain_mismatch.png.
    """

    picture = "domain_mismatch/domain_mismatch.png"

    def __init__(self, solver: Solver, feature: str, value: float = 1.0, query: int | None = None, split: str = "test",
                 params: str | list[str] = "*", batch_size: int | None = None) -> None:  # fmt: skip
        self.solver, self.feature, self.value, self.query = solver, feature, value, query
        self.split, self.params, self.batch_size = split, params, batch_size

    def __call__(self, module, datamodule, run_dir: Path) -> dict[str, float]:
        out_dir = Path(run_dir) / "domain_mismatch"
        column = self._column(datamodule)
        train = Examples(datamodule, "train")
        in_group_n = self._members(datamodule, "train", column)
        if not 0 < in_group_n.sum() < len(train):
            raise UserError(
                f"protocol.feature={self.feature} is {self.value:g} for {in_group_n.sum()} of {len(train)} training"
                " examples: choose another protocol.value or feature"
            )
        query = self._query(module, datamodule, column)
        found = influence(module, train, query, self.params, self.solver, self.batch_size, out_dir / "cache")
        standing = Standing.of(found.delta_test_loss_if_removed[0].double().numpy(), in_group_n)
        labels_n = datamodule.arrays("train")[1].numpy()
        self._write(out_dir, datamodule, standing, found)
        shown = datamodule.preview(self.split, int(query.indices[0]))
        draw(out_dir / "domain_mismatch.png", datamodule, standing, self._headline(shown, query, found), self.feature)
        classes = np.unique(labels_n).tolist()
        counts = {f"group_train_class_{c}": float((labels_n[in_group_n] == c).sum()) for c in classes}
        numbers = standing.numbers() | counts | solver_numbers(query, found) | weight_number(module, column)
        return {f"domain_mismatch/{k}": v for k, v in (fit_numbers(module, datamodule, self.split) | numbers).items()}

    def _column(self, datamodule) -> int:
        names = getattr(datamodule, "feature_names", None)
        if not names:
            raise UserError("the data has no named features to choose a group by: train with data=diabetes or enron")
        if self.feature not in names:
            from quintet.harness.config.config import suggest

            raise UserError(
                f"protocol.feature={self.feature!r} is not a feature of the data: {suggest(self.feature, list(names))}"
            )
        return list(names).index(self.feature)

    def _members(self, datamodule, split: str, column: int) -> NDArray[np.bool_]:
        """Which examples of a split belong to the group."""
        return (datamodule.arrays(split)[0][:, column] == self.value).numpy()

    def _query(self, module, datamodule, column: int) -> Examples:
        """The example of `query`, or the first of the group that is predicted wrong."""
        if self.query is not None:
            return Examples(datamodule, self.split, [self.query], name="protocol.query")
        members = np.flatnonzero(self._members(datamodule, self.split, column))
        if len(members):
            examples = Examples(datamodule, self.split, members)
            _, right = predictions(module, examples)
            if not right.all():
                return Examples(datamodule, self.split, members[~right][:1])
        raise UserError(
            f"none of the {len(members)} examples of the {self.split} split with {self.feature} = {self.value:g} is"
            " predicted wrong: give an index, protocol.query"
        )

    def _write(self, out_dir: Path, datamodule, standing: "Standing", found: InfluenceResult) -> None:
        losses_n = found.train_losses.double().numpy()
        chosen = [(k, n) for k, n in enumerate(standing.order, 1) if k <= TABLE_ROWS or standing.in_group_n[n]]
        rows = []
        for rank, n in chosen:
            shown = datamodule.preview("train", int(n))
            member = int(standing.in_group_n[n])
            rows.append((rank, n, shown.title, shown.label, member, float(standing.scores_n[n]), float(losses_n[n])))
        write_csv(out_dir / "influence.csv", HEADER, rows)
        np.savez(out_dir / "scores.npz", delta_test_loss_if_removed=standing.scores_n, in_group=standing.in_group_n)

    def _headline(self, shown: Preview, query: Examples, found: InfluenceResult) -> str:
        return (
            f"query: {self.split} {query.indices[0]}, {shown.title}, truly '{shown.label}', loss"
            f" {float(found.query_losses[0]):.3g}"
        )


class Standing(NamedTuple):
    """All training examples in the order of the size of their influence, and which of them are the group's."""

    scores_n: NDArray[np.float64]  # > 0: removing it would raise the query's loss
    in_group_n: NDArray[np.bool_]
    order: NDArray[np.int64]  # (N,) training positions, the strongest first

    @classmethod
    def of(cls, scores_n: NDArray, in_group_n: NDArray) -> "Standing":
        return cls(scores_n, in_group_n, np.argsort(-np.abs(scores_n), kind="stable"))

    def numbers(self) -> dict[str, float]:
        """Ranks of the group. factor_*: size of its strongest, its weakest over the strongest of the rest."""
        size_n, members = np.abs(self.scores_n), int(self.in_group_n.sum())
        ranks = np.flatnonzero(self.in_group_n[self.order]) + 1
        group, rest = size_n[self.in_group_n], size_n[~self.in_group_n].max()
        return {
            "group_train": float(members),
            "group_in_top": float((ranks <= members).sum()),  # among as many as it has members
            "group_first_rank": float(ranks[0]),
            "group_last_rank": float(ranks[-1]),
            "largest_of_group": float(group.max()),
            "smallest_of_group": float(group.min()),
            "largest_of_rest": float(rest),
            "factor_largest": float(group.max() / rest) if rest else float("inf"),
            "factor_smallest": float(group.min() / rest) if rest else float("inf"),
        }


def predictions(module: Any, examples: Examples) -> tuple[NDArray, NDArray[np.bool_]]:
    """(loss, whether the class is right) of each example."""
    top = next(module.parameters())
    losses, right = [], []
    module.eval()
    with torch.no_grad():
        for _, batch in examples.batches(BATCH, top.dtype, top.device, keep=False):
            losses.append(module.example_losses(batch).cpu())
            right.append((module.predict(batch) == batch.labels).cpu())
    return torch.cat(losses).double().numpy(), torch.cat(right).numpy()


def fit_numbers(module: Any, datamodule: Any, split: str) -> dict[str, float]:
    """Losses and accuracies of the fit, as the authors' notebook prints them: train_loss has the L2 term."""
    values, _ = training_report(module, datamodule)
    losses, right = predictions(module, Examples(datamodule, split))
    found = {name.replace("/", "_"): value for name, value in values.items()}
    return found | {f"{split}_loss": float(losses.mean()), f"{split}_accuracy": float(right.mean())}


def solver_numbers(query: Examples, found: InfluenceResult) -> dict[str, float]:
    """Properties of the query and of the solution."""
    return {
        "query": float(query.indices[0]),
        "query_loss": float(found.query_losses[0]),
        "relative_residual": float(found.relative_residual.max()),
        "effective_damping": float(found.effective_damping),
    }


def weight_number(module: Any, column: int) -> dict[str, float]:
    """Of a linear model with one output: how many weights are larger than that of the group's feature."""
    weight_f = getattr(getattr(module.network, "top", None), "weight", torch.empty(0)).detach().abs().flatten()
    if len(weight_f) != module.data_info["input_shape"][0]:
        return {}
    return {"features_with_larger_weight": float((weight_f > weight_f[column]).sum())}


def draw(path: Path, datamodule: Any, standing: Standing, headline: str, feature: str) -> None:
    """All training examples by their influence with the group marked, and the strongest one by one."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.25))
    rising = np.argsort(standing.scores_n, kind="stable")
    place, inside = np.arange(len(rising)), standing.in_group_n[rising]
    scores = standing.scores_n[rising]
    for which, color, size, name in ((~inside, REST, 3, "all other"), (inside, GROUP, 6, feature)):
        label = f"{name}: {which.sum()}"
        left.plot(place[which], scores[which], "o", color=color, markersize=size, markeredgewidth=0, label=label)
    left.set(xlabel="training examples, sorted", ylabel="change of the query's loss if removed")
    left.locator_params(axis="x", nbins=5)
    left.legend(fontsize=9)
    strongest = standing.order[:BARS]
    colors = [GROUP if standing.in_group_n[n] else REST for n in strongest]
    right.barh(np.arange(len(strongest)), standing.scores_n[strongest], color=colors)
    right.set_yticks(np.arange(len(strongest)), [bar_label(datamodule, int(n)) for n in strongest], fontsize=7.5)
    right.invert_yaxis()
    right.set(xlabel="change of the query's loss if removed", title=f"the {len(strongest)} strongest")
    for axis in (left, right):
        axis.grid(color="0.92")
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    right.axvline(0, color="0.4", linewidth=0.8)
    figure.suptitle(headline, fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=140)


def bar_label(datamodule: Any, n: int) -> str:
    return f"{n}, {datamodule.preview('train', n).label}"
