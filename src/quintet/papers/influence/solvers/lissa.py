"""LiSSA (Agarwal, Bullins, Hazan 2017; section 3 of the paper): a Neumann series over random batches of examples.

h <- v + h - (H_b h + damping h) / scale has the fixed point h / scale = (H + damping I)^-1 v. The paper's code writes
the same with a damping d of its own, v + (1 - d) h - H_b h / scale, which solves for an effective damping of scale * d.
Here `damping` is the effective one, so that all solvers answer the same question.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from quintet.common.errors import UserError
from quintet.papers.influence.risk.examples import rows_of
from quintet.papers.influence.risk.linear_risk import LinearBatch, LinearRisk
from quintet.papers.influence.risk.risk import EmpiricalRisk, ranks
from quintet.papers.influence.solvers.interface import InverseHessian, Solver

POWER_STEPS = 20  # of the power iteration that finds the scale
PROBE_BATCHES = 8  # random batches whose largest eigenvalues it takes


@dataclass
class Lissa(Solver):
    """depth: steps of one series. repeats: series averaged. batch_size: examples a step, drawn from all of them.

    scale: null takes the largest eigenvalue met in random batches, a quarter more. The paper: 25 on MNIST, depth 5,000,
    batch 1, 10 repeats. Errors: UserError with advice when the series diverges.
    """

    depth: int = 5000
    repeats: int = 1
    batch_size: int = 32
    scale: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("depth", "repeats", "batch_size"):
            if getattr(self, key) < 1:
                raise UserError(f"solver.{key}={getattr(self, key)}: give 1 or more")
        if self.scale is not None and not self.scale > 0:
            raise UserError(f"solver.scale={self.scale}: give a number above 0, or null to have it measured")

    def prepare(self, risk: EmpiricalRisk) -> "Series":
        return Series(risk, self)


class Series(InverseHessian):
    """The stochastic operator and its scale."""

    def __init__(self, risk: EmpiricalRisk, settings: Lissa) -> None:
        super().__init__(risk, settings.damping)
        self.settings = settings
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.parts: list[LinearBatch] = []
        if isinstance(risk, LinearRisk) and ranks()[1] == 1:  # linearized once: a draw is then a look-up
            self.parts = [batch for _, batch in risk.batches()]
            self.decay_p = risk.penalty_hvp(torch.ones_like(risk.theta)[None])[0]  # the L2 term's Hessian is diagonal
        self.scale = settings.scale or 1.25 * self._largest_eigenvalue()

    def _batch_hvp(self, batch: object, vectors_kp: Tensor) -> Tensor:
        """H_b + damping I of one batch, the L2 term included."""
        mean_kp = self.risk.batch_hvp(batch, vectors_kp) / self.settings.batch_size
        penalty_kp = self.decay_p * vectors_kp if self.parts else self.risk.penalty_hvp(vectors_kp)
        return mean_kp + penalty_kp + self.settings.damping * vectors_kp

    def _draw(self) -> object:
        rows = torch.randint(len(self.risk.train), (self.settings.batch_size,), generator=self.generator)
        if not self.parts:
            return self.risk.prepared(self.risk.read(self.risk.train, rows))
        part, row = rows // self.risk.batch_size, (rows % self.risk.batch_size).to(self.risk.device)
        found = [rows_of(self.parts[k], row[part == k]) for k in part.unique().tolist()]
        return found[0] if len(found) == 1 else LinearBatch(*(torch.cat(parts) for parts in zip(*found, strict=True)))

    def _largest_eigenvalue(self) -> float:
        """Of H_b + damping I, over some random batches."""
        largest = 0.0
        for _ in range(PROBE_BATCHES):
            batch = self._draw()
            vector_1p = torch.randn(1, self.risk.num_params, generator=self.generator).to(self.risk.theta)
            for _ in range(POWER_STEPS):
                vector_1p = self._batch_hvp(batch, vector_1p / vector_1p.norm().clamp(min=1e-30))
            largest = max(largest, float(vector_1p.norm()))
        if not largest > 0:
            raise UserError("the Hessian of the sampled examples is zero: set solver.scale, or use another solver")
        return largest

    def apply(self, vectors_kp: Tensor) -> tuple[Tensor, int]:
        total_kp = torch.zeros_like(vectors_kp)
        for _ in range(self.settings.repeats):
            total_kp += self._series(vectors_kp)
        return total_kp / (self.settings.repeats * self.scale), self.settings.depth * self.settings.repeats

    def _series(self, vectors_kp: Tensor) -> Tensor:
        h_kp, bound = vectors_kp.clone(), 1e8 * float(vectors_kp.norm()) * max(self.scale, 1.0)
        for step in range(self.settings.depth):
            self._advance(h_kp, vectors_kp)
            if step % 100 == 99 or step + 1 == self.settings.depth:
                size = float(h_kp.norm())
                if not math.isfinite(size) or size > bound:
                    raise self._diverged(step + 1)
        return h_kp

    def _advance(self, h_kp: Tensor, vectors_kp: Tensor) -> None:
        """h <- v + h - (H_b h + damping h) / scale, in place."""
        batch = self._draw()
        if not self.parts:
            h_kp += vectors_kp - self._batch_hvp(batch, h_kp) / self.scale
            return
        change_kp = self.risk.batch_hvp(batch, h_kp)
        h_kp *= 1 - (self.decay_p + self.settings.damping) / self.scale
        h_kp += vectors_kp
        h_kp.sub_(change_kp, alpha=1 / (self.settings.batch_size * self.scale))

    def _diverged(self, step: int) -> UserError:
        return UserError(
            f"LiSSA diverged after {step} steps: raise solver.scale above {self.scale:.3g}, solver.batch_size above "
            f"{self.settings.batch_size}, or solver.damping above {self.settings.damping:g} (an indefinite Hessian"
            " needs damping above its most negative eigenvalue)"
        )
