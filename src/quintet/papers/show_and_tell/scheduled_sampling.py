"""Scheduled sampling (Bengio et al. 2015): in training the decoder reads ever more of its own words.

Legend: I images, B captions, T words read, H hidden width.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from quintet.common.errors import UserError
from quintet.papers.show_and_tell.network import Decoder, of_captions

SCHEDULES = ("none", "linear", "exponential", "inverse_sigmoid")


@dataclass(frozen=True)
class ScheduledSampling:
    """Everything under `model.scheduled_sampling`: how likely the decoder reads the true word at an optimiser step.

    From step `start`: linear falls to `floor` in `steps`; exponential comes half as near to it every `steps`;
    inverse_sigmoid is k / (k + exp(i / k)) with k = steps. none: always the true word.
    """

    schedule: str = "none"
    start: int = 0
    steps: int = 10_000
    floor: float = 0.75

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise UserError(f"model.scheduled_sampling.schedule={self.schedule!r}: choose {', '.join(SCHEDULES)}")
        if self.start < 0 or self.steps < 1:
            raise UserError("model.scheduled_sampling: give start 0 or more, and steps 1 or more")
        if not 0 <= self.floor <= 1:
            raise UserError(f"model.scheduled_sampling.floor={self.floor}: give 0 to 1")

    def truth(self, step: int) -> float:
        """Probability of the true word at optimiser step `step`."""
        done = (step - self.start) / self.steps
        if self.schedule == "none" or done <= 0:
            return 1.0
        left = {
            "linear": max(0.0, 1 - done),
            "exponential": 0.5**done,
            "inverse_sigmoid": self.steps / (self.steps + math.exp(min(done, 700.0))),
        }[self.schedule]
        return self.floor + (1 - self.floor) * left


def sampled_outputs(decoder: Decoder, features_if: Tensor, words_bt: Tensor, image_row_b: Tensor,
                    truth: float) -> Tensor:  # fmt: skip
    """As the decoder's forward pass, (B, T, H), but each word read after bos is with probability 1 - truth one that
    the decoder itself has drawn at the step before. No gradient goes through what was drawn.
    """
    state, drawn_b, outputs = decoder.start(of_captions(features_if, image_row_b)), words_bt[:, 0], []
    for word_b in words_bt.unbind(1):
        if outputs:
            true_b = torch.rand(word_b.shape, device=word_b.device) < truth
            word_b = torch.where(true_b, word_b, drawn_b)
        state = decoder.step(word_b, state)
        outputs.append(decoder.dropout(state.m))
        with torch.no_grad():
            drawn_b = torch.multinomial(decoder.logits(outputs[-1]).float().softmax(1), 1)[:, 0]
    return torch.stack(outputs, 1)
