"""The operator ``rnn``: one recurrent layer over whole sequences, in one direction.

What it computes is written down in :mod:`vecsmith.reference.rnn`; how torch knows it, and how the
native module is called, in ``_rnn.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from vecsmith.ops import _checks as check
from vecsmith.ops import _cuda_rnn, _gpu_rnn, _rnn, _torch_rnn, _triton_rnn  # noqa: F401
from vecsmith.ops._registry import Backend, BackendUnavailable, Operator, choose, register
from vecsmith.reference import rnn as reference

_FAST = (torch.float32, torch.float16, torch.bfloat16)
_ALL = (*_FAST, torch.float64)
OPERATOR = register(
    Operator(
        "rnn",
        (
            Backend("native", "cpu", _FAST),
            Backend("torch", "any", _ALL),
            Backend("cuda", "cuda", tuple(_cuda_rnn.DTYPES)),
            Backend("triton", "cuda", _FAST),
            Backend("reference", "any", _ALL),
        ),
        ("rnn",),
    )
)


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
    w_hr: Tensor | None = None,
    w_out: Tensor | None = None,
    b_out: Tensor | None = None,
    norm: Sequence[Tensor] | None = None,
    zoneout: tuple[float, float] = (0.0, 0.0),
    keep: tuple[Tensor | None, Tensor | None] = (None, None),
    clip: float | None = None,
    backend: str | None = None,
    num_threads: int | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """A recurrent layer over whole sequences, in one direction (formulas:
    :mod:`vecsmith.reference.rnn`). Rows that have ended cost nothing.

    The native backend computes the cells "lstm", "gru", "gru_reset_before", "rnn_tanh" and
    "rnn_relu" on a CPU. States, gates and sums are float32; factors of products are bfloat16 for
    bfloat16 tensors, and for float32 with ``torch.set_float32_matmul_precision("medium")``, where
    the processor multiplies bfloat16 faster; with "high" they are split into two bfloat16 (a
    relative error of about 1e-5) where it has tiles (AMX). float16 is computed in float32. Up to 32
    rows in all are computed in float32 always. The bits do not depend on the number of threads.

    Where it cannot, torch's own layers compute the cells that torch has, "lstm" (also with
    ``w_hr``, for P < H), "gru", "rnn_tanh" and "rnn_relu", on every device and in every dtype, with
    the precision that torch is set to (``torch.backends.cudnn.allow_tf32``). On a GPU that goes
    before our own kernels, "cuda" (float16 and bfloat16, H a multiple of 8 that fits) and "triton",
    which no measurement has put first yet; GRUs that reset before have only these. Every other case
    goes to the reference, and so does what torch.func or forward-mode differentiation look at.

    Args:
        input: [N, I]: the inputs of step 0 of all B rows, then of step 1 of the rows that are
            longer, and so on (the layout of torch's PackedSequence).
        batch_sizes: [T] int64 on the CPU, not increasing, all >= 1; its sum is N.
        h0: [B, R], with B = batch_sizes[0] and R = H, or P with a projection.
        c0: [B, H] for "lstm", else None.
        w_ih, w_hh: [G H, I] and [G H, R]; gates in torch's order (LSTM: i f g o; GRU: r z n).
        b_ih, b_hh: [G H], or None.
        cell: "lstm", "gru", "gru_reset_before", "rnn_tanh", "rnn_relu" or "residual".
        reverse: read each row from its own end.
        w_hr: [P, H], a projection of h; "lstm" alone.
        w_out, b_out: [H, H] and [H]; "residual" alone.
        norm: layer normalization's tensors, as in the reference.
        zoneout, keep, clip: as in the reference.
        backend: "native", "torch", "cuda", "triton" or "reference" to force one.
        num_threads: default ``torch.get_num_threads()``.

    Returns:
        (output [N, R], last h [B, R], last c [B, H] or None). Twice differentiable.

    Raises:
        TypeError, ValueError: wrong types, shapes, devices, batch_sizes; a forced backend that does
            not have the cell or the options.
        RuntimeError: sequences of several lengths while a CUDA graph is captured.
        BackendUnavailable: a forced backend that cannot run.
    """
    name = "rnn"
    sizes = _check_sequences(name, input, batch_sizes)
    if sizes is not None and sizes[-1] != sizes[0]:
        check.refuse_capture(name, input, "sequences of one length, which lie on the host,")
    _check_parameters(
        *(name, cell, input, None if sizes is None else sizes[0]),
        *(h0, c0, w_ih, w_hh, b_ih, b_hh, w_hr),
    )
    options = (w_out, b_out, norm, *keep, clip)
    among = ["reference"]
    if not any(zoneout) and all(o is None for o in options):
        if w_hr is None and cell in _rnn.CELLS:
            among += ["native", "cuda", "triton"]
        if _torch_rnn.takes(cell, input, w_hh, w_hr):
            among.append("torch")
    threads = 0 if num_threads is None else check.threads(name, num_threads)
    chosen = _choose(input, h0, cell, among, backend)
    if chosen == "reference":
        return reference.rnn(
            *(input, batch_sizes, h0, c0, w_ih, w_hh, b_ih, b_hh),
            cell=cell,
            reverse=reverse,
            w_hr=w_hr,
            w_out=w_out,
            b_out=b_out,
            norm=norm,
            zoneout=zoneout,
            keep=keep,
            clip=clip,
        )
    reverse, kind = bool(reverse), input.dtype
    given: Any = (input, h0, c0, w_ih, w_hh, b_ih, b_hh)
    seen = check.is_seen((*given, w_hr))
    if chosen == "torch":
        return _torch_rnn.rnn(
            *(input, batch_sizes, None if seen else sizes, h0, c0),
            *(w_ih, w_hh, b_ih, b_hh, w_hr),
            cell=cell,
            reverse=reverse,
        )
    save = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in given)
    if chosen == "cuda":
        output, last_h, last_c, _, _ = torch.ops.vecsmith.rnn(
            *(input, batch_sizes, *given[1:], cell, reverse, 0, _rnn.CUDA, save)
        )
        return output, last_h, last_c if cell == "lstm" else None
    if chosen == "triton":
        return _triton_rnn.rnn(
            *(input, batch_sizes, h0, c0, w_ih, w_hh, b_ih, b_hh), cell=cell, reverse=reverse
        )
    if kind == torch.float16:
        given = [None if t is None else t.float() for t in given]
    rows, *given = (None if t is None else t.contiguous() for t in given)
    call: Any = torch.ops.vecsmith.rnn
    if not seen:  # the dispatcher takes longer than a small layer
        call = _Eager.apply if save else _rnn._forward
    unit = _rnn.chosen_unit(kind)
    output, last_h, last_c, _, _ = call(
        *(rows, batch_sizes, *given, cell, reverse, threads, unit, save)
    )
    last_c = last_c if cell == "lstm" else None
    if output.dtype == kind:
        return output, last_h, last_c
    return output.to(kind), last_h.to(kind), None if last_c is None else last_c.to(kind)


class _Eager(torch.autograd.Function):
    """``torch.ops.vecsmith.rnn`` without the dispatcher."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Any:
        output = _rnn._forward(*inputs)
        _rnn._forward_context(ctx, inputs, output)
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return _rnn._forward_backward(ctx, *grads)


def _choose(input: Tensor, h0: Tensor, cell: str, among: list[str], backend: str | None) -> str:
    if backend is not None and OPERATOR.backend(backend).name not in among:
        expected = " or ".join(repr(b.name) for b in OPERATOR.backends if b.name in among)
        raise ValueError(
            f"rnn: expected backend {expected} for this cell and these options; got {backend!r}"
        )
    kind, device = input.dtype, input.device.type
    if torch.compiler.is_compiling():  # which cannot look for modules
        if backend is not None:
            return backend
        if "native" in among and device == "cpu" and kind in _FAST:
            return "native"
        return "torch" if "torch" in among and not input.is_meta else "reference"
    if backend is None:
        # In float64 nothing else is expected of what torch has not, and no warning.
        double = kind == torch.float64 and "torch" not in among
        if double or len(among) == 1 or input.is_meta or check.is_transformed():
            return "reference"
    tried = backend == "cuda" or (backend is None and "torch" not in among)
    if device == "cuda" and tried and "cuda" in among:
        why = _cuda_rnn.refusal(cell, kind, h0.shape[1], h0.shape[0], input.device)
        if why is not None and backend == "cuda":
            raise BackendUnavailable(f"rnn: the cuda backend cannot take this case: {why}")
        if why is not None:
            among = [name for name in among if name != "cuda"]
    return choose(OPERATOR, device, kind, backend, among=among)


def _check_sequences(name: str, input: Tensor, batch_sizes: Tensor) -> list[int] | None:
    """batch_sizes as numbers; None where they cannot be known (a traced tensor)."""
    if not isinstance(input, Tensor) or not input.dtype.is_floating_point:
        kind = input.dtype if isinstance(input, Tensor) else type(input).__name__
        raise TypeError(f"{name}: expected input to be a floating point tensor; got {kind}")
    if input.dim() != 2:
        raise ValueError(f"{name}: expected input of shape [N, I]; got {list(input.shape)}")
    if not isinstance(batch_sizes, Tensor) or batch_sizes.dtype != torch.int64:
        raise TypeError(f"{name}: expected batch_sizes to be an int64 tensor")
    if batch_sizes.dim() != 1 or batch_sizes.device.type not in ("cpu", "meta"):
        raise ValueError(f"{name}: expected batch_sizes of shape [T] on the CPU")
    if torch.compiler.is_compiling() or isinstance(batch_sizes, FakeTensor) or batch_sizes.is_meta:
        return None
    sizes = batch_sizes.tolist()
    check.batch_sizes(name, sizes, input.shape[0])
    return sizes


def _check_parameters(
    name: str,
    cell: str,
    input: Tensor,
    batch: int | None,
    h0: Tensor,
    c0: Tensor | None,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    w_hr: Tensor | None,
) -> None:
    if cell not in reference.CELLS:
        known = ", ".join(repr(c) for c in reference.CELLS)
        raise ValueError(f"{name}: expected cell to be one of {known}; got {cell!r}")
    if (c0 is None) == (cell == "lstm"):
        raise ValueError(f"{name}: expected c0 with cell 'lstm' alone; got {cell!r}")
    if w_hr is not None and cell != "lstm":
        raise ValueError(f"{name}: expected w_hr with cell 'lstm' alone; got {cell!r}")
    gates = reference.CELLS[cell]
    if not isinstance(w_hh, Tensor) or w_hh.dim() != 2 or w_hh.shape[0] % gates:
        shape = list(w_hh.shape) if isinstance(w_hh, Tensor) else type(w_hh).__name__
        raise ValueError(f"{name}: expected w_hh of shape [{gates} H, R]; got {shape}")
    hidden = w_hh.shape[0] // gates
    size = hidden if w_hr is None else w_hr.shape[0]
    batch = h0.shape[0] if batch is None else batch
    for label, value, shape in (
        ("h0", h0, (batch, size)),
        ("c0", c0, (batch, hidden)),
        ("w_ih", w_ih, (gates * hidden, input.shape[1])),
        ("w_hh", w_hh, (gates * hidden, size)),
        ("b_ih", b_ih, (gates * hidden,)),
        ("b_hh", b_hh, (gates * hidden,)),
        ("w_hr", w_hr, (size, hidden)),
    ):
        if value is None:
            continue
        if not isinstance(value, Tensor):
            raise TypeError(f"{name}: expected {label} to be a torch.Tensor; got {type(value)}")
        if value.shape != shape:
            raise ValueError(
                f"{name}: expected {label} of shape {list(shape)}; got {list(value.shape)}"
            )
        if value.dtype != input.dtype or value.device != input.device:
            raise TypeError(
                f"{name}: expected {label} to be {input.dtype} on {input.device}; "
                f"got {value.dtype} on {value.device}"
            )
