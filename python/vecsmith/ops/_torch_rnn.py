"""``rnn`` by torch's own fused layers: cuDNN on a GPU, ATen and oneDNN on a CPU, elsewhere what the
device has. The arguments have been checked by :mod:`vecsmith.ops.rnn`.

An eager call records torch's own graph. On most devices that cannot be differentiated twice (not
cuDNN's, for one). There it is kept inside an autograd.Function, whose backward pass goes through
the reference when it is to be differentiated itself. A traced call is a registered operator, which
can hand on tensors and no graph: its backward pass computes the forward pass again.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from vecsmith.ops import _checks as check
from vecsmith.reference import rnn as reference

_TORCH: Any = torch
_VF = _TORCH._VF
# The layers, and cuDNN's numbers for them.
_LAYERS = {
    "rnn_relu": (_VF.rnn_relu, 0),
    "rnn_tanh": (_VF.rnn_tanh, 1),
    "lstm": (_VF.lstm, 2),
    "gru": (_VF.gru, 3),
}

_LIBRARY = torch.library.Library("vecsmith", "FRAGMENT")
_GIVEN = (
    "Tensor input, Tensor batch_sizes, Tensor h0, Tensor? c0, Tensor w_ih, Tensor w_hh, "
    "Tensor? b_ih, Tensor? b_hh, Tensor? w_hr, str cell, bool reverse"
)
# -> output, last h, last c
_LIBRARY.define(f"rnn_torch({_GIVEN}) -> (Tensor, Tensor, Tensor)")
# -> gradients of input, h0, c0, w_ih, w_hh, b_ih, b_hh, w_hr; empty where there is no need
_LIBRARY.define(
    f"rnn_torch_backward(Tensor? grad, Tensor? grad_h, Tensor? grad_c, {_GIVEN}, bool[] needs) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)

_Given = Sequence[Tensor | None]  # input, h0, c0, w_ih, w_hh, b_ih, b_hh, w_hr


def takes(cell: str, input: Tensor, w_hh: Tensor, w_hr: Tensor | None) -> bool:
    """Whether torch has such a layer. It knows a projection by states of unequal length."""
    if cell not in _LAYERS or input.shape[1] == 0 or w_hh.shape[0] == 0:
        return False
    return w_hr is None or 0 < w_hr.shape[0] < w_hr.shape[1]


def rnn(
    input: Tensor,
    batch_sizes: Tensor,
    sizes: list[int] | None,
    h0: Tensor,
    c0: Tensor | None,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    w_hr: Tensor | None,
    *,
    cell: str,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The operator. ``sizes``: batch_sizes as numbers, None in a call that is traced."""
    if (b_ih is None) != (b_hh is None):  # torch has both or none
        b_ih, b_hh = (w_ih.new_zeros(w_ih.shape[0]) if b is None else b for b in (b_ih, b_hh))
    states = (h0, c0, w_ih, w_hh, b_ih, b_hh, w_hr)
    if sizes is None:
        output, h, c = torch.ops.vecsmith.rnn_torch(input, batch_sizes, *states, cell, reverse)
        return output, h, c if cell == "lstm" else None
    given = (input, *states)
    train = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in given)
    if train and not _is_twice_differentiable(input.device):
        output, h, *c = _Layer.apply(cell, reverse, sizes, *given)
        return output, h, c[0] if c else None
    return _layer(cell, reverse, sizes, train, _flat(cell, given))


# --- the layer ------------------------------------------------------------------------------------


def _is_twice_differentiable(device: torch.device) -> bool:
    """Whether torch's graph of a layer is, on this device."""
    return device.type == "cpu"


def _is_cudnns(tensor: Tensor) -> bool:
    """Whether cuDNN computes the layers of such tensors."""
    return (
        tensor.is_cuda and torch.backends.cudnn.enabled and _TORCH._use_cudnn_rnn_flatten_weight()
    )


def _flat(cell: str, given: _Given) -> list[Tensor | None]:
    """With the weights as cuDNN wants them, one behind the other: otherwise it would copy them
    itself, and warn. On other devices with their gradients."""
    weights: list[Tensor] = [w.contiguous() for w in given[3:] if w is not None]
    first, w_hr = weights[0], given[7]
    if _is_cudnns(first):
        # As parameters of their own: these get another storage, and nobody else's version changes.
        weights = [torch.nn.Parameter(w.data, requires_grad=False) for w in weights]
        projected = 0 if w_hr is None else w_hr.shape[0]
        hidden = weights[1].shape[0] // reference.CELLS[cell]
        with torch.cuda.device_of(first), torch.no_grad():
            _TORCH._cudnn_rnn_flatten_weight(
                *(weights, len(weights), first.shape[1], _LAYERS[cell][1], hidden, projected),
                *(1, False, False),  # one layer, not batch_first, one direction
            )
    following = iter(weights)
    return [*given[:3], *(None if w is None else next(following) for w in given[3:])]


