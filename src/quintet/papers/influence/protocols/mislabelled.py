"""Wrong labels found by self-influence, and what correcting them gives (Koh and Liang 2017, section 5.4, figure 6).

Legend: n training examples, S seeds, M methods, K fractions.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quintet.common.errors import UserError
from quintet.data.store import digest
from quintet.papers.influence.protocols.mislabelled_table import (
    METHODS,
    RefitTable,
    Refitted,
    draw,
    influence_minus_loss,
    standard_error,
    write_curves,
)
from quintet.papers.influence.retraining.changed_labels import Relabelled
from quintet.papers.influence.solvers.interface import Solver

log = logging.getLogger(__name__)
FRACTIONS = (0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3)
FORMAT = 1  # raise when the same settings give other rows


class Mislabelled:
    """Flips training labels, refits, lets someone check the examples in three orders, and refits after each part.

    Orders: by self-influence g_i H^-1 g_i and by train loss, both at the model fitted to the flipped labels, and at
    random. To check an example restores its label. flip: fraction of the labels. fractions: how much is checked.
    seeds: how many times, each with its own flips. shown: the fractions whose numbers are returned. tolerance: gradient
    norm at which a refit ends.
    Writes under <run_dir>/mislabelled: refits_<key>.csv, a row a refit, appended when a seed is finished (a second call
    goes on from there, also to more seeds), curves.csv, paired.csv and mislabelled.png.
    """

    picture = "mislabelled/mislabelled.png"

    def __init__(self, solver: Solver, flip: float = 0.1, fractions: Sequence[float] = FRACTIONS,
                 seeds: int = 40, shown: Sequence[float] = (0.05, 0.1, 0.2, 0.3), tolerance: float = 1e-8,
                 seed: int = 0) -> None:  # fmt: skip
        self.solver, self.flip, self.seeds, self.tolerance, self.seed = solver, flip, seeds, tolerance, seed
        self.fractions, self.shown = [float(f) for f in fractions], [float(f) for f in shown]
        if not 0 < flip < 1:
            raise UserError(f"protocol.flip={flip}: give a fraction of the labels, above 0 and below 1")
        rising = self.fractions == sorted(set(self.fractions))
        if not self.fractions or not rising or self.fractions[0] < 0 or self.fractions[-1] > 1:
            raise UserError(f"protocol.fractions={self.fractions}: give rising numbers from 0 to 1")
        unknown = [f for f in self.shown if f not in self.fractions]
        if unknown:
            raise UserError(f"protocol.shown has {unknown[0]:g}: choose of protocol.fractions={self.fractions}")
        if seeds < 2 or seed < 0 or not tolerance > 0:
            raise UserError(
                f"protocol.seeds={seeds}, seed={seed}, tolerance={tolerance:g}: give 2 or more, 0 or more, above 0"
            )

    def __call__(self, module, datamodule, run_dir: Path) -> dict[str, float]:
        task, out_dir = Relabelled(module, datamodule, self.tolerance), Path(run_dir) / "mislabelled"
        total, flips = len(task.labels_n), self.flips(task)
        if not 0 < flips < total:
            raise UserError(
                f"protocol.flip={self.flip} flips {flips} of {total} training labels: give another fraction"
            )
        clean = task.accuracy(task.fit(task.labels_n, task.start_p))
        table = RefitTable(out_dir / f"refits_{self.key(task)}.csv", len(METHODS) * len(self.fractions))
        for seed in range(self.seeds):
            if seed not in table:
                started = time.perf_counter()
                table.append(seed, self.one_seed(task, seed))
                log.info("mislabelled: seed %d of %d, %.1f s", seed + 1, self.seeds, time.perf_counter() - started)
        accuracy_smk, found_smk = (table.values(self.seeds, name) for name in ("test_accuracy", "found"))
        found_smk = found_smk / flips
        write_curves(out_dir, self.fractions, found_smk, accuracy_smk)
        title = f"{flips} of {total} training labels flipped; mean and standard error of {self.seeds} seeds"
        draw(out_dir / "mislabelled.png", self.fractions, found_smk, accuracy_smk, clean, title)
        metrics = {
            "mislabelled/accuracy_clean": clean,
            "mislabelled/gradient_norm_max": float(table.values(self.seeds, "gradient_norm").max()),
        }
        return metrics | self._numbers("accuracy", accuracy_smk) | self._numbers("found", found_smk)

    def _numbers(self, name: str, values_smk: NDArray) -> dict[str, float]:
        """Means at the fractions shown, and influence against loss in pairs."""
        metrics: dict[str, float] = {}
        for fraction in self.shown:
            values_sm = values_smk[:, :, self.fractions.index(fraction)]
            stem = f"mislabelled/{name}_{100 * fraction:g}pct"
            metrics |= {f"{stem}_{method}": float(values_sm[:, m].mean()) for m, method in enumerate(METHODS)}
            gain_s = influence_minus_loss(values_sm)
            metrics[f"{stem}_influence_minus_loss"] = float(gain_s.mean())
            metrics[f"{stem}_influence_minus_loss_se"] = float(standard_error(gain_s))
            metrics[f"{stem}_seeds_influence_above_loss"] = float((gain_s > 0).sum())
        return metrics

    def flips(self, task: Relabelled) -> int:
        """How many labels are flipped."""
        return round(self.flip * len(task.labels_n))

    def key(self, task: Relabelled) -> str:
        """Of everything that a seed's rows depend on."""
        solver = {"solver": type(self.solver).__name__, **asdict(self.solver)}
        return digest(FORMAT, task.fingerprint(), self.flip, self.fractions, self.tolerance, self.seed, solver)

    def one_seed(self, task: Relabelled, seed: int) -> list[Refitted]:
        """Flip, fit, order, check and refit."""
        rng, true_n = np.random.default_rng((self.seed, seed)), task.labels_n
        flipped = rng.choice(len(true_n), self.flips(task), replace=False)
        labels_n = true_n.copy()
        labels_n[flipped] = 1 - true_n[flipped]
        worst = task.fit(labels_n)  # from zero: the true labels' minimum is a worse place to start from
        influence_n, loss_n = task.scores(worst.theta, labels_n, self.solver)
        by_score = [np.argsort(-score_n, kind="stable") for score_n in (influence_n, loss_n)]
        rows = []
        for method, order in zip(METHODS, [*by_score, rng.permutation(len(true_n))], strict=True):
            fit = worst
            for fraction in self.fractions:
                checked, now_n = order[: round(fraction * len(true_n))], labels_n.copy()
                now_n[checked] = true_n[checked]
                fit, found = task.fit(now_n, fit.theta), int((now_n != labels_n).sum())
                where = (seed, method, fraction, len(checked), found)
                rows.append(Refitted(*where, task.accuracy(fit), fit.gradient_norm))
        return rows
