"""``embedding_bag`` as torch knows it: registered operators with their fakes and derivatives, the
choice of a backend, and the way around torch's dispatcher for eager calls on ordinary tensors.

The arguments have been checked by :mod:`vecsmith.ops.embedding_bag`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from vecsmith.ops import _checks as check
from vecsmith.ops._bag_checks import bag_count, check_contents
from vecsmith.ops._registry import Backend, Operator, choose, native, register, run
from vecsmith.ops._update_rule import UpdateRule
from vecsmith.reference import embedding_bag as reference

_FAST = (torch.float32, torch.float16, torch.bfloat16, torch.uint8)
OPERATOR = register(
    Operator(
        "embedding_bag",
        (
            Backend("native", "cpu", _FAST),
            Backend("triton", "cuda", _FAST),
            Backend("reference", "any", (*_FAST, torch.float64)),
        ),
        ("embedding_bag", "embedding_bag_gradient", "embedding_bag_update"),
    )
)

# The kernels' numbers for modes and for dtypes (csrc/cpu/embedding_bag.h).
_MODE = {"none": 0, "sum": 1, "mean": 2, "max": 3}
_TYPE = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2, torch.uint8: 3}

_LIBRARY = torch.library.Library("vecsmith", "FRAGMENT")
_BAGS = "Tensor indices, Tensor? offsets, Tensor? per_sample_weights"
# (torch calls functionalized operators with an argument "mode" of its own)
_HOW = "str pooling, bool include_last_offset, int padding_idx"
_WHERE = "int num_threads, str backend"
_LIBRARY.define(
    f"embedding_bag(Tensor weight, {_BAGS}, {_HOW}, bool sparse, {_WHERE}) -> (Tensor, Tensor)"
)
_LIBRARY.define(
    f"embedding_bag_backward(Tensor grad, Tensor weight, {_BAGS}, Tensor? positions, {_HOW}, "
    f"bool needs_weight, bool needs_weights, {_WHERE}) -> (Tensor, Tensor)"
)
_LIBRARY.define(
    f"embedding_bag_gradient(Tensor grad, {_BAGS}, Tensor? positions, {_HOW}, int num_rows, "
    f"{_WHERE}) -> (Tensor, Tensor)"
)
_LIBRARY.define(
    f"embedding_bag_update(Tensor(a!) weight, Tensor(b!)[] state, Tensor grad, {_BAGS}, "
    f"Tensor? positions, {_HOW}, str rule, float[] settings, int step, {_WHERE}, "
    "Tensor? lr=None, Tensor(c!)? steps=None) -> ()"
)

_SETTINGS = (
    *("lr", "eps", "beta1", "beta2", "momentum", "dampening", "nesterov"),
    *("weight_decay", "lr_decay", "maximize"),
)


def settings_of(rule: UpdateRule) -> list[float]:
    """The numbers of a rule, for the operator's schema; 0 for a rate that is a tensor."""
    values = [getattr(rule, name) for name in _SETTINGS]
    return [0.0 if isinstance(value, Tensor) else float(value) for value in values]


def _rule(
    name: str, settings: list[float], step: int, lr: Tensor | None, steps: Tensor | None
) -> UpdateRule:
    values: dict[str, Any] = dict(zip(_SETTINGS, settings, strict=True))
    values["nesterov"], values["maximize"] = bool(values["nesterov"]), bool(values["maximize"])
    if lr is not None:
        values["lr"] = lr
    return UpdateRule(name, step=step if steps is None else steps, **values)


# --- the registered operators ---------------------------------------------------------------------


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None or tensor.numel() == 0 else tensor.data_ptr()


def _workers(num_threads: int) -> int:
    return num_threads or torch.get_num_threads()


_NATIVE: set[tuple[str, torch.dtype]] = set()  # where the choice has been made before


def _choose(tensor: Tensor, backend: str) -> str:
    key = (tensor.device.type, tensor.dtype)
    if not backend and key in _NATIVE:
        return "native"
    if key[0] == "meta":
        return "meta"
    chosen = choose(OPERATOR, *key, backend or None)
    if not backend and chosen == "native":
        _NATIVE.add(key)
    return chosen


