"""The phone recognizer on top of the dilated stack (WaveNet, section 3.4)."""

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RecognitionHead(nn.Module):
    """Mean-pools activations to frames of `frame` samples, then a few non-causal convolutions to phone logits.

    Frames are counted from the END of the window, so the last C // frame of them cover the last C positions.
    """

    def __init__(self, in_channels: int, num_phones: int, *, channels: int, layers: int, frame: int = 160):
        super().__init__()
        self.frame = frame
        widths = [in_channels] + [channels] * layers
        self.layers = nn.ModuleList(nn.Conv1d(a, b, 3, padding=1) for a, b in itertools.pairwise(widths))
        self.phones = nn.Conv1d(widths[-1], num_phones, 1)

    def forward(self, activations_bst: Tensor) -> Tensor:
        """(B, S, T) -> phone logits (B, P, T // frame)."""
        frames = activations_bst.size(-1) // self.frame
        x = F.avg_pool1d(activations_bst[..., activations_bst.size(-1) - frames * self.frame :], self.frame)
        for layer in self.layers:
            x = torch.relu(layer(x))
        return self.phones(x)
