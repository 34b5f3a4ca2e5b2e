"""``rnn`` as torch knows it: registered operators with their fakes and derivatives, over the native
module. The arguments have been checked by :mod:`vecsmith.ops.rnn`.

The forward pass keeps the gates, and for an LSTM every cell, so that the backward pass has one
product with the recurrent weight for each step, as the forward pass has. Gradients of the input and
of the weights are products over all steps at once.
"""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from vecsmith.ops._pages import empty_pages
from vecsmith.ops._registry import native
from vecsmith.reference import rnn as reference

CELLS = ("lstm", "gru", "gru_reset_before", "rnn_tanh", "rnn_relu")
_GATES = reference.CELLS
_SAVED = {"lstm": 4, "gru": 4, "gru_reset_before": 3, "rnn_tanh": 0, "rnn_relu": 0}

_LIBRARY = torch.library.Library("vecsmith", "FRAGMENT")
_PARAMETERS = "Tensor h0, Tensor? c0, Tensor w_ih, Tensor w_hh, Tensor? b_ih, Tensor? b_hh"
_HOW = "str cell, bool reverse, int num_threads"
# -> output, last h, last c, and what a backward pass needs: every c, gates
_LIBRARY.define(
    f"rnn(Tensor input, Tensor batch_sizes, {_PARAMETERS}, {_HOW}, bool save) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)"
)
# -> gradients of input, h0, c0, w_ih, w_hh, b_ih, b_hh
_LIBRARY.define(
    "rnn_backward(Tensor? grad, Tensor? grad_h, Tensor? grad_c, Tensor input, Tensor batch_sizes, "
    f"{_PARAMETERS}, Tensor output, Tensor c, Tensor gates, {_HOW}, bool needs_input) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None or tensor.numel() == 0 else tensor.data_ptr()


def _workers(num_threads: int) -> int:
    return num_threads or torch.get_num_threads()


def _job(cell, reverse, sizes, w_hh, b_hh, h0, c0, output, c, gates) -> tuple[Any, ...]:
    """A sequence as the native module takes it."""
    # Only the reset gate keeps the recurrent bias apart from the input's.
    bias = b_hh if cell == "gru" else None
    addresses = [_address(t) for t in (w_hh, bias, h0, c0, output, c, gates)]
    return (cell, reverse, sizes, h0.shape[1], *addresses)


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


def _last(sizes: list[int], reverse: bool) -> slice | Tensor:
    """Where each row's last state is in the output."""
    if reverse:
        return slice(0, sizes[0])
    if sizes[-1] == sizes[0]:
        return slice(sum(sizes) - sizes[0], None)
    starts = [0, *accumulate(sizes)]
    lengths = [0] * sizes[0]
    for size in sizes:
        for row in range(size):
            lengths[row] += 1
    return torch.tensor([starts[n - 1] + row for row, n in enumerate(lengths)])


def _forward(input, batch_sizes, h0, c0, w_ih, w_hh, b_ih, b_hh, cell, reverse, num_threads, save):
    sizes = _sizes_of(batch_sizes, input, h0)
    hidden, count = h0.shape[1], input.shape[0]
    bias = b_ih
    if cell != "gru" and b_hh is not None:
        bias = b_hh if b_ih is None else b_ih + b_hh
    output = empty_pages(count, hidden)
    x = gates = input.new_empty(0)
    if save:
        gates = empty_pages(count, _SAVED[cell] * hidden)
        # Where all gates are kept, and no more, they take the place of the input's part of them.
        x = gates if _SAVED[cell] == _GATES[cell] else x
    c = empty_pages(count if save and cell == "lstm" else 0, hidden)
    last_c = torch.empty_like(h0 if cell == "lstm" else h0[:0])
    native().rnn(
        _job(cell, reverse, sizes, w_hh, b_hh, h0, c0, output, c, gates),
        (*(_address(t) for t in (input, w_ih, bias, x)), input.shape[1]),
        *(_address(last_c), _workers(num_threads)),
    )
    last_h = output[_last(sizes, reverse)].clone()
    return output, last_h, last_c, c, gates


def _forward_fake(
    input, batch_sizes, h0, c0, w_ih, w_hh, b_ih, b_hh, cell, reverse, num_threads, save
):
    count, hidden = input.shape[0], h0.shape[1]
    lstm = cell == "lstm"
    return (
        input.new_empty(count, hidden),
        torch.empty_like(h0),
        torch.empty_like(h0 if lstm else h0[:0]),
        input.new_empty(count if save and lstm else 0, hidden),
        input.new_empty((count, _SAVED[cell] * hidden) if save else (0,)),
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
    needs_input,
):
    sizes = _sizes_of(batch_sizes, input, h0)
    given = [None if g is None else g.contiguous() for g in (grad, grad_h, grad_c)]
    dh0, dc0 = torch.empty_like(h0), torch.empty_like(h0 if cell == "lstm" else h0[:0])
    d_input = empty_pages(*input.shape) if needs_input else input.new_empty(0)
    dw_ih, dw_hh = torch.empty_like(w_ih), torch.empty_like(w_hh)
    db_ih, db_hh = (input.new_empty(0 if b is None else b.shape) for b in (b_ih, b_hh))
    native().rnn_backward(
        _job(cell, reverse, sizes, w_hh, b_hh, h0, c0, output, c, gates),
        (_address(input), _address(w_ih), input.shape[1]),
        tuple(_address(g) for g in given),
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
    needs_input,
):
    def like(tensor: Tensor | None) -> Tensor:
        return input.new_empty(0 if tensor is None else tensor.shape)

    return (
        like(input if needs_input else None),
        *(like(t) for t in (h0, h0 if cell == "lstm" else h0[:0], w_ih, w_hh, b_ih, b_hh)),
    )


# --- autograd -------------------------------------------------------------------------------------


def _forward_context(ctx, inputs, output):
    *tensors, cell, reverse, num_threads, _ = inputs
    out, _, _, c, gates = output
    ctx.save_for_backward(*tensors, out, c, gates)
    ctx.how = (cell, reverse, num_threads)
    ctx.mark_non_differentiable(c, gates)
    ctx.set_materialize_grads(False)


def _forward_backward(ctx, grad, grad_h, grad_c, *_):
    input, batch_sizes, h0, c0, w_ih, w_hh, b_ih, b_hh, *saved = ctx.saved_tensors
    if grad is None and grad_h is None and grad_c is None:
        return (None,) * 12
    needs = ctx.needs_input_grad
    d_input, *rest = torch.ops.vecsmith.rnn_backward(
        *(grad, grad_h, grad_c if ctx.how[0] == "lstm" else None),
        *(input, batch_sizes, h0, c0, w_ih, w_hh, b_ih, b_hh, *saved, *ctx.how, needs[0]),
    )
    rest = [g if n else None for g, n in zip(rest, needs[2:8], strict=True)]
    return (d_input if needs[0] else None, None, *rest, None, None, None, None)


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
    return (g_out, g_h, g_c, again, None, *rest, *(None,) * 7)


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
