"""GRU, LSTM and RNN over a sequence ``[s, b, I]``.

Gate orders and equations as in coremltools' ``ops/defs/iOS15/recurrent.py``; ``reset_after`` and ``input_bias`` from ``iOS18``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from f2i_runtime.mil.execute.arguments import choice, number

Activation = Callable[[torch.Tensor], torch.Tensor]
# MIL gives the recurrent forms no parameters: hard_sigmoid has slope 0.2 and offset 0.5, scaled_tanh scales by 1.
_ACTIVATIONS: dict[str, Activation] = {
    "hard_sigmoid": lambda x: torch.clamp(0.2 * x + 0.5, 0, 1),
    "linear": lambda x: x,
    "relu": torch.relu,
    "scaled_tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "sigmoid_hard": lambda x: torch.clamp(0.2 * x + 0.5, 0, 1),
    "tanh": torch.tanh,
}


def _activation(name: str) -> Activation:
    return _ACTIVATIONS[choice(name.lower(), tuple(_ACTIVATIONS), "activation")]


def _steps(x: torch.Tensor, direction: str) -> torch.Tensor:
    return x.flip(0) if choice(direction, ("forward", "reverse"), "direction") == "reverse" else x


def _gru(
    x: torch.Tensor,
    initial_h: torch.Tensor,
    weight_ih: torch.Tensor,
    weight_hh: torch.Tensor,
    bias: torch.Tensor | None = None,
    direction: str = "forward",
    output_sequence: Any = False,
    recurrent_activation: str = "sigmoid",
    activation: str = "tanh",
    reset_after: Any = False,
    input_bias: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    gate, act = _activation(recurrent_activation), _activation(activation)
    hidden = weight_hh.shape[1]
    hidden_bias = torch.zeros(3 * hidden) if bias is None else bias
    h = initial_h
    out = []
    for step in _steps(F.linear(x, weight_ih, input_bias), direction):
        in_r, in_o, in_z = step.chunk(3, -1)
        w_r, w_o, w_z = weight_hh.chunk(3, 0)
        b_r, b_o, b_z = hidden_bias.chunk(3)
        r = gate(in_r + F.linear(h, w_r, b_r))
        z = gate(in_z + F.linear(h, w_z, b_z))
        o = act(in_o + (r * F.linear(h, w_o, b_o) if reset_after else F.linear(r * h, w_o, b_o)))
        h = (1 - z) * o + z * h
        out.append(h)
    return torch.stack(out if output_sequence else out[-1:]), h


def _rnn(
    x: torch.Tensor,
    initial_h: torch.Tensor,
    weight_ih: torch.Tensor,
    weight_hh: torch.Tensor,
    bias: torch.Tensor | None = None,
    direction: str = "forward",
    output_sequence: Any = False,
    activation: str = "tanh",
) -> tuple[torch.Tensor, torch.Tensor]:
    act = _activation(activation)
    h = initial_h
    out = []
    for step in _steps(F.linear(x, weight_ih, bias), direction):
        h = act(step + F.linear(h, weight_hh))
        out.append(h)
    return torch.stack(out if output_sequence else out[-1:]), h


def _lstm_one(
    x: torch.Tensor,
    h: torch.Tensor,
    c: torch.Tensor,
    weights: tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor | None],
    acts: tuple[Activation, Activation, Activation],
    clip: Any,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    weight_ih, weight_hh, bias, peephole = weights
    gate, cell, act = acts
    peep = torch.zeros(3 * weight_hh.shape[1]) if peephole is None else peephole
    p_i, p_f, p_o = peep.chunk(3)
    out = []
    for step in F.linear(x, weight_ih, bias):
        i, f, o, z = (step + F.linear(h, weight_hh)).chunk(4, -1)
        z = cell(z)
        i, f = gate(i + p_i * c), gate(f + p_f * c)
        c = f * c + i * z
        if clip is not None:  # the documentation says the cell gate; coremltools' own tests clip the cell state
            c = torch.clamp(c, -number(clip), number(clip))
        o = gate(o + p_o * c)
        h = o * act(c)
        out.append(h)
    return torch.stack(out), h, c


def _lstm(
    x: torch.Tensor,
    initial_h: torch.Tensor,
    initial_c: torch.Tensor,
    weight_ih: torch.Tensor,
    weight_hh: torch.Tensor,
    bias: torch.Tensor | None = None,
    peephole: torch.Tensor | None = None,
    weight_ih_back: torch.Tensor | None = None,
    weight_hh_back: torch.Tensor | None = None,
    bias_back: torch.Tensor | None = None,
    peephole_back: torch.Tensor | None = None,
    direction: str = "forward",
    output_sequence: Any = False,
    recurrent_activation: str = "sigmoid",
    cell_activation: str = "tanh",
    activation: str = "tanh",
    clip: Any = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    acts = _activation(recurrent_activation), _activation(cell_activation), _activation(activation)
    forward = weight_ih, weight_hh, bias, peephole
    if choice(direction, ("forward", "reverse", "bidirectional"), "direction") != "bidirectional":
        sequence, h, c = _lstm_one(_steps(x, direction), initial_h, initial_c, forward, acts, clip)
        return (sequence if output_sequence else sequence[-1:]), h, c
    assert weight_ih_back is not None and weight_hh_back is not None  # the caller reports a missing parameter by this
    backward = weight_ih_back, weight_hh_back, bias_back, peephole_back
    hidden = weight_hh.shape[1]
    first, h, c = _lstm_one(x, initial_h[:, :hidden], initial_c[:, :hidden], forward, acts, clip)
    second, h_back, c_back = _lstm_one(x.flip(0), initial_h[:, hidden:], initial_c[:, hidden:], backward, acts, clip)
    last = torch.cat([h, h_back], -1)
    sequence = torch.cat([first, second.flip(0)], -1) if output_sequence else last[None]
    return sequence, last, torch.cat([c, c_back], -1)


TABLE: dict[str, Any] = {"gru": _gru, "lstm": _lstm, "rnn": _rnn}
