"""torch.nn's Embedding and EmbeddingBag on the operator ``embedding_bag``."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd import forward_ad

from vecsmith.nn.table import Table
from vecsmith.ops import _checks as check
from vecsmith.ops._pages import empty_pages
from vecsmith.optim import in_backward

_FAST = (torch.float32, torch.float16, torch.bfloat16)
_PLAIN = (Tensor, torch.nn.Parameter, FakeTensor)
STORAGES = ("device", "host", "mmap")


_transforms_are_active = getattr(torch._C, "_are_functorch_transforms_active", lambda: False)
_tracing_state = torch._C._get_tracing_state


def _is_transformed() -> bool:
    """Whether torch.func, forward-mode AD or torch.jit.trace want to see what is computed."""
    return not torch.compiler.is_compiling() and (
        forward_ad._current_level >= 0 or _transforms_are_active() or _tracing_state() is not None
    )


def _is_fast(weight: Tensor, *others: Tensor | None) -> bool:
    """Whether the operator takes this table; torch.nn.functional answers for every other."""
    for tensor in others:
        if tensor is not None and (type(tensor) not in _PLAIN or tensor.is_nested):
            return False
    return (
        type(weight) in _PLAIN  # first: one of torch.fx's answers every question with a proxy
        and (
            weight.dtype in _FAST
            or (weight.dtype == torch.float64 and in_backward.is_stepped(weight))
        )
        and not _is_transformed()  # before sizes, which torch.jit.trace has as tensors
        and weight.device.type in ("cpu", "cuda")
        and weight.numel() > 0
        and weight.is_contiguous()
    )


def _refuse_other_types(name: str, inputs: dict[str, Any]) -> None:
    """Raises TypeError for what is neither a tensor nor something that torch's functions take for
    one; torch's bags ask it for its dim()."""
    for what, value in inputs.items():
        if not (value is None or isinstance(value, Tensor) or hasattr(value, "__torch_function__")):
            raise TypeError(
                f"{name}: expected {what} to be a torch.Tensor; got {type(value).__name__}"
            )


def _padding(name: str, padding_idx: int | None, rows: int) -> int | None:
    if padding_idx is None:
        return None
    check.integer(name, "padding_idx", padding_idx, low=-rows, high=rows - 1)
    return padding_idx % rows


def _make_table(
    name: str,
    num_embeddings: int,
    embedding_dim: int,
    table: Table | None,
    storage: str,
    options: dict[str, Any],
    refused: dict[str, Any],
    padding_idx: int | None,
    device: Any,
    dtype: torch.dtype | None,
) -> Table | None:
    """The table that a layer keeps in the place of its own weight; None for its own."""
    if storage not in STORAGES:
        raise ValueError(
            f"{name}: expected storage to be 'device', 'host' or 'mmap'; got {storage!r}"
        )
    given = {key: value for key, value in options.items() if value is not None}
    if table is None and storage == "device":
        if given:
            raise ValueError(f"{name}: expected {', '.join(given)} with storage 'host' or 'mmap'")
        return None
    bad = [key for key, value in refused.items() if value]
    if bad:
        raise ValueError(f"{name}: expected no {', '.join(bad)} where a table keeps the rows")
    if table is None:
        from vecsmith.nn.cached_table import CachedTable

        return CachedTable(
            num_embeddings,
            embedding_dim,
            storage=storage,
            device=device,
            dtype=torch.get_default_dtype() if dtype is None else dtype,
            padding_idx=padding_idx,
            **given,
        )
    if not isinstance(table, Table):
        raise TypeError(f"{name}: expected table to be a vecsmith.nn.Table; got {type(table)}")
    if storage != "device" or given or device is not None or dtype is not None:
        raise ValueError(
            f"{name}: expected a table, or storage, device and dtype of one to be made; got both"
        )
    shape = (table.num_embeddings, table.embedding_dim)
    if shape != (num_embeddings, embedding_dim):
        raise ValueError(
            f"{name}: expected a table of [{num_embeddings}, {embedding_dim}]; got {list(shape)}"
        )
    return table


