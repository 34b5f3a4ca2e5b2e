"""Tables of eight bits: a scale and a bias for each row."""

from __future__ import annotations

import torch
from torch import Tensor

from vecsmith.ops import _checks as check


def quantize_rows(table: Tensor) -> Tensor:
    """A table of floats as the row-wise quantized bytes that :func:`embedding_bag` takes.

    Row w becomes q = round((w - bias) / scale) in 0..255 with bias = min(w) and
    scale = (max(w) - min(w)) / 255, so that each value is off by at most scale / 2. The format is
    torch's "byte prepacked" one (Guan et al. 2019): D bytes, then scale and bias in float32.

    Args:
        table: [V, D] of float32, float16 or bfloat16, finite.

    Returns:
        uint8 [V, D + 8].

    Raises:
        TypeError, ValueError: another shape or dtype, values that are not finite, rows whose
            max - min is beyond float32.
    """
    check.table("quantize_rows", "table", table)
    if not check.all_finite(table):
        raise ValueError("quantize_rows: expected finite values; got NaN or infinity")
    rows = table.detach().float().contiguous()
    if rows.numel() and not bool(torch.isfinite(rows.amax(1) - rows.amin(1)).all()):
        raise ValueError("quantize_rows: expected rows whose max - min is a float32 number")
    return torch.ops.quantized.embedding_bag_byte_prepack(rows.cpu()).to(table.device)


def dequantize_rows(packed: Tensor) -> Tensor:
    """uint8 [V, D + 8] from :func:`quantize_rows` -> float32 [V, D] of scale q + bias.

    Raises: TypeError, ValueError for another shape or dtype.
    """
    check_packed("dequantize_rows", "packed", packed)
    return torch.ops.quantized.embedding_bag_byte_unpack(packed.cpu()).to(packed.device)


def check_packed(op: str, name: str, value: Tensor) -> None:
    """``value`` is a uint8 [V, D + 8] table with unit stride along its bytes."""
    if not isinstance(value, Tensor) or value.dtype != torch.uint8:
        raise TypeError(
            f"{op}: expected {name} to be uint8 rows; got {getattr(value, 'dtype', type(value))}"
        )
    if value.dim() != 2 or value.shape[1] < 9:
        raise ValueError(
            f"{op}: expected {name} of shape [rows, D + 8], D >= 1 (see ops.quantize_rows); "
            f"got {list(value.shape)}"
        )
    if value.stride(1) != 1 or (value.shape[0] > 1 and value.stride(0) < value.shape[1]):
        raise ValueError(f"{op}: expected {name} with rows apart; got strides {value.stride()}")
