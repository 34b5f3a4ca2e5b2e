"""Optimizers that step inside of ``backward()``: the gradient of a table is never stored.

A backward pass is one step of each table that it reaches, however often the table was used: what
the uses want of it is collected while the pass runs, and applied when it ends. So no row changes
while a part of the graph may still read it.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.weak import WeakTensorKeyDictionary

from vecsmith import ops
from vecsmith.ops import _checks as check
from vecsmith.ops._bag_checks import check_bags, check_weight
from vecsmith.ops._embedding_bag import forward as look_up_rows
from vecsmith.ops._embedding_bag import forward_many, gradient_of_fixed_size, refuse_tangents
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
    - A second pass through the same graph (``retain_graph=True``, or a graph that was made before
      the table's last step) steps again, but raises where it wants the gradient of
      ``per_sample_weights``: the rows that it belongs to are no more.
    - With ``requires_grad=False`` or under ``torch.no_grad()`` nothing is stepped.
    - A hook of the parameter (``register_hook``, before the look-up) is given the sparse gradient,
      which is made for it then, and what it returns is stepped. A :class:`vecsmith.nn.CachedTable`
      makes none: its hooks are given None.
    - GradScaler cannot unscale what is never stored: do not scale such a loss (bfloat16 autocast
      needs no scaling). Neither can gradients be clipped.
    - It is eager: ``torch.compile(fullgraph=True)`` refuses such a layer; without ``fullgraph`` the
      graph breaks there.
    - Copies (``copy.deepcopy``, pickles) have no optimizer: apply it to them.
      ``load_state_dict(assign=True)`` puts new parameters in the place of the old ones: layers and
      tables of :mod:`vecsmith.nn` take the optimizer along, to other modules it has to be applied
      anew. DistributedDataParallel does not see these gradients.

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
        _attach(param, ([optimizer], [optimizer_class], [optimizer_kwargs]))


# What a parameter with an optimizer in backward is marked by, as in torch.distributed.optim.
_MARKS = ("_in_backward_optimizers", "_optimizer_classes", "_optimizer_kwargs")


def _attach(param: Tensor, marks: Sequence[Any]) -> None:
    vars(param).update(zip(_MARKS, marks, strict=True))
    param.grad = None
    frozen = not param.requires_grad
    if frozen:  # a hook needs it, and the parameter may be thawed later
        param.requires_grad_(True)
    _HANDLES[param] = param.register_post_accumulate_grad_hook(_take_gradient)
    if frozen:
        param.requires_grad_(False)


def _detach(param: Tensor) -> list[Any]:
    """Takes the optimizer in backward away, and returns the marks."""
    _HANDLES.pop(param).remove()
    return [vars(param).pop(name) for name in _MARKS]


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
    again. Parameters without an optimizer in backward stay as they are. The backward pass of a
    look-up that was made before raises RuntimeError, since it has nothing to step with."""
    for param in [params] if isinstance(params, Tensor) else list(params):
        if param in _HANDLES:
            _detach(param)


def load_parameters(
    module: torch.nn.Module,
    load: Callable[..., None],
    state_dict: Any,
    prefix: str,
    metadata: Any,
    strict: bool,
    missing: list[str],
    unexpected: list[str],
    errors: list[str],
) -> None:
    """``load``, a module's ``_load_from_state_dict``; where it puts other parameters in the place
    of the module's (``assign=True``), those take the optimizers in backward over."""
    before = dict(module._parameters)
    load(state_dict, prefix, metadata, strict, missing, unexpected, errors)
    for name, old in before.items():
        new = module._parameters.get(name)
        if old is None or new is None or new is old:
            continue
        if old in _REPLACED or (old in _HANDLES and optimizers_of(new)):
            errors.append(
                f"{prefix}{name}: expected a parameter of its own to take an optimizer in backward "
                "over with assign=True; got one that several layers share, or that has one already "
                "(remove_optimizer_in_backward before, apply_optimizer_in_backward after it)"
            )
        elif old in _HANDLES:
            for optimizer in optimizers_of(old):
                for group in optimizer.param_groups:
                    group["params"] = [new if p is old else p for p in group["params"]]
                if old in optimizer.state:
                    optimizer.state[new] = optimizer.state.pop(old)
            _attach(new, _detach(old))
            _REPLACED[old] = True


