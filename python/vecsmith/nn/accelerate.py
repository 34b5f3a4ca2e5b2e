"""Swaps the layers of an existing model for ours, in place."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

import torch

from vecsmith.nn import _swapped
from vecsmith.nn.embedding import Embedding, EmbeddingBag
from vecsmith.nn.recurrent_cells import GRUCell, LSTMCell, RNNCell

_LOG = logging.getLogger("vecsmith")
_Model = TypeVar("_Model", bound=torch.nn.Module)


def _has_fast_path(layer: torch.nn.Module) -> bool:
    """Whether ours would be another computation than torch's: not with these options."""
    return getattr(layer, "max_norm", None) is None and not getattr(
        layer, "scale_grad_by_freq", False
    )


def _is_not_double(layer: torch.nn.Module) -> bool:
    """Whether the kernels take the weights: in float64 torch's layers are faster."""
    return all(parameter.dtype != torch.float64 for parameter in layer.parameters())


# The class of torch (exactly: a subclass may compute something else), ours, which is a subclass of
# it with the same attributes, and whether an instance gains by it.
_SWAPS: dict[
    type[torch.nn.Module], tuple[type[torch.nn.Module], Callable[[torch.nn.Module], bool]]
] = {
    torch.nn.Embedding: (Embedding, _has_fast_path),
    torch.nn.EmbeddingBag: (EmbeddingBag, _has_fast_path),
    torch.nn.LSTM: (_swapped.LSTM, _is_not_double),
    torch.nn.GRU: (_swapped.GRU, _is_not_double),
    torch.nn.RNN: (_swapped.RNN, _is_not_double),
    torch.nn.LSTMCell: (LSTMCell, _is_not_double),
    torch.nn.GRUCell: (GRUCell, _is_not_double),
    torch.nn.RNNCell: (RNNCell, _is_not_double),
}


def accelerate(model: _Model, *, verbose: bool = False) -> _Model:
    """Swaps the layers of ``model`` that vecsmith has faster ones for, in place, and returns it.

    A layer stays the same object and only changes its class, to ours, which is a subclass of
    torch's. So parameters, ties between them, optimizers that hold them, hooks, names, the
    ``state_dict`` and references from elsewhere stay valid.

    Swapped: torch.nn's Embedding, EmbeddingBag, LSTM, GRU, RNN, LSTMCell, GRUCell and RNNCell. Left
    alone: subclasses of them (parametrized layers too), layers whose ``forward`` was replaced, and
    those for which there is no faster path: tables with ``max_norm`` or ``scale_grad_by_freq``,
    recurrent layers in float64. A second call finds nothing to do. Call it before torch.compile.

    An LSTM, GRU or RNN of torch's stays an instance of its class, and so torch.compile breaks its
    graph there as before (``torch._dynamo.config.allow_rnn = True`` lets it go on; a model that is
    built of :class:`vecsmith.nn.LSTM` needs nothing).

    Args:
        model: any module, also a layer itself.
        verbose: print what is swapped. It is logged at level INFO (logger "vecsmith") in any case.

    Returns: ``model``.

    Raises: TypeError for something that is not a torch.nn.Module.
    """
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"accelerate: expected a torch.nn.Module; got {type(model).__name__}")
    count = 0
    for name, layer in model.named_modules():
        ours, gains = _SWAPS.get(type(layer), (None, None))
        if ours is None or gains is None or not gains(layer) or "forward" in vars(layer):
            continue
        before = type(layer)
        layer.__class__ = ours
        count += 1
        line = f"{name or 'the model itself'}: {before.__name__}({layer.extra_repr()})"
        _LOG.info("accelerate: %s", line)
        if verbose:
            print(f"vecsmith.accelerate: {line}")
    if verbose:
        print(f"vecsmith.accelerate: {count} layer{'s' * (count != 1)} swapped")
    return model
