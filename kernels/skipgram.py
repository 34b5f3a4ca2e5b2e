"""word2vec's training step in Triton: what `vecsmith.reference.skipgram` says, on a GPU.

What it computes
    Skip-gram and CBOW with negative sampling and hierarchical softmax, in place. A step with inputs
    h_i [m, D] (context rows) and outputs o_j [n, D] (the center and its negatives, or a tree path)
    has scores S = H O^T, gradients G = rate * (labels - sigmoid(S)), and adds G O to the inputs and
    G^T H to the outputs. Every random draw is a pure function of (seed, epoch, position), bit for
    bit the reference's, and is made on the device.

How the work is split
    1. `_mark_survivors`: sub-sampling, one lane a token; `_survivors.pack` compacts. In a CUDA
       graph the seed and the place in the training come from the device (`_stream_keys`).
    2. `_train_text`: one program a run of consecutive centers, by default one center. A program
       draws its window and negatives and takes its steps in the reference's order; the dimension is
       cut into tiles of BLOCK_D. Within a step all loads of a tile come before its stores, so a
       step is the reference's step also where a word comes twice. Rows are added with atomics:
       concurrent programs (Hogwild) lose no update. `programs=1` is one group after another.
    3. "pair": a first walk over the window takes the gradients of all its pairs, which stay in
       registers; a second draws the negatives again and applies the steps one after another.
    4. `sync_every` > 0 (deterministic mode) is refused: within a shard every update follows a fixed
       one before it, and a GPU's worth of programs would wait for one another.

What bounds its speed
    Memory. A center with m contexts and n = K + 1 outputs reads m + n rows and adds to m + n rows:
    2 (m + n) 4 D bytes. At D = 128, window 5 (6 contexts on average), 5 negatives: 12.3 KB a
    surviving word; a tree path of 17 nodes 23.6 KB. "pair" reads its rows once for each walk:
    3 m (1 + n) rows = 64.5 KB, a third of it from L2. Where D is more than BLOCK_D, rows of the
    other steps are read a second time as well. Arithmetic is 6 m n D, 28 k operations: far below
    what the bytes cost. The CUDA kernel keeps context rows on chip and moves 7.2 KB.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary
from vecsmith.kernels import _survivors

_GOLDEN = tl.constexpr(_survivors.GOLDEN)
_REDRAWS = tl.constexpr(32)


@triton.jit
def _mix(z):
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB
    return z ^ (z >> 31)


@triton.jit
def _draw(key, counter):
    """64 random bits for each counter. key: uint64; counter: any shape, uint64."""
    return _mix(key + (counter + 1) * _GOLDEN)


@triton.jit
def _below(bits, n):
    """An integer in 0..n-1 from the high 32 bits. n: int64, at most 2^31."""
    return (((bits >> 32) * n.to(tl.uint64)) >> 32).to(tl.int64)


@triton.jit
def _stream_keys(place, keys):
    """keys[s] = key(stream s), of the seed and the epoch in place[0] and place[1]. One program."""
    stream = tl.arange(0, 4).to(tl.int64)
    seed = tl.load(place + stream * 0).to(tl.uint64)
    epoch = tl.load(place + 1 + stream * 0).to(tl.uint64)
    key = _mix(_mix(_mix(seed + _GOLDEN) + epoch + _GOLDEN) + stream.to(tl.uint64) + _GOLDEN)
    tl.store(keys + stream, key.to(tl.int64))


@triton.jit(do_not_specialize=["key", "start", "count", "first_position"])
def _mark_survivors(
    tokens, keep, mask, key, start, count, first_position, BLOCK: tl.constexpr,
    keys=None, place=None,
):  # fmt: skip
    """mask[i] = u(position) < keep[tokens[start + i]]. keys, place: what stands for key and
    first_position on the device."""
    if keys is not None:
        key = tl.load(keys)
        first_position = tl.load(place + 2)
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < count
    word = tl.load(tokens + start + i, mask=inside, other=0).to(tl.int64)
    position = (first_position.to(tl.int64) + start + i).to(tl.uint64)
    bits = _draw(key.to(tl.int64).to(tl.uint64), position)
    u = (bits >> 40).to(tl.int32).to(tl.float32) * (2.0**-24)
    tl.store(mask + i, (u < tl.load(keep + word, mask=inside, other=0.0)).to(tl.int8), mask=inside)


@triton.jit
def _window(key, position, window, SHRINK: tl.constexpr):
    """The reduced window of the center at ``position`` (int64), as int64."""
    reach = window.to(tl.int64)
    if SHRINK:
        reach = 1 + _below(_draw(key, position.to(tl.uint64)), window)
    return reach


@triton.jit
def _negatives(key, counter, positive, alias, vocabulary, negative, N: tl.constexpr):
    """Column 0: the positive; columns 1..negative: words drawn for it, -1 where none was found;
    the columns after: -1. counter: int64, position * slots + slot -> int64 [N]"""
    column = tl.arange(0, N).to(tl.int64)
    wanted = (column > 0) & (column <= negative)
    n = (counter * negative + column - 1).to(tl.uint64)
    bits = _draw(key, n)
    chosen = tl.where(column == 0, positive, -1).to(tl.int64)
    missing = tl.sum(wanted.to(tl.int32), 0)
    attempt = 0
    while (missing > 0) & (attempt <= _REDRAWS):
        index = _below(bits, vocabulary)
        open_ = wanted & (chosen < 0)
        threshold = tl.load(alias + 2 * index, mask=open_, other=0).to(tl.int64)
        other = tl.load(alias + 2 * index + 1, mask=open_, other=0).to(tl.int64)
        low = ((bits & 0xFFFFFFFF) >> 1).to(tl.int64)
        word = tl.where(low < threshold, index, other)
        chosen = tl.where(open_ & (word != positive), word, chosen)
        missing = tl.sum((wanted & (chosen < 0)).to(tl.int32), 0)
        bits = _mix(bits + _GOLDEN)
        attempt += 1
    return chosen


@triton.jit
def _load_rows(table, stride, rows, mask, d, dim):
    # .cg: straight from L2, where the atomics of all programs meet; L1 may hold older rows.
    at = table + rows[:, None] * stride + d[None, :]
    return tl.load(at, mask=mask[:, None] & (d[None, :] < dim), other=0.0, cache_modifier=".cg")


@triton.jit
def _add_rows(table, stride, rows, mask, d, dim, value):
    inside = mask[:, None] & (d[None, :] < dim)
    at = table + rows[:, None] * stride + d[None, :]
    tl.atomic_add(at, value, mask=inside, sem="relaxed")


@triton.jit
def _gradients(
    inputs,
    input_stride,
    outputs,
    output_stride,
    rows,  # int64 [M]: rows of `inputs`, valid where input_mask
    input_mask,
    targets,  # int64 [N]: rows of `outputs`, valid where output_mask
    output_mask,
    labels,  # float32 [N]
    rate,
    gather,
    dim,
    CBOW: tl.constexpr,
    LOSS: tl.constexpr,
    ONE_TILE: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """The first half of a step: g [H, N] (H = M, or 1 for CBOW), the rows x [H, BLOCK_D] and
    o [N, BLOCK_D] of the last tile, the loss (float64 [1]) and the number of terms (int64 [1])."""
    lanes = tl.arange(0, BLOCK_D).to(tl.int64)
    x = _load_rows(inputs, input_stride, rows, input_mask, lanes, dim)
    o = _load_rows(outputs, output_stride, targets, output_mask, lanes, dim)
    if CBOW:
        x = tl.sum(x, 0, keep_dims=True) * gather
    scores = tl.sum(x[:, None, :] * o[None, :, :], axis=2)  # [H, N]
    if not ONE_TILE:
        for start in range(BLOCK_D, dim, BLOCK_D):
            d = start + lanes
            x = _load_rows(inputs, input_stride, rows, input_mask, d, dim)
            o = _load_rows(outputs, output_stride, targets, output_mask, d, dim)
            if CBOW:
                x = tl.sum(x, 0, keep_dims=True) * gather
            scores += tl.sum(x[:, None, :] * o[None, :, :], axis=2)

    if CBOW:
        active = (tl.zeros([1], tl.int32) == 0)[:, None] & output_mask[None, :]
    else:
        active = input_mask[:, None] & output_mask[None, :]
    gradient = rate * (labels[None, :] - 1.0 / (1.0 + tl.exp(-scores)))
    gradient = tl.where(active, gradient, 0.0)
    loss = tl.zeros([1], tl.float64)
    if LOSS:
        z = tl.where(labels[None, :] > 0.5, -scores, scores).to(tl.float64)
        softplus = tl.maximum(z, 0.0) + tl.log(1.0 + tl.exp(-tl.abs(z)))
        loss += tl.sum(tl.sum(tl.where(active, softplus, 0.0), 1), 0)
    terms = tl.zeros([1], tl.int64) + tl.sum(tl.sum(active.to(tl.int64), 1), 0)
    return gradient, x, o, loss, terms


@triton.jit
def _update(
    inputs,
    input_stride,
    outputs,
    output_stride,
    rows,
    input_mask,
    targets,
    output_mask,
    gradient,  # float32 [H, N]
    x,  # [H, BLOCK_D] and o [N, BLOCK_D]: read only if LOADED
    o,
    gather,
    spread,
    dim,
    CBOW: tl.constexpr,
    LOADED: tl.constexpr,  # x and o are the rows as they are now, and there is one tile
    BLOCK_D: tl.constexpr,
):
    """The second half of a step: adds G O to the input rows and G^T H to the output rows."""
    for start in range(0, dim, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D).to(tl.int64)
        if LOADED:
            h, other = x, o
        else:
            h = _load_rows(inputs, input_stride, rows, input_mask, d, dim)
            other = _load_rows(outputs, output_stride, targets, output_mask, d, dim)
            if CBOW:
                h = tl.sum(h, 0, keep_dims=True) * gather
        dx = tl.sum(gradient[:, :, None] * other[None, :, :], axis=1) * spread
        do = tl.sum(gradient[:, :, None] * h[:, None, :], axis=0)
        if CBOW:
            dx = tl.broadcast_to(dx, (rows.shape[0], BLOCK_D))
        # Every warp has read its copy of the rows before any warp adds to them.
        tl.debug_barrier()
        _add_rows(inputs, input_stride, rows, input_mask, d, dim, dx)
        _add_rows(outputs, output_stride, targets, output_mask, d, dim, do)
    tl.debug_barrier()  # The next step reads what this one added.


@triton.jit
def _step(
    inputs,
    input_stride,
    outputs,
    output_stride,
    rows,
    input_mask,
    targets,
    output_mask,
    labels,
    rate,
    dim,
    CBOW: tl.constexpr,
    MEAN: tl.constexpr,
    LOSS: tl.constexpr,
    ONE_TILE: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One step of the reference. Arguments as in the halves; returns its loss and its terms."""
    gather = 1.0
    spread = 1.0
    if CBOW:
        members = tl.sum(input_mask.to(tl.float32), 0)
        if MEAN:
            gather = 1.0 / members
        else:
            spread = 1.0 / members
    gradient, x, o, loss, terms = _gradients(
        inputs, input_stride, outputs, output_stride, rows, input_mask, targets, output_mask,
        labels, rate, gather, dim, CBOW, LOSS, ONE_TILE, BLOCK_D,
    )  # fmt: skip
    _update(
        inputs, input_stride, outputs, output_stride, rows, input_mask, targets, output_mask,
        gradient, x, o, gather, spread, dim, CBOW, ONE_TILE, BLOCK_D,
    )  # fmt: skip
    return loss, terms


