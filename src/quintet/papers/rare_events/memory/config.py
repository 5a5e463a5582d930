"""The memory's settings: everything under `model.memory`."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from quintet.common.errors import UserError
from quintet.common.optim import from_mapping

SEARCHES = ("exact", "lsh", "faiss", "none")


@dataclass(frozen=True)
class MemoryConfig:
    """The defaults are those of the Omniglot experiment. Keys lsh_* and faiss_* are used by that search only.

    neighbours: k. temperature: null = max(1, ln(0.2 k) / margin), which is 39.4 for k = 256. search: exact | lsh |
    faiss | none. age_noise: bound of the uniform noise on ages, in steps. hint: in training, the slot last written for
    the true value is a candidate of the loss too. chunk_rows: keys compared at once. exact_below: up to so many keys
    every search is exact. lsh_bits, faiss_lists: null = chosen by the number of slots. lsh_probes (a power of two),
    faiss_probes: more probes find more neighbours and take longer.
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
            raise UserError(f"model.memory.age_noise={self.age_noise} must be at least 0")
        if not 1 <= self.hash_bits <= 24 or self.lsh_probes > 2**self.hash_bits:
            raise UserError(f"model.memory.lsh_bits={self.lsh_bits} must be 1 to 24, and lsh_probes at most 2^lsh_bits")
        if self.lists < 1:
            raise UserError(f"model.memory.faiss_lists={self.faiss_lists} must be at least 1, or null")

    @property
    def softmax_temperature(self) -> float:
        """The paper's t: a key nearer by the margin than k others gets a fifth of their total weight."""
        if self.temperature is not None:
            return self.temperature
        return max(1.0, math.log(0.2 * self.neighbours) / self.margin)

    @property
    def hash_bits(self) -> int:
        """Bits of each hash table; by default for sixteen keys in a bucket, if they were spread evenly."""
        return self.lsh_bits if self.lsh_bits is not None else max(8, round(math.log2(self.slots)) - 4)

    @property
    def lists(self) -> int:
        """Lists of the inverted file; by default about four times the square root of the slots, as is usual."""
        return self.faiss_lists if self.faiss_lists is not None else 2 ** round(math.log2(4 * math.sqrt(self.slots)))


def memory_config_or_none(memory: MemoryConfig | Mapping[str, Any] | None) -> MemoryConfig | None:
    """The settings of `model.memory`; None for null and for search=none, which both mean a model without memory."""
    config = None if memory is None else from_mapping(MemoryConfig, memory, "model.memory")
    return None if config is None or config.search == "none" else config
