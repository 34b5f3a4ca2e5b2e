"""The operator ``skipgram``: word2vec's training step over a chunk of corpus, or over given pairs.

What it computes, and every random draw, is written down in :mod:`vecsmith.reference.skipgram`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vecsmith.ops import _checks as check
from vecsmith.ops._registry import Backend, Operator, choose, native, register, run
from vecsmith.ops._skipgram_place import place_of, settled
from vecsmith.reference import skipgram as reference

OPERATOR = register(
    Operator(
        "skipgram",
        (
            Backend("native", "cpu", (torch.float32,)),
            Backend("cuda", "cuda", (torch.float32,), deterministic=False),
            Backend("triton", "cuda", (torch.float32,), deterministic=False),
            Backend("reference", "any", (torch.float32, torch.float64)),
        ),
        ("skipgram", "skipgram_pairs"),
    )
)

# Centers of each shard between two merges in deterministic mode: many enough that merging costs
# little, few enough that the shards do not grow apart. Part of the result: never derived from the
# machine.
DETERMINISTIC_SYNC = 1024
MAX_SYNC = 65536

_LIBRARY = torch.library.Library("vecsmith", "FRAGMENT")
_LIBRARY.define(
    "skipgram(Tensor(a!) input_table, Tensor(b!)? output_table, Tensor(c!)? tree_table, "
    "Tensor tokens, Tensor offsets, Tensor? keep, Tensor? alias, Tensor? path_offsets, "
    "Tensor? path_nodes, Tensor? path_codes, int window, int negative, bool cbow, bool cbow_mean, "
    "bool shrink_windows, str shared_negatives, float alpha, float min_alpha, int words_before, "
    "int words_total, int seed, int epoch, int first_position, int sync_every, "
    "bool compute_loss, int num_threads, str backend, Tensor? place=None, Tensor? rates=None) "
    "-> Tensor"
)
_LIBRARY.define(
    "skipgram_pairs(Tensor(a!) input_table, Tensor(b!) output_table, Tensor centers, "
    "Tensor contexts, Tensor negatives, float alpha, int sync_every, bool compute_loss, "
    "int num_threads, str backend, Tensor? rates=None) -> Tensor"
)


def skipgram(
    input_table: Tensor,
    output_table: Tensor | None,
    tokens: Tensor,
    offsets: Tensor,
    *,
    tree_table: Tensor | None = None,
    keep: Tensor | None = None,
    alias: Tensor | None = None,
    path_offsets: Tensor | None = None,
    path_nodes: Tensor | None = None,
    path_codes: Tensor | None = None,
    window: int = 5,
    negative: int = 5,
    cbow: bool = False,
    cbow_mean: bool = True,
    shrink_windows: bool = True,
    shared_negatives: str = "window",
    alpha: float | Tensor = 0.025,
    min_alpha: float | Tensor = 0.0001,
    words_before: int | Tensor = 0,
    words_total: int | None = None,
    seed: int | Tensor = 1,
    epoch: int | Tensor = 0,
    first_position: int | Tensor = 0,
    sync_every: int | None = None,
    compute_loss: bool = True,
    num_threads: int | None = None,
    backend: str | None = None,
) -> Tensor:
    """Train word vectors on a chunk of corpus, in place (Mikolov et al. 2013).

    Every window of every sentence is one step of stochastic gradient descent on

        loss = - log s(x_c . o_w) - sum_k log s(-x_c . o_k),      s(z) = 1 / (1 + exp(-z))

    for its context words c (rows of ``input_table``), its center w and K negatives k (rows of
    ``output_table``); with CBOW x_c becomes the mean or sum of the window's rows, with hierarchical
    softmax the outputs are the center's path in ``tree_table``. All formulas, the order of updates
    and every random draw: :mod:`vecsmith.reference.skipgram`.

    While a CUDA graph is captured the numbers that a replay must take anew, the place in the
    training, are tensors of one element beside the tables: ``alpha`` and ``min_alpha`` (floating;
    float64 for the bits of a Python number), ``words_before``, ``seed``, ``epoch`` and
    ``first_position`` (int64), and at least one of the last three is, since a replay would draw
    the same again. The chunk keeps its size: what lies before ``offsets[0]`` and behind
    ``offsets[-1]`` is not trained. Ids out of range stop the device with an assertion then.

    Args:
        input_table: [V, D] float32, changed in place. Unit stride along D, any row stride
            (:func:`empty_table` gives the fastest).
        output_table: [V, D] float32, changed in place; None only if ``negative`` is 0.
        tokens: [N] int32, word ids in 0..V-1.
        offsets: [S+1] int64, non-decreasing, in 0..N: sentence s is
            ``tokens[offsets[s]:offsets[s+1]]``.
        tree_table: [V-1, D] float32, changed in place: hierarchical softmax. Needs the three paths.
        keep: [V] float32, the probability with which a token survives sub-sampling; None keeps all.
        alias: [V, 2] int32, the negatives' alias table (threshold in 0..2^31-1, alias); needed if
            ``negative`` > 0.
        path_offsets, path_nodes, path_codes: int64 [V+1], int32 [P], uint8 [P]: the Huffman tree.
        window: the largest distance of a context, in surviving words.
        negative: K, negatives per step; 0 for hierarchical softmax alone.
        cbow, cbow_mean: CBOW instead of skip-gram, with the mean (else the sum) of the window.
        shrink_windows: draw the reach of each window from 1..``window``.
        shared_negatives: "window" (one set of negatives per center) or "pair" (word2vec's own: one
            set per context).
        alpha, min_alpha: the learning rate at word 0 and at word ``words_total``.
        words_before: words trained before position 0 of this epoch; the rate at position p is
            linear in (words_before + p) / words_total.
        words_total: words of the whole training (default: words_before + first_position + N).
        seed, epoch: key the random draws, with a token's position.
        first_position: the position of tokens[0].
        sync_every: 0: one step after another (lock-free over several workers). n > 0: four shards
            of the call's sentences are trained apart and merged every n centers of each (local
            SGD), so that the same seed gives the same bits for any number of workers (of which four
            can be used). None: 0, or 1,024 under ``torch.use_deterministic_algorithms(True)``.
        compute_loss: False leaves the loss at 0 and saves a few percent.
        num_threads: workers (default ``torch.get_num_threads()``).
        backend: "native", "cuda", "triton" or "reference" to force one.

    Returns:
        float64 [2]: the summed loss (natural log) before each update, and its number of terms.

    Raises:
        TypeError, ValueError, IndexError: before anything is changed, for wrong types, shapes,
            settings, and ids or offsets out of range.
        RuntimeError: a capture of a CUDA graph that would draw the same in every replay.
        BackendUnavailable: a forced backend that cannot run, or none that is deterministic.
    """
    name = "skipgram"
    check.table(name, "input_table", input_table)
    vocabulary = input_table.shape[0]
    check.integer(name, "window", window, low=1, high=2**20)
    check.integer(name, "negative", negative, low=0, high=2**16)
    if shared_negatives not in ("window", "pair"):
        raise ValueError(
            f"{name}: expected shared_negatives to be 'window' or 'pair'; got {shared_negatives!r}"
        )
    place, rates, numbers = place_of(
        *(name, input_table),
        seed=seed,
        epoch=epoch,
        first_position=first_position,
        words_before=words_before,
        alpha=alpha,
        min_alpha=min_alpha,
    )
    check.tensor(name, "tokens", tokens, torch.int32, (None,), input_table)
    check.tensor(name, "offsets", offsets, torch.int64, (None,), input_table)
    if offsets.numel() < 1:
        raise ValueError(f"{name}: expected offsets of at least 1 entry; got an empty tensor")
    if negative == 0 and tree_table is None:
        raise ValueError(
            f"{name}: expected negative > 0, or a tree_table for hierarchical softmax; "
            "got negative=0 and no tree_table"
        )
    if negative:
        if output_table is None or alias is None:
            missing = "output_table" if output_table is None else "alias"
            raise ValueError(f"{name}: expected {missing} with negative={negative}; got None")
        check.table(name, "output_table", output_table, like=input_table, rows=vocabulary)
        check.tensor(name, "alias", alias, torch.int32, (vocabulary, 2), input_table)
    else:
        output_table = alias = None
    if tree_table is not None:
        check.table(name, "tree_table", tree_table, like=input_table, rows=max(vocabulary - 1, 0))
        for label, path, dtype, shape in (
            ("path_offsets", path_offsets, torch.int64, (vocabulary + 1,)),
            ("path_nodes", path_nodes, torch.int32, (None,)),
            ("path_codes", path_codes, torch.uint8, (None,)),
        ):
            if path is None:
                raise ValueError(f"{name}: expected {label} with a tree_table; got None")
            check.tensor(name, label, path, dtype, shape, input_table)
        assert path_nodes is not None
        assert path_codes is not None
        if path_nodes.numel() != path_codes.numel():
            raise ValueError(
                f"{name}: expected as many path_codes as path_nodes; "
                f"got {path_codes.numel()} and {path_nodes.numel()}"
            )
    else:
        path_offsets = path_nodes = path_codes = None
    if keep is not None:
        check.tensor(name, "keep", keep, torch.float32, (vocabulary,), input_table)
    if words_total is None:
        if isinstance(words_before, Tensor) or isinstance(first_position, Tensor):
            raise ValueError(
                f"{name}: expected words_total beside words_before or first_position that are "
                "tensors; got None"
            )
        words_total = max(1, words_before + first_position + tokens.numel())
    check.integer(name, "words_total", words_total, low=1)
    sync_every = _sync_every(name, sync_every)
    check.distinct(name, input_table=input_table, output_table=output_table, tree_table=tree_table)
    return torch.ops.vecsmith.skipgram(
        input_table.detach(),
        None if output_table is None else output_table.detach(),
        None if tree_table is None else tree_table.detach(),
        tokens,
        offsets,
        keep,
        alias,
        path_offsets,
        path_nodes,
        path_codes,
        window,
        negative,
        bool(cbow),
        bool(cbow_mean),
        bool(shrink_windows),
        shared_negatives,
        numbers["alpha"],
        numbers["min_alpha"],
        numbers["words_before"],
        words_total,
        numbers["seed"],
        numbers["epoch"],
        numbers["first_position"],
        sync_every,
        bool(compute_loss),
        check.threads(name, num_threads),
        backend or "",
        place,
        rates,
    )


def skipgram_pairs(
    input_table: Tensor,
    output_table: Tensor,
    centers: Tensor,
    contexts: Tensor,
    negatives: Tensor,
    *,
    alpha: float | Tensor = 0.025,
    sync_every: int | None = None,
    compute_loss: bool = True,
    num_threads: int | None = None,
    backend: str | None = None,
) -> Tensor:
    """Skip-gram with negative sampling on given pairs, in place: items, graph walks, anything that
    is not text. One step per pair i, in order, on

        loss = - log s(x . o_i) - sum_k log s(-x . o_ik),    x = input_table[centers[i]]

    with o_i = output_table[contexts[i]] and o_ik = output_table[negatives[i, k]]. Negatives that
    are -1 or equal contexts[i] are left out.

    Args:
        input_table: [V, D] float32, changed in place.
        output_table: [W, D] float32, changed in place. W may differ from V (users and items).
        centers: [N] int64 in 0..V-1.
        contexts: [N] int64 in 0..W-1.
        negatives: [N, K] int64 in -1..W-1.
        alpha: the learning rate; in a CUDA graph a tensor, as in :func:`skipgram`, is read anew by
            every replay.
        sync_every: as in :func:`skipgram`, in pairs.
        compute_loss, num_threads, backend: as in :func:`skipgram`.

    Returns:
        float64 [2]: the summed loss before each update, and its number of terms.

    Raises:
        As :func:`skipgram`.
    """
    name = "skipgram_pairs"
    check.table(name, "input_table", input_table)
    check.table(name, "output_table", output_table, like=input_table)
    check.tensor(name, "centers", centers, torch.int64, (None,), input_table)
    pairs = centers.numel()
    check.tensor(name, "contexts", contexts, torch.int64, (pairs,), input_table)
    check.tensor(name, "negatives", negatives, torch.int64, (pairs, None), input_table)
    _, rates, numbers = place_of(name, input_table, alpha=alpha)
    sync_every = _sync_every(name, sync_every)
    check.distinct(name, input_table=input_table, output_table=output_table)
    return torch.ops.vecsmith.skipgram_pairs(
        input_table.detach(),
        output_table.detach(),
        centers,
        contexts,
        negatives,
        numbers["alpha"],
        sync_every,
        bool(compute_loss),
        check.threads(name, num_threads),
        backend or "",
        rates,
    )


def _sync_every(name: str, sync_every: int | None) -> int:
    if sync_every is None:
        return DETERMINISTIC_SYNC if torch.are_deterministic_algorithms_enabled() else 0
    check.integer(name, "sync_every", sync_every, low=0, high=MAX_SYNC)
    return sync_every


# --- the registered operators ---------------------------------------------------------------------


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _skipgram_impl(
    input_table,
    output_table,
    tree_table,
    tokens,
    offsets,
    keep,
    alias,
    path_offsets,
    path_nodes,
    path_codes,
    window,
    negative,
    cbow,
    cbow_mean,
    shrink_windows,
    shared_negatives,
    alpha,
    min_alpha,
    words_before,
    words_total,
    seed,
    epoch,
    first_position,
    sync_every,
    compute_loss,
    num_threads,
    backend,
    place=None,
    rates=None,
):
    tensors = (
        *(input_table, output_table, tree_table, tokens, offsets),
        *(keep, alias, path_offsets, path_nodes, path_codes),
    )
    settings = {
        "window": window,
        "negative": negative,
        "cbow": cbow,
        "cbow_mean": cbow_mean,
        "shrink_windows": shrink_windows,
        "shared_negatives": shared_negatives,
        "alpha": alpha,
        "min_alpha": min_alpha,
        "words_before": words_before,
        "words_total": words_total,
        "seed": seed,
        "epoch": epoch,
        "first_position": first_position,
        "sync_every": sync_every,
    }
    chosen = choose(
        OPERATOR,
        input_table.device.type,
        input_table.dtype,
        backend or None,
        deterministic=sync_every > 0,
    )
    if chosen in ("native", "reference") and place is not None and rates is not None:
        check.refuse_capture("skipgram", input_table, "the cuda or the triton backend")
        settings |= settled("skipgram", place, rates)
        place = None
    if chosen == "native":
        result = torch.zeros(2, dtype=torch.float64)
        settings["shared_negatives"] = settings["shared_negatives"] == "window"
        native().skipgram(
            [_address(t) for t in tensors],
            [0 if t is None else t.stride(0) for t in tensors[:3]],
            *input_table.shape,
            tokens.numel(),
            offsets.numel() - 1,
            0 if path_nodes is None else path_nodes.numel(),
            result.data_ptr(),
            compute_loss=compute_loss,
            num_threads=num_threads,
            **settings,
        )
    else:
        _check_ids(tensors, input_table.shape[0])
        if chosen != "reference":
            from vecsmith.kernels._survivors import Place

            if place is not None and rates is not None:
                settings["place"] = Place(place, rates)
        if chosen == "triton":
            from vecsmith.kernels import skipgram as kernels

            result = run(kernels.skipgram, *tensors, compute_loss=compute_loss, **settings)
        elif chosen == "cuda":
            from vecsmith.ops import _cuda_skipgram as kernels

            result = run(kernels.skipgram, *tensors, compute_loss=compute_loss, **settings)
        else:
            result = run(reference.skipgram, *tensors, **settings)
            result[0] *= compute_loss
    for changed in tensors[:3]:
        if changed is not None:
            torch.autograd.graph.increment_version(changed)
    return result


def _check_ids(tensors: tuple[Tensor | None, ...], vocabulary: int) -> None:
    """What the native binding checks in C++, for the backends that do not."""
    _, _, tree, tokens, offsets, _, alias, path_offsets, path_nodes, _ = tensors
    assert tokens is not None
    assert offsets is not None
    check.ids("skipgram", "tokens", tokens, 0, vocabulary)
    check.ids("skipgram", "offsets", offsets, 0, tokens.numel() + 1)
    capturing = check.is_capturing(tokens)
    if capturing:
        ascend = (offsets[1:] >= offsets[:-1]).all()
        check.holds_on_device(ascend, "skipgram: expected non-decreasing offsets")
    elif bool((offsets[1:] < offsets[:-1]).any()):
        raise ValueError("skipgram: expected non-decreasing offsets")
    if alias is not None:
        check.ids("skipgram", "alias", alias[:, 1], 0, vocabulary)
    if tree is not None:
        assert path_offsets is not None
        assert path_nodes is not None
        check.ids("skipgram", "path_nodes", path_nodes, 0, vocabulary - 1)
        check.ids("skipgram", "path_offsets", path_offsets, 0, path_nodes.numel() + 1)
        if capturing:
            ascend = (path_offsets[1:] >= path_offsets[:-1] + (vocabulary > 1)).all()
            check.holds_on_device(ascend, "skipgram: expected a path for every word")
            return
        if bool((path_offsets[1:] < path_offsets[:-1]).any()):
            raise ValueError("skipgram: expected non-decreasing path_offsets")
        empty = (path_offsets[1:] == path_offsets[:-1]).nonzero()
        if vocabulary > 1 and empty.numel():
            raise ValueError(
                f"skipgram: expected a path for every word; got none for word {int(empty[0])}"
            )


def _pairs_impl(
    input_table,
    output_table,
    centers,
    contexts,
    negatives,
    alpha,
    sync_every,
    compute_loss,
    num_threads,
    backend,
    rates=None,
):
    tensors = (input_table, output_table, centers, contexts, negatives)
    chosen = choose(
        OPERATOR,
        input_table.device.type,
        input_table.dtype,
        backend or None,
        deterministic=sync_every > 0,
    )
    settings = {"alpha": alpha, "sync_every": sync_every}
    if chosen in ("native", "reference") and rates is not None:
        check.refuse_capture("skipgram_pairs", input_table, "the cuda or the triton backend")
        settings["alpha"] = float(rates)
        check.rate("skipgram_pairs", "alpha", settings["alpha"])
    elif rates is not None:
        settings["rates"] = rates
    if chosen == "native":
        result = torch.zeros(2, dtype=torch.float64)
        native().skipgram_pairs(
            [t.data_ptr() for t in tensors],
            [input_table.stride(0), output_table.stride(0)],
            input_table.shape[0],
            output_table.shape[0],
            input_table.shape[1],
            centers.numel(),
            negatives.shape[1],
            result.data_ptr(),
            compute_loss=compute_loss,
            num_threads=num_threads,
            **settings,
        )
    else:
        check.ids("skipgram_pairs", "centers", centers, 0, input_table.shape[0])
        check.ids("skipgram_pairs", "contexts", contexts, 0, output_table.shape[0])
        check.ids("skipgram_pairs", "negatives", negatives, -1, output_table.shape[0])
        if chosen == "triton":
            from vecsmith.kernels import skipgram as kernels

            result = run(kernels.skipgram_pairs, *tensors, compute_loss=compute_loss, **settings)
        elif chosen == "cuda":
            from vecsmith.ops import _cuda_skipgram as kernels

            result = run(kernels.skipgram_pairs, *tensors, compute_loss=compute_loss, **settings)
        else:
            result = run(reference.skipgram_pairs, *tensors, **settings)
            result[0] *= compute_loss
    torch.autograd.graph.increment_version([input_table, output_table])
    return result


def _fake(*args):
    return torch.empty(2, dtype=torch.float64, device=args[0].device)


for _name, _impl in (("skipgram", _skipgram_impl), ("skipgram_pairs", _pairs_impl)):
    _LIBRARY.impl(_name, _impl, "CompositeExplicitAutograd")
    torch.library.register_fake(f"vecsmith::{_name}", _fake)
