"""``rnn`` as torch knows it: registered operators with their fakes and derivatives, over the native
module. The arguments have been checked by :mod:`vecsmith.ops.rnn`.

The forward pass keeps the gates, and for an LSTM every cell, so that the backward pass has one
product with the recurrent weight for each step, as the forward pass has. Gradients of the input and
of the weights are products over all steps at once. States and cells are carried in float32.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from vecsmith.ops import _checks as check
from vecsmith.ops._pages import empty_pages
from vecsmith.ops._registry import BackendUnavailable, native
from vecsmith.reference import rnn as reference

CELLS = ("lstm", "gru", "gru_reset_before", "rnn_tanh", "rnn_relu")
_GATES = reference.CELLS
_SAVED = {"lstm": 4, "gru": 4, "gru_reset_before": 3, "rnn_tanh": 0, "rnn_relu": 0}

_LIBRARY = torch.library.Library("vecsmith", "FRAGMENT")
_PARAMETERS = "Tensor h0, Tensor? c0, Tensor w_ih, Tensor w_hh, Tensor? b_ih, Tensor? b_hh"
_HOW = "str cell, bool reverse, int num_threads, int unit"
# -> output, last h, last c, and what a backward pass needs: every c, gates
_LIBRARY.define(
    f"rnn(Tensor input, Tensor batch_sizes, {_PARAMETERS}, {_HOW}, bool save) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)"
)
# -> gradients of input, h0, c0, w_ih, w_hh, b_ih, b_hh
_LIBRARY.define(
    "rnn_backward(Tensor? grad, Tensor? grad_h, Tensor? grad_c, Tensor input, Tensor batch_sizes, "
    f"{_PARAMETERS}, Tensor output, Tensor c, Tensor gates, {_HOW}, bool needs_input, "
    "bool needs_weights) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)


def _address(tensor: Tensor | None) -> int:
    if tensor is None or tensor.numel() == 0:
        return 0
    address = tensor.data_ptr()
    if address == 0:
        raise RuntimeError("rnn: expected tensors with memory; got one whose storage was freed")
    return address


def _workers(num_threads: int) -> int:
    return num_threads or torch.get_num_threads()


# The `unit` of the registered operators: what the native module's products are computed in, as
# csrc/cpu/rnn.h has it; on a GPU, whose kernels compute.
FLOAT, BFLOAT16, SPLIT, TRITON, CUDA = range(5)


@functools.cache
def _has_native() -> bool:
    try:
        native()
    except BackendUnavailable:
        return False
    return True


def multiplies_bfloat16() -> bool:
    """Whether the native module multiplies bfloat16, faster than floats, on this processor."""
    return _has_native() and native().rnn_matrix_units() > 0


def unit_of(dtype: torch.dtype, precision: str) -> int:
    """What the native module multiplies in, for tensors of this dtype and with this
    torch.get_float32_matmul_precision(): bfloat16 where the processor multiplies it faster than
    floats; for "high" floats in two parts, where there are tiles."""
    units = native().rnn_matrix_units()
    if dtype == torch.bfloat16 or (dtype == torch.float32 and precision == "medium"):
        return BFLOAT16 if units else FLOAT
    return SPLIT if dtype == torch.float32 and precision == "high" and units == 2 else FLOAT


@torch.compiler.assume_constant_result
def chosen_unit(dtype: torch.dtype) -> int:
    """What it is now."""
    return unit_of(dtype, torch.get_float32_matmul_precision())


def _kept_types(unit: int, dtype: torch.dtype) -> tuple[torch.dtype, torch.dtype]:
    """Of the cells and the gates that a backward pass needs."""
    if unit in (TRITON, CUDA):
        return torch.float32 if unit == CUDA else dtype, dtype
    return torch.float32, dtype if unit == BFLOAT16 else torch.float32


def _job(cell, reverse, sizes, input, h0, c0, w_ih, w_hh, b_ih, b_hh, unit, output, c, gates):
    """A sequence as the native module takes it."""
    tensors = (input, w_ih, w_hh, b_hh, h0, c0, output, c, gates, b_ih)
    half = input.dtype == torch.bfloat16
    return (cell, reverse, sizes, h0.shape[1], unit, half, [_address(t) for t in tensors])


def _sizes_of(batch_sizes: Tensor, input: Tensor, h0: Tensor) -> list[int]:
    """batch_sizes as numbers. They are looked at again here, where they are used: a traced call has
    not seen them, and somebody may have written into them since the forward pass."""
    sizes = batch_sizes.tolist()
    if not sizes or sum(sizes) != input.shape[0] or sizes[0] != h0.shape[0]:
        raise ValueError(
            f"rnn: expected batch_sizes that begin with {h0.shape[0]}, the rows of h0, and add up "
            f"to {input.shape[0]}, the rows of input; got {sizes}"
        )
    return sizes


def checked_sizes(batch_sizes: Tensor, input: Tensor, h0: Tensor) -> list[int]:
    """The same for a GPU's kernels, which must not run past what they were given; the native module
    looks at the order itself."""
    sizes = _sizes_of(batch_sizes, input, h0)
    check.batch_sizes("rnn", sizes, input.shape[0])
    return sizes


def _forward(
    input,
    batch_sizes,
    h0,
    c0,
    w_ih,
    w_hh,
    b_ih,
    b_hh,
    cell,
    reverse,
    num_threads,
    unit,
    save,
):
    sizes = _sizes_of(batch_sizes, input, h0)
    hidden, count = h0.shape[1], input.shape[0]
    of_cells, of_gates = _kept_types(unit, input.dtype)
    output = empty_pages(count, hidden, dtype=input.dtype, device=input.device)
    x = gates = input.new_empty(0, dtype=of_gates)
    if save:
        gates = empty_pages(count, _SAVED[cell] * hidden, dtype=of_gates, device=input.device)
        # Where gates are kept as floats they take the place of the input's part.
        if _SAVED[cell] and gates.dtype == torch.float32:
            x = gates
    cells = count if save and cell == "lstm" else 0
    c = empty_pages(cells, hidden, dtype=of_cells, device=input.device)
    last_h = torch.empty_like(h0)
    last_c = torch.empty_like(h0 if cell == "lstm" else h0[:0])
    job = _job(
        *(cell, reverse, sizes, input, h0, c0, w_ih, w_hh, b_ih, b_hh, unit, output, c, gates)
    )
    native().rnn(
        *(job, input.shape[1], _address(x), _address(last_h), _address(last_c)),
        _workers(num_threads),
    )
    return output, last_h, last_c, c, gates


def _forward_fake(
    input,
    batch_sizes,
    h0,
    c0,
    w_ih,
    w_hh,
    b_ih,
    b_hh,
    cell,
    reverse,
    num_threads,
    unit,
    save,
):
    count, hidden = input.shape[0], h0.shape[1]
    lstm, saved = cell == "lstm", (count, _SAVED[cell] * hidden) if save else (0,)
    of_cells, of_gates = _kept_types(unit, input.dtype)
    return (
        input.new_empty(count, hidden),
        torch.empty_like(h0),
        torch.empty_like(h0 if lstm else h0[:0]),
        input.new_empty((count if save and lstm else 0, hidden), dtype=of_cells),
        input.new_empty(saved, dtype=of_gates),
    )


def _backward(
    grad,
    grad_h,
    grad_c,
    input,
    batch_sizes,
    h0,
    c0,
    w_ih,
    w_hh,
    b_ih,
    b_hh,
    output,
    c,
    gates,
    cell,
    reverse,
    num_threads,
    unit,
    needs_input,
    needs_weights,
):
    sizes = _sizes_of(batch_sizes, input, h0)
    given = [None if g is None else g.contiguous() for g in (grad, grad_h, grad_c)]
    dh0, dc0 = torch.empty_like(h0), torch.empty_like(h0 if cell == "lstm" else h0[:0])
    d_input = input.new_empty(0)
    if needs_input:
        d_input = empty_pages(*input.shape, dtype=input.dtype, device=input.device)
    dw_ih = torch.empty_like(w_ih) if needs_weights else input.new_empty(0)
    dw_hh = torch.empty_like(w_hh) if needs_weights else input.new_empty(0)
    biases = [None if b is None or not needs_weights else b.shape for b in (b_ih, b_hh)]
    db_ih, db_hh = (input.new_empty(0 if shape is None else shape) for shape in biases)
    job = _job(
        *(cell, reverse, sizes, input, h0, c0, w_ih, w_hh, b_ih, b_hh, unit, output, c, gates)
    )
    native().rnn_backward(
        *(job, input.shape[1], tuple(_address(g) for g in given)),
        [_address(t) for t in (dh0, dc0, d_input, dw_ih, dw_hh, db_ih, db_hh)],
        _workers(num_threads),
    )
    return d_input, dh0, dc0, dw_ih, dw_hh, db_ih, db_hh


def _backward_fake(
    grad,
    grad_h,
    grad_c,
    input,
    batch_sizes,
    h0,
    c0,
    w_ih,
    w_hh,
    b_ih,
    b_hh,
    output,
    c,
    gates,
    cell,
    reverse,
    num_threads,
    unit,
    needs_input,
    needs_weights,
):
    def like(tensor: Tensor | None) -> Tensor:
        return input.new_empty(0 if tensor is None else tensor.shape)

    parameters = (w_ih, w_hh, b_ih, b_hh) if needs_weights else (None,) * 4
    return (
        like(input if needs_input else None),
        *(like(t) for t in (h0, h0 if cell == "lstm" else h0[:0], *parameters)),
    )


def step(
    cell: str, input: Tensor, h: Tensor, c: Tensor | None, parameters: tuple[Tensor | None, ...]
) -> tuple[Tensor, Tensor | None] | None:
    """(h', c') of one step, input [B, I], parameters (w_ih, w_hh, b_ih, b_hh): the operator with
    nothing around it, for loops that decode, where a call takes less time than the machinery of
    operators. None, and nothing done, where somebody looks on (autograd, torch.func, tracing, a
    dispatch mode), or where these are not plain, contiguous tensors of one kind that fit."""
    tensors = (input, h, c, *parameters)
    if torch.is_grad_enabled() or check.is_seen(tensors) or input.dim() != 2:
        return None
    kind = input.dtype
    (batch, inputs), hidden = input.shape, h.shape[-1]
    if not batch or not hidden or kind not in (torch.float32, torch.bfloat16) or not _has_native():
        return None
    rows = _GATES[cell] * hidden
    state, bias = (batch, hidden), (rows,)
    w_ih, w_hh, b_ih, b_hh = parameters
    shapes = (input.shape, state, state, (rows, inputs), (rows, hidden), bias, bias)
    for tensor, shape in zip(tensors, shapes, strict=True):
        if tensor is None:
            continue
        if (
            tensor.shape != shape
            or tensor.dtype is not kind
            or not tensor.is_cpu
            or tensor.layout is not torch.strided
            or not tensor.is_contiguous()
            or tensor.is_neg()
        ):
            return None
    unit = unit_of(kind, "highest")
    output = torch.empty_like(h)
    last_c = None if c is None else torch.empty_like(c)
    job = _job(
        *(cell, False, [batch], input, h, c, w_ih, w_hh, b_ih, b_hh, unit, output, None, None)
    )
    native().rnn(job, inputs, 0, 0, _address(last_c), torch.get_num_threads())
    return output, last_c


# --- autograd -------------------------------------------------------------------------------------


def _forward_context(ctx, inputs, output):
    *tensors, cell, reverse, num_threads, unit, _ = inputs
    out, _, _, c, gates = output
    ctx.save_for_backward(*tensors, out, c, gates)
    ctx.how = (cell, reverse, num_threads, unit)
    ctx.mark_non_differentiable(c, gates)
    ctx.set_materialize_grads(False)


def _forward_backward(ctx, grad, grad_h, grad_c, *_):
    input, batch_sizes, h0, c0, w_ih, w_hh, b_ih, b_hh, *saved = ctx.saved_tensors
    if grad is None and grad_h is None and grad_c is None:
        return (None,) * 13
    needs = ctx.needs_input_grad
    d_input, *rest = torch.ops.vecsmith.rnn_backward(
        *(grad, grad_h, grad_c if ctx.how[0] == "lstm" else None),
        *(input, batch_sizes, h0, c0, w_ih, w_hh, b_ih, b_hh, *saved, *ctx.how),
        *(needs[0], any(needs[4:8])),
    )
    rest = [g if n else None for g, n in zip(rest, needs[2:8], strict=True)]
    return (d_input if needs[0] else None, None, *rest, *(None,) * 5)


def _backward_context(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:11])
    ctx.how = inputs[14:16]
    ctx.set_materialize_grads(False)


def _backward_backward(ctx, *grads):
    """Through the reference: a second derivative is rare, and its formula the same."""
    g_out, g_h, g_c, input, batch_sizes, *parameters = ctx.saved_tensors
    cell, reverse = ctx.how
    again_differentiable = torch.is_grad_enabled()

    def twin(tensor: Tensor | None) -> Any:
        if tensor is None:
            return None
        if again_differentiable and tensor.requires_grad:
            return tensor.view_as(tensor)  # what is computed of it hangs on the tensor itself
        return tensor.detach().requires_grad_()

    with torch.enable_grad():
        twins = [twin(t) for t in (g_out, g_h, g_c, input, *parameters)]
        g_out, g_h, g_c, again, *rest = twins
        results = reference.rnn(again, batch_sizes, *rest, cell=cell, reverse=reverse)
        pairs = zip(results, (g_out, g_h, g_c), strict=True)
        pairs = [(r, g) for r, g in pairs if r is not None and g is not None]
        wanted = [(t, g) for t, g in zip([again, *rest], grads, strict=True) if t is not None]
        wanted = [(t, g) for t, g in wanted if g is not None and g.shape == t.shape]
        made = torch.autograd.grad(
            *([r for r, _ in pairs], [t for t, _ in wanted], [g for _, g in pairs]),
            create_graph=True,
            allow_unused=True,
        )
        made = [(m, g) for m, (_, g) in zip(made, wanted, strict=True) if m is not None]
        found = torch.autograd.grad(
            *([m for m, _ in made], [t for t in twins if t is not None], [g for _, g in made]),
            create_graph=again_differentiable,
            allow_unused=True,
        )
    answers = iter(found)
    g_out, g_h, g_c, again, *rest = [None if t is None else next(answers) for t in twins]
    return (g_out, g_h, g_c, again, None, *rest, *(None,) * 9)


for _name, _impl, _fake in (
    ("rnn", _forward, _forward_fake),
    ("rnn_backward", _backward, _backward_fake),
):
    _LIBRARY.impl(_name, _impl, "CPU")
    torch.library.register_fake(f"vecsmith::{_name}", _fake)
torch.library.register_autograd(
    "vecsmith::rnn", _forward_backward, setup_context=_forward_context, lib=_LIBRARY
)
torch.library.register_autograd(
    "vecsmith::rnn_backward",
    _backward_backward,
    setup_context=_backward_context,
    lib=_LIBRARY,
)