def _from_the_ends(sizes: list[int], device: torch.device) -> Tensor:
    """The rows when every sequence is read from its own end: [N], its own inverse."""
    counts = torch.tensor(sizes, device="cpu")
    goes_on = torch.arange(sizes[0], device="cpu") < counts[:, None]  # [T, B]
    step, row = goes_on.nonzero().unbind(1)
    starts = counts.cumsum(0) - counts
    return (starts[goes_on.sum(0)[row] - 1 - step] + row).to(device, non_blocking=True)


def _layer(
    cell: str, reverse: bool, sizes: list[int], train: bool, given: _Given
) -> tuple[Tensor, Tensor, Tensor | None]:
    """torch's layer, and torch's gradients."""
    rows, h0, c0, *weights = given
    assert rows is not None
    assert h0 is not None
    device, w_hr = rows.device, weights[-1]
    h = h0.contiguous()[None]
    hx: Any = h if c0 is None else (h, c0.contiguous()[None])
    weights = [w for w in weights if w is not None]
    options = (weights, len(weights) > 3, 1, 0.0, train, False)  # one layer, no dropout, one way
    steps, batch = len(sizes), sizes[0]
    padded = sizes[-1] == batch
    reverse = reverse and steps > 1
    order = _from_the_ends(sizes, device) if reverse and not padded else None
    with ExitStack() as stack:
        if torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type):
            stack.enter_context(torch.autocast(device.type, enabled=False))
        if w_hr is not None and device.type == "cpu":
            stack.enter_context(warnings.catch_warnings())
            warnings.filterwarnings("ignore", "LSTM with projections is not supported with oneDNN")
        if padded:
            rows = rows.reshape(steps, batch, rows.shape[1])
            rows = rows.flip(0) if reverse else rows
            output, *last = _LAYERS[cell][0](rows, hx, *options, False)
            output = (output.flip(0) if reverse else output).reshape(steps * batch, h.shape[2])
        else:
            rows = rows.contiguous() if order is None else rows.index_select(0, order)
            # A new tensor: torch reads its memory as it lies there.
            counts = torch.tensor(sizes, device="cpu")
            output, *last = _LAYERS[cell][0](rows, counts, hx, *options)
            output = output if order is None else output.index_select(0, order)
    return output, last[0][0], last[1][0] if c0 is not None else None


# --- derivatives ----------------------------------------------------------------------------------


def _twins(cell: str, given: _Given, needs: Sequence[bool]) -> list[Tensor | None]:
    """Leaves with the same numbers."""
    with torch.no_grad():
        twins = _flat(cell, [None if t is None else t.detach() for t in given])
    for twin, needed in zip(twins, needs, strict=True):
        if twin is not None and needed:
            twin.requires_grad_()
    return twins


def _gradients(
    results: Sequence[Tensor | None],
    grads: Sequence[Tensor | None],
    leaves: _Given,
    needs: Sequence[bool],
    **how: bool,
) -> list[Tensor | None]:
    """The gradient of each leaf that has need of one."""
    pairs = [(r, g) for r, g in zip(results, grads, strict=True) if r is not None and g is not None]
    wanted = [t for t, needed in zip(leaves, needs, strict=True) if t is not None and needed]
    found = iter(
        torch.autograd.grad(
            *([r for r, _ in pairs], wanted, [g for _, g in pairs]), allow_unused=True, **how
        )
    )
    return [
        next(found) if n and t is not None else None for t, n in zip(leaves, needs, strict=True)
    ]


def _by_reference(
    cell: str,
    reverse: bool,
    batch_sizes: Tensor,
    given: _Given,
    grads: Sequence[Tensor | None],
    needs: Sequence[bool],
) -> list[Tensor | None]:
    """The gradients as functions of ``given`` and ``grads`` that have derivatives of any order."""
    twins = [t.view_as(t) if t is not None and n else t for t, n in zip(given, needs, strict=True)]
    input, *states, w_hr = twins
    results = reference.rnn(
        *(input, batch_sizes, *states),  # pyright: ignore[reportArgumentType]
        cell=cell,
        reverse=reverse,
        w_hr=w_hr,
    )
    return _gradients(results, grads, twins, needs, create_graph=True)


