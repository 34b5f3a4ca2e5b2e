"""The operator ``factor_sgd``: an epoch of stochastic gradient descent on the factors of a matrix,
over its ratings (:func:`factor_sgd`) or over pairs of items (:func:`factor_sgd_bpr`).

What it computes, in which order, and every random draw: :mod:`vecsmith.reference.factor_sgd`.
"""

from __future__ import annotations

import math
import numbers

import numpy as np
import torch
from torch import Tensor

from vecsmith.ops import _checks as check
from vecsmith.ops import _factor_sgd as registered
from vecsmith.ops._factor_blocks import FactorBlocks, factor_blocks


def factor_sgd(
    user_factors: Tensor,
    item_factors: Tensor,
    blocks: FactorBlocks,
    *,
    user_bias: Tensor | None = None,
    item_bias: Tensor | None = None,
    user_squares: Tensor | None = None,
    item_squares: Tensor | None = None,
    mean: float = 0.0,
    learning_rate: float = 0.01,
    bias_learning_rate: float | None = None,
    regularization: float = 0.01,
    bias_regularization: float | None = None,
    seed: int = 0,
    epoch: int = 0,
    backend: str | None = None,
    num_threads: int | None = None,
) -> Tensor:
    """One epoch over ratings, in place: for each cell, one after the other, a step against the
    gradient of

        e^2 / 2 + l / 2 (|p_u|^2 + |q_i|^2) + l_b / 2 (b_u^2 + b_i^2),
        e = r_ui - (mean + b_u + b_i + <p_u, q_i>)

    (Koren, Bell and Volinsky 2009), at the learning rate or, with sums of squared gradients, at
    learning rate / sqrt(G), one G for the factors of a row and one for its bias (Chin et al. 2015).

    Several workers take bands of rows that have no column in common at a time: the bits do not
    depend on the number of threads, whether or not torch.use_deterministic_algorithms is on. On a
    GPU, too, each step follows those before it that have a row in common with it.

    Args:
        user_factors: p [U, f], float32 (the reference takes float64, too), changed in place, with
            unit stride along f. Rows that begin on cache lines are the quickest
            (:func:`empty_table`), and what belongs to a row may stand behind it.
        item_factors: q [I, f], likewise.
        blocks: the cells of a matrix [U, I] (:func:`factor_blocks`), on the tables' device
            (:meth:`FactorBlocks.to`).
        user_bias, item_bias: b [U] and [I], changed in place; or None.
        user_squares, item_squares: G [U, 2] and [I, 2], > 0, of the factors and of the bias,
            changed in place; None: the learning rates as they are. Both or none.
        mean: what every prediction begins with.
        learning_rate, bias_learning_rate: of factors and biases; None: as the factors.
        regularization, bias_regularization: l and l_b >= 0; None: as the factors.
        seed, epoch: of the order of the blocks.
        backend: "native", "triton" or "reference" to force one.
        num_threads: default ``torch.get_num_threads()``.

    Returns:
        The sum of e^2, each before its step: float64 [].

    Raises:
        TypeError, ValueError: wrong types, shapes, strides, devices, tables that share memory,
            numbers out of range; rows that are not finite, which is looked up before.
        RuntimeError: where a gradient would be lost.
        BackendUnavailable: a forced backend that cannot run.
    """
    name = "factor_sgd"
    sides = ((user_factors, user_bias, user_squares), (item_factors, item_bias, item_squares))
    _check_sides(name, blocks, sides)
    if (user_squares is None) != (item_squares is None):
        raise ValueError(f"{name}: expected squares of both sides, or of none")
    for squares in (user_squares, item_squares):
        if squares is not None and not bool((squares > 0).all()):
            raise ValueError(f"{name}: expected squares > 0")
    for what, value in (("learning_rate", learning_rate), ("regularization", regularization)):
        check.rate(name, what, value)
    bias_learning_rate = learning_rate if bias_learning_rate is None else bias_learning_rate
    bias_regularization = regularization if bias_regularization is None else bias_regularization
    check.rate(name, "bias_learning_rate", bias_learning_rate)
    check.rate(name, "bias_regularization", bias_regularization)
    _check_mean(name, mean)
    check.integer(name, "epoch", epoch, low=0)
    return torch.ops.vecsmith.factor_sgd(
        *(user_factors, item_factors, user_bias, item_bias, user_squares, item_squares),
        *(blocks.users, blocks.items, blocks.values, blocks.offsets, float(mean)),
        *(float(learning_rate), float(regularization), float(bias_learning_rate)),
        *(float(bias_regularization), check.seed(name, seed), epoch, backend or ""),
        0 if num_threads is None else check.threads(name, num_threads),
    )


