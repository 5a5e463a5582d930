"""Scheduled sampling (Bengio et al. 2015): in training the decoder reads more and more of its own words.

Legend: I images, B captions, T words read, H hidden width.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from quintet.common.errors import UserError
from quintet.papers.show_and_tell.network import Decoder, rows_of_captions

SCHEDULES = ("none", "linear", "exponential", "inverse_sigmoid")


@dataclass(frozen=True)
class ScheduledSampling:
    """Everything under `model.scheduled_sampling`: the probability of teacher forcing at each optimizer step.

    The probability is 1 until step `start`, then falls towards `floor`. linear: reaches it after `steps`. exponential:
    halves the distance every `steps`. inverse_sigmoid: the distance is multiplied by k / (k + exp(i / k)), k = `steps`,
    after i steps. none: always 1.
    """

    schedule: str = "none"
    start: int = 0
    steps: int = 10_000
    floor: float = 0.75

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise UserError(f"model.scheduled_sampling.schedule={self.schedule!r}: choose {', '.join(SCHEDULES)}")
        if self.start < 0 or self.steps < 1:
            raise UserError(
                f"model.scheduled_sampling has start={self.start}, steps={self.steps}: give at least 0 and at least 1"
            )
        if not 0 <= self.floor <= 1:
            raise UserError(f"model.scheduled_sampling.floor={self.floor} must be from 0 to 1")

    def teacher_forcing_prob(self, step: int) -> float:
        """Probability that the decoder reads the true word at optimizer step `step`."""
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
                    teacher_forcing_prob: float) -> Tensor:  # fmt: skip
    """LSTM outputs (B, T, H) as from `Decoder.forward`, where the decoder reads some of its own words.

    After bos, each word is the true one with probability `teacher_forcing_prob`, else one that is drawn from the
    decoder's prediction at the step before. No gradient flows through the drawing.
    """
    state, drawn_b = decoder.start(rows_of_captions(features_if, image_row_b)), words_bt[:, 0]
    outputs: list[Tensor] = []
    for word_b in words_bt.unbind(1):
        if outputs:
            is_true_b = torch.rand(word_b.shape, device=word_b.device) < teacher_forcing_prob
            word_b = torch.where(is_true_b, word_b, drawn_b)
        state = decoder.step(word_b, state)
        outputs.append(decoder.dropout(state.m))
        with torch.no_grad():
            drawn_b = torch.multinomial(decoder.logits(outputs[-1]).float().softmax(1), 1)[:, 0]
    return torch.stack(outputs, 1)
