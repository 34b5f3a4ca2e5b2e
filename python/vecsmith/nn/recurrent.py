"""torch.nn's recurrent layers on the operator ``rnn``."""

from __future__ import annotations

from typing import Any, overload

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from vecsmith.nn._recurrent_base import Lengths, Recurrent


class LSTM(Recurrent):
    """torch.nn.LSTM with ``lengths`` and more options.

    For each layer and direction, with s the logistic function and * by element,

        i, f, o = s(W_i x + b_i + R_i h + d_i), and so with f and o
        c' = f * c + i * tanh(W_g x + b_g + R_g h + d_g),   h' = o * tanh(c')

    The same arguments, ``state_dict`` (both ways), numbers from a seed and answers as torch's.
    It is a torch.nn.RNNBase and not a torch.nn.LSTM, since torch.compile refuses every instance of
    that; it compiles in one graph, with no loop over the steps.

    Args:
        input_size: I.
        hidden_size: H.
        num_layers: how many are stacked.
        bias: whether there are b and d.
        batch_first: input and output are [B, T, ...] and not [T, B, ...].
        dropout: of what goes from one layer to the next, in training.
        bidirectional: a second set of weights reads every sequence from its end.
        proj_size: P; if not 0, h' = W_hr (o * tanh(c')) (Sak et al. 2014).
        device, dtype: of the parameters.
        zoneout: how likely an entry of the states keeps its old value in training; afterwards the
            expectation of that is taken (Krueger et al. 2017). One number, or (h, c).
        weight_dropout: DropConnect on the recurrent weights R: one mask for all steps of a call
            (Wan et al. 2013; Merity et al. 2018).
        layer_norm: W x, R h and, where the output is computed, c' are normalized (Ba et al. 2016).
            More parameters: ``gain_ih_l0`` [4 H], ``gain_hh_l0`` [4 H], ``gain_c_l0`` [H] and
            ``bias_c_l0`` [H], and so for every layer and direction.
        cell_clip: c' is clipped to [-cell_clip, cell_clip].

    Raises: ValueError, TypeError for arguments that do not fit.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        zoneout: float | tuple[float, float] = 0.0,
        weight_dropout: float = 0.0,
        layer_norm: bool = False,
        cell_clip: float | None = None,
    ) -> None:
        super().__init__(
            *("LSTM", input_size, hidden_size, num_layers, bias, batch_first, dropout),
            *(bidirectional, proj_size),
            zoneout=zoneout,
            weight_dropout=weight_dropout,
            layer_norm=layer_norm,
            cell_clip=cell_clip,
            device=device,
            dtype=dtype,
        )

    @overload
    def forward(
        self,
        input: Tensor,
        hx: tuple[Tensor, Tensor] | None = None,
        lengths: Lengths | None = None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]: ...

    @overload
    def forward(
        self, input: PackedSequence, hx: tuple[Tensor, Tensor] | None = None, lengths: None = None
    ) -> tuple[PackedSequence, tuple[Tensor, Tensor]]: ...

    def forward(self, input: Any, hx: Any = None, lengths: Lengths | None = None) -> Any:
        """The states after every step, and the last.

        Args:
            input: [T, B, I], [B, T, I] with ``batch_first``, [T, I] for one sequence, or a
                PackedSequence.
            hx: the first states (h_0 [L, B, R], c_0 [L, B, H]), zeros by default; L is layers times
                directions, R is P with a projection and else H; [L, R] and [L, H] for one sequence.
            lengths: [B], a list or an integer tensor on the CPU or beside the input, in any order,
                of numbers in 1..T: how many steps of each sequence there are. What is behind costs
                nothing and is zero in the output, the last states are those after the last step
                that counts, and the other direction begins there. A tensor on a GPU is waited for.
                Under torch.compile the graph breaks at it, unless
                ``torch._dynamo.config.capture_dynamic_output_shape_ops`` is on; a length above T
                then counts as T.

        Returns: (output [T, B, D R], [B, T, D R], [T, D R] or a PackedSequence, with D directions;
            (h_n, c_n) like hx).

        Raises:
            RuntimeError: for sizes, dtypes and devices of input and hx that do not fit, and T = 0,
                as torch's layers.
            ValueError: for an input of another dtype than the weights, or of 1 or more than 3
                dimensions, as torch's layers; for lengths that do not fit.
            TypeError: for what is not a tensor.
        """
        return self._run(input, hx, lengths)


class _OneState(Recurrent):
    """What layers have in common whose state is h alone."""

    @overload
    def forward(
        self, input: Tensor, hx: Tensor | None = None, lengths: Lengths | None = None
    ) -> tuple[Tensor, Tensor]: ...

    @overload
    def forward(
        self, input: PackedSequence, hx: Tensor | None = None, lengths: None = None
    ) -> tuple[PackedSequence, Tensor]: ...

    def forward(self, input: Any, hx: Any = None, lengths: Lengths | None = None) -> Any:
        """The states after every step, and the last: as :meth:`LSTM.forward`, with hx [L, B, H]
        for the states."""
        output, (h,) = self._run(input, hx, lengths)
        return output, h


class GRU(_OneState):
    """torch.nn.GRU with ``lengths`` and more options.

    For each layer and direction, with s the logistic function and * by element,

        r, z = s(W_r x + b_r + R_r h + d_r), s(W_z x + b_z + R_z h + d_z)
        n = tanh(W_n x + b_n + r * (R_n h + d_n)),   h' = (1 - z) * n + z * h

    with ``reset_after=False`` n = tanh(W_n x + b_n + R_n (r * h) + d_n), as Cho et al. 2014 have it
    (with z for their 1 - z). The same arguments, ``state_dict`` (both ways), numbers from a
    seed and answers as torch's; see :class:`LSTM`.

    Args:
        input_size, hidden_size, num_layers, bias, batch_first, dropout: as :class:`LSTM`.
        bidirectional, device, dtype: as :class:`LSTM`.
        reset_after: whether the reset gate is applied to the product, as torch does, or to h.
        zoneout, weight_dropout: as :class:`LSTM`, with one number for zoneout.
        layer_norm: W x and R h are normalized; with ``reset_after=False`` R_r h and R_z h together,
            and R_n (r * h) by itself. More parameters: ``gain_ih_l0`` and ``gain_hh_l0`` [3 H].

    Raises: ValueError, TypeError for arguments that do not fit.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        reset_after: bool = True,
        zoneout: float = 0.0,
        weight_dropout: float = 0.0,
        layer_norm: bool = False,
    ) -> None:
        super().__init__(
            *("GRU", input_size, hidden_size, num_layers, bias, batch_first, dropout),
            bidirectional,
            zoneout=zoneout,
            weight_dropout=weight_dropout,
            layer_norm=layer_norm,
            device=device,
            dtype=dtype,
        )
        if not isinstance(reset_after, bool):
            name = type(self).__name__
            raise TypeError(
                f"{name}: expected reset_after to be a bool; got {type(reset_after).__name__}"
            )
        self.reset_after = reset_after


