"""An ensemble of trained runs (Vinyals et al. 2015, section 4.3.1): eval.py ckpt=[a,b,c].

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
from quintet.papers.show_and_tell.decoding import EnsembleStepDecoder, ensemble_log_probs, logits_with_memory
from quintet.papers.show_and_tell.module import ShowAndTellModule, sum_by_row


class CaptionEnsemble(Captioner):
    """The probability of a word is the normalized geometric mean of the members' probabilities.

    Uses the decoding settings of the first member. Members may have different encoders and widths.
    Errors: UserError for members whose vocabularies differ, or have another order.
    """

    members: Any  # ModuleList of ShowAndTellModule

    def __init__(self, modules: Sequence[ShowAndTellModule]) -> None:
        first = modules[0]
        super().__init__(first.vocabulary, first.decoding, first.media_count)
        for number, module in enumerate(modules[1:], 2):
            _check_vocabulary(first.vocabulary, module.vocabulary, number)
        self.members = nn.ModuleList(modules)
        self.save_hyperparameters({"data_info": first.data_info})

    def nll(self, batch: CaptionBatch) -> Tensor:
        log_probs = []
        for module in self.members:
            hidden_nh, word_n, row_n = module.outputs(batch)
            log_probs.append(logits_with_memory(module.network, hidden_nh, module.token_memory).log_softmax(1))
        loss_n = F.nll_loss(ensemble_log_probs(log_probs), word_n, reduction="none")
        return sum_by_row(loss_n, row_n, len(batch.words))

    def step_decoder(self, source: CaptionBatch | Tensor, lookups: int) -> EnsembleStepDecoder:
        return EnsembleStepDecoder([module.step_decoder(source, lookups) for module in self.members])

    def prepare_datamodule(self, datamodule: Any) -> None:
        """Serve images, unless all members have the encoder with which the features were computed."""
        first = self.members[0].encoder
        if any(bool(m.encoder.trained) or not _same(first, m.encoder) for m in self.members):
            datamodule.serve("images")

    def setup(self, stage: str) -> None:
        datamodule = getattr(self._trainer, "datamodule", None)
        if datamodule is not None:
            self.prepare_datamodule(datamodule)


def _same(one: nn.Module, other: nn.Module) -> bool:
    state, others = one.state_dict(), other.state_dict()
    return state.keys() == others.keys() and all(torch.equal(state[key], others[key]) for key in state)


def _check_vocabulary(first: Sequence[str], other: Sequence[str], number: int) -> None:
    """UserError that names the first difference between the vocabularies of the first and another member."""
    if list(first) == list(other):
        return
    differ = (n for n, (a, b) in enumerate(zip(first, other, strict=False)) if a != b)
    index = next(differ, min(len(first), len(other)))
    words = [repr(words[index]) if index < len(words) else "missing" for words in (first, other)]
    raise UserError(
        f"ckpt[{number - 1}] has another vocabulary than ckpt[0]: {len(other)} and {len(first)} words, word {index} is"
        f" {words[1]} and {words[0]}; an ensemble needs runs trained on the same captions with the same data.min_count"
    )
