"""Which slots a memory overwrites: argmax(age + noise), noise uniform in +-`age_noise` steps (section 3.1).

Legend: N filled slots, P slots old enough to be chosen. A stamp is the step of a slot's last write.
"""

import torch
from torch import Tensor

SMALL = 32768  # up to that many slots the oldest are looked for among all of them each time
KEPT = 16384


class OldestSlots:
    """Draws noise only for slots that can win, and in large memories keeps a list of old slots from step to step.

    The choice depends on the stamps, the seed and the step alone, not on what is kept.
    """

    def __init__(self, noise: float, seed: int, small: int = SMALL, kept: int = KEPT) -> None:
        self.noise, self.seed, self.small, self.kept = noise, seed, small, kept
        self._slots: Tensor | None = None  # all with a stamp below `_bound`, some of them written again since
        self._bound = 0

    def choose(self, stamps_n: Tensor, count: int, taken: Tensor, step: int) -> Tensor:
        """`count` different slots, the oldest by age + noise, none that is in `taken`; needs N >= count + taken."""
        pool_p = self._pool(stamps_n, count + len(taken))
        pool_p = pool_p[~torch.isin(pool_p, taken)]
        random = torch.Generator().manual_seed((self.seed * 0x9E3779B1 + step) % 2**32)
        noise_p = (2 * torch.rand(len(pool_p), generator=random, dtype=torch.float64) - 1) * self.noise
        order = (stamps_n[pool_p].cpu() - noise_p).sort(stable=True).indices[:count]
        return pool_p[order.to(pool_p.device)]

    def forget(self) -> None:
        """Stamps have changed otherwise than by writing."""
        self._slots = None

    def _pool(self, stamps_n: Tensor, count: int) -> Tensor:
        """All slots, ascending, at most twice the noise younger than the `count`-th oldest: no other can win."""
        if len(stamps_n) <= self.small:
            stamp_n, slots = stamps_n, None
        else:
            slots = self._old_slots(stamps_n, count)
            stamp_n = stamps_n if slots is None else stamps_n[slots]
        near = (stamp_n <= stamp_n.kthvalue(count).values + 2 * self.noise).nonzero()[:, 0]
        return near if slots is None else slots[near]

    def _old_slots(self, stamps_n: Tensor, count: int) -> Tensor | None:
        """Few slots among which the pool surely is, or None."""
        for fresh in (False, True):
            if fresh:
                wanted = min(len(stamps_n), max(self.kept, 64 * count))
                self._bound = int(stamps_n.kthvalue(wanted).values) + 1
                self._slots = (stamps_n < self._bound).nonzero()[:, 0]
            elif self._slots is None:
                continue
            stamp_p = stamps_n[self._slots]
            still = stamp_p < self._bound
            self._slots, stamp_p = self._slots[still], stamp_p[still]
            if len(stamp_p) >= count and int(stamp_p.kthvalue(count).values) + 2 * self.noise < self._bound:
                return self._slots
        return None
