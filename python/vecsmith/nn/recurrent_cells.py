"""torch.nn's recurrent cells on the operator ``rnn``: one step, for loops that decode."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vecsmith.nn._recurrent_op import Precision, check_input, check_state, states_of
from vecsmith.ops._rnn import step as quick_step


def _quick_step(
    layer: Any, cell: str, input: Any, hx: Any, has_cell: bool
) -> tuple[Tensor, Tensor | None] | None:
    """(h', c') of one step, where it may go straight to the processor; else None."""
    if has_cell:
        if type(hx) is not tuple or len(hx) != 2:
            return None
        h, c = hx
        if not isinstance(c, Tensor):
            return None
    else:
        h, c = hx, None
    if (
        not isinstance(input, Tensor)
        or not isinstance(h, Tensor)
        or h.dim() != 2
        or h.shape[1] != layer.hidden_size
    ):
        return None
    own = layer._parameters
    weights = (own.get("weight_ih"), own.get("weight_hh"), own.get("bias_ih"), own.get("bias_hh"))
    computed = weights[0] is None or weights[1] is None
    if (
        computed
        or bool(layer.bias) is (weights[2] is None)
        or bool(layer.bias) is (weights[3] is None)
    ):
        return None
    if torch.is_autocast_enabled("cpu"):
        return None
    return quick_step(cell, input, h, c, weights)


def _step(
    layer: Any, cell: str, input: Any, hx: Any, has_cell: bool = False
) -> tuple[Tensor, Tensor | None] | None:
    """(h', c') of one step, [B, H] or [H]; None for an empty batch."""
    quick = _quick_step(layer, cell, input, hx, has_cell)
    if quick is not None:
        return quick
    name = type(layer).__name__
    if not isinstance(input, Tensor):
        raise TypeError(f"{name}: expected input to be a torch.Tensor; got {type(input).__name__}")
    if input.dim() not in (1, 2):
        raise ValueError(f"{name}: expected input to be 1-D or 2-D; got {input.dim()}-D")
    states = None if hx is None else states_of(name, hx, has_cell)
    if states is not None and any(state.dim() not in (1, 2) for state in states):
        got = ", ".join(f"{state.dim()}-D" for state in states)
        raise ValueError(f"{name}: expected hx to be 1-D or 2-D; got {got}")
    precision = Precision(input.device)
    w_ih, hidden = layer.weight_ih, layer.hidden_size
    check_input(name, input, layer.input_size, w_ih, precision)
    batched = input.dim() == 2
    if states is None:
        zeros = input.new_zeros(input.shape[0] if batched else 1, hidden)
        states = (zeros, zeros) if has_cell else (zeros,)
    else:
        shape = [input.shape[0], hidden] if batched else [hidden]
        for n, state in enumerate(states):
            what = f"hx[{n}]" if has_cell else "hx"
            check_state(name, what, state, shape, input, precision)
        states = states if batched else tuple(state.unsqueeze(0) for state in states)
    rows = input if batched else input.unsqueeze(0)
    if rows.shape[0] == 0:
        return None
    states = tuple(precision(state) for state in states)
    weights = [precision(w_ih), precision(layer.weight_hh)]
    if layer.bias:
        weights += [precision(layer.bias_ih), precision(layer.bias_hh)]
    sizes = torch.full((1,), rows.shape[0], dtype=torch.int64, device="cpu")
    cell_state = states[1] if has_cell else None
    _, h, c = precision.rnn(precision(rows), sizes, states[0], cell_state, *weights, cell=cell)
    return (h, c) if batched else (h[0], None if c is None else c[0])


class LSTMCell(torch.nn.LSTMCell):
    """torch.nn.LSTMCell: one step of :class:`LSTM`.

    A subclass with the same arguments, ``state_dict`` (both ways), numbers from a seed and answers.

    Args:
        input_size: I.
        hidden_size: H.
        bias: whether there are biases.
        device, dtype: of the parameters.
    """

    def forward(
        self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """input [B, I] or [I], hx (h [B, H], c [B, H]) or ([H], [H]), zeros by default -> (h', c').

        Raises: as :meth:`LSTM.forward`.
        """
        result = _step(self, "lstm", input, hx, has_cell=True)
        if result is None:
            return super().forward(input, hx)
        h, c = result
        assert c is not None
        return h, c


class GRUCell(torch.nn.GRUCell):
    """torch.nn.GRUCell: one step of :class:`GRU`.

    A subclass with the same arguments, ``state_dict`` (both ways), numbers from a seed and answers.

    Args:
        input_size: I.
        hidden_size: H.
        bias: whether there are biases.
        device, dtype: of the parameters.
        reset_after: as in :class:`GRU`.
    """

    reset_after: bool = True

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        reset_after: bool = True,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, device, dtype)
        self.reset_after = reset_after

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """input [B, I] or [I], hx [B, H] or [H], zeros by default -> h'.

        Raises: as :meth:`LSTM.forward`.
        """
        result = _step(self, "gru" if self.reset_after else "gru_reset_before", input, hx)
        return super().forward(input, hx) if result is None else result[0]

    def extra_repr(self) -> str:
        """The arguments that are not the usual."""
        return super().extra_repr() + ("" if self.reset_after else ", reset_after=False")


class RNNCell(torch.nn.RNNCell):
    """torch.nn.RNNCell: one step of :class:`RNN`.

    A subclass with the same arguments, ``state_dict`` (both ways), numbers from a seed and answers.

    Args:
        input_size: I.
        hidden_size: H.
        bias: whether there are biases.
        nonlinearity: "tanh" or "relu".
        device, dtype: of the parameters.
    """

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """input [B, I] or [I], hx [B, H] or [H], zeros by default -> h'.

        Raises: as :meth:`LSTM.forward`; RuntimeError for another nonlinearity, as torch's.
        """
        if self.nonlinearity not in ("tanh", "relu"):
            raise RuntimeError(
                f"RNNCell: expected nonlinearity 'tanh' or 'relu'; got {self.nonlinearity!r}"
            )
        result = _step(self, f"rnn_{self.nonlinearity}", input, hx)
        return super().forward(input, hx) if result is None else result[0]
