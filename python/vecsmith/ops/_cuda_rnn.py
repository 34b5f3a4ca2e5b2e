"""From tensors to the raw pointers of ``vecsmith._cuda``: the CUDA backend of ``rnn``.

The kernels are the recurrence alone; what is a product over all steps at once is torch's. The
callers have checked shapes, dtypes and devices. Launches go to the current stream of the input's
device; nothing synchronizes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vecsmith.ops._cuda_launch import place_of
from vecsmith.ops._registry import cuda_module
from vecsmith.ops._rnn import _GATES, _SAVED, _address, checked_sizes

_CHOSEN = (0, 0, -1, 0)  # by the plan: units, groups, cluster, split
DTYPES = {torch.bfloat16: "bfloat16", torch.float16: "float16"}


def _ready(tensor: Tensor) -> Tensor:
    """Contiguous, and where 16 bytes can be read at once."""
    tensor = tensor.contiguous()
    return tensor.clone() if tensor.data_ptr() % 16 else tensor


@lru_cache(256)
def _plan(module: Any, cell: str, dtype: str, hidden: int, batch: int, *rest: Any) -> Any:
    backward, units, groups, cluster, split, device = rest
    return module.plan_rnn(
        cell=cell, dtype=dtype, hidden=hidden, batch=batch, backward=backward, units=units,
        groups=groups, cluster=cluster, split=split, device=device,
    )  # fmt: skip


@lru_cache(256)
def _misfit(module: Any, cell: str, dtype: str, hidden: int, batch: int, device: int) -> str | None:
    """What the plan says against a case."""
    try:
        for backward in (False, True):
            _plan(module, cell, dtype, hidden, batch, backward, *_CHOSEN, device)
    except ValueError as error:
        return str(error)
    return None


def refusal(
    cell: str, dtype: torch.dtype, hidden: int, batch: int, device: torch.device, module: Any = None
) -> str | None:
    """Why this backend cannot take a case, or None where it can."""
    if cell not in _SAVED:
        return f"there is no kernel of the cell {cell!r}"
    if dtype not in DTYPES:
        return f"there is no kernel for {dtype}"
    if batch == 0:
        return "there are no rows"
    where = place_of(device)["device"]
    try:
        return _misfit(module or cuda_module(), cell, DTYPES[dtype], hidden, batch, where)
    except (ImportError, RuntimeError) as error:  # not built, or not for this device
        return str(error)


class _Steps(NamedTuple):
    """Rows by step, as numbers, and on the device where the lengths differ."""

    sizes: list[int]
    starts: Tensor | None

    @property
    def batch(self) -> int:
        return self.sizes[0]


def _steps_of(batch_sizes: Tensor, input: Tensor, h0: Tensor) -> _Steps:
    sizes = checked_sizes(batch_sizes, input, h0)
    starts = None
    if sizes[-1] != sizes[0]:
        starts = torch.tensor([0, *accumulate(sizes)]).to(input.device, non_blocking=True)
    return _Steps(sizes, starts)


def _launch(
    name: str, module: Any, cell: str, dtype: torch.dtype, steps: _Steps, reverse: bool,
    hidden: int, cut: Sequence[int], device: torch.device, tensors: dict[str, Tensor | None],
) -> None:  # fmt: skip
    where = place_of(device)
    case = (cell, DTYPES[dtype], hidden, steps.batch, name == "rnn_backward", *cut)
    plan = _plan(module, *case, where["device"])
    tensors["counters"] = torch.zeros(plan["counters"], dtype=torch.int32, device=device)
    getattr(module, name)(
        cell=cell,
        dtype=DTYPES[dtype],
        hidden=hidden,
        batch=steps.batch,
        units=plan["units"],
        groups=plan["groups"],
        cluster=int(plan["cluster"]),
        split=plan["split"],
        starts=_address(steps.starts),
        steps=len(steps.sizes),
        reverse=reverse,
        **{key: _address(tensor) for key, tensor in tensors.items()},
        **where,
    )


def forward(
    input: Tensor,
    batch_sizes: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    cell: str,
    reverse: bool,
    save: bool,
    *,
    module: Any = None,
    cut: tuple[int, int, int, int] = _CHOSEN,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """A layer in one direction, as :func:`vecsmith.reference.rnn.rnn` computes it.

    Args: those of ``torch.ops.vecsmith.rnn``, all of bfloat16 or all of float16; H a multiple of 8.
        module: what stands in for ``vecsmith._cuda``.
        cut: how a launch is cut, but for tests the plan's choice: the units of a block, the groups
            that the rows are dealt out to, whether a group is a cluster, and how many blocks share
            the sums of their units.

    Returns: (output [N, H], last h [B, H], last c [B, H] or empty, and with ``save`` what the
        backward pass needs, else empty: every c [N, H] in float32, and the gates: LSTM i f g o
        [N, 4 H]; GRU r z n and the product that r scales [N, 4 H]; reset before r z n [N, 3 H]).

    Raises:
        ValueError: a dtype or a size that the kernels cannot take, or batch_sizes that do not fit.
        RuntimeError: CUDA reports an error.
    """
    module = module or cuda_module()
    _require(input.dtype)
    device, count, hidden = input.device, input.shape[0], h0.shape[1]
    steps = _steps_of(batch_sizes, input, h0)
    lstm = cell == "lstm"
    x = torch.nn.functional.linear(input, w_ih, b_ih)
    output = input.new_empty(count, hidden)
    # Where all gates are kept, and no more, they take the place of the input's part of them.
    gates = x if save and _SAVED[cell] == _GATES[cell] else None
    if gates is None:
        gates = input.new_empty((count, _SAVED[cell] * hidden) if save else 0)
    c = input.new_empty((count if save and lstm else 0, hidden), dtype=torch.float32)
    last_h = torch.empty_like(h0, memory_format=torch.contiguous_format)
    last_c = last_h.new_empty((h0.shape[0] if lstm else 0, hidden), dtype=torch.float32)
    scaled = torch.empty_like(last_h) if cell == "gru_reset_before" else None
    tensors = {
        "x": _ready(x),
        "weight": _ready(w_hh),
        "bias": None if b_hh is None else _ready(b_hh),
        "h0": _ready(h0),
        "c0": None if c0 is None else _ready(c0.float()),
        "output": output,
        "c": c,
        "gates": gates,
        "last_h": last_h,
        "last_c": last_c,
        "scaled": scaled,
    }
    _launch("rnn", module, cell, input.dtype, steps, reverse, hidden, cut, device, tensors)
    return output, last_h, last_c.to(input.dtype), c, gates


def _require(dtype: torch.dtype) -> None:
    if dtype not in DTYPES:
        raise ValueError(f"rnn on CUDA: expected bfloat16 or float16, got {dtype}")


def _states_before(steps: _Steps, reverse: bool, h0: Tensor, output: Tensor) -> Tensor:
    """The state that each row of each step began with, [N, H]."""
    sizes, batch = steps.sizes, steps.batch
    if steps.starts is None:
        inner = output[batch:] if reverse else output[: len(output) - batch]
        return torch.cat([inner, h0] if reverse else [h0, inner])
    # Entry e of a step is after entry e - (rows of the step before), or in reverse before entry
    # e + (rows of the step).
    device = output.device
    size = torch.tensor(sizes).to(device, non_blocking=True)
    entry = torch.arange(len(output), device=device)
    if not reverse:
        shift = torch.cat([size[:1], size[:-1]])
        entry = entry - shift.repeat_interleave(size, output_size=len(output))
        states = output.index_select(0, entry.clamp_(min=0))
        states[:batch] = h0
        return states
    entry = entry + size.repeat_interleave(size, output_size=len(output))
    states = output.index_select(0, entry.clamp_(max=len(output) - 1))
    # Row r begins at the last step that has it.
    lengths = torch.tensor(_lengths(sizes)).to(device, non_blocking=True)
    rows = torch.arange(batch, device=device)
    assert steps.starts is not None
    states[steps.starts[lengths - 1] + rows] = h0
    return states


def _lengths(sizes: list[int]) -> list[int]:
    """Of each row: how many steps have it."""
    lengths: list[int] = []
    for t in range(len(sizes), 0, -1):
        lengths += [t] * (sizes[t - 1] - len(lengths))
    return lengths


def backward(
    grad: Tensor | None,
    grad_h: Tensor | None,
    grad_c: Tensor | None,
    input: Tensor,
    batch_sizes: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    output: Tensor,
    c: Tensor,
    gates: Tensor,
    cell: str,
    reverse: bool,
    needs_input: bool,
    needs_weights: bool = True,
    *,
    module: Any = None,
    cut: tuple[int, int, int, int] = _CHOSEN,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of :func:`forward`: those of its results in, and what it kept.

    Returns: the gradients of input (empty without ``needs_input``), h0, c0 (empty but for "lstm"),
        w_ih, w_hh, b_ih and b_hh (empty where there is none, or without ``needs_weights``).

    Raises: as :func:`forward`.
    """
    module = module or cuda_module()
    _require(input.dtype)
    device, count, hidden = input.device, input.shape[0], h0.shape[1]
    steps = _steps_of(batch_sizes, input, h0)
    lstm, given_gates = cell == "lstm", _GATES[cell] * hidden
    h0 = _ready(h0)
    derived = input.new_empty(count, (4 if cell == "gru" else _GATES[cell]) * hidden)
    dh0 = h0.new_empty(h0.shape, dtype=torch.float32)
    dc0 = dh0.new_empty(h0.shape if lstm else (0, hidden))
    tensors = {
        "weight": _ready(w_hh.t()),
        "h0": h0,
        "c0": None if c0 is None else _ready(c0.float()),
        "output": output,
        "c": c,
        "gates": gates,
        "grad": None if grad is None else _ready(grad),
        "grad_h": None if grad_h is None else _ready(grad_h),
        "grad_c": None if grad_c is None else _ready(grad_c.float()),
        "derived": derived,
        "dh0": dh0,
        "dc0": dc0,
    }
    _launch("rnn_backward", module, cell, input.dtype, steps, reverse, hidden, cut, device, tensors)

    d_gates = derived[:, :given_gates]  # a GRU has the gradient of its product behind them
    d_input = d_gates @ w_ih if needs_input else input.new_empty(0)
    kind = input.dtype
    if not needs_weights:
        none = [input.new_empty(0) for _ in range(4)]
        return d_input, dh0.to(kind), dc0.to(kind), none[0], none[1], none[2], none[3]
    dw_ih = d_gates.t() @ input
    before = _states_before(steps, reverse, h0, output)
    dw_hh = torch.empty_like(w_hh, memory_format=torch.contiguous_format)
    db_hh = input.new_empty(0 if b_hh is None else given_gates)
    split = 2 * hidden if cell.startswith("gru") else given_gates
    n = derived[:, -hidden:]
    torch.mm(derived[:, :split].t(), before, out=dw_hh[:split])
    if cell == "gru":
        torch.mm(n.t(), before, out=dw_hh[split:])
    elif cell == "gru_reset_before":
        torch.mm(n.t(), gates[:, :hidden] * before, out=dw_hh[split:])
    db_ih = input.new_empty(0)
    if b_ih is not None:
        db_ih = d_gates.sum(0)
    if b_hh is not None:
        torch.sum(derived[:, :split], 0, out=db_hh[:split])
        if split < given_gates:
            torch.sum(n, 0, out=db_hh[split:])
    return d_input, dh0.to(kind), dc0.to(kind), dw_ih, dw_hh, db_ih, db_hh
