"""Optimizers that step inside of ``backward()``: the gradient of a table is never stored.

A backward pass is one step of each table that it reaches, however often the table was used: what
the uses want of it is collected while the pass runs, and applied when it ends. So no row changes
while a part of the graph may still read it.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.weak import WeakTensorKeyDictionary

from vecsmith import ops
from vecsmith.ops._bag_checks import check_bags, check_weight
from vecsmith.ops._embedding_bag import forward as look_up_rows
from vecsmith.ops._embedding_bag import forward_many
from vecsmith.optim.sparse import RowOptimizer, RowStep, take_steps

_HANDLES: Any = WeakTensorKeyDictionary()  # of the hooks


def apply_optimizer_in_backward(
    optimizer_class: type[Optimizer],
    params: Tensor | Iterable[Tensor],
    optimizer_kwargs: dict[str, Any],
) -> None:
    """From now on ``backward()`` itself steps ``params``, and leaves no gradient:

        apply_optimizer_in_backward(SparseAdam, table.parameters(), {"lr": 1e-3})
        model(batch).backward()  # the rows that the batch touched are updated

    The signature is that of torch.distributed.optim and of torchrec. Every parameter gets an
    optimizer of its own, ``param._in_backward_optimizers[0]``: schedulers take it, its
    ``state_dict()`` belongs into a checkpoint, and :func:`get_in_backward_optimizers` collects
    those of a module.

    With an optimizer of :mod:`vecsmith.optim` and a layer of :mod:`vecsmith.nn` the update goes
    through :func:`vecsmith.ops.embedding_bag_update`: no gradient is ever made. For parameters that
    are used in another way, and for other optimizers, a hook steps the optimizer when the gradient
    is complete, and drops it. A gradient that a parameter has already is dropped, too.

    What that means:

    - A backward pass is one step for every table that it reaches, also if the layer was called
      several times, or the table is shared: the gradients of all uses are added up first. (A
      re-entrant backward pass, as torch.utils.checkpoint with ``use_reentrant=True`` runs, is one
      of its own.) Accumulating gradients over several ``backward()`` calls is not possible: each
      steps. Use bigger batches, or sparse gradients and an ordinary optimizer.
    - The rows change when the pass is over. All other gradients, also those of
      ``per_sample_weights``, are taken from the rows as they were in the forward pass.
    - A gradient that is not finite raises ValueError from ``backward()``, before a row of any table
      of this kind is changed.
    - ``torch.autograd.grad`` of other inputs, and ``backward(inputs=...)`` without the table, do
      not step. ``torch.autograd.grad`` of the table itself raises, as does ``create_graph=True``.
    - With ``requires_grad=False`` or under ``torch.no_grad()`` nothing is stepped.
    - GradScaler cannot unscale what is never stored: do not scale such a loss (bfloat16 autocast
      needs no scaling). Neither can gradients be clipped.
    - It is eager: ``torch.compile(fullgraph=True)`` refuses such a layer; without ``fullgraph`` the
      graph breaks there.
    - Copies (``copy.deepcopy``, pickles) have no optimizer: apply it to them.
      DistributedDataParallel does not see these gradients.

    Args:
        optimizer_class: of :mod:`vecsmith.optim`, or any other.
        params: parameters, all of them leaves.
        optimizer_kwargs: what ``optimizer_class`` takes after ``params``.

    Raises:
        ValueError: no parameter, one that is not a leaf, or that has an optimizer in backward
            already (:func:`remove_optimizer_in_backward` takes it away); settings that the
            optimizer refuses. Nothing is applied then.
        TypeError: for something that is not a class of optimizers, or not a tensor.
    """
    name = "apply_optimizer_in_backward"
    if not (isinstance(optimizer_class, type) and issubclass(optimizer_class, Optimizer)):
        raise TypeError(f"{name}: expected a class of optimizers; got {optimizer_class!r}")
    tables = [params] if isinstance(params, Tensor) else list(params)
    if not tables:
        raise ValueError(f"{name}: expected at least one parameter; got none")
    for n, param in enumerate(tables):
        if not isinstance(param, Tensor):
            raise TypeError(f"{name}: expected parameters; got {type(param).__name__}")
        if not param.is_leaf:
            raise ValueError(f"{name}: expected parameters that are leaves of the graph")
        if optimizers_of(param) or any(param is other for other in tables[:n]):
            raise ValueError(
                f"{name}: expected parameters without an optimizer in backward; got one of shape "
                f"{list(param.shape)} that has one (remove_optimizer_in_backward takes it away)"
            )
    optimizers = [optimizer_class([param], **optimizer_kwargs) for param in tables]
    _keep_eager()
    for param, optimizer in zip(tables, optimizers, strict=True):
        vars(param).update(
            _in_backward_optimizers=[optimizer],
            _optimizer_classes=[optimizer_class],
            _optimizer_kwargs=[optimizer_kwargs],
        )
        param.grad = None
        frozen = not param.requires_grad
        if frozen:  # a hook needs it, and the parameter may be thawed later
            param.requires_grad_(True)
        _HANDLES[param] = param.register_post_accumulate_grad_hook(_take_gradient)
        if frozen:
            param.requires_grad_(False)


def optimizers_of(param: Tensor) -> list[Optimizer]:
    """The optimizers in backward of a parameter: those of :func:`apply_optimizer_in_backward`, here
    or in torch.distributed.optim; an empty list where there are none."""
    return getattr(param, "_in_backward_optimizers", None) or []


def get_in_backward_optimizers(module: torch.nn.Module) -> list[Optimizer]:
    """The optimizers in backward of a module's parameters, one for each parameter that has one, in
    the order of ``module.parameters()``: for schedulers and checkpoints. They step by themselves;
    their ``step()`` and ``zero_grad()`` find nothing to do."""
    return [found for param in module.parameters() for found in optimizers_of(param)]


def remove_optimizer_in_backward(params: Tensor | Iterable[Tensor]) -> None:
    """Takes away what :func:`apply_optimizer_in_backward` did: ``backward()`` leaves gradients
    again. Parameters without an optimizer in backward stay as they are."""
    for param in [params] if isinstance(params, Tensor) else list(params):
        handle = _HANDLES.pop(param, None)
        if handle is not None:
            handle.remove()
            for name in ("_in_backward_optimizers", "_optimizer_classes", "_optimizer_kwargs"):
                vars(param).pop(name, None)


# --- what a backward pass collects ----------------------------------------------------------------


class _Pass:
    """What one backward pass wants of the tables it reaches. Kept alive by the callback at its end
    alone, so that a pass that fails leaves nothing behind."""

    def __init__(self) -> None:
        self.steps: dict[int, list[RowStep]] = {}  # by table

    def add(self, step: RowStep) -> None:
        self.steps.setdefault(id(step.param), []).append(step)

    def finish(self) -> None:
        waiting, self.steps = list(self.steps.values()), {}
        with torch.no_grad():
            take_steps([_one(steps) for steps in waiting])


_PASSES: weakref.WeakValueDictionary[int, _Pass] = weakref.WeakValueDictionary()


def _current_pass() -> _Pass:
    task = torch._C._current_graph_task_id()
    found = _PASSES.get(task)
    if found is None:
        found = _PASSES[task] = _Pass()
        torch.autograd.Variable._execution_engine.queue_callback(found.finish)
    return found


def _one(steps: list[RowStep]) -> RowStep:
    """Several uses of a table as one: their gradients by row, one after the other, in the order in
    which the pass reached them."""
    if len(steps) == 1:
        return steps[0]
    first = steps[0]
    rows, values = [], []
    for step in steps:
        if step.bags["mode"] == "none" and step.bags.get("padding_idx") is None:
            rows.append(step.indices.reshape(-1).long())
            values.append(step.grad)
        else:
            # Half-precision sums would be rounded before they are added to each other.
            grad = step.grad.float() if step.grad.element_size() < 4 else step.grad
            touched, grad = ops.embedding_bag_gradient(
                grad.contiguous(),
                step.indices,
                step.param.shape[0],
                backend="reference" if grad.dtype == torch.float64 else None,
                **{**step.bags, "per_sample_weights": _like(step, grad)},
            )
            rows.append(touched)
            values.append(grad)
    dtypes = {tensor.dtype for tensor in values}
    if len(dtypes) > 1:
        values = [tensor.float() for tensor in values]
    return RowStep(first.optimizer, first.param, torch.cat(values), torch.cat(rows))


def _like(step: RowStep, grad: Tensor) -> Tensor | None:
    """The per-sample weights of a use, in the dtype of its gradient."""
    weights = step.bags.get("per_sample_weights")
    return None if weights is None else weights.to(grad.dtype)


def _take_gradient(param: Tensor) -> None:
    """The hook of a parameter whose gradient is complete."""
    grad = param.grad
    if grad is None:  # the pass reached it through our layers alone
        return
    for optimizer in optimizers_of(param):
        if isinstance(optimizer, RowOptimizer):
            rows, values = optimizer._rows_of_gradient(param, grad)
            _current_pass().add(RowStep(optimizer, param, values, rows))
        else:
            optimizer.step()
    param.grad = None


# --- the layers' way ------------------------------------------------------------------------------


class _Lookup(torch.autograd.Function):
    """ops.embedding_bag (or, with mode "none", ops.embedding of [N]), whose backward pass hands the
    gradient to the table's optimizer."""

    @staticmethod
    def forward(ctx, made, weight, per_sample_weights, indices, offsets, mode, last, padding_idx):
        # made: (arguments, (out, positions)), where they have been computed already.
        arguments, output = made or (
            _checked(weight, per_sample_weights, indices, offsets, mode, last, padding_idx),
            None,
        )
        out, positions = output or look_up_rows(*arguments)
        _, indices, offsets, weights, *how, _, threads, backend = arguments
        ctx.how, ctx.where = tuple(how), (threads, backend)
        # Plain Python objects: autograd would refuse the second of two passes over the table.
        ctx.weight = weight
        ctx.save_for_backward(indices, offsets, weights, positions if mode == "max" else None)
        return out

    @staticmethod
    def backward(ctx, *grads):
        (grad,) = grads
        _raise_if_differentiated()
        weight = ctx.weight
        indices, offsets, weights, positions = ctx.saved_tensors
        mode, last, padding = ctx.how
        to_weights = None
        if ctx.needs_input_grad[2]:
            _, to_weights = torch.ops.vecsmith.embedding_bag_backward(
                *(grad, weight.detach(), indices, offsets, weights, positions, *ctx.how),
                *(False, True, *ctx.where),
            )
        found = optimizers_of(weight)
        if found and _is_stepped(ctx):
            bags: dict[str, Any] = {"mode": mode}
            if mode != "none":
                bags.update(
                    offsets=offsets,
                    per_sample_weights=None if weights is None else weights.detach(),
                    include_last_offset=last,
                    positions=positions,
                )
            if padding >= 0:
                bags["padding_idx"] = padding
            optimizer = found[0]
            assert isinstance(optimizer, RowOptimizer)
            step = RowStep(optimizer, weight, grad.detach().contiguous(), indices, **bags)
            _current_pass().add(step)
        return None, None, to_weights, None, None, None, None, None


