"""The linear SVM, exactly: Newton's method on SmoothHinge as t falls, then the active set of the hinge itself.

minimize  1/2 theta D theta + (1/n) sum max(0, 1 - m_i),  m = A theta the margins, A_i = y_i (x_i, 1), D = diag(decay).
At the minimum theta = (1/n) D^-1 sum a_i A_i, where a_i is 1 within the margin (m_i < 1), 0 beyond it (m_i > 1) and
between them on it (m_i = 1): given which examples are where, the minimum is a linear system. `leave_out` follows it
while examples are removed, exactly.
Legend: n examples, d weights (the bias, when there is one, is the last).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from quintet.papers.influence.fit.newton import Design, MarginRisk, dense_preconditioner, minimize

FALL = 0.2  # t's factor from one smooth problem to the next
SMOOTHEST, SHARPEST = 0.3, 1e-6
SETTLED = 3e-3  # below this t the active set is tried from the smooth minimum
PASSING = 1e-6  # tolerance of the smooth problems on the way
NEWTON_STEPS, SET_CHANGES = 60, 15
CLOSE = 1e-13  # gap, relative to the loss, at which the active set is right


@dataclass(frozen=True)
class HingeFit:
    """theta (d,), the dual a (n,) in [0, 1], and how far the loss can be above its minimum, relative to it."""

    theta: Tensor
    dual: Tensor
    gap: float


def fit_hinge(rows_nd: Tensor, decay_d: Tensor) -> HingeFit:
    """The minimum for the hinge itself. rows_nd: A. decay_d: D's diagonal, 0 for a bias that is not decayed.

    The gap is measured; it is about 1e-16 unless coinciding examples leave the active set open (then about 1e-5).
    """
    theta, t = None, SMOOTHEST
    while True:
        theta = newton(rows_nd, decay_d, t, theta, PASSING)
        smooth = _measured(rows_nd, decay_d, theta, torch.sigmoid((1 - rows_nd @ theta) / t))
        found = active_set(rows_nd, decay_d, smooth.dual) if t < SETTLED else smooth
        if found.gap < CLOSE or t < SHARPEST:
            return min(found, smooth, key=lambda fit: fit.gap)
        t *= FALL


def leave_out(rows_nd: Tensor, decay_d: Tensor, fit: HingeFit, out: Sequence[int]) -> HingeFit:
    """The minimum without the examples `out`, from that with them; dual of the rows that stay, in their order.

    Their weights go from 1/n to 0 and the others' to 1/(n - |out|), and the minimum is followed along: it moves in
    straight lines between the moments at which an example comes to the margin or leaves it (Cauwenberghs and Poggio
    2000). Where coinciding examples make that fail, it is fitted from nothing.
    """
    n, moved = len(rows_nd), torch.zeros(len(rows_nd), dtype=torch.bool, device=rows_nd.device)
    moved[list(out)] = True
    weight_n, kept = torch.full_like(fit.dual, 1 / n), ~moved
    slope_n = torch.full_like(fit.dual, 1 / int(kept.sum()) - 1 / n).masked_fill(moved, -1 / n)
    within, on = _follow(rows_nd, decay_d, fit, weight_n, slope_n)
    theta, dual_on = _solve(rows_nd[kept], decay_d, within[kept], on[kept])
    dual_n = within[kept].to(rows_nd.dtype)
    dual_n[on[kept]] = dual_on
    found = _measured(rows_nd[kept], decay_d, theta, dual_n)
    return found if found.gap < CLOSE else fit_hinge(rows_nd[kept], decay_d)


def _follow(
    rows_nd: Tensor, decay_d: Tensor, fit: HingeFit, weight_n: Tensor, slope_n: Tensor
) -> tuple[Tensor, Tensor]:
    """Masks of the examples within the margin and on it, once the weights have moved from `weight_n` by `slope_n`."""
    within, on = fit.dual == 1, (fit.dual > 0) & (fit.dual < 1)
    margin_n, share_n = rows_nd @ fit.theta, fit.dual * weight_n  # D theta = sum of share_i A_i, share <= weight
    time = 0.0
    for _ in range(len(rows_nd)):
        pull_d = rows_nd[within].T @ slope_n[within]
        theta_slope, share_slope_on = _system(rows_nd[on], decay_d, pull_d, 0.0)
        margin_slope, share_slope = rows_nd @ theta_slope, torch.where(within, slope_n, 0.0)
        share_slope[on] = share_slope_on
        # when each would next change its set; only those that move towards the change can
        nearing = torch.where(on, 0.0, torch.where(within, margin_slope, -margin_slope))
        arrives = _when((margin_n - 1).abs(), nearing)
        fills = _when(weight_n - share_n, torch.where(on, share_slope - slope_n, 0.0))
        empties = _when(share_n, torch.where(on, -share_slope, 0.0))
        events = torch.stack([arrives, fills, empties])
        step = min(float(events.min()), 1 - time)
        time += step
        margin_n, share_n = margin_n + step * margin_slope, share_n + step * share_slope
        weight_n = weight_n + step * slope_n
        if time >= 1:
            break
        what, who = divmod(int(events.argmin()), len(rows_nd))
        on[who], within[who] = what == 0, what == 1
    return within, on


def _when(distance: Tensor, speed: Tensor) -> Tensor:
    """Time to cover a distance, infinite for speeds of zero or less."""
    return torch.where(speed > 1e-15, distance.clamp(min=0) / speed.clamp(min=1e-15), torch.inf)


def fit_smooth_hinge(rows_nd: Tensor, decay_d: Tensor, t: float, tolerance: float = 1e-10) -> Tensor:
    """theta at the minimum for SmoothHinge(., t), t > 0, by way of larger t."""
    theta, now = None, SMOOTHEST
    while now > t:
        theta = newton(rows_nd, decay_d, now, theta, PASSING)
        now *= FALL
    return newton(rows_nd, decay_d, t, theta, tolerance)


def newton(rows_nd: Tensor, decay_d: Tensor, t: float, theta: Tensor | None, tolerance: float) -> Tensor:
    """theta at the minimum for one t, until the gradient's norm is at most `tolerance` or NEWTON_STEPS are done."""
    risk = MarginRisk(Design(rows_nd), torch.ones_like(rows_nd[:, 0]), decay_d, t, offset=1.0)
    start = torch.zeros_like(decay_d) if theta is None else theta
    return minimize(risk, start[None], tolerance, NEWTON_STEPS, dense_preconditioner).theta[0]