@triton.jit(do_not_specialize=["count", "run", "window_key", "negative_key"])
def _train_text(
    inputs,
    input_stride,
    outputs,
    output_stride,
    tree,
    tree_stride,
    words,
    positions,
    first,
    last,
    rates,
    alias,
    path_offsets,
    path_nodes,
    path_codes,
    losses,  # float64 [M, 2]
    live,  # int64 [1], what stands for count, and keys: int64 [4], for the keys; or None
    keys,
    count,
    run,
    dim,
    vocabulary,
    window,
    negative,
    window_key,
    negative_key,
    SHRINK: tl.constexpr,
    PAIR: tl.constexpr,
    CBOW: tl.constexpr,
    MEAN: tl.constexpr,
    TREE: tl.constexpr,
    NEGATIVE: tl.constexpr,
    LOSS: tl.constexpr,
    ONE_TILE: tl.constexpr,
    WINDOW_BLOCK: tl.constexpr,  # power of two >= 2 * window + 1
    NEGATIVE_BLOCK: tl.constexpr,  # power of two >= negative + 1
    PATH_BLOCK: tl.constexpr,  # power of two >= the longest path
    BLOCK_D: tl.constexpr,
):
    """The centers program * run ... of the survivors, one after another."""
    if keys is not None:
        count = tl.load(live)
        window_key = tl.load(keys + 1)
        negative_key = tl.load(keys + 2)
    window_bits = window_key.to(tl.int64).to(tl.uint64)
    negative_bits = negative_key.to(tl.int64).to(tl.uint64)
    slots = 2 * window.to(tl.int64) + 1  # of "pair": one for each place in the window
    from_ = tl.program_id(0).to(tl.int64) * run
    to = tl.minimum(from_ + run, count.to(tl.int64))
    for k in range(from_, to):
        center = tl.load(words + k).to(tl.int64)
        position = tl.load(positions + k)
        rate = tl.load(rates + k)
        reach = _window(window_bits, position, window, SHRINK)
        start = tl.maximum(tl.load(first + k), k - reach)
        stop = tl.minimum(tl.load(last + k), k + reach + 1)
        loss = tl.zeros([1], tl.float64)
        terms = tl.zeros([1], tl.int64)
        if stop - start > 1:
            place = tl.arange(0, WINDOW_BLOCK).to(tl.int64)
            j = k - window + place
            row_mask = (j >= start) & (j < stop) & (j != k)
            rows = tl.load(words + j, mask=row_mask, other=0).to(tl.int64)
            if TREE:
                at = tl.load(path_offsets + center)
                length = tl.load(path_offsets + center + 1) - at
                node = tl.arange(0, PATH_BLOCK).to(tl.int64)
                path_mask = node < length
                nodes = tl.load(path_nodes + at + node, mask=path_mask, other=0).to(tl.int64)
                codes = tl.load(path_codes + at + node, mask=path_mask, other=1)
                step_loss, step_terms = _step(
                    inputs, input_stride, tree, tree_stride, rows, row_mask, nodes, path_mask,
                    1.0 - codes.to(tl.float32), rate, dim, CBOW, MEAN, LOSS, ONE_TILE, BLOCK_D,
                )  # fmt: skip
                loss += step_loss
                terms += step_terms
            labels = tl.where(tl.arange(0, NEGATIVE_BLOCK) == 0, 1.0, 0.0)
            if NEGATIVE and not PAIR:
                targets = _negatives(
                    negative_bits, position, center, alias, vocabulary, negative, NEGATIVE_BLOCK
                )
                step_loss, step_terms = _step(
                    inputs, input_stride, outputs, output_stride, rows, row_mask, targets,
                    targets >= 0, labels, rate, dim, CBOW, MEAN, LOSS, ONE_TILE, BLOCK_D,
                )  # fmt: skip
                loss += step_loss
                terms += step_terms
            if NEGATIVE and PAIR:
                # Row i: the gradient of the pair at place i of the window.
                gradients = tl.zeros([WINDOW_BLOCK, NEGATIVE_BLOCK], tl.float32)
                for i in range(start - k + window, stop - k + window):
                    if i != window:
                        row = tl.zeros([1], tl.int64) + tl.load(words + k - window + i)
                        targets = _negatives(
                            negative_bits, position * slots + i, center, alias, vocabulary,
                            negative, NEGATIVE_BLOCK,
                        )  # fmt: skip
                        gradient, _, _, step_loss, step_terms = _gradients(
                            inputs, input_stride, outputs, output_stride, row, row >= 0, targets,
                            targets >= 0, labels, rate, 1.0, dim, False, LOSS, ONE_TILE, BLOCK_D,
                        )  # fmt: skip
                        gradients = tl.where(place[:, None] == i, gradient, gradients)
                        loss += step_loss
                        terms += step_terms
                for i in range(start - k + window, stop - k + window):
                    if i != window:
                        row = tl.zeros([1], tl.int64) + tl.load(words + k - window + i)
                        targets = _negatives(
                            negative_bits, position * slots + i, center, alias, vocabulary,
                            negative, NEGATIVE_BLOCK,
                        )  # fmt: skip
                        mine = tl.where(place[:, None] == i, gradients, 0.0)
                        _update(
                            inputs, input_stride, outputs, output_stride, row, row >= 0, targets,
                            targets >= 0, tl.sum(mine, 0, keep_dims=True), None, None, 1.0, 1.0,
                            dim, False, False, BLOCK_D,
                        )  # fmt: skip
        one = tl.arange(0, 1)
        tl.store(losses + 2 * k + one, loss)
        tl.store(losses + 2 * k + 1 + one, terms.to(tl.float64))