def _checked(
    weight: Tensor,
    per_sample_weights: Tensor | None,
    indices: Tensor,
    offsets: Tensor | None,
    mode: str,
    last: bool,
    padding_idx: int | None,
) -> tuple[Any, ...]:
    """The arguments of ops/_embedding_bag.py's forward."""
    name = "embedding_bag_gradient" if mode == "none" else "embedding_bag"
    check_weight(name, weight)
    bags = check_bags(name, indices, weight, offsets, per_sample_weights, mode, last)
    padding = -1 if padding_idx is None else padding_idx % weight.shape[0]
    backend = "reference" if weight.dtype == torch.float64 else ""
    return (weight.detach(), *bags, mode, bool(last), padding, False, 0, backend)


def _look_up(*arguments: Any, made: Any = None) -> Tensor:
    return _Lookup.apply(made, *arguments)  # pyright: ignore[reportReturnType]


# _look_up as torch.compile leaves it alone. Made on first use: torch._dynamo is slow to import.
_EAGER: list[Any] = []


def _keep_eager() -> None:
    if not _EAGER:
        why = (
            "expected eager execution of a table with an optimizer in backward: backward() changes "
            "its rows in place, which torch.compile cannot trace. Compile the rest of the model, "
            "or use an ordinary optimizer"
        )
        _EAGER.append(torch.compiler.disable(_look_up, reason=why))


