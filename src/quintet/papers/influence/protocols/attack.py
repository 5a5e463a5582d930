"""Training images moved by less than half an 8-bit level flip a test image: Koh & Liang 2017, section 5.2, figure 5."""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from quintet.common.checkpoints import weights_digest
from quintet.common.errors import UserError
from quintet.common.optim import from_mapping
from quintet.common.tables import write_csv
from quintet.papers.influence.attack.poison import LEVEL, AttackConfig, Attacked, Attempt, PoisonedTraining
from quintet.papers.influence.kept import KeptResults
from quintet.papers.influence.protocols.attack_picture import Shown, draw_attacks, draw_margins
from quintet.papers.influence.risk.examples import Examples

log = logging.getLogger(__name__)
FORMAT = 1  # raise when the meaning of the files changes
KEPT_IMAGES = 2  # moves of attempts on at most so many images are kept, for the pictures


@dataclass(frozen=True)
class Tried:
    """One attempt as it is kept."""

    count: int  # images that may be moved
    rank: int  # of the first of them in the order of influence: a second try is with rank 1 alone
    images: list[int]
    margins: list[float]
    losses: list[float]
    predicted: float
    largest_move: float  # in levels
    same_bytes: bool  # rounded to 8 bits, the moved images are the originals
    seconds: float  # its share of what ran side by side

    @property
    def flipped(self) -> bool:
        return self.margins[-1] < 0