class Embedding(torch.nn.Embedding):
    """torch.nn.Embedding, faster: out[..., :] = weight[input[...], :].

    A subclass with the same arguments, the same ``state_dict`` (both ways), the same numbers from
    the same seed, and the same answers; see torch's documentation for what it shares. Look-up and
    gradients go through :func:`vecsmith.ops.embedding`; what that has no fast path for
    (``max_norm``, ``scale_grad_by_freq``, float64, devices other than CPU and CUDA, functorch's
    transforms, tensor subclasses) goes through torch.nn.functional.

    What it has beyond torch: a sparse gradient holds each touched row once, the optimizers of
    :mod:`vecsmith.optim` can step in backward
    (:func:`vecsmith.optim.apply_optimizer_in_backward`), and the rows may be kept elsewhere.

    Args:
        num_embeddings: V, the number of rows.
        embedding_dim: D, the length of a row.
        padding_idx: the row that gets no gradient, and is zero at first (negative: from the end).
        max_norm: rows that are looked up are scaled down, in place, to this norm at most.
        norm_type: p of that norm.
        scale_grad_by_freq: gradients are divided by how often the row is in the batch.
        sparse: the gradient of ``weight`` is a ``torch.sparse_coo`` tensor with each row once.
        _weight: [V, D], used as the weight without a copy.
        _freeze: the weight does not require a gradient.
        device, dtype: of the weight.
        table: a :class:`Table` [V, D] that keeps the rows in the place of ``weight``; the layer has
            ``table`` and no ``weight`` then.
        storage: "device" (a weight of the layer's own), "host" or "mmap" (a
            :class:`CachedTable`: hot rows on ``device``, all rows in memory or in a file).
        path: the file of "mmap".
        cache_rows: how many rows are kept hot.

    Shapes:
        ``input`` [*] int32 or int64 in 0..V-1; returns [*, D] of weight's dtype.

    Raises:
        ValueError: for arguments that do not fit together.
        TypeError, IndexError (in forward): as :func:`vecsmith.ops.embedding`.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        sparse: bool = False,
        _weight: Tensor | None = None,
        _freeze: bool = False,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        table: Table | None = None,
        storage: str = "device",
        path: str | os.PathLike[str] | None = None,
        cache_rows: int | None = None,
    ) -> None:
        name = type(self).__name__
        padding_idx = _padding(name, padding_idx, num_embeddings)
        table = _make_table(
            *(name, num_embeddings, embedding_dim, table, storage),
            {"path": path, "cache_rows": cache_rows},
            {
                "max_norm": max_norm,
                "scale_grad_by_freq": scale_grad_by_freq,
                "_weight": _weight is not None,
            },
            *(padding_idx, device, dtype),
        )
        own = _own_weight(name, num_embeddings, embedding_dim, table, _weight, device, dtype)
        super().__init__(
            *(own.shape[0], embedding_dim, padding_idx if table is None else None),
            *(max_norm, norm_type, scale_grad_by_freq, sparse, own, _freeze),
        )
        _keep(self, table, padding_idx, _weight, _freeze)

    def forward(self, input: Tensor) -> Tensor:
        """The rows of ``input``: [*] -> [*, D]. Raises: as :func:`vecsmith.ops.embedding`."""
        table = _table_of(self)
        if table is not None:
            return table.embedding(input, padding_idx=self.padding_idx, sparse=self.sparse)
        if self.max_norm is None and not self.scale_grad_by_freq and _is_fast(self.weight, input):
            return in_backward.embedding(
                input, self.weight, padding_idx=self.padding_idx, sparse=self.sparse
            )
        _refuse_other_types(type(self).__name__, {"input": input})
        return super().forward(input)

    def _load_from_state_dict(self, *arguments: Any) -> None:
        in_backward.load_parameters(self, super()._load_from_state_dict, *arguments)

    def reset_parameters(self) -> None:
        """Rows from N(0, 1), that of ``padding_idx`` zero; a table has its own way."""
        _reset(self, super().reset_parameters)


class EmbeddingBag(torch.nn.EmbeddingBag):
    """torch.nn.EmbeddingBag, faster: the sum, mean or maximum of the rows of each bag.

    A subclass with the same arguments, the same ``state_dict`` (both ways), the same numbers from
    the same seed, and the same answers; see torch's documentation for what it shares, and
    :class:`Embedding` for what is faster and what is beyond torch. ``sparse`` also goes with mode
    "max", and ``per_sample_weights`` may be float32 with a half-precision table; not with float64,
    ``max_norm`` and ``scale_grad_by_freq``, where torch answers.

    Args:
        num_embeddings: V, the number of rows.
        embedding_dim: D, the length of a row.
        max_norm, norm_type, scale_grad_by_freq: as in :class:`Embedding`.
        mode: "sum", "mean" or "max".
        sparse: the gradient of ``weight`` is a ``torch.sparse_coo`` tensor with each row once.
        _weight: [V, D], used as the weight without a copy.
        include_last_offset: ``offsets`` are [B + 1] and end with the end of the last bag.
        padding_idx: entries that are skipped (negative: from the end).
        device, dtype: of the weight.
        table, storage, path, cache_rows: as in :class:`Embedding`.

    Shapes:
        ``input`` [N] with ``offsets`` [B], or [B, L]; int32 or int64 in 0..V-1.
        ``per_sample_weights`` like ``input``, with mode "sum". Returns [B, D] of weight's dtype;
        zeros for an empty bag.

    Raises:
        ValueError: for arguments that do not fit together.
        TypeError, ValueError, IndexError (in forward): as :func:`vecsmith.ops.embedding_bag`.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        mode: str = "mean",
        sparse: bool = False,
        _weight: Tensor | None = None,
        include_last_offset: bool = False,
        padding_idx: int | None = None,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        table: Table | None = None,
        storage: str = "device",
        path: str | os.PathLike[str] | None = None,
        cache_rows: int | None = None,
    ) -> None:
        name = type(self).__name__
        if mode not in ("sum", "mean", "max"):
            raise ValueError(f"{name}: expected mode to be 'sum', 'mean' or 'max'; got {mode!r}")
        padding_idx = _padding(name, padding_idx, num_embeddings)
        table = _make_table(
            *(name, num_embeddings, embedding_dim, table, storage),
            {"path": path, "cache_rows": cache_rows},
            {
                "max_norm": max_norm,
                "scale_grad_by_freq": scale_grad_by_freq,
                "_weight": _weight is not None,
            },
            *(padding_idx, device, dtype),
        )
        own = _own_weight(name, num_embeddings, embedding_dim, table, _weight, device, dtype)
        super().__init__(
            *(own.shape[0], embedding_dim, max_norm, norm_type, scale_grad_by_freq),
            *(mode, sparse, own, include_last_offset, padding_idx if table is None else None),
        )
        _keep(self, table, padding_idx, _weight, False)

    def forward(
        self,
        input: Tensor,
        offsets: Tensor | None = None,
        per_sample_weights: Tensor | None = None,
    ) -> Tensor:
        """The pooled rows of every bag: [B, D]. Raises: as :func:`vecsmith.ops.embedding_bag`."""
        table = _table_of(self)
        if table is None and self._is_fast(input, offsets, per_sample_weights):
            arguments = self._arguments(input, offsets, per_sample_weights)
            return in_backward.embedding_bag(weight=self.weight, **arguments)
        _refuse_other_types(
            type(self).__name__,
            {"input": input, "offsets": offsets, "per_sample_weights": per_sample_weights},
        )
        if table is None:
            return super().forward(input, offsets, per_sample_weights)
        return table.embedding_bag(**self._arguments(input, offsets, per_sample_weights))

    def _load_from_state_dict(self, *arguments: Any) -> None:
        in_backward.load_parameters(self, super()._load_from_state_dict, *arguments)

    def _is_fast(self, *given: Tensor | None) -> bool:
        return (
            _table_of(self) is None
            and self.max_norm is None
            and not self.scale_grad_by_freq
            and _is_fast(self.weight, *given)
        )

    def _arguments(
        self, input: Tensor, offsets: Tensor | None, per_sample_weights: Tensor | None
    ) -> dict[str, Any]:
        """What the operator is given beside the weight."""
        if offsets is not None:
            input, offsets = _of_one_dtype(input, offsets)
        return {
            "indices": input,
            "offsets": offsets,
            "mode": self.mode,
            "per_sample_weights": per_sample_weights,
            # torch ignores it for bags of one length.
            "include_last_offset": self.include_last_offset and offsets is not None,
            "padding_idx": self.padding_idx,
            "sparse": self.sparse,
        }

    def reset_parameters(self) -> None:
        """Rows from N(0, 1), that of ``padding_idx`` zero; a table has its own way."""
        _reset(self, super().reset_parameters)


