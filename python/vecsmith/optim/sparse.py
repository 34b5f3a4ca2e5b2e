"""Optimizers for embedding tables: a step costs what its batch touched.

Each is the counterpart of one of torch.optim (or of FBGEMM, for the row-wise ones), with its
arguments (``foreach`` and ``fused`` are taken and mean nothing, ``differentiable=True`` is refused)
and the names of its state, over :func:`vecsmith.ops.embedding_bag_update`: the gradients
of a row are added up, and then the row and its state are read and written once.

All are *lazy*, as torch.optim.SparseAdam: a row that a step does not touch does not change, and
neither does its state. For SGD without momentum and for Adagrad that is what the dense rule does
too; with momentum, with Adam and with weight decay it is not (a row does not coast or shrink while
it is away).

With ``capturable=True``, as in torch.optim, the number of steps is a tensor beside the table (and
a learning rate may be one): a CUDA graph in which a step was captured counts on, and follows a
scheduler, in every replay.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim import Optimizer

from vecsmith import ops
from vecsmith.ops import _checks as check
from vecsmith.ops._embedding_bag import update
from vecsmith.ops._pages import empty_aligned_pages

_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


class RowOptimizer(Optimizer):
    """What the optimizers of tables share. A parameter [V, ...] is a table of V rows.

    Besides torch.optim's interface there is that of the update in backward
    (:func:`apply_optimizer_in_backward`) and of caches, which carry rows of state along with rows
    of a table: :meth:`row_state` and :meth:`next_rule`.

    State is float32 also for float16 and bfloat16 tables (float64 for float64), is made when a
    table is first stepped, and is on huge pages where the system has them.
    """

    # (name, whether it is one number for a row) of each tensor of the state, in the order of
    # UpdateRule.state_shapes.
    _STATE: tuple[tuple[str, bool], ...] = ()
    # Whether a dense gradient makes sense: every row is touched then.
    _DENSE: str | None = None  # else what to use
    # Held while a table is stepped, for those whose rows another thread may copy meanwhile.
    _step_lock: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()

    # --- what a subclass says -----------------------------------------------------------------

    def _make_rule(self, group: dict[str, Any], step: int | Tensor) -> ops.UpdateRule:
        raise NotImplementedError

    def _state_names(self, group: dict[str, Any]) -> tuple[tuple[str, bool], ...]:
        return self._STATE

    def _counts(self, group: dict[str, Any]) -> bool:
        """Whether the steps of a table are counted."""
        return True

    def _initial_value(self, group: dict[str, Any]) -> float:
        return 0.0

    def _counter(self, step: int) -> Any:
        """``step`` as the counterpart in torch.optim keeps it."""
        return step

    # --- parameters ---------------------------------------------------------------------------

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group of tables, with settings of its own, as torch.optim.Optimizer does.

        Raises: ValueError for a parameter that is not a dense floating [V, ...] tensor, and for
        settings out of range; nothing is added then.
        """
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            _refuse_differentiable(type(self).__name__, group.get("differentiable"))
            for param in group["params"]:
                self._check_parameter(param)
            self._make_rule(group, 1).settled()
        except BaseException:
            del self.param_groups[-1]
            raise

    def _check_parameter(self, param: Tensor) -> None:
        name = type(self).__name__
        if param.layout != torch.strided or param.dtype not in _FLOATS:
            raise ValueError(
                f"{name}: expected dense floating point parameters; "
                f"got {param.dtype} of layout {param.layout}"
            )
        if param.dim() < 1:
            raise ValueError(f"{name}: expected parameters of shape [rows, ...]; got a scalar")

    def _group_of(self, param: Tensor) -> dict[str, Any]:
        for group in self.param_groups:
            if any(param is member for member in group["params"]):
                return group
        raise ValueError(f"{type(self).__name__}: expected a parameter of this optimizer")

    # --- rows of state and rules --------------------------------------------------------------

    def row_state(self, param: Tensor) -> tuple[Tensor, ...]:
        """The state of a table, made on first use: a tensor [V, D] or [V] each, in the order of
        ``UpdateRule.state_shapes``. They are the optimizer's own tensors (or views of them), to be
        changed in place.

        Raises: ValueError for a parameter of another optimizer, or state of another shape.
        """
        return self._rows_of_state(param, self._group_of(param))

    def _rows_of_state(self, param: Tensor, group: dict[str, Any]) -> tuple[Tensor, ...]:
        state = self.state[param]
        rows = param.shape[0]
        dtype = torch.float64 if param.dtype == torch.float64 else torch.float32
        views = []
        for name, per_row in self._state_names(group):
            shape = (rows,) if per_row else tuple(param.shape)
            value = state.get(name)
            if value is None:
                check.refuse_capture(
                    type(self).__name__, param, "the state of a table to be there before (a step, "
                    "or row_state(), makes it)"
                )  # fmt: skip
                value = empty_aligned_pages(*shape, dtype=dtype, device=param.device)
                value.fill_(self._initial_value(group))
            if value.layout != torch.strided:  # torch.optim.SGD keeps a sparse momentum
                value = value.to_dense()
            if value.shape != shape:
                if not per_row or value.numel() != rows:
                    raise ValueError(
                        f"{type(self).__name__}: expected {name!r} of shape {list(shape)}; "
                        f"got {list(value.shape)}"
                    )
                value = value.reshape(rows)  # torchrec's [V, 1]
            # A table that was moved or cast after its state was made takes it along.
            value = value.to(device=param.device, dtype=dtype).contiguous()
            state[name] = value
            views.append(value if per_row or value.dim() == 2 else value.view(rows, -1))
        return tuple(views)

    def next_rule(self, param: Tensor) -> ops.UpdateRule:
        """The rule of the next step of a table, which is counted by this (with ``capturable`` by
        the operator that takes it); with the settings (the learning rate that a scheduler set) of
        the parameter's group as they are now.

        Raises: ValueError for a parameter of another optimizer, and settings out of range.
        """
        rule = self._rule_of(param, self._group_of(param))
        self._count(param, rule)
        return rule

    def _rule_of(self, param: Tensor, group: dict[str, Any]) -> ops.UpdateRule:
        """The rule of the next step, which is not counted by this."""
        lr = group["lr"]
        if isinstance(lr, Tensor) and (not group.get("capturable") or lr.device != param.device):
            if lr.device.type != "cpu":
                check.refuse_capture(
                    type(self).__name__, param, "capturable=True, and a learning rate beside the "
                    "table,"
                )  # fmt: skip
            group = {**group, "lr": _number(lr)}
        if not self._counts(group):
            return self._make_rule(group, 1)
        state = self.state[param]
        done = state.get("step", 0)
        if not group.get("capturable"):
            check.refuse_capture(type(self).__name__, param, "capturable=True")
            return self._make_rule(group, int(done) + 1)
        on_device = isinstance(done, Tensor) and done.device == param.device
        if not (on_device and done.is_floating_point()):
            check.refuse_capture(type(self).__name__, param, "a step to have been taken before")
            done = torch.tensor(float(done), dtype=torch.float32, device=param.device)
            state["step"] = done
        return self._make_rule(group, done)

    def _count(self, param: Tensor, rule: ops.UpdateRule) -> None:
        """Counts a step that has been taken, unless the operator has: it does where the count is a
        tensor."""
        if not isinstance(rule.step, Tensor):
            self.state[param]["step"] = self._counter(rule.step)

    # --- the step -----------------------------------------------------------------------------

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], Any]) -> Any: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Steps every table that has a gradient, on the rows that it has one for.

        Sparse gradients may be coalesced or not: the entries of a row are added up.

        Args:
            closure: computes the loss (and its gradients) anew and returns it.

        Returns: what ``closure`` returned, or None.

        Raises:
            ValueError, IndexError: a gradient that is not finite or names a row that there is not,
                a parameter whose rows do not lie one after another, settings out of range; of any
                table: before any row is changed.
            RuntimeError: a dense gradient, where the rule is for sparse ones alone.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        steps = []
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is not None:
                    rows, values = self._rows_of_gradient(param, param.grad)
                    steps.append(RowStep(self, param, values, rows))
        take_steps(steps)
        return loss

    def _rows_of_gradient(self, param: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
        """(rows int64 [N], values [N, D]) of a gradient; all rows of a dense one."""
        name = type(self).__name__
        dim = param.numel() // max(param.shape[0], 1)
        if dim == 0:  # nothing to step
            return torch.empty(0, dtype=torch.int64), param.new_empty(0)
        if grad.layout == torch.sparse_coo:
            if grad.sparse_dim() != 1:
                raise ValueError(
                    f"{name}: expected gradients that are sparse in the rows alone; "
                    f"got {grad.sparse_dim()} sparse dimensions"
                )
            return grad._indices()[0], grad._values().reshape(-1, dim)
        if self._DENSE is not None:
            raise RuntimeError(
                f"{name}: expected sparse gradients (make the layer with sparse=True); "
                f"got a dense one, which {self._DENSE} takes"
            )
        rows = torch.arange(param.shape[0], device=param.device)
        return rows, grad.reshape(-1, dim)

    # --- state_dict ---------------------------------------------------------------------------

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        # Settings that the state_dict of torch's counterpart does not have.
        for group in self.param_groups:
            for name, value in self.defaults.items():
                if name != "differentiable":  # torch's own, which no group has
                    group.setdefault(name, value)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads what :meth:`state_dict` of this class, or of its counterpart in torch.optim, gave.

        Raises: ValueError for other groups or numbers of parameters.
        """
        super().load_state_dict(state_dict)
        # torch casts state to the dtype of its parameter; that of a half-precision table is
        # float32, and must not lose its low bits on the way.
        saved = (n for group in state_dict["param_groups"] for n in group["params"])
        own = (param for group in self.param_groups for param in group["params"])
        for number, param in zip(saved, own, strict=True):
            if param.dtype not in (torch.float16, torch.bfloat16):
                continue
            for name, value in state_dict["state"].get(number, {}).items():
                loaded = self.state[param].get(name)
                if name == "step" or not isinstance(value, Tensor) or loaded is value:
                    continue
                # Where a hook of the user's gave other values, those stay.
                if isinstance(loaded, Tensor) and torch.equal(
                    loaded, value.to(device=loaded.device, dtype=loaded.dtype)
                ):
                    full = value.to(device=param.device, dtype=torch.float32)
                    self.state[param][name] = full.clone() if full is value else full


class RowStep:
    """One table's part of a step: what :func:`vecsmith.ops.embedding_bag_update` is given.

    grad: [N, D] or [B, D]; indices: the rows of the table, or what is in the bags; looked_up:
    whether a look-up has checked the table and the indices; bags: mode, offsets and the rest.
    """

    def __init__(
        self,
        optimizer: RowOptimizer,
        param: Tensor,
        grad: Tensor,
        indices: Tensor,
        looked_up: bool = False,
        **bags: Any,
    ) -> None:
        self.optimizer = optimizer
        self.param = param
        self.grad = grad
        self.indices = indices
        self.looked_up = looked_up
        self.bags = bags or {"mode": "none"}
        self.stream: Any = None  # the one that the gradient was computed on
        if grad.is_cuda:
            self.stream = torch.cuda.current_stream(grad.device)
        self.has_spare_rows = False  # gradients of a row that there is not: no gradients
        self.ready: tuple[Tensor, tuple[Tensor, ...], ops.UpdateRule] | None = None

    def follow(self) -> None:
        """The work on the current stream comes after that which the gradient is of, and the memory
        of what is read lasts as long."""
        if self.stream is None:
            return
        here = torch.cuda.current_stream(self.grad.device)
        if here != self.stream:
            here.wait_stream(self.stream)
            for tensor in (self.grad, self.indices, *self.bags.values()):
                if isinstance(tensor, Tensor) and tensor.is_cuda:
                    tensor.record_stream(here)

    def _prepare(self) -> tuple[Tensor, tuple[Tensor, ...], ops.UpdateRule]:
        """(the parameter [V, D], its state, the rule)."""
        param, optimizer = self.param, self.optimizer
        group = optimizer._group_of(param)
        state = optimizer._rows_of_state(param, group)
        rule = optimizer._rule_of(param, group)
        weight = param.detach()
        if weight.dim() != 2 and self.grad.numel():
            try:
                weight = weight.view(weight.shape[0], -1)
            except RuntimeError:
                raise ValueError(
                    f"{type(optimizer).__name__}: expected parameters whose rows are contiguous; "
                    f"got one of shape {list(weight.shape)} with strides {weight.stride()}"
                ) from None
        return weight, state, rule

    def check(self) -> None:
        """Raises, where :meth:`take` would: ValueError for a gradient that is not finite, rows that
        are not contiguous, state of another shape, settings out of range; IndexError for a row that
        there is not."""
        name = type(self.optimizer).__name__
        weights = self.bags.get("per_sample_weights")
        for tensor in (self.grad,) if weights is None else (self.grad, weights):
            if check.is_capturing(tensor):
                continue  # the operator's step looks, and changes nothing
            # A finite sum has finite terms; an infinite one may be an overflow.
            if not math.isfinite(float(tensor.sum())) and not bool(torch.isfinite(tensor).all()):
                raise ValueError(
                    f"{name}: expected finite gradients; "
                    f"got NaN or infinity for a table of shape {list(self.param.shape)}"
                )
        with self.optimizer._step_lock:
            self.ready = self._prepare()
        if not self.looked_up and self.grad.numel():
            check.table(name, "parameters", self.ready[0])
            check.ids(name, "the rows of a gradient", self.indices, 0, self.param.shape[0])

    def take(self) -> None:
        """Updates the rows. Raises: as embedding_bag_update; the step does not count then."""
        with self.optimizer._step_lock:
            self._take()

    def _take(self) -> None:
        weight, state, rule = self.ready or self._prepare()
        if not self.grad.numel():  # it is counted alone, as by torch.optim
            if isinstance(rule.step, Tensor):
                rule.step.add_(1)
        elif self.has_spare_rows:
            bags = (self.indices, None, None, None, "none", False, weight.shape[0])
            update(weight, list(state), self.grad, *bags, rule, 0, "")
        else:
            ops.embedding_bag_update(
                weight,
                state,
                self.indices,
                self.grad,
                rule=rule,
                # There is no faster one for float64, and no warning is due.
                backend="reference" if weight.dtype == torch.float64 else None,
                **self.bags,
            )
        self.optimizer._count(self.param, rule)
        # Learning rate schedulers ask whether step() was called; in backward it is not.
        vars(self.optimizer)["_opt_called"] = True


def take_steps(steps: Sequence[RowStep]) -> None:
    """Takes all steps, or, where one of them cannot be taken, none (ValueError, IndexError)."""
    for step in steps[1:]:  # the first is checked by the operator itself
        step.check()
    for step in steps:
        step.take()


def _refuse_differentiable(name: str, differentiable: Any) -> None:
    if differentiable:
        raise ValueError(
            f"{name}: expected differentiable=False; got {differentiable}: steps are taken in place"
        )


def _rate(group: dict[str, Any]) -> float | Tensor:
    """The learning rate: a tensor stays one where steps are capturable."""
    value = group["lr"]
    if group.get("capturable") and isinstance(value, Tensor) and value.numel() == 1:
        return value
    return _number(value)


def _number(value: float | Tensor) -> float:
    """A setting as a float: torch allows learning rates that are tensors of one element."""
    if isinstance(value, Tensor) and value.numel() != 1:
        raise ValueError(f"expected lr of 1 element; got a tensor of {value.numel()}")
    return float(value)


class SparseSGD(RowOptimizer):
    """Stochastic gradient descent on the touched rows (torch.optim.SGD).

    For a row w with gradient g (plus ``weight_decay`` w; negated first with ``maximize``):

        b = momentum b + (1 - dampening) g        (b = g at the table's first step)
        w = w - lr b,   or with nesterov   w - lr (g + momentum b)

    Without momentum w = w - lr g. Untouched rows neither coast nor decay (lazy); torch.optim.SGD on
    sparse gradients, by contrast, moves every row that was ever touched. A dense gradient touches
    every row, and then this is torch.optim.SGD.

    Args:
        params: tables [V, D], or groups of them.
        lr: the learning rate, finite and >= 0.
        momentum: 0 keeps no state; else ``momentum_buffer`` [V, D].
        dampening: of the gradient that enters the buffer.
        weight_decay: L2 penalty, of the touched rows.
        nesterov: needs a momentum and no dampening.
        maximize: ascend.
        foreach, fused: accepted as in torch, and without a meaning here.
        differentiable: False; a step in place has no derivative.
        capturable: steps can be captured in a CUDA graph: they are counted beside the table, and
            ``lr`` may be a tensor there, which every replay reads.

    Raises: ValueError for settings out of range and parameters that are not tables.
    """

    _STATE = (("momentum_buffer", False),)

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        differentiable: bool = False,
        fused: bool | None = None,
        capturable: bool = False,
    ) -> None:
        _refuse_differentiable(type(self).__name__, differentiable)
        super().__init__(
            params,
            {
                "lr": lr,
                "momentum": momentum,
                "dampening": dampening,
                "weight_decay": weight_decay,
                "nesterov": nesterov,
                "maximize": maximize,
                "capturable": bool(capturable),
            },
        )

    def _state_names(self, group: dict[str, Any]) -> tuple[tuple[str, bool], ...]:
        return self._STATE if group["momentum"] else ()

    def _make_rule(self, group: dict[str, Any], step: int | Tensor) -> ops.UpdateRule:
        return ops.UpdateRule(
            "sgd",
            _rate(group),
            momentum=float(group["momentum"]),
            dampening=float(group["dampening"]),
            weight_decay=float(group["weight_decay"]),
            nesterov=bool(group["nesterov"]),
            maximize=bool(group["maximize"]),
            step=step,
        )

    def _counts(self, group: dict[str, Any]) -> bool:
        return bool(group["momentum"])  # without it there is no state, as in torch.optim.SGD

    def _count(self, param: Tensor, rule: ops.UpdateRule) -> None:
        if rule.momentum:
            super()._count(param, rule)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch.optim.Optimizer; also of torch.optim.SGD, which counts no steps.

        Raises: ValueError for other groups or numbers of parameters.
        """
        super().load_state_dict(state_dict)
        for state in self.state.values():
            if state.get("momentum_buffer", 0) is None:
                del state["momentum_buffer"]
            if "momentum_buffer" in state:
                state.setdefault("step", 1)


class _Adagrad(RowOptimizer):
    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-2,
        lr_decay: float = 0.0,
        weight_decay: float = 0.0,
        initial_accumulator_value: float = 0.0,
        eps: float = 1e-10,
        foreach: bool | None = None,
        *,
        maximize: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        capturable: bool = False,
    ) -> None:
        _refuse_differentiable(type(self).__name__, differentiable)
        start = float(initial_accumulator_value)
        if not (math.isfinite(start) and start >= 0):
            raise ValueError(
                f"expected initial_accumulator_value to be finite and >= 0; got {start}"
            )
        super().__init__(
            params,
            {
                "lr": lr,
                "lr_decay": lr_decay,
                "weight_decay": weight_decay,
                "initial_accumulator_value": start,
                "eps": eps,
                "maximize": maximize,
                "capturable": bool(capturable),
            },
        )

    def _initial_value(self, group: dict[str, Any]) -> float:
        return group["initial_accumulator_value"]

    def _counter(self, step: int) -> Any:
        return torch.tensor(float(step))

    def _make_rule(self, group: dict[str, Any], step: int | Tensor) -> ops.UpdateRule:
        return ops.UpdateRule(
            "rowwise_adagrad" if self._STATE[0][1] else "adagrad",
            _rate(group),
            eps=float(group["eps"]),
            weight_decay=float(group["weight_decay"]),
            lr_decay=float(group["lr_decay"]),
            maximize=bool(group["maximize"]),
            step=step,
        )


class SparseAdagrad(_Adagrad):
    """Adagrad on the touched rows (Duchi, Hazan and Singer 2011; torch.optim.Adagrad).

    For a row w with gradient g (plus ``weight_decay`` w) at step t of its table:

        s = s + g^2,        w = w - lr / (1 + (t - 1) lr_decay)  g / (sqrt(s) + eps)

    A row without a gradient does not change under the dense rule either, so that without weight
    decay this is torch.optim.Adagrad exactly; weight decay, which torch refuses for sparse
    gradients, is lazy. A dense gradient touches every row.

    Args:
        params: tables [V, D], or groups of them.
        lr: the learning rate, finite and >= 0.
        lr_decay: of the learning rate over the steps of a table.
        weight_decay: L2 penalty, of the touched rows.
        initial_accumulator_value: of s, >= 0.
        eps: beside sqrt(s).
        maximize: ascend.
        foreach, fused: accepted as in torch, and without a meaning here.
        differentiable: False; a step in place has no derivative.
        capturable: as in :class:`SparseSGD`.

    State: ``sum`` [V, D] and ``step``.

    Raises: ValueError for settings out of range and parameters that are not tables.
    """

    _STATE = (("sum", False),)


class RowwiseAdagrad(_Adagrad):
    """Adagrad with one accumulator for a row (Gupta et al. 2014; FBGEMM's row-wise Adagrad).

    For a row w of length D with gradient g (plus ``weight_decay`` w) at step t of its table:

        s = s + mean(g^2),  w = w - lr / (1 + (t - 1) lr_decay)  g / (sqrt(s) + eps)

    The state is D times smaller than Adagrad's. Lazy, as :class:`SparseAdagrad`.

    Args:
        params: tables [V, D], or groups of them.
        lr, lr_decay, weight_decay, initial_accumulator_value: as in :class:`SparseAdagrad`.
        eps, maximize, foreach, fused, differentiable, capturable: as in :class:`SparseAdagrad`.

    State: ``sum`` [V] and ``step``.

    Raises: ValueError for settings out of range and parameters that are not tables.
    """

    _STATE = (("sum", True),)


class _Adam(RowOptimizer):
    _DENSE = "torch.optim.Adam"

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        maximize: bool = False,
        *,
        weight_decay: float = 0.0,
        capturable: bool = False,
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "betas": betas,
                "eps": eps,
                "maximize": maximize,
                "weight_decay": weight_decay,
                "capturable": bool(capturable),
            },
        )

    def _make_rule(self, group: dict[str, Any], step: int | Tensor) -> ops.UpdateRule:
        beta1, beta2 = group["betas"]
        return ops.UpdateRule(
            "rowwise_adam" if self._STATE[1][1] else "adam",
            _rate(group),
            eps=float(group["eps"]),
            beta1=float(beta1),
            beta2=float(beta2),
            weight_decay=float(group["weight_decay"]),
            maximize=bool(group["maximize"]),
            step=step,
        )


