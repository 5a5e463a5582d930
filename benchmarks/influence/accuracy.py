"""How good a candidate's scores are, and the rows of the table with what each took.

Legend: n training examples, q queries, k removals.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from benchmarks.common import row
from benchmarks.influence.cases import Candidate

EQUAL = 5e-5  # correlations that differ by less are equal: four digits


class Accuracy(NamedTuple):
    """Means over the queries, and the worst query. nan: there is nothing to compare with."""

    pearson: float  # with the exact scores of all training examples
    spearman: float
    worst: float  # the least pearson
    error: float  # |scores - exact| / |exact|
    retrained: float  # pearson with what retraining without some examples changes
    retrained_rank: float  # spearman


def accuracy(scores_qn: NDArray, exact_qn: NDArray, changes: tuple[NDArray, NDArray] | None) -> Accuracy:
    """Of the first queries' scores. changes: (positions (k,), changes of the queries' losses (q, k)) or null."""
    exact_qn = exact_qn[: len(scores_qn)]
    pearson_q = correlation(scores_qn, exact_qn)
    error_q = np.linalg.norm(scores_qn - exact_qn, axis=1) / np.linalg.norm(exact_qn, axis=1)
    loo = loo_rank = np.nan
    if changes is not None:
        removed_k, true_qk = changes[0], changes[1][: len(scores_qn)]
        loo = correlation(scores_qn[:, removed_k], true_qk).mean()
        loo_rank = ranks_agree(scores_qn[:, removed_k], true_qk).mean()
    found = (pearson_q.mean(), ranks_agree(scores_qn, exact_qn).mean(), pearson_q.min(), error_q.mean(), loo, loo_rank)
    return Accuracy(*map(float, found))


def correlation(a_qn: NDArray, b_qn: NDArray) -> NDArray:
    """Pearson's, row by row, in float64; nan where a row is constant."""
    a_qn, b_qn = (m.astype(np.float64) - m.mean(1, keepdims=True, dtype=np.float64) for m in (a_qn, b_qn))
    with np.errstate(invalid="ignore", divide="ignore"):
        return (a_qn * b_qn).sum(1) / np.sqrt((a_qn**2).sum(1) * (b_qn**2).sum(1))


def ranks_agree(a_qn: NDArray, b_qn: NDArray) -> NDArray:
    """Spearman's, row by row."""
    return correlation(rankdata(a_qn, axis=1), rankdata(b_qn, axis=1))


def table(done: list[tuple[Candidate, dict, Accuracy | None]]) -> list[dict]:
    """A row a candidate; below them, how many times each peer's time is that of ours at no less correlation."""
    finished = [(c, seconds(report), found) for c, report, found in done if found is not None]
    made = [row(c.name, seconds(report) if found else report["failed"], "s" if found else "", said(report, found))
            for c, report, found in done]  # fmt: skip
    factors = []
    for peer, took, found in finished:
        good = [(s, c.name) for c, s, mine in finished if c.ours and mine.pearson >= found.pearson - EQUAL]
        if peer.ours or not good:
            continue
        best, name = min(good)
        factors.append(took / best)
        made.append(row(f"time over ours: {peer.name}", took / best, "times", f"ours: {name}, {best:.3g} s"))
    if factors:
        made.append(row("time over ours: least of all peers", min(factors), "times", "at equal or better correlation"))
    return made


def seconds(report: dict) -> float:
    """Of CPU."""
    return report["cpu_seconds"]


def said(report: dict, found: Accuracy | None) -> str | None:
    """The note of a candidate."""
    if found is None:
        return None
    parts = [f"with the exact scores r {found.pearson:.5f} (worst query {found.worst:.5f}), rank {found.spearman:.5f},"
             f" error {found.error:.1e}"]  # fmt: skip
    if not np.isnan(found.retrained):
        parts.append(f"with retraining r {found.retrained:.5f}, rank {found.retrained_rank:.5f}")
    parts.append(memory(report))
    parts.append(f"{sum(report['seconds'].values()):.3g} s by the clock")
    if len(report["seconds"]) > 1:
        parts.append(", ".join(f"{phase} {took:.3g} s" for phase, took in report["seconds"].items()))
    if "version" in report:
        parts.append(f"version {report['version']}")
    return "; ".join(parts)


def memory(report: dict) -> str:
    """Of the whole process."""
    return f"peak {report['peak_mb']:.0f} MB, of it {report['before_mb']:.0f} data and packages"