def _bags(
    indices: Tensor,
    offsets: Tensor | None,
    per_sample_weights: Tensor | None,
    mode: str,
    include_last_offset: bool,
    padding_idx: int,
    rows: int,
) -> tuple[int, ...]:
    """The bags of a job as the native module takes them."""
    length = 1 if indices.dim() == 1 else indices.shape[1]
    return (
        _address(indices),
        indices.dtype == torch.int64,
        indices.numel(),
        _address(offsets),
        -1 if offsets is None else offsets.numel(),
        indices.shape[0] if offsets is None else offsets.numel() - include_last_offset,
        length,
        _address(per_sample_weights),
        0 if per_sample_weights is None else _TYPE[per_sample_weights.dtype],
        _MODE[mode],
        padding_idx,
        rows,
    )


def forward(
    weight,
    indices,
    offsets,
    per_sample_weights,
    mode,
    include_last_offset,
    padding_idx,
    sparse,
    num_threads,
    backend,
):
    rows = weight.shape[0]
    chosen = _choose(weight, backend)
    if chosen == "native":
        job, output = _native_job(
            *(weight, indices, offsets, per_sample_weights),
            *(mode, include_last_offset, padding_idx),
        )
        native().embedding_bag([job], _workers(num_threads))
        return output
    if chosen == "meta":
        return _forward_fake(
            *(weight, indices, offsets, per_sample_weights, mode, include_last_offset),
            *(padding_idx, sparse, num_threads, backend),
        )
    if chosen == "reference":
        check.refuse_capture("embedding_bag", weight, "the triton backend")
    check_contents("embedding_bag", indices, offsets, include_last_offset, rows)
    if chosen == "triton":
        from vecsmith.kernels import embedding_bag as kernels

        return kernels.embedding_bag(
            *(weight, indices, offsets, per_sample_weights),
            mode=mode,
            include_last_offset=include_last_offset,
            padding_idx=padding_idx,
        )
    if mode == "none":
        return reference.embedding(weight, indices, padding_idx), torch.empty(
            0, dtype=torch.int64, device=weight.device
        )
    return reference.embedding_bag(
        weight, indices, offsets, per_sample_weights, mode, include_last_offset, padding_idx
    )


def _native_job(
    weight, indices, offsets, per_sample_weights, mode, include_last_offset, padding_idx
):
    """(a look-up as the native module takes it, (out, positions) that it will fill)."""
    quantized = weight.dtype == torch.uint8
    dim = weight.shape[1] - 8 * quantized
    count = bag_count(indices, offsets, include_last_offset)
    out = torch.empty((count, dim), dtype=torch.float32 if quantized else weight.dtype)
    positions = torch.empty((count, dim) if mode == "max" else (0,), dtype=torch.int64)
    bags = _bags(
        *(indices, offsets, per_sample_weights),
        *(mode, include_last_offset, padding_idx, weight.shape[0]),
    )
    table = (weight.data_ptr(), _TYPE[weight.dtype], dim, weight.stride(0))
    return (bags, table, _address(out), _address(positions)), (out, positions)


def forward_many(requests):
    """forward of each: one call of the native module, one launch of the Triton kernel."""
    chosen = {_choose(request[0], request[9]) for request in requests}
    # One launch for all needs the addresses of the tables on the device: a copy from the host.
    if chosen == {"triton"} and not check.is_capturing(requests[0][0]) and _are_alike(requests):
        return _one_launch(requests)
    if chosen != {"native"}:
        return [forward(*request) for request in requests]
    jobs, outputs = zip(*(_native_job(*request[:7]) for request in requests), strict=True)
    native().embedding_bag(list(jobs), _workers(requests[0][8]))
    return list(outputs)


def _are_alike(requests) -> bool:
    """Whether one launch takes them: one dtype, one way of pooling, as many bags, no padding."""
    kinds = {
        (weight.dtype, weight.device, mode, padding_idx, bag_count(indices, offsets, last))
        + ((None,) if samples is None else (samples.dtype,))
        for weight, indices, offsets, samples, mode, last, padding_idx, *_ in requests
    }
    _, _, mode, padding_idx, count, _ = next(iter(kinds))
    return (
        len(kinds) == 1
        and mode != "none"
        and padding_idx < 0
        and count > 0
        and all(request[0].is_contiguous() for request in requests)
    )


