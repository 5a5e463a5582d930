"""Nearest neighbours of words in the learned embedding (Vinyals et al. 2015, section 4.3.7, table 5)."""

import logging
from collections.abc import Sequence
from pathlib import Path

import torch

from quintet.common.errors import UserError
from quintet.common.tables import write_csv
from quintet.data.special_ids import UNKNOWN
from quintet.papers.show_and_tell.protocols.captioning import need_captioner

log = logging.getLogger(__name__)
PAPER = ("car", "boy", "street", "horse", "computer")


class WordNeighbours:
    """The `top` nearest words by cosine of each of `words`; null: the paper's words that are in the vocabulary.

    For an ensemble, in the embedding of its first member. Writes word_neighbours/neighbours.csv and logs the result.
    """

    def __init__(self, words: Sequence[str] | None = None, top: int = 5) -> None:
        if top < 1:
            raise UserError(f"protocol.top={top} must be at least 1")
        self.words, self.top = words, top

    def __call__(self, module, datamodule, run_dir: Path) -> dict[str, float]:
        need_captioner(module, "word_neighbours")
        known = {word: index for index, word in enumerate(module.vocabulary) if index > UNKNOWN}
        words = self._asked(known)
        network = module.network if hasattr(module, "network") else module.members[0].network
        with torch.no_grad():
            vectors_vd = torch.nn.functional.normalize(network.words.weight.float(), dim=1)
            cosine_wv = vectors_vd[[known[word] for word in words]] @ vectors_vd.T
        cosine_wv[:, : UNKNOWN + 1] = -torch.inf  # padding, bos, eos and the unknown word
        rows: list[tuple] = []
        nearest: list[torch.Tensor] = []
        for word, cosine_v in zip(words, cosine_wv, strict=True):
            cosine_v[known[word]] = -torch.inf
            value_k, index_k = cosine_v.topk(min(self.top, len(known) - 1))
            found = [module.vocabulary[index] for index in index_k.tolist()]
            rows += [(word, rank, *one) for rank, one in enumerate(zip(found, value_k.tolist(), strict=True), 1)]
            nearest.append(value_k[:1])
            log.info("%s: %s", word, ", ".join(found))
        write_csv(Path(run_dir) / "word_neighbours" / "neighbours.csv", ("word", "rank", "neighbour", "cosine"), rows)
        return {"word_neighbours/words": float(len(words)),
                "word_neighbours/mean_cosine_of_nearest": float(torch.cat(nearest).mean())}  # fmt: skip

    def _asked(self, known: dict[str, int]) -> list[str]:
        if len(known) < 2:
            raise UserError(f"the run's vocabulary has {len(known)} words, neighbours need at least 2")
        if self.words is None:
            return [word for word in PAPER if word in known] or list(known)[: len(PAPER)]
        for word in self.words:
            if word not in known:
                raise UserError(
                    f"protocol.words has {word!r}, which is not in the run's vocabulary of {len(known)} words that"
                    " occur data.min_count times in its training captions"
                )
        return list(self.words)
