"""The training-set attack of section 5.2: training images are moved by less than an 8-bit file can hold, the last layer
of a frozen network is fitted again, and a test image that was classified right is then classified wrong.

Legend: n training examples, F features, p parameters of the last layer (F, and the bias where there is one, last);
M attempts side by side, R images of all of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from quintet.common.errors import UserError
from quintet.data.batches import ExampleBatch
from quintet.data.examples.features import Backbone
from quintet.papers.influence.attack.perturb import attack_step, perturbation_influence
from quintet.papers.influence.attack.replaced_rows import ReplacedRowFits, RowReplacements
from quintet.papers.influence.classifiers.losses import signs
from quintet.papers.influence.risk.examples import Examples, rows_of
from quintet.papers.influence.risk.risk import EmpiricalRisk

LEVEL = 1 / 255  # of an 8-bit pixel
SOLVED = 1e-4  # relative residual of H^-1 grad L(z_test): of I_pert only the signs count


@dataclass(frozen=True)
class AttackConfig:
    """How images are chosen and moved; everything under `protocol.attack`."""

    iterations: int = 100
    step: float = 0.02  # in 8-bit levels
    radius: float = 0.499  # in 8-bit levels: half of one less a hair, so that rounding gives back the original
    shortlist: int | None = 40  # of training images whose pixels are looked at, by influence on the features
    images_at_once: int = 10
    tolerance: float = 1e-8  # gradient norm of a refit

    def __post_init__(self) -> None:
        for key in ("iterations", "step", "radius", "images_at_once", "tolerance", "shortlist"):
            value = getattr(self, key)
            if value is not None and value <= 0:
                raise UserError(f"protocol.attack.{key}={value}: give more than 0")


class Attempt(NamedTuple):
    """An attack on one test example."""

    query: int  # its index in the split
    images: list[int]  # the training images that may be moved


class Attacked(NamedTuple):
    """The result of an attempt."""

    margins: list[float]  # y theta . x of the test example after refitting: before any step, then after each
    predicted: float  # what the first step does to the test loss, to first order: sum of I_pert . move / n
    moves: Tensor  # (images, C, H, W) float32, in levels: where the pixels ended less where they began

    @property
    def flipped(self) -> bool:
        return self.margins[-1] < 0

    @property
    def losses(self) -> list[float]:
        """log(1 + exp(-margin)) of the test example."""
        return F.softplus(-torch.tensor(self.margins, dtype=torch.float64)).tolist()


class PoisonedTraining:
    """Attempts on the test examples of `split`.

    Errors: UserError for a model that is not a logistic last layer on images.
    backbone: what makes the features, its gradients reach pixels in [0, 1].
    """

    def __init__(self, module: Any, datamodule: Any, backbone: Backbone, split: str, config: AttackConfig) -> None:
        if getattr(module, "loss", None) != "logistic":
            raise UserError("protocol=attack refits a logistic last layer: use a run of model=binary_logistic")
        self.risk = EmpiricalRisk(module, Examples(datamodule, "train"))
        self.datamodule, self.config, self.backbone = datamodule, config, backbone.to(self.risk.device)
        self.train = self.risk.read(self.risk.train, slice(None))
        self.queries = self.risk.read(Examples(datamodule, split), slice(None))
        rows_np, self.query_rows = self.design(self.train.inputs), self.design(self.queries.inputs)
        self.query_signs = signs(self.queries.labels, self.risk.dtype)
        decay_p = self.risk.penalty_hvp(torch.ones_like(self.risk.theta)[None])[0]
        train_signs = signs(self.train.labels, self.risk.dtype)
        self.fits = ReplacedRowFits(rows_np, train_signs, decay_p, self.risk.theta, config.tolerance)
        self.risk.theta = self.fits.theta

    def design(self, features_bf: Tensor) -> Tensor:
        """The rows that the score is linear in, (B, p)."""
        features_bf = features_bf.to(self.risk.dtype)
        ones = features_bf.new_ones(len(features_bf), self.risk.num_params - features_bf.shape[1])
        return torch.cat([features_bf, ones], 1)

    def margins(self) -> Tensor:
        """y theta . x of every test example, before any attack; above 0 it is classified right."""
        return self.query_signs * (self.query_rows @ self.fits.theta)

    def choose(self, query: int, count: int) -> list[int]:
        """The training images by the sum over pixels of |I_pert|, largest first: what a small step can do to the loss.

        All are ranked by I_pert's norm in the features; the pixels of the `shortlist` first of them are looked at.
        """
        s_test_p = self.s_test(
            self.fits.none(), self.fits.theta[None], [query], torch.zeros_like(self.fits.theta)[None]
        )
        influence_nf = perturbation_influence(self.risk, self.train, s_test_p[0])
        order = influence_nf.norm(dim=1).argsort(descending=True)[: self.config.shortlist]
        strengths = []
        for rows in order.split(self.config.images_at_once):
            images = self.images(rows.tolist()).requires_grad_()
            strengths.append(self.to_pixels(self.backbone(images), images, influence_nf[rows]).abs().flatten(1).sum(1))
        return order[torch.cat(strengths).argsort(descending=True)[:count]].tolist()

    def images(self, rows: Sequence[int]) -> Tensor:
        """Training images (R, C, H, W) in [0, 1]."""
        images = self.datamodule.images("train", rows).to(self.risk.device)
        return images.contiguous(memory_format=torch.channels_last)  # almost twice as fast on a CPU

    def to_pixels(self, features_rf: Tensor, images_rchw: Tensor, influence_rf: Tensor) -> Tensor:
        """I_pert of the features as I_pert of the pixels that made them."""
        return torch.autograd.grad(features_rf, images_rchw, influence_rf.to(features_rf.dtype))[0]

    def s_test(self, replacements: RowReplacements, theta_mp: Tensor, queries: Sequence[int],
               start_mp: Tensor) -> Tensor:  # fmt: skip
        """H^-1 grad L(z_test) of each attempt at its own minimum, (M, p)."""
        sign_m, rows_mp = self.query_signs[queries], self.query_rows[queries]
        slope_m = -sign_m * torch.sigmoid(-sign_m * (rows_mp * theta_mp).sum(1))
        return self.fits.solve(theta_mp, replacements, slope_m[:, None] * rows_mp, start_mp, SOLVED)

    def run(self, attempts: Sequence[Attempt]) -> list[Attacked]:
        """x <- clip(x + step sign I_pert) and a refit to the minimum, until the test example is classified wrong."""
        return _Run(self, attempts).finish()

    def influence(self, theta_p: Tensor, s_test_p: Tensor, batch: ExampleBatch) -> Tensor:
        """I_pert,loss of the features of some training examples at these parameters, (R, F)."""
        self.risk.theta = theta_p
        try:
            return perturbation_influence(self.risk, batch, s_test_p)
        finally:
            self.risk.theta = self.fits.theta


class _Run:
    """Attempts side by side; one that has flipped its test example leaves. live: positions of those that go on."""

    def __init__(self, problem: PoisonedTraining, attempts: Sequence[Attempt]) -> None:
        self.problem, self.attempts, self.live = problem, attempts, list(range(len(attempts)))
        self.margins: list[list[float]] = [[] for _ in attempts]
        self.predicted = [0.0] * len(attempts)
        self.moves: list[Tensor] = [torch.empty(0)] * len(attempts)
        self.row_r = torch.tensor([row for attempt in attempts for row in attempt.images])
        self.set_r = torch.tensor([m for m, attempt in enumerate(attempts) for _ in attempt.images])
        self.originals = problem.images(self.row_r.tolist())
        self.x = self.originals.clone()
        self.theta_mp = problem.fits.theta.repeat(len(attempts), 1)
        self.s_test_mp = torch.zeros_like(self.theta_mp)

    def finish(self) -> list[Attacked]:
        problem = self.problem
        for iteration in range(problem.config.iterations + 1):
            self.x.requires_grad_()
            features_rf = problem.backbone(self.x)
            queries = [self.attempts[m].query for m in self.live]
            replacements = self._replacements(features_rf.detach())
            self.theta_mp = problem.fits.fit(replacements, self.theta_mp)
            margin_m = problem.query_signs[queries] * (problem.query_rows[queries] * self.theta_mp).sum(1)
            over_m = (margin_m < 0) | (iteration == problem.config.iterations)
            self._record(margin_m, over_m)
            if bool(over_m.all()):
                break
            self.s_test_mp = problem.s_test(replacements, self.theta_mp, queries, self.s_test_mp)
            self._step(features_rf, first=iteration == 0)
            self._keep(~over_m)
        return [Attacked(*parts) for parts in zip(self.margins, self.predicted, self.moves, strict=True)]

    def _replacements(self, features_rf: Tensor) -> RowReplacements:
        device = self.theta_mp.device
        return RowReplacements(self.set_r.to(device), self.row_r.to(device), self.problem.design(features_rf))

    def _record(self, margin_m: Tensor, over_m: Tensor) -> None:
        for place, (m, margin) in enumerate(zip(self.live, margin_m.tolist(), strict=True)):
            self.margins[m].append(margin)
            if over_m[place]:
                mine_r = self.set_r == place
                self.moves[m] = ((self.x[mine_r] - self.originals[mine_r]) / LEVEL).detach().cpu()

    def _step(self, features_rf: Tensor, first: bool) -> None:
        """Move every image by I_pert at its attempt's own minimum."""
        problem, config = self.problem, self.problem.config
        influence_rf = torch.cat([self._influence(place, features_rf) for place in range(len(self.live))])
        influence = problem.to_pixels(features_rf, self.x, influence_rf)
        moved = attack_step(self.x.detach(), self.originals, influence, config.step * LEVEL, config.radius * LEVEL)
        if first:
            gain_r = (influence.double() * (moved - self.originals)).flatten(1).sum(1) / len(problem.risk.train)
            for place, m in enumerate(self.live):
                self.predicted[m] = float(gain_r[self.set_r == place].sum())
        self.x = moved

    def _influence(self, place: int, features_rf: Tensor) -> Tensor:
        mine_r = self.set_r == place
        batch = rows_of(self.problem.train, self.row_r[mine_r])
        batch = batch._replace(inputs=features_rf[mine_r].detach().to(batch.inputs.dtype))
        return self.problem.influence(self.theta_mp[place], self.s_test_mp[place], batch)

    def _keep(self, stays_m: Tensor) -> None:
        stays_m = stays_m.cpu()
        stays_r, position_m = stays_m[self.set_r], stays_m.cumsum(0) - 1
        self.x, self.originals = self.x.detach()[stays_r], self.originals[stays_r]
        self.row_r, self.set_r = self.row_r[stays_r], position_m[self.set_r[stays_r]]
        self.theta_mp, self.s_test_mp = self.theta_mp[stays_m], self.s_test_mp[stays_m]
        self.live = [m for m, stays in zip(self.live, stays_m.tolist(), strict=True) if stays]