class Attack:
    """Attacks on test images that are classified right, each with a training set of its own.

    counts: how many training images may be moved, one after the other until it succeeds. single_tries: with one image,
    the first so many of the order of influence are tried each by itself, as in the authors' code. max_queries: so many
    test images, drawn by `seed`; null: all. attack: see AttackConfig.
    Writes attack/attack.csv, trajectories.csv, attack.png and margins.png under `run_dir`. What is finished is kept in
    attack/queries, and a second call, also with more queries, goes on from it.
    """

    picture = "attack/margins.png"  # the other one shows photographs

    def __init__(
        self,
        counts: Sequence[int] = (1, 2, 10),
        single_tries: int = 2,
        max_queries: int | None = 50,
        split: str = "test",
        attack: AttackConfig | Mapping[str, Any] | None = None,
        pictures: int = 4,
        seed: int = 0,
    ) -> None:
        self.counts = list(counts)
        if not self.counts or self.counts[0] < 1 or sorted(set(self.counts)) != self.counts:
            raise UserError(f"protocol.counts={self.counts}: give rising numbers of 1 or more, such as [1, 2, 10]")
        for key, value in {"single_tries": single_tries, "max_queries": max_queries}.items():
            if value is not None and value < 1:
                raise UserError(f"protocol.{key}={value}: give 1 or more")
        self.config = cast(AttackConfig, from_mapping(AttackConfig, attack or {}, "protocol.attack"))
        self.single_tries, self.max_queries, self.split = single_tries, max_queries, split
        self.pictures, self.seed = pictures, seed

    def __call__(self, module, datamodule, run_dir: Path) -> dict[str, float]:
        out_dir = Path(run_dir) / "attack"
        backbone = getattr(getattr(datamodule, "features", None), "network", None)
        if backbone is None:
            raise UserError(
                "protocol=attack needs images and a frozen network's features of them: see dogfish_features"
            )
        self._check(datamodule.num_examples("train"))
        problem = PoisonedTraining(module, datamodule, backbone(), self.split, self.config)
        margins = problem.margins()
        queries = self._drawn(margins)
        kept = KeptResults(out_dir / "queries", self._depends_on(problem, datamodule))
        size = self.config.images_at_once
        for start in range(0, len(queries), size):
            self._attack(problem, [q for q in queries[start : start + size] if load_tried(kept, q) is None], kept)
            log.info("attacked %d of %d test images", min(start + size, len(queries)), len(queries))
        tried = {query: load_tried(kept, query) or [] for query in queries}
        self._write(out_dir, datamodule, tried)
        self._draw(out_dir, problem, datamodule, tried, kept)
        return self._metrics(tried, margins)

    def _check(self, total: int) -> None:
        if self.counts[-1] > min(total, self.config.shortlist or total):
            raise UserError(
                f"protocol.counts={self.counts}: there are {total} training images, and"
                f" protocol.attack.shortlist={self.config.shortlist} of them to choose from"
            )

    def _drawn(self, margins: Tensor) -> list[int]:
        """Test images that are right, in an order drawn by `seed`, the first `max_queries` of them."""
        right = (margins > 0).cpu().numpy()
        order = np.random.default_rng(self.seed).permutation(len(right))
        found = [int(i) for i in order if right[i]][: self.max_queries]
        if not found:
            raise UserError(f"no example of the {self.split} split is classified right: there is nothing to attack")
        return found

    def _depends_on(self, problem: PoisonedTraining, datamodule: Any) -> list[Any]:
        settings = asdict(self.config) | {"images_at_once": None}  # changes nothing but the time
        whole = Examples(datamodule, self.split)
        return [FORMAT, settings, self.counts, self.single_tries, weights_digest(problem.risk.module),
                      problem.risk.train.fingerprint(), whole.fingerprint()]  # fmt: skip

    def _attack(self, problem: PoisonedTraining, queries: Sequence[int], kept: KeptResults) -> None:
        """All stages for some test images; what an attempt achieves with fewer images is not tried with more."""
        order = {query: problem.choose(query, max(self.single_tries, self.counts[-1])) for query in queries}
        tried: dict[int, list[Tried]] = {query: [] for query in queries}
        for count, rank in self._stages():
            left = [q for q in queries if not (tried[q] and tried[q][-1].flipped)]
            together = max(1, self.config.images_at_once // count)
            for start in range(0, len(left), together):
                some, started = left[start : start + together], time.perf_counter()
                found = problem.run([Attempt(q, order[q][rank : rank + count]) for q in some])
                seconds = (time.perf_counter() - started) / len(some)
                for query, one in zip(some, found, strict=True):
                    images = order[query][rank : rank + count]
                    tried[query].append(summary(problem, count, rank, images, one, seconds))
                    if one.flipped and len(one.moves) <= KEPT_IMAGES:  # to a four-thousandth of a level
                        kept.save(f"moves_{query:06d}", {"moves": one.moves.half()})
        for query in queries:
            save_tried(kept, query, tried[query])

    def _stages(self) -> list[tuple[int, int]]:
        """(images, rank of the first) of each attempt in turn."""
        tries = range(self.single_tries if self.counts[0] == 1 else 1)
        return [(count, rank) for count in self.counts for rank in (tries if count == 1 else [0])]

    def _write(self, out_dir: Path, datamodule: Any, tried: dict[int, list[Tried]]) -> None:
        """attack.csv: a row for each attempt. trajectories.csv: one for each of its iterations."""
        header = ["query", "title", "label", "images_moved", "rank", "train_images", "flipped", "iterations",
                  "margin_before", "margin_after", "probability_after", "loss_before", "loss_after",
                  "first_step_predicted", "first_step_actual", "largest_move_levels", "same_8bit_image"]  # fmt: skip
        rows, paths = [], []
        for query, attempts in tried.items():
            shown = datamodule.preview(self.split, query)
            for one in attempts:
                rows.append([query, shown.title, shown.label, one.count, one.rank, " ".join(map(str, one.images)),
                             one.flipped, len(one.margins) - 1, one.margins[0], one.margins[-1],
                             probability(one.margins[-1]), one.losses[0], one.losses[-1], one.predicted,
                             one.losses[1] - one.losses[0], one.largest_move, one.same_bytes])  # fmt: skip
                for step, (margin, loss) in enumerate(zip(one.margins, one.losses, strict=True)):
                    paths.append([query, one.count, one.rank, step, margin, probability(margin), loss])
        write_csv(out_dir / "attack.csv", header, rows)
        names = ["query", "images_moved", "rank", "iteration", "margin", "probability", "loss"]
        write_csv(out_dir / "trajectories.csv", names, paths)

    def _draw(self, out_dir: Path, problem: PoisonedTraining, datamodule: Any, tried: dict[int, list[Tried]],
              kept: KeptResults) -> None:  # fmt: skip
        paths = {count: [one.margins for attempts in tried.values() for one in attempts if one.count == count]
                 for count in self.counts}  # fmt: skip
        draw_margins(out_dir / "margins.png", paths)
        flipped = {q: attempts[-1] for q, attempts in tried.items() if attempts[-1].flipped}
        simplest = sorted(flipped, key=lambda q: flipped[q].count)[: self.pictures]
        shown = []
        for query in simplest:
            one = flipped[query]
            if one.count <= KEPT_IMAGES:
                before, after = probability(one.margins[0]), probability(one.margins[-1])
                images = problem.images(one.images).cpu().permute(0, 2, 3, 1).numpy()
                moves = kept.load(f"moves_{query:06d}")
                assert moves is not None  # saved with every success on so few images
                moves_khwc = moves["moves"].float().permute(0, 2, 3, 1).numpy()
                of = [datamodule.preview("train", row) for row in one.images]
                query_shown = datamodule.preview(self.split, query)
                shown.append(Shown(query_shown, before, after, of, images, moves_khwc))
        if shown:
            draw_attacks(out_dir / "attack.png", shown, self.config.radius)

    def _metrics(self, tried: dict[int, list[Tried]], margins: Tensor) -> dict[str, float]:
        """Fractions with their 95 % Clopper-Pearson intervals; flipped_1_first_try is by the first choice alone."""
        everything = [one for attempts in tried.values() for one in attempts]
        values: dict[str, float] = {}
        for count in self.counts:
            won = sum(any(one.flipped and one.count <= count for one in attempts) for attempts in tried.values())
            values |= _share(f"attack/flipped_{count}", won, len(tried))
        if self.counts[0] == 1 and self.single_tries > 1:
            values |= _share("attack/flipped_1_first_try", sum(a[0].flipped for a in tried.values()), len(tried))
        steps = [len(one.margins) - 1 for one in everything if one.flipped]
        ratios = [(one.losses[1] - one.losses[0]) / one.predicted for one in everything if one.predicted]
        return values | {
            "attack/queries": float(len(tried)),
            "attack/accuracy_before": float((margins > 0).double().mean()),
            "attack/right_before": float((margins > 0).sum()),
            "attack/iterations_median": float(np.median(steps)) if steps else float("nan"),
            "attack/first_step_actual_over_predicted": float(np.median(ratios)) if ratios else float("nan"),
            "attack/same_8bit_image": float(np.mean([one.same_bytes for one in everything])),
            "attack/seconds_of_attempts": sum(one.seconds for one in everything),  # those of earlier calls too
            "attack/largest_move_levels": max(one.largest_move for one in everything),
        }


def summary(
    problem: PoisonedTraining, count: int, rank: int, images: list[int], one: Attacked, seconds: float
) -> Tried:
    """What is kept of an attempt, and whether 8 bits would have shown it."""
    originals = problem.images(images).cpu() / LEVEL
    same = bool(((originals + one.moves).round() == originals.round()).all())
    largest = float(one.moves.abs().max())
    return Tried(count, rank, images, one.margins, one.losses, one.predicted, largest, same, seconds)


def save_tried(kept: KeptResults, query: int, tried: Sequence[Tried]) -> None:
    kept.save(f"query_{query:06d}", {"tried": [asdict(one) for one in tried]})


def load_tried(kept: KeptResults, query: int) -> list[Tried] | None:
    """The attempts on a test image, None if they were not finished."""
    found = kept.load(f"query_{query:06d}")
    return None if found is None else [Tried(**one) for one in found["tried"]]


def probability(margin: float) -> float:
    """That the model gives the true class."""
    return float(torch.sigmoid(torch.tensor(margin, dtype=torch.float64)))


def _share(name: str, won: int, total: int) -> dict[str, float]:
    """A fraction and its interval."""
    from scipy.stats import binomtest

    low, high = binomtest(won, total).proportion_ci(method="exact")
    return {name: won / total, f"{name}_low": float(low), f"{name}_high": float(high)}