def _raise_if_differentiated() -> None:
    """Raises RuntimeError in a backward pass with create_graph=True."""
    if torch.is_grad_enabled():
        raise RuntimeError(
            "expected backward() without create_graph for a table with an optimizer in backward: "
            "its rows change in place"
        )


def _is_stepped(ctx: Any) -> bool:
    """Whether this pass accumulates gradients into the table (else somebody wants other ones)."""
    node = ctx.next_functions[0][0]
    if node is None:
        return True
    try:
        return torch._C._will_engine_execute_node(node)
    except RuntimeError as error:
        raise RuntimeError(
            "expected backward(); got torch.autograd.grad of a table with an optimizer in "
            "backward, whose gradient is never made"
        ) from error


def embedding(
    indices: Tensor, weight: Tensor, *, padding_idx: int | None = None, sparse: bool = False
) -> Tensor:
    """:func:`vecsmith.ops.embedding` of a parameter that may have an optimizer in backward."""
    if not is_fused(weight):
        return ops.embedding(indices, weight, padding_idx=padding_idx, sparse=sparse)
    flat = embedding_bag(indices.reshape(-1), weight, mode="none", padding_idx=padding_idx)
    return flat.view(*indices.shape, weight.shape[1])


def embedding_bag(
    indices: Tensor,
    weight: Tensor,
    offsets: Tensor | None = None,
    *,
    mode: str = "mean",
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
    sparse: bool = False,
) -> Tensor:
    """:func:`vecsmith.ops.embedding_bag` of a parameter that may have an optimizer in backward."""
    if not is_fused(weight):
        return ops.embedding_bag(
            indices,
            weight,
            offsets,
            mode=mode,
            per_sample_weights=per_sample_weights,
            include_last_offset=include_last_offset,
            padding_idx=padding_idx,
            sparse=sparse,
        )
    if padding_idx is not None and padding_idx < 0:
        padding_idx += weight.shape[0]
    look_up = _EAGER[0] if torch.compiler.is_compiling() else _look_up
    return look_up(
        weight, per_sample_weights, indices, offsets, mode, include_last_offset, padding_idx
    )


