"""Who is measured in benchmarks/influence/speed.py, at which settings.

All solve (H + damping I) s = g with the same damping. Conjugate gradients stop at a relative residual of 1e-4, pyDVL's
default (dattri's tolerance is absolute), ours also at 1e-2 and 1e-8, its default. LiSSA: the paper's scale of 25 and
depth of 5,000, batches of 10 examples. Everything else is the peer's default, unless it makes the peer quicker; dattri
takes 10 queries at a time, because 100 need 17 GB.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Candidate:
    """One solver of one package. queries: null takes all of the case's."""

    package: str
    method: str
    dtype: str = "float32"
    settings: tuple[str, ...] = ()
    queries: int | None = None

    @property
    def ours(self) -> bool:
        return self.package == "quintet"

    @property
    def name(self) -> str:
        shown = ", ".join((self.dtype, *self.settings))
        return f"{self.package} {self.method} ({shown})"


@dataclass(frozen=True)
class Case:
    """A problem, how many queries, and the candidates in the order in which they run."""

    problem: str
    queries: int
    candidates: tuple[Candidate, ...]


SERIES = ("scale=25", "depth=5000", "batch_size=10")
BLOCK = "solve_simultaneously=true"
CG = (
    Candidate("quintet", "cg", "float32", ("tolerance=1e-2",)),
    Candidate("quintet", "cg", "float32", ("tolerance=1e-4",)),
    Candidate("quintet", "cg", "float64"),
)
DIRECT = Candidate("quintet", "direct", "float64")
APPROXIMATE = (Candidate("quintet", "arnoldi"), Candidate("quintet", "lissa", "float32", SERIES))
PEERS = (
    Candidate("pydvl", "cg", "float32", (BLOCK,)),
    Candidate("dattri", "cg", "float32", ("max_iter=100", "tol=1e-4", 'mode="rev-fwd"')),
    Candidate("captum", "arnoldi"),
    Candidate("pydvl", "lissa", "float32", ("scale=25", "maxiter=5000", "batch=10")),
    Candidate("dattri", "lissa", "float32", ("scaling=25", "recursion_depth=5000", "batch_size=10", "group=10")),
)
SLOW = (Candidate("pydvl", "cg", "float64", (BLOCK,)), Candidate("pydvl", "direct"))  # on one query only
CNN = (
    Candidate("quintet", "ekfac", "float32", ("residual=false",)),
    Candidate("quintet", "ekfac", "float32"),
    Candidate("kronfluence", "ekfac", "float32"),
)
CASES = {
    "linear_1": Case("linear", 1, (*CG, *APPROXIMATE, *PEERS, *SLOW)),
    "linear_100": Case("linear", 100, (*CG, DIRECT, *APPROXIMATE, *PEERS)),
    "cnn_1": Case("cnn", 1, CNN),
    "cnn_100": Case("cnn", 100, CNN),
}