def _one_launch(requests):
    """forward of each of these (:func:`_are_alike`)."""
    from vecsmith.kernels import embedding_bag as kernels
    from vecsmith.kernels._table_batch import TableBatch

    tables, mode = [request[0] for request in requests], requests[0][4]
    all_indices, all_offsets, all_samples, begins = [], [], [], [0]
    for table, indices, offsets, samples, _, last, *_ in requests:
        check_contents("embedding_bag", indices, offsets, last, table.shape[0])
        count = bag_count(indices, offsets, last)
        if offsets is None:
            offsets = torch.arange(count, device=table.device) * indices.shape[1]
        entries = int(offsets[-1]) if last else indices.numel()
        all_indices.append(indices.reshape(-1)[:entries].long())
        all_offsets.append(offsets[:count].long() + begins[-1])
        if samples is not None:
            all_samples.append(samples.reshape(-1)[:entries])
        begins.append(begins[-1] + entries)
    all_offsets.append(all_offsets[0].new_tensor([begins[-1]]))
    batch = TableBatch(tables)
    out, positions = kernels.embedding_bags(
        *(batch, torch.cat(all_indices), torch.cat(all_offsets)),
        torch.cat(all_samples) if all_samples else None,
        mode=mode,
        include_last_offset=True,
    )
    dims = [table.shape[1] - 8 * batch.packed for table in tables]
    outputs = out.split(dims, 1)
    if mode != "max":
        return [(output, positions.new_empty(0)) for output in outputs]
    # Positions count from the beginning of all indices.
    parts = zip(positions.split(dims, 1), begins, strict=False)
    found = [torch.where(part < 0, part, part - begin) for part, begin in parts]
    return list(zip(outputs, found, strict=True))


def _forward_fake(
    weight,
    indices,
    offsets,
    per_sample_weights,
    mode,
    include_last_offset,
    padding_idx,
    sparse,
    num_threads,
    backend,
):
    quantized = weight.dtype == torch.uint8
    shape = (
        bag_count(indices, offsets, include_last_offset),
        weight.shape[1] - 8 * quantized,
    )
    out = weight.new_empty(shape, dtype=torch.float32 if quantized else weight.dtype)
    return out, indices.new_empty(shape if mode == "max" else (0,), dtype=torch.int64)


def _gradient_impl(
    grad,
    indices,
    offsets,
    per_sample_weights,
    positions,
    mode,
    include_last_offset,
    padding_idx,
    num_rows,
    num_threads,
    backend,
):
    chosen = _choose(grad, backend)
    if chosen == "native":
        rows, values = native().embedding_bag_gradient(
            _bags(
                *(indices, offsets, per_sample_weights),
                *(mode, include_last_offset, padding_idx, num_rows),
            ),
            (grad.data_ptr(), _TYPE[grad.dtype], grad.shape[1]),
            _address(positions),
            lambda count: _allocate(grad, count),
            _workers(num_threads),
        )
        return rows, values
    name = "embedding_bag_gradient"
    check.refuse_capture(
        name, grad, "no sparse gradient, whose number of rows the host must know (sparse=False, or "
        "vecsmith.optim.apply_optimizer_in_backward, make none),"
    )  # fmt: skip
    check_contents(name, indices, offsets, include_last_offset, num_rows)
    arguments = (grad, indices, offsets, per_sample_weights, positions)
    how = {
        "mode": mode,
        "include_last_offset": include_last_offset,
        "padding_idx": padding_idx,
    }
    if chosen == "triton":
        from vecsmith.kernels import embedding_bag as kernels

        grad, indices, *rest = arguments
        return kernels.embedding_bag_gradient(grad, indices, num_rows, *rest, **how)
    return reference.embedding_bag_gradient(*arguments, **how)


def gradient_of_fixed_size(
    grad: Tensor,
    indices: Tensor,
    offsets: Tensor | None,
    per_sample_weights: Tensor | None,
    positions: Tensor | None,
    mode: str,
    include_last_offset: bool,
    padding_idx: int,
    num_rows: int,
) -> tuple[Tensor, Tensor]:
    """embedding_bag_gradient for a CUDA graph, as long as ``indices``: what there is too much of
    names row num_rows, which :func:`update` with ``padding_idx=num_rows`` leaves out."""
    from vecsmith.kernels import embedding_bag as kernels

    name = "embedding_bag_gradient"
    if _choose(grad, "") != "triton":
        check.refuse_capture(name, grad, "the triton backend")
    check_contents(name, indices, offsets, include_last_offset, num_rows)
    return kernels.embedding_bag_gradient(
        *(grad, indices, num_rows, offsets, per_sample_weights, positions),
        mode=mode,
        include_last_offset=include_last_offset,
        padding_idx=padding_idx,
        fixed=True,
    )


def _allocate(grad: Tensor, count: int) -> tuple[tuple[Tensor, Tensor], int, int]:
    """Room for the gradients of ``count`` rows: the tensors and their addresses."""
    rows = torch.empty(count, dtype=torch.int64)
    values = torch.empty(count, grad.shape[1], dtype=grad.dtype)
    return (rows, values), rows.data_ptr(), values.data_ptr()


