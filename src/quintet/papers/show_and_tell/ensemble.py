"""Several trained runs that caption together (section 4.3.1): eval.py ckpt=[a,b,c].

Legend: B captions, N real words, V words.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from quintet.common.errors import UserError
from quintet.data.batches import CaptionBatch
from quintet.papers.show_and_tell.captioner import Captioner
from quintet.papers.show_and_tell.decoding import DecoderSpeaker, EnsembleSpeaker, mean_log, remembered
from quintet.papers.show_and_tell.module import ShowAndTellModule, summed


class CaptionEnsemble(Captioner):
    """A word's probability is the members' geometric mean, normalised: the mean of their log probabilities.

    Decodes as the first member's configuration says. Members may have different encoders and widths.
    Errors: UserError for members with different vocabularies, or in another order.
    """

    def __init__(self, modules: Sequence[ShowAndTellModule]) -> None:
        first = modules[0]
        super().__init__(first.vocabulary, first.decoding, first.media_count)
        for number, module in enumerate(modules[1:], 2):
            _check_vocabulary(first.vocabulary, module.vocabulary, number)
        self.members = nn.ModuleList(modules)
        self.save_hyperparameters({"data_info": first.data_info})

    def nats(self, batch: CaptionBatch) -> Tensor:
        said = []
        for module in self.members:
            top_nh, word_n, row_n = module.outputs(batch)
            said.append(remembered(module.network, top_nh, module.tokens).log_softmax(1))
        loss_n = F.nll_loss(mean_log(said), word_n, reduction="none")
        return summed(loss_n, row_n, len(batch.words))

    def speaker(self, source: CaptionBatch | Tensor, lookups: int) -> EnsembleSpeaker:
        speakers: list[DecoderSpeaker] = [module.speaker(source, lookups) for module in self.members]
        return EnsembleSpeaker(speakers)

    def prepare_datamodule(self, datamodule: Any) -> None:
        """Cached features serve all only where all have the encoder that they were computed with."""
        first = self.members[0].encoder
        if any(bool(m.encoder.trained) or not _same(first, m.encoder) for m in self.members):
            datamodule.serve("images")

    def setup(self, stage: str) -> None:
        if getattr(self._trainer, "datamodule", None) is not None:
            self.prepare_datamodule(self._trainer.datamodule)


def _same(one: nn.Module, other: nn.Module) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def _check_vocabulary(first: Sequence[str], other: Sequence[str], number: int) -> None:
    if list(first) == list(other):
        return
    odd = next((n for n, (a, b) in enumerate(zip(first, other, strict=False)) if a != b), min(len(first), len(other)))
    words = [repr(words[odd]) if odd < len(words) else "nothing" for words in (first, other)]
    raise UserError(
        f"ckpt[{number - 1}] has another vocabulary than ckpt[0]: {len(other)} and {len(first)} words, word {odd} is"
        f" {words[1]} and {words[0]}; an ensemble needs runs trained on the same captions with the same data.min_count"
    )