class _Layer(torch.autograd.Function):
    """The layer with its graph inside.

    That graph hangs on the results that are saved, and so it goes when those of an ordinary
    operator would."""

    @staticmethod
    def forward(ctx: Any, cell: str, reverse: bool, sizes: list[int], *given: Tensor | None) -> Any:
        needs = ctx.needs_input_grad[3:]
        twins = _twins(cell, given, needs)
        with torch.enable_grad():
            results = [r for r in _layer(cell, reverse, sizes, True, twins) if r is not None]
        ctx.save_for_backward(*given, *twins, *results)
        ctx.how = (cell, reverse, sizes)
        ctx.set_materialize_grads(False)
        return tuple(r.detach() for r in results)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        if all(g is None for g in grads):
            return (None,) * 11
        saved, (cell, reverse, sizes) = ctx.saved_tensors, ctx.how
        given, twins, results = saved[:8], saved[8:16], saved[16:]
        needs = ctx.needs_input_grad[3:]
        if torch.is_grad_enabled():
            grads = (*grads, None)[:3]
            counts = torch.tensor(sizes, device="cpu")
            found = _by_reference(cell, reverse, counts, given, grads, needs)
        else:
            found = _gradients(results, grads, twins, needs, retain_graph=True)
        return (None, None, None, *found)


# --- traced ---------------------------------------------------------------------------------------


def _sizes_of(batch_sizes: Tensor, input: Tensor, h0: Tensor) -> list[int]:
    sizes = batch_sizes.tolist()
    check.batch_sizes("rnn", sizes, input.shape[0])
    if sizes[0] != h0.shape[0]:
        raise ValueError(
            f"rnn: expected batch_sizes that begin with {h0.shape[0]}, the rows of h0; got {sizes}"
        )
    return sizes


def _forward(input, batch_sizes, *rest):
    *states, cell, reverse = rest
    sizes = _sizes_of(batch_sizes, input, states[0])
    with torch.no_grad():
        given = _flat(cell, (input, *states))
        output, h, c = _layer(cell, reverse, sizes, False, given)
    # No two results of an operator may share memory.
    return output.contiguous(), h.clone(), states[0].new_empty(0) if c is None else c.clone()


def _forward_fake(input, batch_sizes, *rest):
    h0, c0 = rest[:2]
    output = input.new_empty(input.shape[0], h0.shape[1])
    return output, input.new_empty(h0.shape), input.new_empty(0 if c0 is None else c0.shape)


@contextmanager
def _recording() -> Iterator[None]:
    """Autograd is at work, also where an operator is computed, which is below it: under a dispatch
    mode, for one."""
    include = _TORCH._C._dispatch_tls_local_include_set()
    exclude = _TORCH._C._dispatch_tls_local_exclude_set()
    exclude = exclude.remove(_TORCH._C.DispatchKey.AutogradFunctionality)
    with _TORCH._C._ForceDispatchKeyGuard(include, exclude), torch.enable_grad():
        yield


def _backward(grad, grad_h, grad_c, input, batch_sizes, *rest):
    *states, cell, reverse, needs = rest
    given = (input, *states)
    sizes = _sizes_of(batch_sizes, input, states[0])
    with _recording():
        twins = _twins(cell, given, needs)
        results = _layer(cell, reverse, sizes, True, twins)
        found = _gradients(results, (grad, grad_h, grad_c), twins, needs)
    return tuple(
        input.new_empty(0) if not n or t is None else torch.zeros_like(t) if g is None else g
        for g, t, n in zip(found, given, needs, strict=True)
    )


def _backward_fake(grad, grad_h, grad_c, input, batch_sizes, *rest):
    *states, _, _, needs = rest
    return tuple(
        input.new_empty(t.shape if n and t is not None else 0)
        for t, n in zip((input, *states), needs, strict=True)
    )


def _forward_context(ctx, inputs, output):
    *tensors, cell, reverse = inputs
    ctx.save_for_backward(*tensors)
    ctx.how = (cell, reverse)
    ctx.set_materialize_grads(False)


def _forward_backward(ctx, *grads):
    if all(g is None for g in grads):
        return (None,) * 11
    input, batch_sizes, *states = ctx.saved_tensors
    cell, reverse = ctx.how
    grads = (*grads[:2], grads[2] if cell == "lstm" else None)
    needs = [ctx.needs_input_grad[0], *ctx.needs_input_grad[2:9]]
    if torch.is_grad_enabled():
        found = _by_reference(cell, reverse, batch_sizes, (input, *states), grads, needs)
    else:
        found = torch.ops.vecsmith.rnn_torch_backward(
            *grads, input, batch_sizes, *states, cell, reverse, needs
        )
        found = [g if n else None for g, n in zip(found, needs, strict=True)]
    return (found[0], None, *found[1:], None, None)


for _name, _impl, _fake in (
    ("rnn_torch", _forward, _forward_fake),
    ("rnn_torch_backward", _backward, _backward_fake),
):
    _LIBRARY.impl(_name, _impl, "CompositeExplicitAutograd")
    torch.library.register_fake(f"vecsmith::{_name}", _fake)
torch.library.register_autograd(
    "vecsmith::rnn_torch", _forward_backward, setup_context=_forward_context, lib=_LIBRARY
)
