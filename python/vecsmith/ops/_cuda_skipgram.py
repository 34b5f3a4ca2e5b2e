"""From tensors to the raw pointers of ``vecsmith._cuda``: the CUDA backend of `skipgram`.

The callers in :mod:`vecsmith.ops.skipgram` have checked shapes, dtypes and index ranges. Launches
go to the current stream of the tables' device; nothing synchronizes but the count of survivors,
which stays on the device where the place in the training is there, too (a CUDA graph).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vecsmith.kernels import _survivors
from vecsmith.ops._cuda_launch import place_of
from vecsmith.ops._registry import cuda_module

_MASK = (1 << 64) - 1


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _train(
    launch: Any, plan: Any, arguments: dict[str, Any], device: torch.device, blocks: int | None
) -> Tensor:
    """Lend what the plan asks for, and launch."""
    result = torch.zeros(2, dtype=torch.float64, device=device)
    arguments |= place_of(device)
    arguments |= {"loss": _address(result), "blocks": blocks or 0}
    arguments |= {"scratch": 0, "scratch_floats": 0}
    floats = plan(**arguments)["scratch_floats"]
    scratch = torch.empty(floats, dtype=torch.float32, device=device)
    arguments |= {"scratch": _address(scratch) if floats else 0, "scratch_floats": floats}
    launch(**arguments)
    return result


def skipgram(
    input_table: Tensor,
    output_table: Tensor | None,
    tree_table: Tensor | None,
    tokens: Tensor,
    offsets: Tensor,
    keep: Tensor | None,
    alias: Tensor | None,
    path_offsets: Tensor | None,
    path_nodes: Tensor | None,
    path_codes: Tensor | None,
    *,
    window: int,
    negative: int,
    cbow: bool,
    cbow_mean: bool,
    shrink_windows: bool,
    shared_negatives: str,
    alpha: float,
    min_alpha: float,
    words_before: int,
    words_total: int,
    seed: int,
    epoch: int,
    first_position: int,
    sync_every: int,
    compute_loss: bool = True,
    blocks: int | None = None,
    module: Any = None,
    place: _survivors.Place | None = None,
) -> Tensor:
    """Train on a chunk of corpus, in place, as :func:`vecsmith.reference.skipgram.skipgram` does.

    Shapes and meanings are the reference's. ``blocks``: how many blocks share the survivors; None:
    as many as the device holds at once; 1: one group after another, as the reference. ``module``:
    what stands in for ``vecsmith._cuda``. ``place``: None, or what stands for seed, epoch,
    first_position, words_before, alpha and min_alpha; nothing waits for the device then.

    Returns float64 [2] on the tables' device: loss, terms.

    Raises:
        RuntimeError: ``sync_every`` > 0 (deterministic mode), or CUDA reports an error.
    """
    _survivors.refuse_sync(sync_every)
    module = module or cuda_module()
    device = input_table.device
    nothing = torch.zeros(2, dtype=torch.float64, device=device)
    if offsets.numel() < 2 or tokens.numel() == 0:
        return nothing
    start, stop = (0, tokens.numel()) if place else offsets[[0, -1]].tolist()
    if stop <= start:
        return nothing
    tokens = tokens.contiguous()
    mask = None
    if keep is not None:
        keep = keep.contiguous()
        mask = torch.empty(stop - start, dtype=torch.bool, device=device)
        module.mark_survivors(
            tokens=_address(tokens),
            keep=_address(keep),
            mask=_address(mask),
            start=start,
            count=stop - start,
            first_position=first_position,
            seed=seed & _MASK,
            epoch=epoch & _MASK,
            place=_address(place.numbers) if place else 0,
            **place_of(device),
        )
    live = None
    if place is None:
        packed = _survivors.pack(mask, tokens, offsets, start, stop, first_position)
    else:
        packed, live = _survivors.pack_on_device(mask, tokens, offsets, place.numbers[2])
    if packed.words.numel() == 0:
        return nothing
    outputs = output_table if negative else None
    # Kept in variables until the launch: the kernel gets addresses only.
    alias = None if alias is None or not negative else alias.contiguous()
    paths = [
        None if t is None or tree_table is None else t.contiguous()
        for t in (path_offsets, path_nodes, path_codes)
    ]
    arguments = {
        "inputs": _address(input_table),
        "input_stride": input_table.stride(0),
        "outputs": _address(outputs),
        "output_stride": 0 if outputs is None else outputs.stride(0),
        "tree": _address(tree_table),
        "tree_stride": 0 if tree_table is None else tree_table.stride(0),
        "dim": input_table.shape[1],
        "vocabulary": input_table.shape[0],
        "words": _address(packed.words),
        "positions": _address(packed.positions),
        "first": _address(packed.first),
        "last": _address(packed.last),
        "count": packed.words.numel(),
        "alias": _address(alias),
        "path_offsets": _address(paths[0]),
        "path_nodes": _address(paths[1]),
        "path_codes": _address(paths[2]),
        "window": window,
        "negative": negative,
        "mode": "cbow" if cbow else shared_negatives,
        "cbow_mean": cbow_mean,
        "shrink_windows": shrink_windows,
        "alpha": alpha,
        "min_alpha": min_alpha,
        "words_before": words_before,
        "words_total": words_total,
        "seed": seed & _MASK,
        "epoch": epoch & _MASK,
        "compute_loss": compute_loss,
        "live": _address(live),
        "place": _address(place.numbers) if place else 0,
        "rates": _address(place.rates) if place else 0,
    }
    return _train(module.skipgram, module.plan_skipgram, arguments, device, blocks)


def skipgram_pairs(
    input_table: Tensor,
    output_table: Tensor,
    centers: Tensor,
    contexts: Tensor,
    negatives: Tensor,
    *,
    alpha: float,
    sync_every: int,
    compute_loss: bool = True,
    blocks: int | None = None,
    module: Any = None,
    rates: Tensor | None = None,
) -> Tensor:
    """The explicit form, as :func:`vecsmith.reference.skipgram.skipgram_pairs`, in place.

    ``rates``: None, or float64 [1], what stands for alpha on the device. ``blocks``, ``module``,
    the result and what is raised are those of :func:`skipgram`.
    """
    _survivors.refuse_sync(sync_every)
    module = module or cuda_module()
    device = input_table.device
    if centers.numel() == 0:
        return torch.zeros(2, dtype=torch.float64, device=device)
    centers, contexts = centers.contiguous(), contexts.contiguous()
    if negatives.stride(1) != 1:
        negatives = negatives.contiguous()
    arguments = {
        "inputs": _address(input_table),
        "input_stride": input_table.stride(0),
        "outputs": _address(output_table),
        "output_stride": output_table.stride(0),
        "dim": input_table.shape[1],
        "centers": _address(centers),
        "contexts": _address(contexts),
        "negatives": _address(negatives),
        "negatives_stride": negatives.stride(0),
        "count": centers.numel(),
        "negative": negatives.shape[1],
        "alpha": alpha,
        "compute_loss": compute_loss,
        "rates": _address(rates),
    }
    return _train(module.skipgram_pairs, module.plan_skipgram_pairs, arguments, device, blocks)
