"""Recurrent layers that begin as a rotation: what a sentence encoder and its decoder share.

Near zero every cell is linear, h' = M h + P x, and M and P may be chosen: a random layer forgets
what it read, one that rotates keeps it. With M = g Q, Q orthogonal and g < 1, the last state is the
closed form sum_t (g Q)^(T-t) P x_t, and the layer with (g Q)^-1 takes it apart again (Arjovsky et
al. 2016, arXiv:1511.06464, on orthogonal recurrences; Plate 1995 on superposed, bound vectors).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from vecsmith.nn._recurrent_base import Recurrent
from vecsmith.nn.recurrent import GRU, LSTM, RNN, ResidualRNN
from vecsmith.ops import _checks as check

LAYERS: dict[str, type[Recurrent]] = {
    "rnn": RNN,
    "lstm": LSTM,
    "gru": GRU,
    "residual_rnn": ResidualRNN,
}
# A gate that is open begins at s(2) = 0.88, one that is shut at s(-2) = 0.12: far enough from 0 and
# 1 to learn.
_GATE = 2.0
OPEN = 1 / (1 + math.exp(-_GATE))
_SHUT = 1 - OPEN
# The typical size of a state's entries at first. tanh bends such a state by 0.03^2: less than what
# rounding it to bfloat16 does.
STATE_SIZE = 0.03


def usual_decay(size: int) -> float:
    """g with g^2 / (1 - g^2) = x = min(R / 50, (R / 20)^(1/2)), for a rotation of R dimensions.

    x is the energy of all the tokens after a token, in parts of its own. Along any direction they
    have a standard deviation of (x / R)^(1/2) of its length: at most 0.14, with which 10,000 other
    tokens come to 0.55 of it; less where R allows it. A smaller g would make late tokens fainter,
    and noise louder.
    """
    after = min(size / 50, math.sqrt(size / 20))
    return math.sqrt(after / (1 + after))


def typical_norm(size: int) -> float:
    """The length of a vector of ``size`` entries as they are at first."""
    return STATE_SIZE * math.sqrt(size)


class Start:
    """The matrices that an encoder and a decoder of the same seed begin with.

    With E the size of token embeddings and R that of the state that rotates:

    rotation: Q [R, R], orthogonal, drawn evenly (QR of a Gaussian matrix with the signs of R's
        diagonal; Mezzadri 2007).
    projection: P [R, E], with orthonormal columns for E <= R, else orthogonal rows that keep
        lengths on average; times a scale that makes the entries of a sentence's state about 0.03.
    readout: [E, R], the transpose of P over the square of that scale: for E <= R its product with P
        is one.
    """

    def __init__(self, embedding_size: int, size: int, decay: float, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.decay = decay
        self.rotation = orthogonal(size, size, generator)
        unit = orthogonal(size, embedding_size, generator)
        unit *= math.sqrt(max(1.0, embedding_size / size))
        # |sum_t (g Q)^t P e_t|^2 is about scale^2 / (1 - g^2) for embeddings of length 1.
        norm = 1 / math.sqrt(max(1 - decay**2, 1 / 64))
        scale = typical_norm(size) / norm
        self.projection = unit * scale
        self.readout = unit.T / scale


def orthogonal(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """[rows, columns] with orthonormal rows or columns, whichever are fewer, evenly drawn."""
    tall = torch.randn(
        max(rows, columns), min(rows, columns), generator=generator, dtype=torch.float64
    )
    q, r = torch.linalg.qr(tall)
    q = (q * r.diagonal().sign()).float()
    return q if rows >= columns else q.T.contiguous()


@torch.no_grad()
def set_linear(layer: Recurrent, transition: Tensor, projection: Tensor) -> None:
    """Set the first direction of a one-layer ``layer`` so that near zero it is h' = M h + P x.

    transition: M [H, H]. projection: P [H, I].

    The gates begin open or shut by their biases alone, and R makes up for them: an LSTM with the
    gates i, f, o at a, 1 - a, a is h' = (1 - a) h + a^2 (R h + W x).
    """
    hidden = layer.hidden_size
    own: Any = dict(layer.named_parameters())
    weights = [own[f"{name}_l0"] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
    for parameter in weights:
        parameter.zero_()
    w_ih, w_hh, b_ih, _ = weights
    one = torch.eye(hidden)
    if layer.mode == "RNN_TANH":
        w_ih.copy_(projection)
        w_hh.copy_(transition)
    elif layer.mode == "RESIDUAL":
        w_ih.copy_(projection)
        w_hh.copy_(transition - one)
        own["weight_out_l0"].copy_(one)
        own["bias_out_l0"].zero_()
    elif layer.mode == "LSTM":  # i, f, g, o
        w_ih[2 * hidden : 3 * hidden] = projection / OPEN**2
        w_hh[2 * hidden : 3 * hidden] = (transition - _SHUT * one) / OPEN**2
        b_ih[:hidden], b_ih[hidden : 2 * hidden], b_ih[3 * hidden :] = _GATE, -_GATE, _GATE
    else:  # r, z, n
        w_ih[2 * hidden :] = projection / OPEN
        w_hh[2 * hidden :] = (transition - _SHUT * one) / OPEN**2
        b_ih[:hidden], b_ih[hidden : 2 * hidden] = _GATE, -_GATE


def check_embedding(name: str, embedding: Any) -> torch.nn.Module:
    """A module with a weight [V, E]: torch.nn.Embedding, or ours."""
    weight = getattr(embedding, "weight", None)
    if not isinstance(embedding, torch.nn.Module) or not isinstance(weight, Tensor):
        raise TypeError(
            f"{name}: expected embedding to be a torch.nn.Embedding; got {type(embedding).__name__}"
        )
    if weight.dim() != 2 or not weight.numel():
        raise ValueError(
            f"{name}: expected embedding of shape [V >= 1, E >= 1]; got {list(weight.shape)}"
        )
    return embedding


def check_decay(name: str, decay: Any, size: int) -> float:
    """A number in (0, 1]; the usual one for None."""
    if decay is None:
        return usual_decay(size)
    check.rate(name, "decay", decay)
    if not 0 < decay <= 1:
        raise ValueError(f"{name}: expected decay in (0, 1]; got {decay}")
    return float(decay)


def check_one_of(name: str, what: str, value: Any, known: Any) -> str:
    """One of the names in ``known``."""
    if value not in known:
        raise ValueError(f"{name}: expected {what} among {', '.join(known)}; got {value!r}")
    return value


def check_vectors(name: str, vectors: Any, size: int) -> Tensor:
    """[B, D] of a floating dtype."""
    if not isinstance(vectors, Tensor) or not vectors.is_floating_point():
        got = vectors.dtype if isinstance(vectors, Tensor) else type(vectors).__name__
        raise TypeError(f"{name}: expected vectors to be a floating-point tensor; got {got}")
    if vectors.dim() != 2 or vectors.shape[1] != size:
        raise ValueError(
            f"{name}: expected vectors of shape [B, {size}]; got {list(vectors.shape)}"
        )
    return vectors


def check_ids(name: str, what: str, ids: Any, rows: int) -> Tensor:
    """[B, T >= 1] integers in 0..rows-1."""
    if not isinstance(ids, Tensor) or ids.dtype not in (torch.int32, torch.int64):
        got = ids.dtype if isinstance(ids, Tensor) else type(ids).__name__
        raise TypeError(f"{name}: expected {what} to be an int32 or int64 tensor; got {got}")
    if ids.dim() != 2 or ids.shape[1] < 1:
        raise ValueError(f"{name}: expected {what} of shape [B, T >= 1]; got {list(ids.shape)}")
    if ids.numel() and not torch.compiler.is_compiling():
        least, most = (int(n) for n in torch.aminmax(ids))
        if least < 0 or most >= rows:
            raise IndexError(
                f"{name}: expected {what} in 0..{rows - 1}; got {least if least < 0 else most}"
            )
    return ids
