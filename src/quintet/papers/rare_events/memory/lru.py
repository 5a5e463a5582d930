"""Which slots a memory overwrites: argmax(age + noise), the noise uniform in +-`age_noise` steps (section 3.1).

Legend: N filled slots, P candidates. `last_used` (N,) is the step of each slot's last write; age = step - last_used.
"""

import torch
from torch import Tensor

SMALL = 32768  # in memories of up to so many slots, all are compared at every step
KEPT = 16384  # length of the list of old slots that larger memories keep


class LeastRecentlyUsed:
    """Chooses slots by age + noise, drawing noise only for slots that are old enough to be chosen.

    The choice depends on last_used, the seed and the step only. The list of old slots that large memories keep from
    step to step saves comparing all slots, and does not change the choice.
    """

    def __init__(self, noise: float, seed: int, small: int = SMALL, kept: int = KEPT) -> None:
        self.noise, self.seed, self.small, self.kept = noise, seed, small, kept
        self._slots: Tensor | None = None  # every slot with last_used < _bound is in it
        self._bound = 0

    def choose(self, last_used_n: Tensor, count: int, taken: Tensor, step: int) -> Tensor:
        """The `count` slots with the largest age + noise that are not in `taken`; needs N >= count + len(taken)."""
        slots_p = self._candidates(last_used_n, count + len(taken))
        slots_p = slots_p[~torch.isin(slots_p, taken)]
        random = torch.Generator().manual_seed((self.seed * 0x9E3779B1 + step) % 2**32)
        noise_p = (2 * torch.rand(len(slots_p), generator=random, dtype=torch.float64) - 1) * self.noise
        order = (last_used_n[slots_p].cpu() - noise_p).sort(stable=True).indices[:count]
        return slots_p[order.to(slots_p.device)]

    def invalidate(self) -> None:
        """Drop the list of old slots, after last_used was changed otherwise than by writing."""
        self._slots = None

    def _candidates(self, last_used_n: Tensor, count: int) -> Tensor:
        """In ascending order, all slots at most twice the noise younger than the `count`-th oldest.

        No other slot can be chosen: the noise of two slots differs by at most twice its bound.
        """
        slots = None if len(last_used_n) <= self.small else self._old_slots(last_used_n, count)
        last_used_p = last_used_n if slots is None else last_used_n[slots]
        near = (last_used_p <= last_used_p.kthvalue(count).values + 2 * self.noise).nonzero()[:, 0]
        return near if slots is None else slots[near]

    def _old_slots(self, last_used_n: Tensor, count: int) -> Tensor | None:
        """A short list that contains all candidates; None where there is none, since too many slots are equally old."""
        for rebuild in (False, True):
            if rebuild:
                wanted = min(len(last_used_n), max(self.kept, 64 * count))
                self._bound = int(last_used_n.kthvalue(wanted).values) + 1
                self._slots = (last_used_n < self._bound).nonzero()[:, 0]
            elif self._slots is None:
                continue
            assert self._slots is not None
            last_used_p = last_used_n[self._slots]
            old = last_used_p < self._bound  # the others were written since the list was made
            self._slots, last_used_p = self._slots[old], last_used_p[old]
            enough = len(last_used_p) >= count
            if enough and int(last_used_p.kthvalue(count).values) + 2 * self.noise < self._bound:
                return self._slots
        return None