def _table_of(layer: torch.nn.Module) -> Any:
    """The table that keeps the rows of a layer, or None."""
    return layer._modules.get("table")


def _own_weight(
    name: str,
    num_embeddings: int,
    embedding_dim: int,
    table: Table | None,
    weight: Tensor | None,
    device: Any,
    dtype: torch.dtype | None,
) -> Tensor:
    """What torch's layer is given as its weight: always something, so that it draws no numbers."""
    if table is not None:  # which may stand for more numbers than a tensor may have
        return torch.empty(1, embedding_dim, device="meta")
    if weight is None:
        return empty_pages(num_embeddings, embedding_dim, device=device, dtype=dtype)
    if tuple(weight.shape) != (num_embeddings, embedding_dim):
        raise ValueError(
            f"{name}: expected _weight of shape [{num_embeddings}, {embedding_dim}]; "
            f"got {list(weight.shape)}"
        )
    return weight


def _keep(
    layer: Any, table: Table | None, padding_idx: int | None, weight: Tensor | None, freeze: bool
) -> None:
    """Ends the construction of a layer: the table in the place of the weight, or first numbers."""
    if table is not None:
        del layer.weight
        layer.table = table
        layer.num_embeddings, layer.padding_idx = table.num_embeddings, padding_idx
        if freeze:
            table.requires_grad_(False)
    elif weight is None:
        layer.reset_parameters()


def _reset(layer: Any, otherwise: Any) -> None:
    table = _table_of(layer)
    if table is None:
        otherwise()
    else:
        table.reset_parameters()


def _of_one_dtype(indices: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """Indices and offsets of one dtype, as torch promotes them."""
    integers = (torch.int32, torch.int64)
    if offsets.dtype != indices.dtype and {offsets.dtype, indices.dtype} <= set(integers):
        if indices.numel() < 2**31:  # the offsets are fewer
            offsets = offsets.to(indices.dtype)
        else:
            indices, offsets = indices.long(), offsets.long()
    return indices, offsets.contiguous()