class RNN(_OneState):
    """torch.nn.RNN with ``lengths`` and more options.

    For each layer and direction h' = tanh(W x + b + R h + d), or max(..., 0) (Elman 1990). The same
    arguments, ``state_dict`` (both ways), numbers from a seed and answers as torch's; see
    :class:`LSTM`.

    Args:
        nonlinearity: "tanh" or "relu".
        input_size, hidden_size, num_layers, bias, batch_first, dropout: as :class:`LSTM`.
        bidirectional, device, dtype: as :class:`LSTM`.
        zoneout, weight_dropout: as :class:`LSTM`, with one number for zoneout.
        layer_norm: W x and R h are normalized. More parameters: ``gain_ih_l0`` and ``gain_hh_l0``
            [H].

    Raises: ValueError, TypeError for arguments that do not fit.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        zoneout: float = 0.0,
        weight_dropout: float = 0.0,
        layer_norm: bool = False,
    ) -> None:
        if nonlinearity not in ("tanh", "relu"):
            name = type(self).__name__
            raise ValueError(
                f"{name}: expected nonlinearity to be 'tanh' or 'relu'; got {nonlinearity!r}"
            )
        super().__init__(
            *(f"RNN_{nonlinearity.upper()}", input_size, hidden_size, num_layers, bias),
            *(batch_first, dropout, bidirectional),
            zoneout=zoneout,
            weight_dropout=weight_dropout,
            layer_norm=layer_norm,
            device=device,
            dtype=dtype,
        )
        self.nonlinearity = nonlinearity


class ResidualRNN(_OneState):
    """A recurrent layer that adds to its state, and does not replace it (Wilkerson 2023).

    For each layer and direction h' = h + V tanh(W x + b + R tanh(h) + d) + e. Call and state as
    :class:`GRU`. Parameters: ``weight_ih_l0`` [H, I] is W, ``weight_hh_l0`` [H, H] R,
    ``weight_out_l0`` [H, H] V, ``bias_ih_l0`` b, ``bias_hh_l0`` d, ``bias_out_l0`` [H] e, and so
    for every layer and direction; all from U(-1/sqrt(H), 1/sqrt(H)) at first.

    Args:
        input_size, hidden_size, num_layers, bias, batch_first, dropout: as :class:`LSTM`.
        bidirectional, device, dtype: as :class:`LSTM`.
        zoneout, weight_dropout: as :class:`LSTM`, with one number for zoneout.
        layer_norm: W x and R tanh(h) are normalized. More parameters: ``gain_ih_l0`` and
            ``gain_hh_l0`` [H].

    Raises: ValueError, TypeError for arguments that do not fit.

    Wilkerson 2023: Return of the RNN. arXiv 2303.13570.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        zoneout: float = 0.0,
        weight_dropout: float = 0.0,
        layer_norm: bool = False,
    ) -> None:
        super().__init__(
            *("RESIDUAL", input_size, hidden_size, num_layers, bias, batch_first, dropout),
            bidirectional,
            zoneout=zoneout,
            weight_dropout=weight_dropout,
            layer_norm=layer_norm,
            device=device,
            dtype=dtype,
        )
