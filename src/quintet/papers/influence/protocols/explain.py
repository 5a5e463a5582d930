"""`explain`: the most helpful and harmful training examples for given queries, with pictures (Koh & Liang 2017)."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quintet.common.errors import UserError
from quintet.common.tables import write_csv
from quintet.data.preview import Preview
from quintet.papers.influence.influence import InfluenceResult, influence
from quintet.papers.influence.protocols.label_plot import draw_labels
from quintet.papers.influence.protocols.panel import Card, draw_panel
from quintet.papers.influence.protocols.ranking import KINDS, Ranked, Units
from quintet.papers.influence.risk.examples import Examples
from quintet.papers.influence.risk.risk import ranks
from quintet.papers.influence.solvers.interface import Solver

log = logging.getLogger(__name__)
PLOT, MARKS = "by_label.png", 2000  # of so many units each has a mark in the plot
TABLE_ROWS = 100  # of influence.csv for each query and kind; scores.npz has all
HEADER = ("query", "query_title", "kind", "rank", "train_index", "title", "group", "label",
          "delta_test_loss_if_removed", "train_loss")  # fmt: skip


class Explain:
    """The most helpful and the most harmful training examples for the loss on each of some held-out examples.

    queries: how many, drawn by `seed`, or their indices in `split`. params: names or patterns of the parameters that
    removing an example would move; the others count as fixed. max_train: only so many training examples, drawn by
    `seed`, represent all. aggregate=group adds up what belongs together: the windows of an utterance.
    Writes under <run_dir>/explain: influence.csv, scores.npz (all of them), query_<index>.png and, for audio, .wav;
    by_label.png where examples have labels and there are not too many of them.
    """

    picture: str | None = None  # a plot: the panels show the data themselves
    parallel = True  # torchrun's processes share the sweeps over the training examples

    def __init__(
        self,
        solver: Solver,
        queries: int | list[int] = 4,
        split: str = "test",
        params: str | list[str] = "*",
        max_train: int | None = None,
        top: int = 5,
        aggregate: str = "example",
        batch_size: int | None = None,
        seed: int = 0,
    ) -> None:
        if aggregate not in ("example", "group"):
            raise UserError(f"protocol.aggregate={aggregate!r}: choose example or group")
        limits = {"top": top, "max_train": max_train, "batch_size": batch_size}
        limits |= {"queries": queries} if isinstance(queries, int) else {}
        for key, value in limits.items():
            if value is not None and value < 1:
                raise UserError(f"protocol.{key}={value}: give 1 or more")
        self.solver, self.queries, self.split, self.params = solver, queries, split, params
        self.max_train, self.top, self.aggregate = max_train, top, aggregate
        self.batch_size, self.seed = batch_size, seed

    def __call__(self, module, datamodule, run_dir: Path) -> dict[str, float]:
        out_dir = Path(run_dir) / "explain"
        queries = Examples(datamodule, self.split, self._chosen(datamodule), name="protocol.queries")
        total = datamodule.num_examples("train")
        train = Examples(datamodule, "train", self._drawn(total, self.max_train, "max_train"))
        result = influence(module, train, queries, params=self.params, solver=self.solver, batch_size=self.batch_size,
                           cache_dir=out_dir / "cache")  # fmt: skip
        if ranks()[0]:
            return {}
        # the engine removes one of the examples it was given; in the run it is one of all
        scores_qn = result.delta_test_loss_if_removed.double().numpy() * (len(train) / total)
        losses_n = result.train_losses.double().numpy()
        units = Units(datamodule, train.indices, scores_qn, losses_n, grouped=self.aggregate == "group")
        shown = [datamodule.preview(self.split, int(index)) for index in queries.indices]
        self._write(out_dir, queries.indices, shown, units, scores_qn)
        notes = f"{train_text(len(train), total)}; {solver_text(self.solver, result)}"
        if all(one.label is not None for one in shown) and len(units.members) <= MARKS:
            draw_labels(out_dir / PLOT, shown, units.scores_qu, units.labels(), units.what, notes)
            self.picture = f"explain/{PLOT}"
        for q, (index, preview) in enumerate(zip(queries.indices.tolist(), shown, strict=True)):
            card = Card(preview, f"loss {float(result.query_losses[q]):.4g}")
            found = {kind: units.ranked(q, kind, self.top) for kind in KINDS}
            cards = {kind: [units.card(q, one) for one in found[kind]] for kind in KINDS}
            draw_panel(out_dir / f"query_{index}.png", card, cards, units.scores_qu[q], units.what, notes)
            write_sound(out_dir / f"query_{index}", preview, cards)
        return solver_numbers(result, len(queries), len(train)) | self._agreement(units, shown)

    def _chosen(self, datamodule) -> Sequence[int] | NDArray:
        if not isinstance(self.queries, int):
            return self.queries
        return self._drawn(datamodule.num_examples(self.split), self.queries, "queries")

    def _drawn(self, total: int, count: int | None, key: str) -> NDArray:
        """`count` of `total` indices in order. Errors: UserError when there are not so many."""
        if count is None:
            return np.arange(total)
        if count > total:
            raise UserError(f"protocol.{key}={count}: there are {total} examples")
        return np.sort(np.random.default_rng(self.seed).choice(total, count, replace=False))

    def _write(self, out_dir: Path, indices: NDArray, shown: list[Preview], units: Units, scores_qn: NDArray) -> None:
        rows = [
            (index, preview.title, kind, rank, one.train_index, one.title, one.group, one.label, one.score, one.loss)
            for q, (index, preview) in enumerate(zip(indices.tolist(), shown, strict=True))
            for kind in KINDS
            for rank, one in enumerate(units.ranked(q, kind, TABLE_ROWS), 1)
        ]
        write_csv(out_dir / "influence.csv", HEADER, rows)
        np.savez(out_dir / "scores.npz", query_index=indices, train_index=units.indices_n,
                 delta_test_loss_if_removed=scores_qn)  # fmt: skip

    def _agreement(self, units: Units, shown: list[Preview]) -> dict[str, float]:
        """How many of the top ones have the label (class, speaker) of the query, and how many of all have it."""
        labelled = [q for q, preview in enumerate(shown) if preview.label is not None]
        if not labelled:
            return {}
        found = {}
        for kind in KINDS:
            tops: list[list[Ranked]] = [units.ranked(q, kind, self.top) for q in labelled]
            same = [one.label == shown[q].label for q, top in zip(labelled, tops, strict=True) for one in top]
            found[f"explain/{kind}_same_label"] = float(np.mean(same))
        chance = [units.fraction_with(shown[q].label, self.seed) for q in labelled]
        return found | {"explain/all_same_label": float(np.mean(chance))}


def solver_numbers(result: InfluenceResult, queries: int, train: int) -> dict[str, float]:
    """Properties of the solution."""
    return {
        "explain/queries": float(queries),
        "explain/train_examples": float(train),
        "explain/parameters": float(result.num_params),
        "explain/relative_residual": float(result.relative_residual.max()),
        "explain/iterations": float(result.iterations),
        "explain/effective_damping": float(result.effective_damping),
        "explain/gradient_norm": float(result.gradient_norm),
    }


def train_text(used: int, total: int) -> str:
    return f"{used} training examples" if used == total else f"{used} of {total} training examples, drawn at random"


def solver_text(solver: Solver, result: InfluenceResult) -> str:
    """One line for the foot of a picture."""
    return (
        f"{type(solver).__name__}, {result.num_params} parameters, damping {result.effective_damping:.3g}, "
        f"relative residual {float(result.relative_residual.max()):.1e}, "
        f"gradient norm {result.gradient_norm:.2g} (0 at a minimum)"
    )


def write_sound(stem: Path, query: Preview, cards: dict[str, list[Card]]) -> None:
    """The query and what is beside it in the picture, where they are sounds."""
    named = {"": query} | {f"_{k}_{n}": c.preview for k in KINDS for n, c in enumerate(cards[k], 1)}
    from quintet.papers.wavenet.media import to_wav

    for ending, preview in named.items():
        if preview.audio is not None and preview.sample_rate is not None:
            to_wav(stem.with_name(f"{stem.name}{ending}.wav"), preview.audio, preview.sample_rate)
