"""What the recurrent layers share: options, parameters, and the way of a call."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import PackedSequence

from vecsmith.nn._recurrent_lengths import (
    Layout,
    check_lengths,
    of_lengths,
    of_packed,
    of_padded,
)
from vecsmith.nn._recurrent_op import Precision, check_input, check_state, states_of
from vecsmith.ops import _checks as check

Lengths = Tensor | list[int] | tuple[int, ...]

_CELLS = {
    "LSTM": "lstm",
    "GRU": "gru",
    "RNN_TANH": "rnn_tanh",
    "RNN_RELU": "rnn_relu",
    "RESIDUAL": "residual",
}


def _probability(name: str, what: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name}: expected {what} to be a float; got {type(value).__name__}")
    if not 0 <= value <= 1:
        raise ValueError(f"{name}: expected {what} in [0, 1]; got {value}")
    return float(value)


class Recurrent(torch.nn.RNNBase):
    """The base of LSTM, GRU, RNN and ResidualRNN.

    Not torch.nn.LSTM and its siblings but their base is the base of ours: torch.compile refuses
    every instance of those three.
    """

    # Also what a layer of torch has that is made one of ours (vecsmith.accelerate), or that was
    # pickled before there was such an option.
    zoneout: tuple[float, float] = (0.0, 0.0)
    weight_dropout: float = 0.0
    layer_norm: bool = False
    cell_clip: float | None = None
    reset_after: bool = True

    def __init__(
        self,
        mode: str,
        input_size: int,
        hidden_size: int,
        *sizes: Any,
        zoneout: Any,
        weight_dropout: float,
        layer_norm: bool,
        cell_clip: float | None = None,
        device: Any,
        dtype: torch.dtype | None,
    ) -> None:
        name = type(self).__name__
        # Of torch's modes, residual layers begin as the one that has as many gates.
        torchs = "RNN_TANH" if mode == "RESIDUAL" else mode
        torch.nn.RNNBase.__init__(
            self, torchs, input_size, hidden_size, *sizes, device=device, dtype=dtype
        )
        self.mode = mode
        pair = zoneout if isinstance(zoneout, tuple | list) else (zoneout, zoneout)
        if len(pair) != 2 or (pair is zoneout and mode != "LSTM"):
            wanted = "a float or a pair (h, c)" if mode == "LSTM" else "a float"
            raise ValueError(f"{name}: expected zoneout to be {wanted}; got {zoneout!r}")
        self.zoneout = (
            _probability(name, "zoneout", pair[0]),
            _probability(name, "zoneout", pair[1]) if mode == "LSTM" else 0.0,
        )
        self.weight_dropout = _probability(name, "weight_dropout", weight_dropout)
        if not isinstance(layer_norm, bool):
            raise TypeError(
                f"{name}: expected layer_norm to be a bool; got {type(layer_norm).__name__}"
            )
        self.layer_norm = layer_norm
        if cell_clip is not None:
            if isinstance(cell_clip, bool) or not isinstance(cell_clip, int | float):
                raise TypeError(
                    f"{name}: expected cell_clip to be a float; got {type(cell_clip).__name__}"
                )
            if not (math.isfinite(cell_clip) and cell_clip > 0):
                raise ValueError(f"{name}: expected cell_clip > 0 and finite; got {cell_clip}")
            self.cell_clip = float(cell_clip)
        for suffix in self._suffixes():
            for what, shape in self._own_shapes().items():
                parameter = torch.nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
                self.register_parameter(what + suffix, parameter)
        self._reset_own(draw=True)

    def _suffixes(self) -> list[str]:
        """Of the names of the parameters, by layer and direction."""
        ends = ("", "_reverse") if self.bidirectional else ("",)
        return [f"_l{layer}{end}" for layer in range(self.num_layers) for end in ends]

    def _own_shapes(self) -> dict[str, tuple[int, ...]]:
        """The parameters of a layer that torch's has not."""
        hidden, shapes = self.hidden_size, {}
        if self.mode == "RESIDUAL":
            shapes["weight_out"] = (hidden, hidden)
            if self.bias:
                shapes["bias_out"] = (hidden,)
        if self.layer_norm:
            gates = {"LSTM": 4, "GRU": 3}.get(self.mode, 1)
            shapes |= {"gain_ih": (gates * hidden,), "gain_hh": (gates * hidden,)}
            if self.mode == "LSTM":
                shapes |= {"gain_c": (hidden,), "bias_c": (hidden,)}
        return shapes

    def _reset_own(self, draw: bool) -> None:
        """First numbers of those parameters: from torch's distribution, but for gains, 1, and the
        bias behind a gain, 0."""
        bound = 1 / math.sqrt(self.hidden_size)
        for suffix in self._suffixes():
            for what in self._own_shapes():
                parameter = self._parameters.get(what + suffix)
                if parameter is None:  # torch's constructor is at work, and comes here first
                    continue
                if what.startswith("gain"):
                    torch.nn.init.ones_(parameter)
                elif what == "bias_c":
                    torch.nn.init.zeros_(parameter)
                elif draw:
                    torch.nn.init.uniform_(parameter, -bound, bound)

    def reset_parameters(self) -> None:
        """All weights and biases from U(-1/sqrt(H), 1/sqrt(H)), as torch's; gains are 1."""
        super().reset_parameters()
        self._reset_own(draw=False)

    def flatten_parameters(self) -> None:
        """Nothing: the kernels take the parameters as they are. Here for callers of torch's."""

    def extra_repr(self) -> str:
        """The arguments that are not the usual."""
        parts = [super().extra_repr()]
        z_h, z_c = self.zoneout
        if z_h or z_c:
            parts.append(f"zoneout={self.zoneout if self.mode == 'LSTM' else z_h}")
        for option, usual in (
            ("weight_dropout", 0.0),
            ("layer_norm", False),
            ("cell_clip", None),
            ("reset_after", True),
        ):
            if getattr(self, option) != usual:
                parts.append(f"{option}={getattr(self, option)}")
        return ", ".join(parts)

    # --- one call ---------------------------------------------------------------------------------

    def _run(self, input: Any, hx: Any, lengths: Lengths | None) -> tuple[Any, tuple[Tensor, ...]]:
        """(output, last states) of a call."""
        name = type(self).__name__
        packed = isinstance(input, PackedSequence)
        data = input.data if packed else input
        if not isinstance(data, Tensor):
            raise TypeError(
                f"{name}: expected input to be a torch.Tensor or a PackedSequence; "
                f"got {type(data).__name__}"
            )
        if packed and lengths is not None:
            raise ValueError(
                f"{name}: expected no lengths beside a PackedSequence, which has its own"
            )
        if not packed and data.dim() not in (2, 3):
            raise ValueError(f"{name}: expected input to be 2-D or 3-D; got {data.dim()}-D")
        if packed and data.dim() != 2:
            raise RuntimeError(f"{name}: expected packed data to be 2-D; got {data.dim()}-D")
        states = None if hx is None else states_of(name, hx, self.mode == "LSTM")
        batched = packed or data.dim() == 3
        if states is not None:
            if any(state.dim() != (3 if batched else 2) for state in states):
                kind = "batched 3-D" if batched else "unbatched 2-D"
                raise RuntimeError(
                    f"{name}: expected hx to be {3 if batched else 2}-D for {kind} input; "
                    f"got {', '.join(f'{state.dim()}-D' for state in states)}"
                )
            if not batched:
                states = tuple(state.unsqueeze(1) for state in states)
        precision = Precision(data.device)
        weight: Any = self.weight_ih_l0
        check_input(name, data, self.input_size, weight, precision)
        if packed:
            layout = of_packed(input, None if states is None else states[0].shape[1])
            rows = data
        else:
            data = data if batched else data.unsqueeze(1)
            layout = self._layout(name, data, batched, lengths)
            rows = layout.rows(data)
        output, states = self._layers(name, rows, states, layout, precision)
        if packed:
            return PackedSequence(output, layout.batch_sizes, layout.order, layout.inverse), states
        output = layout.padded(output)
        if not batched:
            return output.squeeze(1), tuple(state.squeeze(1) for state in states)
        return output, states

    def _layout(self, name: str, data: Tensor, batched: bool, lengths: Lengths | None) -> Layout:
        """Of the batch that a call is given, [T, B, I] or [B, T, I]."""
        batch_first = self.batch_first and batched
        steps, batch = data.shape[:2] if not batch_first else (data.shape[1], data.shape[0])
        if steps == 0:
            raise RuntimeError(f"{name}: expected sequences of at least one step; got none")
        if lengths is None:
            return of_padded(steps, batch, batch_first)
        if not batched:
            raise ValueError(f"{name}: expected no lengths with unbatched 2-D input")
        check.refuse_capture(name, data, "no lengths, which a replay would not read again,")
        lengths = check_lengths(name, lengths, steps, batch, data.device)
        if batch == 0:
            return of_padded(steps, batch, batch_first)
        return of_lengths(lengths, steps, batch, batch_first, data.device)

    def _layers(
        self,
        name: str,
        rows: Tensor,
        states: tuple[Tensor, ...] | None,
        layout: Layout,
        precision: Precision,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """All layers over rows by step: [N, I] -> [N, directions R], last states [L, B, R]."""
        ways, has_cell = 1 + self.bidirectional, self.mode == "LSTM"
        widths = [self.proj_size or self.hidden_size, self.hidden_size][: 1 + has_cell]
        count = self.num_layers * ways
        for n, state in enumerate(states or ()):
            what = f"hx[{n}]" if has_cell else "hx"
            check_state(name, what, state, [count, layout.batch, widths[n]], rows, precision)
        rows = precision(rows)
        if layout.batch == 0:
            return self._nothing(rows, [rows.new_zeros(count, 0, width) for width in widths])
        if states is None:
            given = [[rows.new_zeros(layout.batch, width)] * count for width in widths]
        else:
            given = [layout.sorted(precision(state)).unbind(0) for state in states]
        last: list[tuple[Tensor, ...]] = []
        for layer in range(self.num_layers):
            if layer and self.dropout:
                rows = functional.dropout(rows, self.dropout, self.training)
            results = []
            for way in range(ways):
                first = [state[layer * ways + way] for state in given]
                output, *after = self._direction(layer, way, rows, first, layout, precision)
                results.append(output)
                last.append(tuple(state for state in after if state is not None))
            rows = results[0] if ways == 1 else torch.cat(results, 1)
        stacked = [torch.stack(s) if count > 1 else s[0][None] for s in zip(*last, strict=True)]
        return rows, tuple(layout.unsorted(state) for state in stacked)

    def _direction(
        self,
        layer: int,
        way: int,
        rows: Tensor,
        first: list[Tensor],
        layout: Layout,
        precision: Precision,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """One call of the operator."""
        suffix = f"_l{layer}" + ("_reverse" if way else "")

        def parameter(what: str) -> Tensor:
            # Module's way to its parameters is slow; a parametrized one is not among them.
            found = self._parameters.get(what + suffix)
            return precision(getattr(self, what + suffix) if found is None else found)

        w_hh = parameter("weight_hh")
        if self.weight_dropout:
            w_hh = functional.dropout(w_hh, self.weight_dropout, self.training)
        biases = [parameter("bias_ih"), parameter("bias_hh")] if self.bias else [None, None]
        more: dict[str, Any] = {}
        if self.proj_size:
            more["w_hr"] = parameter("weight_hr")
        if self.mode == "RESIDUAL":
            more["w_out"] = parameter("weight_out")
            more["b_out"] = parameter("bias_out") if self.bias else None
        if self.layer_norm:
            gains = ["gain_ih", "gain_hh"] + ["gain_c", "bias_c"] * (self.mode == "LSTM")
            more["norm"] = tuple(parameter(what) for what in gains)
        if any(self.zoneout):
            more["zoneout"] = self.zoneout
            if self.training:
                widths = (self.proj_size or self.hidden_size, self.hidden_size)
                more["keep"] = tuple(
                    torch.full(
                        (rows.shape[0], width), 1 - z, dtype=rows.dtype, device=rows.device
                    ).bernoulli()
                    if z
                    else None
                    for z, width in zip(self.zoneout, widths, strict=True)
                )
        if self.cell_clip is not None:
            more["clip"] = self.cell_clip
        cell = _CELLS[self.mode] if self.reset_after else "gru_reset_before"
        return precision.rnn(
            *(rows, layout.batch_sizes, first[0], first[1] if len(first) > 1 else None),
            *(parameter("weight_ih"), w_hh, *biases),
            cell=cell,
            reverse=bool(way),
            **more,
        )

    def _nothing(self, rows: Tensor, states: list[Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The answer for no sequences at all. It depends on every weight, whose gradients are 0."""
        width = (1 + self.bidirectional) * states[0].shape[2]
        tie = sum((p.reshape(-1)[:0].sum() for p in self.parameters()), rows.sum())
        return (rows.new_zeros(0, width) + tie).to(rows.dtype), tuple(states)