def embedding_bags(requests: Sequence[dict[str, Any]]) -> list[Tensor]:
    """:func:`vecsmith.ops.embedding_bags` of parameters that may have optimizers in backward. Each
    request has all of the arguments of :func:`embedding_bag` by name."""
    if torch.compiler.is_compiling():
        return [embedding_bag(**request) for request in requests]
    fused = [is_fused(request["weight"]) for request in requests]
    plain = ops.embedding_bags([r for r, is_one in zip(requests, fused, strict=True) if not is_one])
    own = []
    for request, is_one in zip(requests, fused, strict=True):
        if is_one:
            names = ("weight", "per_sample_weights", "indices", "offsets", "mode")
            names = (*names, "include_last_offset", "padding_idx")
            given = [request[name] for name in names]
            own.append((given, _checked(*given)))
    with torch.no_grad():
        outputs = forward_many([checked for _, checked in own]) if own else []
    stepped = [
        _look_up(*given, made=(checked, output))
        for (given, checked), output in zip(own, outputs, strict=True)
    ]
    ways = {True: iter(stepped), False: iter(plain)}
    return [next(ways[is_one]) for is_one in fused]


def is_fused(weight: Tensor) -> bool:
    """Whether a look-up now would be stepped in backward by one of our optimizers."""
    found = optimizers_of(weight)
    return (
        len(found) == 1
        and isinstance(found[0], RowOptimizer)
        and len(_EAGER) == 1
        and weight.requires_grad
        and torch.is_grad_enabled()
    )
