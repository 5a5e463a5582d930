"""What `explain` ranks: single training examples, or groups of them whose influence adds up.

Legend: Q queries, N training examples, U units (examples or groups).
"""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from quintet.common.errors import UserError
from quintet.data.preview import Preview
from quintet.papers.influence.protocols.panel import Card

KINDS = ("helpful", "harmful")
SAMPLED = 5000  # units that are looked at to count labels


class Ranked(NamedTuple):
    """A unit and its influence on one query."""

    unit: int
    score: float  # change of the query's loss if it were removed
    loss: float  # its own, of a group the mean
    train_index: int  # in the training split; of a group's strongest member
    title: str
    group: str | None
    label: str | None


class Units:
    """`scores_qn` summed within groups (`grouped`) or as they are; first order, so that influence of removals adds up.

    Errors: UserError for groups where the data has none.
    """

    def __init__(self, datamodule, indices_n: NDArray, scores_qn: NDArray, losses_n: NDArray, grouped: bool) -> None:
        self.datamodule, self.indices_n, self.scores_qn, self.losses_n = datamodule, indices_n, scores_qn, losses_n
        self.grouped, self.what = grouped, "groups" if grouped else "training examples"
        if not grouped:
            self.members, self.scores_qu = [np.array([n]) for n in range(len(indices_n))], scores_qn
            return
        names = [self._preview(n).group for n in range(len(indices_n))]
        groups: dict[str, list[int]] = {}
        for n, name in enumerate(names):
            if name is None:
                raise UserError("protocol.aggregate=group: the examples of this data have no groups, use example")
            groups.setdefault(name, []).append(n)
        self.members = [np.array(rows) for rows in groups.values()]
        self.scores_qu = np.stack([scores_qn[:, rows].sum(1) for rows in self.members], 1)

    def ranked(self, q: int, kind: str, count: int) -> list[Ranked]:
        """Up to `count` units, strongest first: helpful ones have a positive score, harmful ones a negative."""
        sign = 1 if kind == "helpful" else -1
        order = np.argsort(-sign * self.scores_qu[q], kind="stable")[:count]
        return [self._describe(q, int(unit), sign) for unit in order if sign * self.scores_qu[q, unit] > 0]

    def _describe(self, q: int, unit: int, sign: int) -> Ranked:
        rows = self.members[unit]
        strongest = int(rows[np.argmax(sign * self.scores_qn[q, rows])])
        shown = self._preview(strongest)
        title = shown.group or shown.title if self.grouped else shown.title
        return Ranked(unit, float(self.scores_qu[q, unit]), float(self.losses_n[rows].mean()),
                      int(self.indices_n[strongest]), title, shown.group, shown.label)  # fmt: skip

    def card(self, q: int, one: Ranked) -> Card:
        """The unit for the picture; the sounds of a group's members one after the other, with each one's share."""
        rows = self.members[one.unit]
        heading = f"{one.score:+#.3g}"
        if len(rows) == 1:
            return Card(self._preview(int(rows[0])), heading)
        shown = [self._preview(int(n)) for n in rows]
        if shown[0].audio is None:
            return Card(self._preview(int(np.flatnonzero(self.indices_n == one.train_index)[0])), heading)
        sounds, rate = [preview.audio for preview in shown if preview.audio is not None], shown[0].sample_rate
        assert rate is not None
        lengths = [len(sound) / rate for sound in sounds]
        whole = replace(shown[0], title=f"{one.title}, {len(rows)} windows", audio=np.concatenate(sounds))
        return Card(whole, heading, list(zip(lengths, self.scores_qn[q, rows].tolist(), strict=True)))

    def labels(self) -> list[str | None]:
        """Of all units, a group's that of its first member."""
        return [self._preview(int(rows[0])).label for rows in self.members]

    def fraction_with(self, label: str | None, seed: int) -> float:
        """Fraction of the units with that label; where there are many, among SAMPLED of them drawn by `seed`."""
        known = self._labels(seed)
        return known.count(label) / len(known)

    def _labels(self, seed: int) -> list[str | None]:
        if not hasattr(self, "_known"):
            count = len(self.members)
            some = np.random.default_rng(seed).permutation(count)[:SAMPLED]
            self._known = [self._preview(int(self.members[unit][0])).label for unit in some]
        return self._known

    def _preview(self, n: int) -> Preview:
        return self.datamodule.preview("train", int(self.indices_n[n]))