@triton.jit(do_not_specialize=["count", "run"])
def _train_pairs(
    inputs,
    input_stride,
    outputs,
    output_stride,
    centers,
    contexts,
    negatives,
    negative_stride,
    losses,  # float64 [N, 2]
    device_rate,  # float64 [1], what stands for rate, or None
    count,
    run,
    dim,
    negative,
    rate,
    LOSS: tl.constexpr,
    ONE_TILE: tl.constexpr,
    NEGATIVE_BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """The pairs program * run ..., one after another."""
    if device_rate is not None:
        rate = tl.load(device_rate).to(tl.float32)
    from_ = tl.program_id(0).to(tl.int64) * run
    to = tl.minimum(from_ + run, count.to(tl.int64))
    column = tl.arange(0, NEGATIVE_BLOCK).to(tl.int64)
    labels = tl.where(column == 0, 1.0, 0.0)
    for i in range(from_, to):
        rows = tl.zeros([1], tl.int64) + tl.load(centers + i)
        positive = tl.load(contexts + i)
        drawn = tl.load(
            negatives + i * negative_stride + column - 1,
            mask=(column > 0) & (column <= negative),
            other=-1,
        )
        targets = tl.where(column == 0, positive, tl.where(drawn == positive, -1, drawn))
        loss, terms = _step(
            inputs, input_stride, outputs, output_stride, rows, rows >= 0, targets, targets >= 0,
            labels, rate, dim, False, False, LOSS, ONE_TILE, BLOCK_D,
        )  # fmt: skip
        one = tl.arange(0, 1)
        tl.store(losses + 2 * i + one, loss)
        tl.store(losses + 2 * i + 1 + one, terms.to(tl.float64))


def _shape(dim: int, inputs: int, outputs: int) -> dict:
    """Tile width and warps: the [inputs, outputs, BLOCK_D] product of a step is at most 32 values a
    thread. A tile is no wider than the dimension needs, and at least 16 wide: Triton's interpreter
    broadcasts a [1, 1] block to garbage."""
    block = max(triton.next_power_of_2(dim), 16)
    warps = 4
    while block > 16 and inputs * outputs * block > 32 * 32 * warps:
        if warps < 8:
            warps *= 2
        else:
            block //= 2
    while warps > 1 and inputs * outputs * block < 16 * 32 * warps:
        warps //= 2
    return {"BLOCK_D": block, "ONE_TILE": block >= dim, "num_warps": warps}


def _runs(count: int, programs: int | None) -> tuple[int, int]:
    """(number of programs, centers in each)."""
    if programs is None:
        return count, 1
    run = triton.cdiv(count, programs)
    return triton.cdiv(count, run), run


# The longest path of each tree that was trained: it sizes a kernel's blocks, and a CUDA graph that
# is captured cannot wait for it. {path_offsets: (their version, the longest)}
_LONGEST: Any = WeakTensorKeyDictionary()


def _longest_path(path_offsets: Tensor) -> int:
    if path_offsets.is_inference():  # which have no versions
        return int((path_offsets[1:] - path_offsets[:-1]).max())
    known = _LONGEST.get(path_offsets)
    if known is None or known[0] != path_offsets._version:
        if path_offsets.is_cuda and torch.cuda.is_current_stream_capturing():
            raise RuntimeError(
                "skipgram: expected a tree that was trained before, by the triton backend, while a "
                "CUDA graph is captured: the length of its paths is not known"
            )
        longest = int((path_offsets[1:] - path_offsets[:-1]).max())
        known = _LONGEST[path_offsets] = (path_offsets._version, longest)
    return known[1]


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
    programs: int | None = None,
    place: _survivors.Place | None = None,
) -> Tensor:
    """Train on a chunk of corpus, in place, as :func:`vecsmith.reference.skipgram.skipgram` does.

    Shapes and meanings are the reference's; all tensors lie on one device, tables are float32 with
    unit stride along D. ``programs``: how many programs share the centers; None: one a center;
    1: one group after another, as the reference. ``place``: None, or what stands for seed, epoch,
    first_position, words_before, alpha and min_alpha: nothing waits for the device then, and
    launches have a program for each token. Returns float64 [2] on that device: the summed
    loss and its number of terms; the loss is zero unless ``compute_loss``.

    Raises:
        RuntimeError: ``sync_every`` > 0 (deterministic mode).
    """
    _survivors.refuse_sync(sync_every)
    device = tokens.device
    result = torch.zeros(2, dtype=torch.float64, device=device)
    if offsets.numel() < 2 or tokens.numel() == 0:
        return result
    start, stop = (0, tokens.numel()) if place else offsets[[0, -1]].tolist()
    if stop <= start:
        return result
    mask = keys = live = None
    streams = (_survivors.STREAM_SUBSAMPLE, _survivors.STREAM_WINDOW, _survivors.STREAM_NEGATIVE)
    mark_key, *train_keys = (0, 0, 0)
    if place is None:
        mark_key, *train_keys = (_survivors.stream_key(seed, epoch, s) for s in streams)
    with torch.cuda.device_of(tokens):
        if place is not None:
            keys = torch.empty(4, dtype=torch.int64, device=device)
            _stream_keys[(1,)](place.numbers, keys, num_warps=1)
        if keep is not None:
            mask = torch.empty(stop - start, dtype=torch.bool, device=device)
            _mark_survivors[(triton.cdiv(stop - start, 1024),)](
                tokens, keep, mask.view(torch.int8), mark_key, start, stop - start,
                0 if place else first_position, BLOCK=1024, keys=keys,
                place=place.numbers if place else None,
            )  # fmt: skip
    if place is None:
        packed = _survivors.pack(mask, tokens, offsets, start, stop, first_position)
        numbers = (alpha, min_alpha, words_before)
    else:
        packed, live = _survivors.pack_on_device(mask, tokens, offsets, place.numbers[2])
        numbers = (*place.rates.unbind(), place.numbers[3])
    count = packed.words.numel()
    if count == 0:
        return result
    rate = _survivors.rates(packed.positions, *numbers, words_total)

    vocabulary, dim = input_table.shape
    tree = tree_table is not None
    pair = shared_negatives == "pair" and not cbow
    window_block = triton.next_power_of_2(2 * window + 1)
    negative_block = triton.next_power_of_2(negative + 1)
    path_block = 1  # at least 2 where it is used: see _shape on [1, 1] blocks
    if tree:
        longest = _longest_path(path_offsets)
        path_block = triton.next_power_of_2(max(longest, 2))
    # The widest step: pairs have one input each, but a tree path is stepped with the whole window.
    broad = 1 if cbow or (pair and not tree) else window_block
    shape = _shape(dim, broad, max(negative_block if negative else 1, path_block))
    # Programs past the last survivor leave theirs as it is.
    room = torch.empty if live is None else torch.zeros
    losses = room(count, 2, dtype=torch.float64, device=device)
    outputs = output_table if negative else input_table
    nodes = tree_table if tree else input_table
    tables = [
        input_table, input_table.stride(0), outputs, outputs.stride(0), nodes, nodes.stride(0)
    ]  # fmt: skip
    grid, run = _runs(count, programs)
    with torch.cuda.device_of(tokens):
        _train_text[(grid,)](
            *tables,
            packed.words, packed.positions, packed.first, packed.last, rate,
            alias if negative else packed.words,
            path_offsets if tree else packed.words,
            path_nodes if tree else packed.words,
            path_codes if tree else packed.words,
            losses, live, keys, count, run, dim, vocabulary, window, negative, *train_keys,
            SHRINK=shrink_windows, PAIR=pair, CBOW=cbow, MEAN=cbow_mean, TREE=tree,
            NEGATIVE=negative > 0, LOSS=compute_loss,
            WINDOW_BLOCK=window_block, NEGATIVE_BLOCK=negative_block, PATH_BLOCK=path_block,
            **shape,
        )  # fmt: skip
    return losses.sum(0)


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
    programs: int | None = None,
    rates: Tensor | None = None,
) -> Tensor:
    """The explicit form, as :func:`vecsmith.reference.skipgram.skipgram_pairs`, in place.

    centers, contexts: [N] int64; negatives: [N, K] int64, -1 where there is none. ``rates``: None,
    or float64 [1], what stands for alpha on the device. ``programs``,
    the result and what is raised are those of :func:`skipgram`.
    """
    _survivors.refuse_sync(sync_every)
    device = input_table.device
    count, negative = negatives.shape
    if count == 0:
        return torch.zeros(2, dtype=torch.float64, device=device)
    dim = input_table.shape[1]
    if negatives.stride(1) != 1:
        negatives = negatives.contiguous()
    negative_block = triton.next_power_of_2(max(negative + 1, 2))
    shape = _shape(dim, 1, negative_block)
    losses = torch.empty(count, 2, dtype=torch.float64, device=device)
    grid, run = _runs(count, programs)
    with torch.cuda.device_of(input_table):
        _train_pairs[(grid,)](
            input_table, input_table.stride(0), output_table, output_table.stride(0),
            centers.contiguous(), contexts.contiguous(), negatives, negatives.stride(0), losses,
            rates, count, run, dim, negative, alpha,
            LOSS=compute_loss, NEGATIVE_BLOCK=negative_block, **shape,
        )  # fmt: skip
    return losses.sum(0)
