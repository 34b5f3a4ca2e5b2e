"""safetensors files, written from strided tensors and read by memory map.

The files are those of the safetensors library (https://github.com/huggingface/safetensors): eight
bytes of header length, a JSON header, the tensors. Our own writer, because the library wants every
tensor contiguous: a table with padded rows would need a second full copy in memory. Our own
reader, because a map that can be written (privately) is what a `torch.nn.Parameter` needs.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch

from vecsmith.io._atomic import atomic_file

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_HEADER_LIMIT = 100_000_000  # the library's own limit
_CHUNK = 8 << 20


def _raw(tensor: torch.Tensor) -> memoryview:
    """The bytes of a contiguous CPU tensor, without a copy (bfloat16 has no NumPy type)."""
    return memoryview(cast("Any", tensor.reshape(-1).view(torch.uint8).numpy()))


def _write_tensor(file: Any, tensor: torch.Tensor) -> None:
    tensor = tensor.detach()
    if tensor.numel() == 0:
        return
    if tensor.device.type == "cpu" and tensor.is_contiguous():
        file.write(_raw(tensor))
        return
    if tensor.dim() == 0:
        file.write(_raw(tensor.cpu().contiguous()))
        return
    row_bytes = tensor[0].numel() * tensor.element_size()
    rows = max(1, _CHUNK // row_bytes)
    for start in range(0, tensor.shape[0], rows):
        file.write(_raw(tensor[start : start + rows].cpu().contiguous()))


def save_safetensors(
    path: str | os.PathLike[str],
    tensors: Mapping[str, torch.Tensor],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write tensors to a safetensors file, atomically.

    Strided tensors and tensors on a device are written in pieces of 8 MiB, never copied whole.

    Args:
        path: the file; see :func:`vecsmith.io.atomic_file` for what a failure leaves.
        tensors: by name; any shape and strides. A tensor of shape ``[...]`` is stored densely,
            row-major, little-endian.
        metadata: strings by name, stored in the header.

    Raises:
        TypeError: for a value that is not a tensor, or a dtype that the format does not have.
        ValueError: for the name ``__metadata__``.
        OSError: if the disk is full, or the file cannot be written.
    """
    header: dict[str, Any] = {}
    if metadata:
        for key, value in metadata.items():
            if not isinstance(key, str) or not isinstance(value, str):
                raise TypeError(f"expected metadata of strings, got {key!r}: {value!r}")
        header["__metadata__"] = dict(metadata)
    for name, tensor in tensors.items():
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(f"expected a tensor for {name!r}, got {type(tensor).__name__}")
        if tensor.dtype not in _NAMES:
            raise TypeError(f"expected one of {sorted(_NAMES.values())}, got {tensor.dtype}")
        if name == "__metadata__":
            raise ValueError("expected a tensor name, got the reserved '__metadata__'")
    # Wide types first keeps every tensor aligned to its own element, as the library does.
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    end = 0
    for name in order:
        tensor = tensors[name]
        begin, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(len(text) + 8) % 64)  # the data starts on a cache line
    with atomic_file(path) as file:
        file.write(struct.pack("<Q", len(text)))
        file.write(text)
        for name in order:
            _write_tensor(file, tensors[name])


def _parse_header(path: Path, file: Any, size: int) -> tuple[dict[str, Any], dict[str, str], int]:
    def refuse(what: str) -> ValueError:
        return ValueError(f"{path}: not a whole safetensors file: {what}")

    prefix = file.read(8)
    if len(prefix) < 8:
        raise refuse(f"{size} bytes")
    (length,) = struct.unpack("<Q", prefix)
    if length > _HEADER_LIMIT or 8 + length > size:
        raise refuse(f"a header of {length} bytes in a file of {size}")
    try:
        header = json.loads(file.read(length))
    except (ValueError, RecursionError) as error:
        raise refuse(f"its header is not JSON ({error})") from None
    if not isinstance(header, dict):
        raise refuse("its header is not an object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict):
        raise refuse("its metadata is not an object")
    spans = []
    for name, entry in header.items():
        try:
            dtype = _DTYPES[entry["dtype"]]
            shape = entry["shape"]
            begin, end = entry["data_offsets"]
            numbers = [*shape, begin, end]
        except (KeyError, TypeError, ValueError):
            raise refuse(f"the entry of {name!r} is malformed") from None
        if not all(type(number) is int and 0 <= number < 1 << 62 for number in numbers):
            raise refuse(f"the entry of {name!r} is malformed")
        item = torch.empty((), dtype=dtype).element_size()
        if end - begin != math.prod(shape) * item:
            raise refuse(f"{name!r} of shape {shape} has {end - begin} bytes")
        if 8 + length + end > size:
            raise refuse(f"{name!r} ends at byte {8 + length + end} of {size}")
        spans.append((begin, end, name))
    at = 0
    for begin, end, name in sorted(spans):
        if begin != at:
            raise refuse(f"{name!r} begins at byte {begin}, expected {at}")
        at = end
    if 8 + length + at != size:
        raise refuse(f"expected {8 + length + at} bytes, got {size}")
    return header, metadata, 8 + length


def load_safetensors(
    path: str | os.PathLike[str], *, mmap: bool = True
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Read a safetensors file: the tensors by name, and its metadata.

    Args:
        path: the file.
        mmap: map the file (pages are read when they are first touched, and shared between
            processes). The map is private: writing into a tensor changes memory, never the file,
            and replacing the file leaves the tensors as they are. False reads everything into
            memory of its own.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is truncated or not a safetensors file.
    """
    path = Path(path)
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        header, metadata, start = _parse_header(path, file, size)
        if size == start:
            data = torch.empty(0, dtype=torch.uint8)
        elif mmap:
            data = torch.frombuffer(_private_map(file, size), dtype=torch.uint8)[start:]
        else:
            data = torch.empty(size - start, dtype=torch.uint8)
            file.seek(start)
            if file.readinto(memoryview(cast("Any", data.numpy()))) != size - start:
                raise ValueError(f"{path}: changed while it was read")
    tensors = {}
    for name, entry in header.items():
        dtype = _DTYPES[entry["dtype"]]
        begin, end = entry["data_offsets"]
        if begin == end:
            tensors[name] = torch.empty(entry["shape"], dtype=dtype)
            continue
        flat = data[begin:end]
        if flat.data_ptr() % dtype.itemsize or flat.storage_offset() % dtype.itemsize:
            flat = flat.clone()  # other writers need not align
        tensors[name] = flat.view(dtype).view(entry["shape"])
    return tensors, metadata


def _private_map(file: Any, size: int) -> mmap.mmap:
    return mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY)
