"""``rnn`` on a GPU: Triton kernels for the operators that :mod:`vecsmith.ops._rnn` registers, with
its fakes and derivatives. The arguments have been checked by :mod:`vecsmith.ops.rnn`.

What a backward pass needs is kept in the dtype of the input. Importing this does not import Triton.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vecsmith.ops import _rnn


def _contiguous(*tensors: Tensor | None) -> list[Any]:
    return [None if tensor is None else tensor.contiguous() for tensor in tensors]


def _checked(batch_sizes: Tensor, input: Tensor, h0: Tensor) -> Tensor:
    """batch_sizes as they are now."""
    return torch.tensor(_rnn.checked_sizes(batch_sizes, input, h0), device="cpu")


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
    from vecsmith.kernels import rnn as kernels

    sizes = _checked(batch_sizes, input, h0)
    given = _contiguous(h0, c0, w_ih, w_hh, b_ih, b_hh)
    with torch.autocast(input.device.type, enabled=False):
        output, last_h, last_c, c, gates = kernels.rnn(
            input.contiguous(), sizes, *given, cell=cell, reverse=reverse, save=save
        )
    if last_c is None:
        last_c = h0.new_empty(0, h0.shape[1])
    if c is None:
        c = input.new_empty(0, h0.shape[1])
    if gates is None:
        gates = input.new_empty((input.shape[0], 0) if save else (0,))
    return output, last_h, last_c, c, gates


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
    from vecsmith.kernels import rnn as kernels

    sizes = _checked(batch_sizes, input, h0)
    grad, grad_h, grad_c = _contiguous(grad, grad_h, grad_c)
    input, h0, c0, w_ih, w_hh = _contiguous(input, h0, c0, w_ih, w_hh)
    with torch.autocast(input.device.type, enabled=False):
        d_input, dh0, dc0, dw_ih, dw_hh, db_ih, db_hh = kernels.rnn_backward(
            *(grad, grad_h, grad_c, input, sizes, h0, c0, w_ih, w_hh, output, c, gates),
            cell=cell,
            reverse=reverse,
            needs_input=needs_input,
            needs_weights=needs_weights,
        )

    def or_nothing(found: Tensor | None, *shape: int) -> Tensor:
        return input.new_empty(shape or (0,)) if found is None else found

    return (
        or_nothing(d_input),
        dh0,
        or_nothing(dc0, 0, h0.shape[1]),
        or_nothing(dw_ih),
        or_nothing(dw_hh),
        or_nothing(None if b_ih is None else db_ih),
        or_nothing(None if b_hh is None else db_hh),
    )


class _Interpreted(torch.autograd.Function):
    """The operator of CPU tensors in Triton's interpreter, where its name means the native
    module's kernels. Once differentiable."""

    @staticmethod
    def forward(ctx, *arguments):
        *tensors, cell, reverse, save = arguments
        ctx.how = {"cell": cell, "reverse": reverse, "num_threads": 0, "unit": _rnn.TRITON}
        output, last_h, last_c, c, gates = _forward(*tensors, **ctx.how, save=save)
        ctx.save_for_backward(*tensors, output, c, gates)
        ctx.set_materialize_grads(False)
        return output, last_h, last_c

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad, grad_h, grad_c):
        needs = ctx.needs_input_grad
        grad_c = grad_c if ctx.how["cell"] == "lstm" else None
        d_input, *rest = _backward(
            *(grad, grad_h, grad_c, *ctx.saved_tensors),
            **ctx.how,
            needs_input=needs[0],
            needs_weights=any(needs[4:8]),
        )
        rest = [g if n else None for g, n in zip(rest, needs[2:8], strict=True)]
        return (d_input if needs[0] else None, None, *rest, None, None, None)


def rnn(
    input: Tensor,
    batch_sizes: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    *,
    cell: str,
    reverse: bool = False,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """A layer, as :func:`vecsmith.reference.rnn.rnn`, in one of the cells of ``_rnn.CELLS``.

    float32, float16 or bfloat16 on a GPU, or on the CPU in Triton's interpreter. Sums, gates and
    the states that are not multiplied are float32. Returns (output, last h, last c or None).
    Differentiable, on a GPU twice.
    """
    tensors = (input, batch_sizes, h0, c0, w_ih, w_hh, b_ih, b_hh)
    save = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    if input.device.type == "cpu":
        results = _Interpreted.apply(*tensors, cell, bool(reverse), save)
    else:
        results = torch.ops.vecsmith.rnn(*(*tensors, cell, bool(reverse), 0, _rnn.TRITON, save))
    output, last_h, last_c = results[:3]
    return output, last_h, last_c if cell == "lstm" else None
