"""The memory's settings: everything under `model.memory`."""

import math
from dataclasses import dataclass

from quintet.common.errors import UserError

SEARCHES = ("exact", "lsh", "faiss", "none")


@dataclass(frozen=True)
class MemoryConfig:
    """The defaults are those of the Omniglot experiment; `lsh_*` and `faiss_*` matter to that search only.

    temperature: null for max(1, ln(0.2 k) / margin), which is 39.4 at k=256. exact_below: up to that many keys every
    search is exact. lsh_bits, faiss_lists: null to choose by `slots`. lsh_probes (a power of two), faiss_probes: more
    find more and take longer.
    """

    slots: int = 8192
    width: int = 256
    neighbours: int = 256
    margin: float = 0.1
    temperature: float | None = None
    search: str = "exact"
    projection: bool = True
    age_noise: float = 8.0
    hint: bool = True
    seed: int = 0
    chunk_rows: int = 65536
    exact_below: int = 16384
    lsh_tables: int = 8
    lsh_bits: int | None = None
    lsh_probes: int = 32
    faiss_lists: int | None = None
    faiss_probes: int = 32

    def __post_init__(self) -> None:
        if self.search not in SEARCHES:
            raise UserError(f"model.memory.search={self.search!r} is unknown: use one of {', '.join(SEARCHES)}")
        for name in ("slots", "width", "neighbours", "chunk_rows", "lsh_tables", "lsh_probes", "faiss_probes"):
            if getattr(self, name) < 1:
                raise UserError(f"model.memory.{name}={getattr(self, name)} must be at least 1")
        if self.neighbours > self.slots:
            raise UserError(
                f"model.memory.neighbours={self.neighbours} must not be above model.memory.slots={self.slots}"
            )
        if not self.margin > 0:
            raise UserError(f"model.memory.margin={self.margin} must be above 0")
        if self.temperature is not None and not self.temperature > 0:
            raise UserError(
                f"model.memory.temperature={self.temperature} must be above 0, or null for ln(0.2 k)/margin"
            )
        if not self.age_noise >= 0:
            raise UserError(f"model.memory.age_noise={self.age_noise} must be 0 or more steps")
        if not 1 <= self.hash_bits <= 24 or self.lsh_probes > 2**self.hash_bits:
            raise UserError(f"model.memory.lsh_bits={self.lsh_bits} must be 1 to 24, and lsh_probes at most 2^lsh_bits")
        if self.lists < 1:
            raise UserError(f"model.memory.faiss_lists={self.faiss_lists} must be at least 1, or null")

    @property
    def softmax_temperature(self) -> float:
        """A neighbour that is nearer than the k others by the margin gets a fifth of the weight."""
        if self.temperature is not None:
            return self.temperature
        return max(1.0, math.log(0.2 * self.neighbours) / self.margin)

    @property
    def hash_bits(self) -> int:
        """Bits of one hash table: sixteen keys a bucket if they were spread evenly."""
        return self.lsh_bits if self.lsh_bits is not None else max(8, round(math.log2(self.slots)) - 4)

    @property
    def lists(self) -> int:
        """Lists of the inverted file: about four times the root of the slots, as is usual."""
        return self.faiss_lists if self.faiss_lists is not None else 2 ** round(math.log2(4 * math.sqrt(self.slots)))