def _gradient_fake(
    grad,
    indices,
    offsets,
    per_sample_weights,
    positions,
    mode,
    include_last_offset,
    padding_idx,
    num_rows,
    num_threads,
    backend,
):
    count = torch.library.get_ctx().new_dynamic_size()
    rows = indices.new_empty((count,), dtype=torch.int64)
    return rows, grad.new_empty((count, grad.shape[1]))


def _backward_impl(
    grad,
    weight,
    indices,
    offsets,
    per_sample_weights,
    positions,
    mode,
    include_last_offset,
    padding_idx,
    needs_weight,
    needs_weights,
    num_threads,
    backend,
):
    """(dense gradient of weight, gradient of per_sample_weights); an empty tensor for what is not
    needed."""
    rows = weight.shape[0]
    grad = grad.contiguous()
    bags = (indices, offsets, per_sample_weights)
    how = (mode, include_last_offset, padding_idx)
    table, weights = grad.new_empty(0), grad.new_empty(0)
    chosen = _choose(grad, backend)
    if chosen == "native":
        job = _bags(*bags, *how, rows)
        source = (grad.data_ptr(), _TYPE[grad.dtype], grad.shape[1])
        if needs_weight:
            table = torch.zeros(rows, grad.shape[1], dtype=grad.dtype)
            native().embedding_bag_dense_gradient(
                *(job, source, _address(positions), _address(table), _workers(num_threads))
            )
        if needs_weights:
            weights = torch.empty(indices.shape, dtype=per_sample_weights.dtype)
            native().per_sample_weights_gradient(
                job,
                source,
                (weight.data_ptr(), _TYPE[weight.dtype], weight.shape[1], weight.stride(0)),
                (_address(weights), _TYPE[weights.dtype]),
                _workers(num_threads),
            )
        return table, weights
    if chosen == "reference":
        check.refuse_capture("embedding_bag_backward", grad, "the triton backend")
    if needs_weight and chosen == "triton":
        from vecsmith.kernels import embedding_bag as kernels

        check_contents("embedding_bag_gradient", indices, offsets, include_last_offset, rows)
        _, table = kernels.embedding_bag_gradient(
            *(grad, indices, rows, offsets, per_sample_weights, positions),
            mode=mode,
            include_last_offset=include_last_offset,
            padding_idx=padding_idx,
            dense=True,
        )
    elif needs_weight:
        touched, values = _gradient_impl(
            *(grad, *bags, positions, *how, rows, num_threads, backend)
        )
        table = grad.new_zeros(rows, grad.shape[1]).index_copy_(0, touched, values)
    if needs_weights:
        if chosen == "triton":
            from vecsmith.kernels import embedding_bag as kernels
        else:
            kernels = reference
        weights = kernels.per_sample_weights_gradient(
            grad,
            weight,
            indices,
            offsets,
            include_last_offset=include_last_offset,
            padding_idx=padding_idx,
        )
        weights = weights.view(indices.shape).to(per_sample_weights.dtype)
    return table, weights


def _backward_fake(
    grad,
    weight,
    indices,
    offsets,
    per_sample_weights,
    positions,
    mode,
    include_last_offset,
    padding_idx,
    needs_weight,
    needs_weights,
    num_threads,
    backend,
):
    table = grad.new_empty((weight.shape[0], grad.shape[1]) if needs_weight else (0,))
    if not needs_weights:
        return table, grad.new_empty(0)
    return table, per_sample_weights.new_empty(indices.shape)


def _update_impl(
    weight,
    state,
    grad,
    indices,
    offsets,
    per_sample_weights,
    positions,
    mode,
    include_last_offset,
    padding_idx,
    name,
    settings,
    step,
    num_threads,
    backend,
    lr=None,
    steps=None,
):
    bags = (indices, offsets, per_sample_weights, positions, mode, include_last_offset, padding_idx)
    rule = _rule(name, settings, step, lr, steps)
    return update(weight, state, grad, *bags, rule, num_threads, backend)


