"""Settings of the fully connected CRF (Chen et al. 2017, section 3.3)."""

from dataclasses import dataclass

from quintet.common.errors import UserError

BACKENDS = ("auto", "torch", "compiled", "pydensecrf")
CLIP = 1e-5  # lower bound of the probabilities in the unary term, as in the authors' scripts


@dataclass(frozen=True)
class CrfConfig:
    """Everything under `crf`; the names are those of the authors' scripts for the parameters of equation 3.

    w1, sa, sb: weight of the appearance kernel and its standard deviations in pixels and gray levels (the paper's
        w_1, sigma_alpha, sigma_beta). The defaults are the authors' run script's; protocol=crf_search finds the values
        for a network.
    w2, sg: weight of the smoothness kernel and its standard deviation in pixels (w_2, sigma_gamma).
    iterations: of the mean field.
    backend: `torch` is our mean field in tensor operations (mean_field.py), `compiled` the same in compiled loops on
        the CPU (compiled.py), `auto` takes `compiled` for probabilities on the CPU and `torch` for those on a GPU,
        `pydensecrf` is the authors' code.
    workers: processes of pydensecrf; null = one per core, 0 = none, in this process.
    batch_size: images that `torch` refines at once.
    """

    w1: float = 4.0
    sa: float = 49.0
    sb: float = 5.0
    w2: float = 3.0
    sg: float = 3.0
    iterations: int = 10
    backend: str = "auto"
    workers: int | None = None
    batch_size: int = 8

    def __post_init__(self) -> None:
        if self.backend not in BACKENDS:
            raise UserError(f"crf.backend={self.backend!r} is unknown: use one of {', '.join(BACKENDS)}")
        for key, least in {"iterations": 0, "workers": 0, "batch_size": 1}.items():
            value = getattr(self, key)
            if value is not None and (isinstance(value, bool) or value != int(value) or value < least):
                raise UserError(f"crf.{key}={value}: use an integer of at least {least}")
        for key in ("w1", "w2"):
            if not 0 <= getattr(self, key) < float("inf"):
                raise UserError(f"crf.{key}={getattr(self, key)}: must be at least 0 and finite")
        for key in ("sa", "sb", "sg"):
            if not 0 < getattr(self, key) < float("inf"):
                raise UserError(f"crf.{key}={getattr(self, key)}: must be above 0 and finite")
