"""What the operator ``embedding_bag`` computes, in plain PyTorch.

For a table W [V, D], indices i_0 .. i_{N-1} and bags that cut them into B stretches, bag b being
the positions n in [offsets[b], offsets[b+1]):

    none   out[n] = W[i_n]
    sum    out[b] = sum_n w_n W[i_n]              (w_n = per_sample_weights[n], 1 without them)
    mean   out[b] = sum_n W[i_n] / |b|
    max    out[b, d] = max_n W[i_n, d]

Positions that hold ``padding_idx`` are left out of sum, mean (also of |b|) and max; with "none"
they give W[padding_idx] and get no gradient. The row of an empty bag is zero. A maximum is the
first of equals, and a NaN is one only in the first place (as in torch). An embedding is the product
of a one-hot vector and the table; pooling is the product of a sparse matrix [B, V] with it.

The gradient of row r is the sum over the positions that hold r, in their order:

    g_r = sum_{n: i_n = r} c_n G[bag(n)],   c_n = 1 | w_n | 1/|b| | [n is the maximum's position]

and for per_sample_weights it is <G[bag(n)], W[i_n]>. The rules that turn g_r into a step:
:class:`vecsmith.ops.UpdateRule`.

Tables of uint8 are torch's row-wise quantized ones ("byte prepacked", Guan et al. 2019): D bytes q,
then scale and bias as two float32; the value is scale q + bias.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype that sums are taken in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def dequantize(packed: Tensor) -> Tensor:
    """uint8 [V, D + 8] -> float32 [V, D]: scale q + bias."""
    ends = packed[:, -8:].contiguous().view(torch.float32)
    return packed[:, :-8].float() * ends[:, :1] + ends[:, 1:]


def bags(
    indices: Tensor, offsets: Tensor | None, include_last_offset: bool
) -> tuple[Tensor, Tensor, int]:
    """(indices [N], the bag of each [N], B)."""
    if offsets is None:
        count, length = (indices.numel(), 1) if indices.dim() == 1 else indices.shape
        bag = torch.arange(count, device=indices.device).repeat_interleave(length)
        return indices.reshape(-1).long(), bag, count
    starts = offsets.long()
    if not include_last_offset:
        end = torch.tensor([indices.numel()], device=indices.device)
        starts = torch.cat([starts, end])
    count = starts.numel() - 1
    sizes = starts[1:] - starts[:-1]
    bag = torch.arange(count, device=indices.device).repeat_interleave(sizes)
    return indices[: bag.numel()].long(), bag, count


def embedding(weight: Tensor, indices: Tensor, padding_idx: int = -1) -> Tensor:
    """W[indices], [*, D]. padding_idx matters for the gradient alone."""
    table = dequantize(weight) if weight.dtype == torch.uint8 else weight
    return table[indices.long()]


def embedding_bag(
    weight: Tensor,
    indices: Tensor,
    offsets: Tensor | None = None,
    per_sample_weights: Tensor | None = None,
    mode: str = "mean",
    include_last_offset: bool = False,
    padding_idx: int = -1,
) -> tuple[Tensor, Tensor]:
    """(out [B, D], positions): positions is [B, D] int64 with "max" (the place in ``indices`` of
    each maximum, -1 in empty bags), else empty."""
    flat, bag, count = bags(indices, offsets, include_last_offset)
    dim = weight.shape[1] - 8 * (weight.dtype == torch.uint8)
    kept = (flat != padding_idx).nonzero().reshape(-1)
    rows = weight[flat[kept]]
    rows = dequantize(rows) if weight.dtype == torch.uint8 else rows
    dtype = rows.dtype
    rows, bag = rows.to(wide(dtype)), bag[kept]
    if mode == "max":
        out = rows.new_zeros(count, dim)
        positions = torch.full((count, dim), -1, dtype=torch.int64, device=weight.device)
        sizes = torch.bincount(bag, minlength=count)
        firsts = sizes.cumsum(0) - sizes
        for rank in range(int(sizes.max()) if count else 0):  # the rank-th entry of every bag
            some = (sizes > rank).nonzero().reshape(-1)
            at = firsts[some] + rank
            larger = (rows[at] > out[some]) | (rank == 0)
            out[some] = torch.where(larger, rows[at], out[some])
            positions[some] = torch.where(larger, kept[at, None], positions[some])
        return out.to(dtype), positions
    if per_sample_weights is not None:
        rows = rows * per_sample_weights.reshape(-1)[kept, None].to(rows.dtype)
    out = rows.new_zeros(count, dim).index_add_(0, bag, rows)
    if mode == "mean":
        out /= torch.bincount(bag, minlength=count).clamp(min=1)[:, None]
    return out.to(dtype), torch.empty(0, dtype=torch.int64, device=weight.device)


def _samples(
    grad: Tensor,
    indices: Tensor,
    offsets: Tensor | None,
    per_sample_weights: Tensor | None,
    positions: Tensor | None,
    mode: str,
    include_last_offset: bool,
    padding_idx: int,
) -> tuple[Tensor, Tensor]:
    """(row [M], gradient [M, D] in wide precision) of every position that is not padding."""
    if mode == "none":
        flat, bag = indices.reshape(-1).long(), torch.arange(indices.numel(), device=grad.device)
        grad = grad.reshape(flat.numel(), grad.shape[-1])
    else:
        flat, bag, _ = bags(indices, offsets, include_last_offset)
    kept = (flat != padding_idx).nonzero().reshape(-1)
    each = grad[bag[kept]].to(wide(grad.dtype))
    if mode == "max":
        assert positions is not None
        each = each * (positions[bag[kept]] == kept[:, None])
    elif mode == "mean":
        each = each / torch.bincount(bag[kept], minlength=grad.shape[0])[bag[kept], None]
    elif per_sample_weights is not None:
        each = each * per_sample_weights.reshape(-1)[kept, None].to(each.dtype)
    return flat[kept], each


def embedding_bag_gradient(
    grad: Tensor,
    indices: Tensor,
    offsets: Tensor | None = None,
    per_sample_weights: Tensor | None = None,
    positions: Tensor | None = None,
    mode: str = "mean",
    include_last_offset: bool = False,
    padding_idx: int = -1,
) -> tuple[Tensor, Tensor]:
    """(rows [U] int64, ascending and distinct, values [U, D] of grad's dtype)."""
    flat, each = _samples(
        *(grad, indices, offsets, per_sample_weights, positions),
        *(mode, include_last_offset, padding_idx),
    )
    rows, inverse = torch.unique(flat, return_inverse=True)
    values = each.new_zeros(rows.numel(), each.shape[1]).index_add_(0, inverse, each)
    return rows, values.to(grad.dtype)


def per_sample_weights_gradient(
    grad: Tensor,
    weight: Tensor,
    indices: Tensor,
    offsets: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int = -1,
) -> Tensor:
    """<G[bag(n)], W[i_n]> for each position, zero for padding: [N]."""
    flat, bag, _ = bags(indices, offsets, include_last_offset)
    dot = (grad[bag].to(wide(grad.dtype)) * weight[flat].to(wide(grad.dtype))).sum(1)
    dot = torch.where(flat == padding_idx, 0.0, dot)
    full = dot.new_zeros(indices.numel())
    full[: dot.numel()] = dot
    return full.to(grad.dtype)


def _columns(state: Tensor) -> Tensor:
    """[U, D], or [U] as [U, 1]."""
    return state if state.dim() == 2 else state[:, None]


def embedding_bag_update(
    weight: Tensor,
    state: list[Tensor],
    indices: Tensor,
    grad: Tensor,
    offsets: Tensor | None = None,
    per_sample_weights: Tensor | None = None,
    positions: Tensor | None = None,
    mode: str = "mean",
    include_last_offset: bool = False,
    padding_idx: int = -1,
    rule: Any = None,
) -> None:
    """The gradient of every touched row and a step of ``rule``, an ops.UpdateRule, in place."""
    flat, each = _samples(
        *(grad, indices, offsets, per_sample_weights, positions),
        *(mode, include_last_offset, padding_idx),
    )
    rows, inverse = torch.unique(flat, return_inverse=True)
    each = each.to(wide(weight.dtype))
    g = each.new_zeros(rows.numel(), each.shape[1]).index_add_(0, inverse, each)
    w = weight[rows].to(g.dtype)
    g = (-g if rule.maximize else g) + rule.weight_decay * w
    if rule.name == "sgd":
        if rule.momentum:
            fresh = 1.0 if rule.step == 1 else 1.0 - rule.dampening
            b = rule.momentum * state[0][rows] + fresh * g
            state[0][rows] = b.to(state[0].dtype)
            g = g + rule.momentum * b if rule.nesterov else b
        w = w - rule.lr * g
    elif rule.name in ("adagrad", "rowwise_adagrad"):
        square = g * g if rule.name == "adagrad" else (g * g).mean(1)
        s = state[0][rows] + square
        state[0][rows] = s.to(state[0].dtype)
        s = _columns(s).sqrt() + rule.eps
        w = w - rule.lr / (1 + (rule.step - 1) * rule.lr_decay) * g / s
    else:
        square = g * g if rule.name == "adam" else (g * g).mean(1)
        m = state[0][rows] + (1 - rule.beta1) * (g - state[0][rows])
        v = state[1][rows] + (1 - rule.beta2) * (square - state[1][rows])
        state[0][rows], state[1][rows] = m.to(state[0].dtype), v.to(state[1].dtype)
        size = rule.lr * (1 - rule.beta2**rule.step) ** 0.5 / (1 - rule.beta1**rule.step)
        w = w - size * m / (_columns(v).sqrt() + rule.eps)
    weight[rows] = w.to(weight.dtype)