def update(
    weight,
    state,
    grad,
    indices,
    offsets,
    per_sample_weights,
    positions,
    mode,
    include_last_offset,
    padding_idx,
    rule,
    num_threads,
    backend,
):
    chosen = _choose(weight, backend)
    bags = (indices, offsets, per_sample_weights)
    finite = None
    if chosen == "native":
        native().embedding_bag_update(
            _bags(*bags, mode, include_last_offset, padding_idx, weight.shape[0]),
            (grad.data_ptr(), _TYPE[grad.dtype], grad.shape[1]),
            _address(positions),
            (weight.data_ptr(), _TYPE[weight.dtype], weight.shape[1], weight.stride(0)),
            [t.data_ptr() for t in state],
            rule.name,
            rule.settled().numbers(),
            _workers(num_threads),
        )
    elif chosen != "meta":
        name = "embedding_bag_update"
        if chosen == "reference":
            check.refuse_capture(name, weight, "the triton backend")
        rows = weight.shape[0]
        rows += padding_idx == rows  # a row of padding that there is not
        check_contents(name, indices, offsets, include_last_offset, rows)
        if check.is_capturing(weight):
            finite = torch.isfinite(grad).all()
            if per_sample_weights is not None:
                finite = finite & torch.isfinite(per_sample_weights).all()
        elif not bool(torch.isfinite(grad).all()):
            raise ValueError(f"{name}: expected a finite grad; got NaN or infinity")
        elif per_sample_weights is not None and not bool(torch.isfinite(per_sample_weights).all()):
            raise ValueError(f"{name}: expected finite per_sample_weights; got NaN or infinity")
        how: dict[str, Any] = {
            "mode": mode,
            "include_last_offset": include_last_offset,
            "padding_idx": padding_idx,
        }
        tensors = (weight, state, indices, grad, offsets, per_sample_weights, positions)
        kernels: Any = reference
        if chosen == "triton":
            from vecsmith.kernels import embedding_bag as kernels

            how |= {"rule": rule, "finite": finite}
        else:
            how["rule"] = rule.settled()
        run(kernels.embedding_bag_update, *tensors, **how)
    if isinstance(rule.step, Tensor):
        with torch.no_grad():
            rule.step.add_(1 if finite is None else finite)
    torch.autograd.graph.increment_version([weight, *state])


def _update_fake(*arguments):
    return None


# --- autograd -------------------------------------------------------------------------------------


def _forward_context(ctx, inputs, output):
    weight, indices, offsets, weights, *how, sparse, threads, backend = inputs
    ctx.save_for_backward(weight, indices, offsets, weights, output[1])
    ctx.how, ctx.sparse, ctx.where = how, sparse, (threads, backend)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


class _Pooled(torch.autograd.Function):
    """The operator without torch's machinery around it, which takes longer than a small look-up."""

    @staticmethod
    def forward(ctx, made, *arguments):
        output = made or forward(*arguments)
        _forward_context(ctx, arguments, output)
        return output

    @staticmethod
    def backward(ctx, *grads):
        return None, *_forward_backward(ctx, *grads, first=1)


_tracing_state = torch._C._get_tracing_state  # of torch.jit.trace


def is_plain(*tensors: Tensor) -> bool:
    """Whether this is an eager call on ordinary tensors: not traced, faked or transformed."""
    for tensor in tensors:
        if type(tensor) is not Tensor and type(tensor) is not torch.nn.Parameter:
            return False
    return (
        not torch.compiler.is_compiling()
        and torch._C._len_torch_dispatch_stack() == 0
        and torch._C._functorch.peek_interpreter_stack() is None  # pyright: ignore
        and forward_ad._current_level < 0
        and _tracing_state() is None
    )


def refuse_tangents(*tensors: Tensor | None) -> None:
    """Raises NotImplementedError for a dual number of forward-mode AD, as torch does where there is
    no formula: what goes past autograd would lose its tangent."""
    if torch.compiler.is_compiling() or forward_ad._current_level < 0:
        return
    for tensor in tensors:
        if tensor is not None and forward_ad.unpack_dual(tensor).tangent is not None:
            raise NotImplementedError(
                "embedding_bag: expected tensors without tangents, since there is no forward-mode "
                "derivative; got a dual tensor (torch.nn.functional.embedding has one)"
            )


def look_up(weight, indices, offsets, per_sample_weights, *rest, made=None) -> Tensor:
    """made: (out, positions), where they have been computed already."""
    arguments = (weight, indices, offsets, per_sample_weights, *rest)
    if not is_plain(weight, indices):
        refuse_tangents(weight, per_sample_weights)
        return torch.ops.vecsmith.embedding_bag(*arguments)[0]
    trained = weight.requires_grad or (
        per_sample_weights is not None and per_sample_weights.requires_grad
    )
    if trained and torch.is_grad_enabled():
        return _Pooled.apply(made, *arguments)[0]  # pyright: ignore
    return (made or forward(*arguments))[0]