def active_set(rows_nd: Tensor, decay_d: Tensor, dual_n: Tensor) -> HingeFit:
    """The hinge's minimum from a dual near its own: solve for given sets, move examples, repeat.

    Returns the best fit met on the way; its gap tells whether it is the minimum.
    """
    within, on = dual_n > 1 - 1e-6, (dual_n > 1e-6) & (dual_n < 1 - 1e-6)
    best: HingeFit | None = None
    for _ in range(SET_CHANGES):
        theta, dual_on = _solve(rows_nd, decay_d, within, on)
        dual_n = within.to(rows_nd.dtype)
        dual_n[on] = dual_on
        found = _measured(rows_nd, decay_d, theta, dual_n)
        if best is None or found.gap < best.gap:
            best = found
        if found.gap < CLOSE:
            break
        # primal-dual active set (Hintermueller, Ito and Kunisch 2003): an example leaves the margin where a leaves
        # [0, 1]; the others come to it where they would have crossed it
        slack = 1 - rows_nd @ theta
        leaves_in, leaves_out = on & (dual_n > 1), on & (dual_n < 0)
        arrives = (within & (slack < 0)) | (~within & ~on & (slack > 0))
        if not bool((leaves_in | leaves_out | arrives).any()):
            break
        within = (within & ~arrives) | leaves_in
        on = (on & ~leaves_in & ~leaves_out) | arrives
    assert best is not None
    return best


def _solve(rows_nd: Tensor, decay_d: Tensor, within: Tensor, on: Tensor) -> tuple[Tensor, Tensor]:
    """theta, and a of those on the margin: D theta = (sum of A_i within + A_on^T a) / n and A_on theta = 1."""
    theta, share_m = _system(rows_nd[on], decay_d, rows_nd[within].sum(0) / len(rows_nd), 1.0)
    return theta, share_m * len(rows_nd)


def _system(held_md: Tensor, decay_d: Tensor, pull_d: Tensor, margin: float) -> tuple[Tensor, Tensor]:
    """(theta, s): D theta - A_on^T s = pull and A_on theta = margin."""
    d, m = len(decay_d), len(held_md)
    system = held_md.new_zeros(d + m, d + m)
    system[:d, :d] = torch.diag(decay_d)
    system[:d, d:], system[d:, :d] = -held_md.T, held_md
    right = torch.cat([pull_d, held_md.new_full((m,), margin)])
    solved, failed = torch.linalg.solve_ex(system, right)
    if int(failed) or not bool(solved.isfinite().all()):  # more on the margin than directions: any solution will do
        solved = torch.linalg.lstsq(system, right[:, None], driver="gelsd").solution[:, 0]
    return solved[:d], solved[d:]


def _measured(rows_nd: Tensor, decay_d: Tensor, theta: Tensor, dual_n: Tensor) -> HingeFit:
    """The gap between the loss at theta and the lower bound that a dual, clipped to [0, 1], proves."""
    dual_n = dual_n.clamp(0, 1)
    primal = 0.5 * (decay_d * theta.square()).sum() + torch.relu(1 - rows_nd @ theta).mean()
    pulled_d, free = rows_nd.T @ dual_n / len(rows_nd), decay_d == 0
    proves = dual_n.mean() - 0.5 * (pulled_d.square() / decay_d.masked_fill(free, 1))[~free].sum()
    # a bias without decay makes the bound hold only where its column sums to zero; what is left counts as a gap
    left = (pulled_d[free] * theta[free]).abs().sum()
    return HingeFit(theta, dual_n, float((primal - proves + left) / primal.clamp(min=1e-300)))
