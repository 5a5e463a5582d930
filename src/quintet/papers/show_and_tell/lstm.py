"""The LSTM of Show and Tell in two forms: over whole captions for training, one step at a time for search.

Legend: B sequences, T steps, n rows, D input width, H hidden width. The gates are in torch's order: input, forget,
candidate, output.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from quintet.common.errors import UserError

FORMS = ("paper", "standard")


class LstmState(NamedTuple):
    """The LSTM's state between two steps."""

    m: Tensor  # (n, H) output
    c: Tensor  # (n, H) cell


class PaperLstm(nn.Module):
    """Equations 4 to 9 of the paper: no biases, and m = o * c, where the usual LSTM has m = o * tanh(c)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.weight_ih = nn.Parameter(torch.empty(4 * hidden, width))
        self.weight_hh = nn.Parameter(torch.empty(4 * hidden, hidden))
        for weight in (self.weight_ih, self.weight_hh):
            nn.init.uniform_(weight, -(hidden**-0.5), hidden**-0.5)

    def input_parameters(self) -> tuple[Tensor, ...]:
        """The parameters that `project` uses."""
        return (self.weight_ih,)

    def project(self, x: Tensor) -> Tensor:
        """The part of the gates (..., 4H) that comes from the inputs."""
        return F.linear(x, self.weight_ih)

    def step(self, projected_n: Tensor, state: LstmState | None) -> LstmState:
        """The next state; state=None is all zeros."""
        o, c = _gates(projected_n, state, self.weight_hh)
        return LstmState(o * c, c)

    def forward(self, x_btd: Tensor) -> Tensor:
        """Outputs m_t (B, T, H), starting from zero state."""
        state, outputs = None, []
        # one product for the inputs of all steps; only the recurrence has to go step by step
        for projected_n in self.project(x_btd.transpose(0, 1)).unbind(0):
            state = self.step(projected_n, state)
            outputs.append(state.m)
        return torch.stack(outputs, 1)


class StandardLstm(nn.Module):
    """torch's LSTM, which has one kernel for the whole sequence. The forget gate starts open, as in im2txt."""

    fused: Any  # nn.LSTM, whose parameters the type checker does not know

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fused = nn.LSTM(width, hidden, batch_first=True)
        for bias in (self.fused.bias_ih_l0, self.fused.bias_hh_l0):
            nn.init.zeros_(bias)
        self.fused.bias_ih_l0.data[hidden : 2 * hidden] = 1.0

    def input_parameters(self) -> tuple[Tensor, ...]:
        """The parameters that `project` uses."""
        return self.fused.weight_ih_l0, self.fused.bias_ih_l0, self.fused.bias_hh_l0

    def project(self, x: Tensor) -> Tensor:
        """The part of the gates (..., 4H) that comes from the inputs, with all biases."""
        return F.linear(x, self.fused.weight_ih_l0, self.fused.bias_ih_l0 + self.fused.bias_hh_l0)

    def step(self, projected_n: Tensor, state: LstmState | None) -> LstmState:
        """The next state; state=None is all zeros."""
        o, c = _gates(projected_n, state, self.fused.weight_hh_l0)
        return LstmState(o * c.tanh(), c)

    def forward(self, x_btd: Tensor) -> Tensor:
        """Outputs m_t (B, T, H), starting from zero state."""
        return self.fused(x_btd)[0]


def _gates(projected_n: Tensor, state: LstmState | None, weight_hh: Tensor) -> tuple[Tensor, Tensor]:
    """The output gate and the new cell, which are the same in both forms."""
    gates_n = projected_n if state is None else projected_n + F.linear(state.m, weight_hh)
    i, f, g, o = gates_n.chunk(4, 1)
    new_n = i.sigmoid() * g.tanh()
    return o.sigmoid(), new_n if state is None else f.sigmoid() * state.c + new_n


def build_lstm(form: str, width: int, hidden: int) -> PaperLstm | StandardLstm:
    """The LSTM for a value of `model.network.lstm`."""
    if form not in FORMS:
        raise UserError(f"model.network.lstm={form!r}: choose {' or '.join(FORMS)}")
    return (PaperLstm if form == "paper" else StandardLstm)(width, hidden)
