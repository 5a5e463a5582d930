"""The LSTM of Show and Tell in both forms, over whole captions for training and step by step for search.

Legend: B sequences, T steps, n rows, D input width, H hidden width. Gates stand in torch's order: input, forget,
candidate, output.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from quintet.common.errors import UserError

FORMS = ("paper", "standard")


class LstmState(NamedTuple):
    """What one step leaves to the next."""

    m: Tensor  # (n, H) output
    c: Tensor  # (n, H) cell


class PaperLstm(nn.Module):
    """Equations 4 to 9: no biases, and m = o * c where others have o * tanh(c)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.weight_ih = nn.Parameter(torch.empty(4 * hidden, width))
        self.weight_hh = nn.Parameter(torch.empty(4 * hidden, hidden))
        for weight in (self.weight_ih, self.weight_hh):
            nn.init.uniform_(weight, -(hidden**-0.5), hidden**-0.5)

    def input_parameters(self) -> tuple[Tensor, ...]:
        """What `project` reads."""
        return (self.weight_ih,)

    def project(self, x: Tensor) -> Tensor:
        """The inputs' share (..., 4H) of the gates."""
        return F.linear(x, self.weight_ih)

    def step(self, projected_n: Tensor, state: LstmState | None) -> LstmState:
        """One step on; no state = all zeros."""
        o, c = _gates(projected_n, state, self.weight_hh)
        return LstmState(o * c, c)

    def forward(self, x_btd: Tensor) -> Tensor:
        """Outputs (B, T, H) from zero state: one product for all inputs, one a step for the recurrence."""
        state, outputs = None, []
        for projected_n in self.project(x_btd.transpose(0, 1)).unbind(0):
            state = self.step(projected_n, state)
            outputs.append(state.m)
        return torch.stack(outputs, 1)


class StandardLstm(nn.Module):
    """torch's LSTM, fused over the whole sequence; the forget gate starts open, as im2txt's."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fused = nn.LSTM(width, hidden, batch_first=True)
        for bias in (self.fused.bias_ih_l0, self.fused.bias_hh_l0):
            nn.init.zeros_(bias)
        self.fused.bias_ih_l0.data[hidden : 2 * hidden] = 1.0

    def input_parameters(self) -> tuple[Tensor, ...]:
        """What `project` reads."""
        return self.fused.weight_ih_l0, self.fused.bias_ih_l0, self.fused.bias_hh_l0

    def project(self, x: Tensor) -> Tensor:
        """The inputs' share (..., 4H) of the gates, all biases in it."""
        return F.linear(x, self.fused.weight_ih_l0, self.fused.bias_ih_l0 + self.fused.bias_hh_l0)

    def step(self, projected_n: Tensor, state: LstmState | None) -> LstmState:
        """One step on; no state = all zeros."""
        o, c = _gates(projected_n, state, self.fused.weight_hh_l0)
        return LstmState(o * c.tanh(), c)

    def forward(self, x_btd: Tensor) -> Tensor:
        """Outputs (B, T, H) from zero state."""
        return self.fused(x_btd)[0]


def _gates(projected_n: Tensor, state: LstmState | None, weight_hh: Tensor) -> tuple[Tensor, Tensor]:
    """The output gate and the new cell, which both forms have in common."""
    gates_n = projected_n if state is None else projected_n + F.linear(state.m, weight_hh)
    i, f, g, o = gates_n.chunk(4, 1)
    new_n = i.sigmoid() * g.tanh()
    return o.sigmoid(), new_n if state is None else f.sigmoid() * state.c + new_n


def build_lstm(form: str, width: int, hidden: int) -> PaperLstm | StandardLstm:
    """The form that `model.network.lstm` names."""
    if form not in FORMS:
        raise UserError(f"model.network.lstm={form!r}: choose {' or '.join(FORMS)}")
    return (PaperLstm if form == "paper" else StandardLstm)(width, hidden)
