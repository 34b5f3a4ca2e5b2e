"""Swaps the layers of an existing model for ours, in place."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

import torch

from vecsmith.nn import _swapped
from vecsmith.nn.embedding import Embedding, EmbeddingBag
from vecsmith.ops._rnn import multiplies_bfloat16

_LOG = logging.getLogger("vecsmith")
_Model = TypeVar("_Model", bound=torch.nn.Module)


def _has_fast_path(layer: torch.nn.Module) -> bool:
    """Whether ours would be another computation than torch's: not with these options."""
    return getattr(layer, "max_norm", None) is None and not getattr(
        layer, "scale_grad_by_freq", False
    )


def _has_kernel(layer: torch.nn.Module) -> bool:
    """Whether a kernel of ours takes the weights: elsewhere torch's layers are faster."""
    kinds = {(p.dtype, p.device.type) for p in layer.parameters()}
    if kinds == {(torch.bfloat16, "cpu")}:
        return multiplies_bfloat16()
    return kinds == {(torch.float32, "cpu")}


# The class of torch (exactly: a subclass may compute something else), ours, which is a subclass of
# it with the same attributes, and whether an instance gains by it.
_SWAPS: dict[
    type[torch.nn.Module], tuple[type[torch.nn.Module], Callable[[torch.nn.Module], bool]]
] = {
    torch.nn.Embedding: (Embedding, _has_fast_path),
    torch.nn.EmbeddingBag: (EmbeddingBag, _has_fast_path),
    torch.nn.GRU: (_swapped.GRU, _has_kernel),
    torch.nn.RNN: (_swapped.RNN, _has_kernel),
}


def accelerate(model: _Model, *, verbose: bool = False) -> _Model:
    """Swaps the layers of ``model`` that vecsmith has faster ones for, in place, and returns it.

    A layer stays the same object and only changes its class, to ours, which is a subclass of
    torch's. So parameters, ties between them, optimizers that hold them, hooks, names, the
    ``state_dict`` and references from elsewhere stay valid.

    Swapped: torch.nn's Embedding, EmbeddingBag, GRU and RNN. Left alone: subclasses of them
    (parametrized layers too), layers whose ``forward`` was replaced, and those for which there is
    no faster path: tables with ``max_norm`` or ``scale_grad_by_freq``, recurrent layers that are
    not on a CPU in float32, or in bfloat16 where the processor multiplies it faster. (An LSTM of
    ours is about as fast as torch's in float32, and cells are slower while gradients are recorded:
    use :class:`vecsmith.nn.LSTM` by name, for ``lengths`` or its options.) A second call finds
    nothing to do. Call it before torch.compile.

    A GRU or RNN of torch's stays an instance of its class, and so torch.compile breaks its graph
    there as before (``torch._dynamo.config.allow_rnn = True`` lets it go on; a model that is built
    of :class:`vecsmith.nn.GRU` needs nothing).

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
