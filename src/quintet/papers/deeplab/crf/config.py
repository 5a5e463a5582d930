"""Settings of the fully connected CRF (Chen et al. 2017, section 3.3)."""

from dataclasses import dataclass

from quintet.common.errors import UserError

BACKENDS = ("pydensecrf", "torch")
CLIP = 1e-5  # the least probability that a unary knows, as in the authors' scripts


@dataclass(frozen=True)
class CrfConfig:
    """Everything under `crf`; the kernels' weights and standard deviations, in pixels and grey levels, as in eq. 3.

    w1, sa, sb: appearance kernel (position and colour); w2, sg: smoothness kernel. The defaults of w1, sa and sb are
    the authors' run script's; protocol=crf_search finds them for a network.
    """

    w1: float = 4.0
    sa: float = 49.0
    sb: float = 5.0
    w2: float = 3.0
    sg: float = 3.0
    iterations: int = 10
    backend: str = "torch"
    workers: int | None = None  # processes of the pydensecrf back-end; null = one a core, 0 = none, in this process
    batch_size: int = 8  # images that a GPU takes at once

    def __post_init__(self) -> None:
        if self.backend not in BACKENDS:
            raise UserError(f"crf.backend={self.backend!r} is unknown: use one of {', '.join(BACKENDS)}")
        for key, least in {"iterations": 0, "workers": 0, "batch_size": 1}.items():
            value = getattr(self, key)
            if value is not None and (isinstance(value, bool) or value != int(value) or value < least):
                raise UserError(f"crf.{key}={value}: give a whole number from {least} on")
        for key in ("w1", "w2"):
            if not 0 <= getattr(self, key) < float("inf"):
                raise UserError(f"crf.{key}={getattr(self, key)}: give a weight of 0 or more")
        for key in ("sa", "sb", "sg"):
            if not 0 < getattr(self, key) < float("inf"):
                raise UserError(f"crf.{key}={getattr(self, key)}: give a standard deviation above 0")