_REPLACED: Any = WeakTensorKeyDictionary()  # parameters whose optimizer went to another


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
        # This is on the stream that backward() was called on; the pass was on those of its forward.
        for step in (step for steps in waiting for step in steps):
            step.follow()
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
    capturing, spare = check.is_capturing(first.grad), False
    rows, values = [], []
    for step in steps:
        if step.bags["mode"] == "none" and step.bags.get("padding_idx") is None:
            rows.append(step.indices.reshape(-1).long())
            values.append(step.grad)
        else:
            # Half-precision sums would be rounded before they are added to each other.
            grad = step.grad.float() if step.grad.element_size() < 4 else step.grad
            grad, weights = grad.contiguous(), _like(step, grad)
            if capturing:
                spare = True
                bags = [step.bags.get(key) for key in ("offsets", "positions", "padding_idx")]
                touched, grad = gradient_of_fixed_size(
                    *(
                        grad,
                        step.indices.reshape(-1) if step.bags["mode"] == "none" else step.indices,
                    ),
                    *(bags[0], weights, bags[1], step.bags["mode"]),
                    bool(step.bags.get("include_last_offset")),
                    -1 if bags[2] is None else bags[2],
                    step.param.shape[0],
                )
            else:
                touched, grad = ops.embedding_bag_gradient(
                    grad,
                    step.indices,
                    step.param.shape[0],
                    backend="reference" if grad.dtype == torch.float64 else None,
                    **{**step.bags, "per_sample_weights": weights},
                )
            rows.append(touched)
            values.append(grad)
    dtypes = {tensor.dtype for tensor in values}
    if len(dtypes) > 1:
        values = [tensor.float() for tensor in values]
    looked_up = all(step.looked_up for step in steps)
    grad, touched = torch.cat(values), torch.cat(rows)
    one = RowStep(first.optimizer, first.param, grad, touched, looked_up=looked_up)
    one.has_spare_rows = spare
    return one


def _like(step: RowStep, grad: Tensor) -> Tensor | None:
    """The per-sample weights of a use, in the dtype of its gradient."""
    weights = step.bags.get("per_sample_weights")
    return None if weights is None else weights.to(grad.dtype)


def _take_gradient(param: Tensor) -> None:
    """The hook of a parameter whose gradient is complete."""
    grad = param.grad
    if grad is None:  # the pass reached it through our layers alone
        return
    try:
        for optimizer in optimizers_of(param):
            if isinstance(optimizer, RowOptimizer):
                rows, values = optimizer._rows_of_gradient(param, grad)
                _current_pass().add(RowStep(optimizer, param, values, rows))
            else:
                optimizer.step()
    finally:
        param.grad = None


# --- the layers' way ------------------------------------------------------------------------------


class _Lookup(torch.autograd.Function):
    """ops.embedding_bag (or, with mode "none", ops.embedding of [N]), whose backward pass hands the
    gradient to the table's optimizer."""

    @staticmethod
    def forward(ctx, made, weight, per_sample_weights, indices, offsets, mode, last, padding_idx):
        # made: (arguments, (out, positions)), where they have been computed already.
        if torch._C._get_tracing_state() is not None:
            raise RuntimeError(
                "expected eager execution of a table with an optimizer in backward; got "
                "torch.jit.trace: trace it under torch.no_grad(), or without the optimizer"
            )
        arguments, output = made or (
            _checked(weight, per_sample_weights, indices, offsets, mode, last, padding_idx),
            None,
        )
        out, positions = output or look_up_rows(*arguments)
        _, indices, offsets, weights, *how, _, threads, backend = arguments
        ctx.how, ctx.where = tuple(how), (threads, backend)
        # Plain Python objects: autograd would refuse the second of two passes over the table.
        ctx.weight = weight
        # Its gradient is one of the rows, which another pass may change before.
        ctx.version = weight._version if ctx.needs_input_grad[2] else 0
        ctx.save_for_backward(indices, offsets, weights, positions if mode == "max" else None)
        return out

    @staticmethod
    def backward(ctx, *grads):
        (grad,) = grads
        _raise_if_differentiated()
        refuse_tangents(grad)
        weight = ctx.weight
        indices, offsets, weights, positions = ctx.saved_tensors
        mode, last, padding = ctx.how
        to_weights = None
        if ctx.needs_input_grad[2]:
            if weight._version != ctx.version:
                raise RuntimeError(
                    "per_sample_weights: expected, for their gradient, the rows of the forward "
                    f"pass; got a table of shape {list(weight.shape)} that has been modified by an "
                    f"inplace operation since (version {weight._version} for {ctx.version}), as by "
                    "the step of another backward pass: look up again after a step"
                )
            _, to_weights = torch.ops.vecsmith.embedding_bag_backward(
                *(grad, weight.detach(), indices, offsets, weights, positions, *ctx.how),
                *(False, True, *ctx.where),
            )
        if weight.requires_grad and _is_stepped(ctx):
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
            grad = grad.detach().contiguous()
            step = RowStep(_stepping(weight), weight, grad, indices, looked_up=True, **bags)
            _current_pass().add(step)
        return None, None, to_weights, None, None, None, None, None