def factor_sgd_bpr(
    user_factors: Tensor,
    item_factors: Tensor,
    blocks: FactorBlocks,
    *,
    item_bias: Tensor | None = None,
    learning_rate: float = 0.01,
    regularization: float = 0.01,
    verify_negatives: bool = True,
    seed: int = 0,
    epoch: int = 0,
    backend: str | None = None,
    num_threads: int | None = None,
) -> Tensor:
    """One epoch of Bayesian personalized ranking (Rendle et al. 2009), in place: for each cell
    (u, i) an item j is drawn, as often as it is liked, and a step is taken against the gradient of

        log(1 + exp(-d)) + l / 2 (|p_u|^2 + |q_i|^2 + |q_j|^2 + b_i^2 + b_j^2),
        d = b_i - b_j + <p_u, q_i - q_j>

    Several workers have users and liked items of their own at a time; the rows that are drawn they
    read and write without a lock (Hogwild: Niu et al. 2011, arXiv:1106.5730). Under
    ``torch.use_deterministic_algorithms(True)`` one worker (on a GPU: one program, which is slow)
    does it all, and the bits are the same whatever ``num_threads`` says.

    Args:
        user_factors, item_factors, blocks, seed, epoch, backend, num_threads: as of
            :func:`factor_sgd`; values of the cells do not count. The seed and the epoch are also
            those of what is drawn.
        item_bias: b [I], changed in place; or None.
        learning_rate, regularization: a and l >= 0.
        verify_negatives: leave out a pair whose j the user likes, too.

    Returns:
        float64 [3]: the sum of log(1 + exp(-d)), how many d were positive, how many pairs there
        were.

    Raises: as :func:`factor_sgd`.
    """
    name = "factor_sgd_bpr"
    _check_sides(name, blocks, ((user_factors, None, None), (item_factors, item_bias, None)))
    check.rate(name, "learning_rate", learning_rate)
    check.rate(name, "regularization", regularization)
    check.integer(name, "epoch", epoch, low=0)
    looked_up = (blocks.cells.indptr, blocks.cells.indices) if verify_negatives else (None, None)
    return torch.ops.vecsmith.factor_sgd_bpr(
        *(user_factors, item_factors, item_bias),
        *(blocks.users, blocks.items, blocks.values, blocks.offsets, *looked_up),
        *(float(learning_rate), float(regularization), check.seed(name, seed), epoch),
        backend or "",
        0 if num_threads is None else check.threads(name, num_threads),
    )


def _check_sides(
    name: str,
    blocks: object,
    sides: tuple[tuple[Tensor, Tensor | None, Tensor | None], ...],
) -> None:
    if not isinstance(blocks, FactorBlocks):
        raise TypeError(f"{name}: expected blocks of factor_blocks; got {type(blocks).__name__}")
    given: dict[str, Tensor] = {}
    like = None
    for side, count, (factors, bias, squares) in zip(
        ("user", "item"), blocks.shape, sides, strict=True
    ):
        check.table(name, f"{side}_factors", factors, like=like, rows=count)
        if factors.dtype not in registered.DTYPES:
            raise TypeError(
                f"{name}: expected {side}_factors of float32 or float64; got {factors.dtype}"
            )
        if factors.device != blocks.users.device:
            raise ValueError(
                f"{name}: expected {side}_factors on {blocks.users.device}, where the blocks are; "
                f"got them on {factors.device}"
            )
        like = factors
        given[f"{side}_factors"] = factors
        if bias is not None:
            _check_part(name, f"{side}_bias", bias, (count,), factors)
            given[f"{side}_bias"] = bias
        if squares is not None:
            _check_part(name, f"{side}_squares", squares, (count, 2), factors)
            given[f"{side}_squares"] = squares
    _check_apart(name, given)
    if torch.is_grad_enabled() and any(t.requires_grad for t in given.values()):
        raise RuntimeError(
            f"{name}: expected tensors that require no gradient, or torch.no_grad(); what is done "
            "in place has none"
        )
    for what, tensor in given.items():
        # A sum is finite where all are, but for numbers that no training comes to. NumPy's, which
        # starts no workers: where others have the processors, they cost more than the training.
        if tensor.device.type == "cpu":
            total = np.add.reduce(tensor.detach().numpy(), axis=None, dtype=np.float64)
        else:
            total = float(tensor.detach().sum(dtype=torch.float64))
        if not math.isfinite(total):
            raise ValueError(f"{name}: expected {what} to be finite")


def _check_mean(name: str, mean: object) -> None:
    if isinstance(mean, bool) or not isinstance(mean, numbers.Real):
        raise TypeError(f"{name}: expected mean to be a number; got {type(mean).__name__}")
    if not math.isfinite(mean):
        raise ValueError(f"{name}: expected mean to be finite; got {mean}")


def _check_part(name: str, what: str, value: object, shape: tuple[int, ...], like: Tensor) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected {what} to be a torch.Tensor; got {type(value).__name__}")
    if value.dtype != like.dtype or value.device != like.device:
        raise TypeError(
            f"{name}: expected {what} to be {like.dtype} on {like.device}; "
            f"got {value.dtype} on {value.device}"
        )
    if tuple(value.shape) != shape:
        raise ValueError(f"{name}: expected {what} of shape {list(shape)}; got {list(value.shape)}")
    if len(shape) == 2 and value.stride(1) != 1:
        raise ValueError(f"{name}: expected {what} with unit stride; got {value.stride()}")
    if value.shape[0] > 1 and value.stride(0) < (shape[1] if len(shape) == 2 else 1):
        raise ValueError(f"{name}: expected {what} with rows apart; got {value.stride()}")


def _check_apart(name: str, given: dict[str, Tensor]) -> None:
    """No number belongs to two of the tensors. Those of one side may be columns of one table."""
    spans: list[tuple[str, int, int, int, int]] = []
    for what, tensor in given.items():
        if tensor.numel() == 0:
            continue
        size = tensor.element_size()
        width = (tensor.shape[1] if tensor.dim() == 2 else 1) * size
        step, first = tensor.stride(0) * size, tensor.data_ptr()
        last = first + (tensor.shape[0] - 1) * step + width
        for other, from_, to, other_step, other_width in spans:
            if first >= to or last <= from_:
                continue
            # Columns of the same rows: apart, if each begins behind the other, within a row.
            offset = (first - from_) % step if step == other_step and step else 0
            if not (offset >= other_width and offset + width <= step):
                raise ValueError(
                    f"{name}: expected tensors apart; {what} shares memory with {other}"
                )
        spans.append((what, first, last, step, width))


__all__ = ["FactorBlocks", "factor_blocks", "factor_sgd", "factor_sgd_bpr"]