class SparseAdam(_Adam):
    """Adam on the touched rows (Kingma and Ba 2015; torch.optim.SparseAdam).

    For a row w with gradient g (plus ``weight_decay`` w) at step t of its table:

        m = m + (1 - beta1) (g - m),    v = v + (1 - beta2) (g^2 - v)
        w = w - lr sqrt(1 - beta2^t) / (1 - beta1^t)  m / (sqrt(v) + eps)

    Untouched rows and their moments do not change (lazy). Dense gradients are refused, as by
    torch.optim.SparseAdam: the layer was made without ``sparse=True``, and torch.optim.Adam is
    what they want.

    Args:
        params: tables [V, D], or groups of them.
        lr: the learning rate, finite and >= 0 (torch.optim.SparseAdam refuses 0).
        betas: of the two moments, in [0, 1).
        eps: beside sqrt(v).
        maximize: ascend.
        weight_decay: L2 penalty, of the touched rows.
        capturable: as in :class:`SparseSGD`.

    State: ``exp_avg`` [V, D], ``exp_avg_sq`` [V, D] and ``step``.

    Raises: ValueError for settings out of range and parameters that are not tables.
    """

    _STATE = (("exp_avg", False), ("exp_avg_sq", False))


class RowwiseAdam(_Adam):
    """Adam with one second moment for a row (FBGEMM's partial row-wise Adam).

    As :class:`SparseAdam` with v = v + (1 - beta2) (mean(g^2) - v), one number for a row: the state
    is half as large.

    Args:
        params: tables [V, D], or groups of them.
        lr, betas, eps, maximize, weight_decay, capturable: as in :class:`SparseAdam`.

    State: ``exp_avg`` [V, D], ``exp_avg_sq`` [V] and ``step``.

    Raises: ValueError for settings out of range and parameters that are not tables.
    """

    _STATE = (("exp_avg", False), ("exp_avg_sq", True))
