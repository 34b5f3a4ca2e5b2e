"""A loop that decodes: one token after the other, each drawn from what the model says is next."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from vecsmith.ops import _checks as check

State = TypeVar("State")
# Whether all sequences have ended is asked once in so many steps: the answer has to be waited for.
_PATIENCE = 16


def _check(
    start: Any, max_length: int, temperature: Any, top_k: Any, top_p: Any, eos: int | None
) -> None:
    name = "generate"
    if not isinstance(start, Tensor):
        raise TypeError(f"{name}: expected start to be a torch.Tensor; got {type(start).__name__}")
    if start.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"{name}: expected start to be int32 or int64; got {start.dtype}")
    if start.dim() not in (1, 2) or (start.dim() == 2 and start.shape[1] == 0):
        raise ValueError(
            f"{name}: expected start of shape [B] or [B, S >= 1]; got {list(start.shape)}"
        )
    check.integer(name, "max_length", max_length, low=0)
    check.rate(name, "temperature", temperature)
    if top_k is not None:
        check.integer(name, "top_k", top_k, low=1)
    if top_p is not None:
        check.rate(name, "top_p", top_p)
        if not 0 < top_p <= 1:
            raise ValueError(f"{name}: expected top_p in (0, 1]; got {top_p}")
    if eos is not None:
        check.integer(name, "eos", eos, low=0)


def _draw(
    logits: Tensor,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    generator: torch.Generator | None,
) -> Tensor:
    """A token for each row of logits [B, V]: [B] int64."""
    if temperature == 0:
        return logits.argmax(1)
    logits = logits.float()
    # From the largest downwards, so that a low temperature leads to -inf and never to inf.
    logits = (logits - logits.amax(1, keepdim=True)) / max(temperature, 1e-30)
    tokens = None
    if top_k is not None or (top_p is not None and top_p < 1):
        count = logits.shape[1] if top_k is None else min(top_k, logits.shape[1])
        logits, tokens = logits.topk(count, 1)  # from the most likely downwards
    if top_p is not None and top_p < 1:
        shares = logits.softmax(1)
        before = shares.cumsum(1) - shares
        outside = before >= top_p
        outside[:, 0] = False  # where top_p is less than a rounding error
        logits = logits.masked_fill(outside, -math.inf)
    chosen = torch.multinomial(logits.softmax(1), 1, generator=generator)
    return (chosen if tokens is None else tokens.gather(1, chosen))[:, 0]


@torch.no_grad()
def generate(
    step: Callable[[Tensor, State], tuple[Tensor, State]],
    state: State,
    start: Tensor,
    max_length: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    eos: int | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, State]:
    """Tokens that a model writes, B sequences at once.

    With y_0 = start, for t = 1, 2, ...:

        logits, state = step(y_{t-1}, state),   p = softmax(logits / temperature)
        y_t ~ p, restricted to the top_k likeliest, then to the fewest of these that hold top_p

    The state is handed from step to step and never looked at: it stays where it is. The tokens stay
    on their device too, and are waited for once in 16 steps, and only if there is an ``eos``.

    Args:
        step: the model: (tokens [B] int64, state) -> (logits [B, V], the next state). Set the
            modules in it to eval() first.
        state: whatever ``step`` takes first: a tensor, a tuple, None.
        start: [B], the first tokens (<sos>), or [B, S], a beginning that is read first. int32 or
            int64.
        max_length: how many tokens are written at most.
        temperature: how even the draw is; 0 takes the likeliest token, the first of equals.
        top_k: draw among so many tokens.
        top_p: draw among the likeliest tokens that together have this probability, in (0, 1]; at
            least one is left (Holtzman et al. 2020: nucleus sampling).
        eos: the token that ends a sequence. What follows it in its row is eos too.
        generator: of the random numbers, on start's device; torch's own by default.

    Returns: (tokens [B, L] int64, without ``start``; L is max_length, or less where all rows have
        ended, so that the longest just ends with eos; the state after the last step).

    Raises:
        TypeError, ValueError: for arguments that do not fit.
        RuntimeError: where logits are NaN, as torch.multinomial.
    """
    _check(start, max_length, temperature, top_k, top_p, eos)
    beginning = start.long() if start.dim() == 2 else start.long()[:, None]
    token = beginning[:, 0]
    for n in range(1, beginning.shape[1]):
        _, state = step(token, state)
        token = beginning[:, n]
    written = token.new_full((max_length, token.shape[0]), 0 if eos is None else eos)
    ended = torch.zeros_like(token, dtype=torch.bool)
    for t in range(max_length):
        logits, state = step(token, state)
        if logits.dim() != 2 or logits.shape[0] != token.shape[0]:
            raise ValueError(
                f"generate: expected step to give logits of shape [{token.shape[0]}, V]; "
                f"got {list(logits.shape)}"
            )
        token = _draw(logits, temperature, top_k, top_p, generator)
        if eos is not None:
            token = token.masked_fill(ended, eos)
            ended = ended | (token == eos)
        written[t] = token
        if eos is not None and t % _PATIENCE == _PATIENCE - 1 and bool(ended.all()):
            break
    if eos is not None and written.numel():
        # The step at which a row ends, and one more; max_length where it does not.
        lengths = (written == eos).long().cumsum(0).eq(0).sum(0) + 1
        written = written[: int(lengths.max())]
    return written.t().contiguous(), state
