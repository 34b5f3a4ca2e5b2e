"""What the doors to ``vecsmith._cuda`` share."""

from __future__ import annotations

import torch


def place_of(device: torch.device) -> dict[str, int]:
    """The device's index and its current stream, as CUDA's integers."""
    if device.type != "cuda":  # the kernels on the host, in tests
        return {"device": 0, "stream": 0}
    index = torch.cuda.current_device() if device.index is None else device.index
    return {"device": index, "stream": torch.cuda.current_stream(index).cuda_stream}