def _stepping(weight: Tensor) -> RowOptimizer:
    """The optimizer that steps what a look-up collects."""
    found = optimizers_of(weight)
    if len(found) != 1 or not isinstance(found[0], RowOptimizer):
        raise RuntimeError(
            "expected the optimizer in backward that the table had when it was looked up; got "
            f"{[type(one).__name__ for one in found] or 'none'}: it was taken away "
            "(remove_optimizer_in_backward), or is another parameter's now "
            "(load_state_dict(assign=True))"
        )
    return found[0]


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
    indices: Tensor,
    weight: Tensor,
    *,
    padding_idx: int | None = None,
    sparse: bool = False,
    hooks: bool = True,
) -> Tensor:
    """:func:`vecsmith.ops.embedding` of a parameter that may have an optimizer in backward.

    hooks: whether those of the parameter are given its gradient, which is made for them.
    """
    if not is_stepped(weight):
        return ops.embedding(indices, weight, padding_idx=padding_idx, sparse=sparse)
    if hooks and _has_hooks(weight):
        backend = _backend_for_hooks(weight)
        return ops.embedding(indices, weight, padding_idx=padding_idx, sparse=True, backend=backend)
    flat = embedding_bag(
        indices.reshape(-1), weight, mode="none", padding_idx=padding_idx, hooks=False
    )
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
    hooks: bool = True,
) -> Tensor:
    """:func:`vecsmith.ops.embedding_bag` of a parameter that may have an optimizer in backward.

    hooks: as in :func:`embedding`.
    """
    stepped = is_stepped(weight)
    if not stepped or (hooks and _has_hooks(weight)):
        return ops.embedding_bag(
            indices,
            weight,
            offsets,
            mode=mode,
            per_sample_weights=per_sample_weights,
            include_last_offset=include_last_offset,
            padding_idx=padding_idx,
            sparse=sparse or stepped,
            backend=_backend_for_hooks(weight) if stepped else None,
        )
    if padding_idx is not None and padding_idx < 0:
        padding_idx += weight.shape[0]
    look_up = _EAGER[0] if torch.compiler.is_compiling() else _look_up
    return look_up(
        weight, per_sample_weights, indices, offsets, mode, include_last_offset, padding_idx
    )


def embedding_bags(requests: Sequence[dict[str, Any]]) -> list[Tensor]:
    """:func:`vecsmith.ops.embedding_bags` of parameters that may have optimizers in backward. Each
    request has all of the arguments of :func:`embedding_bag` but ``hooks`` by name."""
    if torch.compiler.is_compiling():
        return [embedding_bag(**request) for request in requests]
    fused, plain, own = [], [], []
    for request in requests:
        weight = request["weight"]
        stepped = is_stepped(weight)
        fused.append(stepped and not _has_hooks(weight))
        if not fused[-1]:
            if stepped:
                request = {**request, "sparse": True, "backend": _backend_for_hooks(weight)}
            plain.append(request)
            continue
        names = ("weight", "per_sample_weights", "indices", "offsets", "mode")
        names = (*names, "include_last_offset", "padding_idx")
        given = [request[name] for name in names]
        own.append((given, _checked(*given)))
    others = iter(ops.embedding_bags(plain))
    with torch.no_grad():
        outputs = forward_many([checked for _, checked in own]) if own else []
    stepped = iter(
        [
            _look_up(*given, made=(checked, output))
            for (given, checked), output in zip(own, outputs, strict=True)
        ]
    )
    return [next(stepped if is_one else others) for is_one in fused]


def is_stepped(weight: Tensor) -> bool:
    """Whether the gradient of a look-up now would be stepped in backward by one of our
    optimizers."""
    found = optimizers_of(weight)
    return (
        len(found) == 1
        and isinstance(found[0], RowOptimizer)
        and len(_EAGER) == 1
        and weight.requires_grad
        and torch.is_grad_enabled()
    )


def _has_hooks(weight: Tensor) -> bool:
    """Whether somebody wants to see the gradient of a parameter: it is made then, of the touched
    rows, so that the step is the same."""
    return not torch.compiler.is_compiling() and bool(weight._backward_hooks)


def _backend_for_hooks(weight: Tensor) -> str | None:
    # There is no faster one for float64, and no warning is due.
    return "reference" if weight.dtype == torch.float64 else None
