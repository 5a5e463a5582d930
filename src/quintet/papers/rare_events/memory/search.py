"""Which search a memory uses (`model.memory.search`)."""

from quintet.papers.rare_events.memory.index import ExactSearch
from quintet.papers.rare_events.memory.inverted_file import InvertedFileSearch
from quintet.papers.rare_events.memory.lsh import LshSearch
from quintet.papers.rare_events.memory.memory_config import MemoryConfig


def make_search(config: MemoryConfig) -> ExactSearch:
    """The search that `model.memory.search` names."""
    if config.search == "lsh":
        return LshSearch(config)
    return InvertedFileSearch(config) if config.search == "faiss" else ExactSearch(config)