def _forward_backward(ctx, grad, _, first=0):
    nothing = (None,) * 10
    if grad is None:
        return nothing
    refuse_tangents(grad)
    weight, indices, offsets, weights, positions = ctx.saved_tensors
    if weight.dtype == torch.uint8:
        raise RuntimeError("embedding_bag: a quantized table has no gradient")
    needs_weight, needs_weights = ctx.needs_input_grad[first], ctx.needs_input_grad[first + 3]
    sparse = needs_weight and ctx.sparse
    table = None
    if sparse:
        if torch.is_grad_enabled() and grad.requires_grad:
            raise RuntimeError(
                "embedding_bag: a sparse gradient cannot be differentiated again: use sparse=False"
            )
        rows, values = torch.ops.vecsmith.embedding_bag_gradient(
            *(grad.contiguous(), indices, offsets, weights, positions, *ctx.how),
            *(weight.shape[0], *ctx.where),
        )
        table = torch.sparse_coo_tensor(
            rows[None], values, weight.shape, is_coalesced=True, check_invariants=False
        )
    if (needs_weight and not sparse) or needs_weights:
        dense, weights = torch.ops.vecsmith.embedding_bag_backward(
            *(grad, weight, indices, offsets, weights, positions, *ctx.how),
            *(needs_weight and not sparse, needs_weights, *ctx.where),
        )
        table = table if sparse else dense
    return (
        table if needs_weight else None,
        None,
        None,
        weights if needs_weights else None,
        *nothing[4:],
    )


def _backward_context(ctx, inputs, output):
    grad, weight, indices, offsets, weights, positions, *how, _, _, threads, backend = inputs
    ctx.save_for_backward(grad, weight, indices, offsets, weights, positions)
    ctx.how, ctx.where = how, (threads, backend)
    ctx.set_materialize_grads(False)


def _backward_backward(ctx, table, samples):
    """Of (gW, gw): both are linear in grad; gW in per_sample_weights, gw in the table."""
    grad, weight, indices, offsets, weights, positions = ctx.saved_tensors
    mode, last, padding = ctx.how

    def pooled(rows: Tensor, by: Tensor | None) -> Tensor:
        if mode == "max":
            flat = indices.reshape(-1)[positions.clamp(min=0)]
            picked = torch.gather(rows, 0, flat.long())
            return torch.where(positions < 0, 0, picked)
        out, _ = torch.ops.vecsmith.embedding_bag(
            rows, indices, offsets, by, mode, last, padding, False, *ctx.where
        )
        if mode == "none" and padding >= 0:
            out = torch.where((indices == padding).reshape(-1, 1), 0, out)
        return out

    to_grad = to_weight = to_weights = None
    if ctx.needs_input_grad[0]:
        parts = []
        if table is not None:
            parts.append(pooled(table.contiguous(), weights))
        if samples is not None:
            parts.append(pooled(weight, samples.contiguous()))
        to_grad = sum(parts) if parts else None
    by = (mode, last, padding)
    if ctx.needs_input_grad[1] and samples is not None:
        to_weight, _ = torch.ops.vecsmith.embedding_bag_backward(
            *(grad, weight, indices, offsets, samples.contiguous(), positions),
            *(*by, True, False, *ctx.where),
        )
    if ctx.needs_input_grad[4] and table is not None and weights is not None:
        _, to_weights = torch.ops.vecsmith.embedding_bag_backward(
            *(grad, table.contiguous(), indices, offsets, weights, positions),
            *(*by, False, True, *ctx.where),
        )
    return to_grad, to_weight, None, None, to_weights, *(None,) * 8


for _name, _impl, _fake in (
    ("embedding_bag", forward, _forward_fake),
    ("embedding_bag_backward", _backward_impl, _backward_fake),
    ("embedding_bag_gradient", _gradient_impl, _gradient_fake),
    ("embedding_bag_update", _update_impl, _update_fake),
):
    _LIBRARY.impl(_name, _impl, "CompositeExplicitAutograd")
    torch.library.register_fake(f"vecsmith::{_name}", _fake)
torch.library.register_autograd(
    "vecsmith::embedding_bag", _forward_backward, setup_context=_forward_context, lib=_LIBRARY
)
torch.library.register_autograd(
    "vecsmith::embedding_bag_backward",
    _backward_backward,
    setup_context=_backward_context,
    lib=_LIBRARY,
)
