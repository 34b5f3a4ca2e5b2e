"""The recurrent layers that :func:`vecsmith.accelerate` makes of torch's.

They are ours, and torch's too: code of the model that asks ``isinstance(layer, torch.nn.GRU)``
hears what it heard before. torch.compile goes by the same question, and breaks its graph at the
layer as it did before, unless ``torch._dynamo.config.allow_rnn`` is on.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import torch

from vecsmith.nn import recurrent


def _forward(layer: Any, *arguments: Any) -> Any:
    return super(_Torchs, layer).forward(*arguments)  # pyright: ignore[reportAttributeAccessIssue]


@functools.cache
def _uncompiled() -> Callable[..., Any]:
    return torch.compiler.disable(_forward)


class _Torchs:
    """Keeps torch.compile, where it has broken its graph at the layer, from going on with the
    functions below it one by one; it does not with torch's layers either."""

    def forward(self, input: Any, hx: Any = None, lengths: Any = None) -> Any:
        """As the class of ours."""
        if torch.compiler.is_compiling() or "torch._dynamo" not in sys.modules:
            return _forward(self, input, hx, lengths)
        return _uncompiled()(self, input, hx, lengths)


class GRU(_Torchs, recurrent.GRU, torch.nn.GRU):  # pyright: ignore
    """:class:`vecsmith.nn.GRU` in the place of a torch.nn.GRU."""


class RNN(_Torchs, recurrent.RNN, torch.nn.RNN):  # pyright: ignore
    """:class:`vecsmith.nn.RNN` in the place of a torch.nn.RNN."""
