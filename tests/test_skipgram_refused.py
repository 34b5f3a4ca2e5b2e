"""What the operator `skipgram` refuses: a sound call, a change to it, and the error that says so."""

# ruff: noqa: E501  (the tables of bad input: one line a case)

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
import skipgram_problems
from skipgram_problems import pairs_problem, problem
from vecsmith import ops

_one_thread = skipgram_problems.one_thread


def arguments(**fields):
    """A sound call as one dict."""
    tables, rest, options = problem(hs=True, **fields)
    names = ("tokens", "offsets", "keep", "alias", "path_offsets", "path_nodes", "path_codes")
    sound = {"input_table": tables[0], "output_table": tables[1], "tree_table": tables[2]}
    return sound | dict(zip(names, rest, strict=True)) | options


def pair_arguments():
    (input_table, output_table), (centers, contexts, negatives) = pairs_problem()
    return {
        "input_table": input_table, "output_table": output_table, "centers": centers,
        "contexts": contexts, "negatives": negatives,
    }  # fmt: skip


def changed(name, function):
    """Replace one argument by a function of it."""
    return lambda a: a | {name: function(a[name])}


def put(name, index, value):
    def change(a):
        a[name][index] = value
        return a

    return change


def replaced(**values):
    return lambda a: a | values


def overlapping(a):
    return a | {"input_table": torch.zeros(400).as_strided(a["input_table"].shape, (3, 1))}


def sharing(first, second):
    def change(a):
        rows, dim = a[first].shape
        buffer = torch.zeros(2 * rows, dim)
        n = a[second].shape[0]
        return a | {first: buffer[:rows], second: buffer[rows - 1 : rows - 1 + n]}

    return change


BAD_TEXT = {
    # tables
    "table-not-a-tensor": (replaced(input_table=[[1.0]]), TypeError, "input_table to be a torch.Tensor; got list"),
    "table-sparse": (changed("input_table", lambda t: t.to_sparse()), TypeError, "strided tensor; got"),
    "table-int": (changed("input_table", lambda t: t.int()), TypeError, "floating point; got torch.int32"),
    "table-1d": (changed("input_table", lambda t: t[0]), ValueError, r"shape \[rows, D >= 1\]; got \[16\]"),
    "table-no-columns": (changed("input_table", lambda t: t[:, :0]), ValueError, r"D >= 1\]; got \[23, 0\]"),
    "table-transposed": (changed("input_table", lambda t: t.T.contiguous().T), ValueError, "unit stride along D; got"),
    "table-overlaps-itself": (overlapping, ValueError, "rows apart; got strides"),
    "output-rows": (changed("output_table", lambda t: t[:-1]), ValueError, "output_table of 23 rows; got 22"),
    "output-dim": (changed("output_table", lambda t: t[:, :-1]), ValueError, "output_table of D=16; got 15"),
    "output-dtype": (changed("output_table", lambda t: t.double()), TypeError, "got torch.float64 on cpu"),
    "output-device": (changed("output_table", lambda t: t.to("meta")), TypeError, "got torch.float32 on meta"),
    "output-missing": (replaced(output_table=None), ValueError, "output_table with negative=5; got None"),
    "tree-rows": (changed("tree_table", lambda t: t[:-1]), ValueError, "tree_table of 22 rows; got 21"),
    "tree-dim": (changed("tree_table", lambda t: t[:, 1:]), ValueError, "tree_table of D=16; got 15"),
    "tables-are-one": (lambda a: a | {"output_table": a["input_table"]}, ValueError, "output_table shares memory with input_table"),
    "tables-share-a-row": (sharing("input_table", "output_table"), ValueError, "shares memory with"),
    "tree-shares-a-row": (sharing("output_table", "tree_table"), ValueError, "tree_table shares memory with output_table"),
    "half-tables": (lambda a: a | {n: a[n].half() for n in ("input_table", "output_table", "tree_table")}, ops.BackendUnavailable, "native: its tables are torch.float32, not torch.float16"),
    # tokens and offsets
    "tokens-not-a-tensor": (replaced(tokens=[1, 2]), TypeError, "tokens to be a torch.Tensor; got list"),
    "tokens-int64": (changed("tokens", lambda t: t.long()), TypeError, "tokens to be torch.int32; got torch.int64"),
    "tokens-2d": (changed("tokens", lambda t: t[None]), ValueError, r"tokens of shape \[any\]; got \[1, 32\]"),
    "tokens-meta": (changed("tokens", lambda t: t.to("meta")), ValueError, "tokens on cpu; got it on meta"),
    "tokens-strided": (changed("tokens", lambda t: t.repeat_interleave(2)[::2]), ValueError, r"tokens to be contiguous; got strides \(2,\)"),
    "tokens-too-large": (put("tokens", 5, 23), IndexError, r"tokens in 0\.\.22; got 23"),
    "tokens-negative": (put("tokens", 5, -1), IndexError, r"tokens in 0\.\.22; got -1"),
    "tokens-far": (put("tokens", 5, 2**31 - 1), IndexError, "got 2147483647"),
    "offsets-int32": (changed("offsets", lambda t: t.int()), TypeError, "offsets to be torch.int64"),
    "offsets-empty": (changed("offsets", lambda t: t[:0]), ValueError, "offsets of at least 1 entry"),
    "offsets-decrease": (put("offsets", 2, 3), ValueError, "expected non-decreasing offsets"),
    "offsets-negative": (put("offsets", 0, -1), IndexError, r"offsets in 0\.\.32; got -1"),
    "offsets-beyond": (put("offsets", -1, 33), IndexError, r"offsets in 0\.\.32; got 33"),
    # keep, alias, paths
    "keep-shape": (changed("keep", lambda t: t[:-1]), ValueError, r"keep of shape \[23\]; got \[22\]"),
    "keep-double": (changed("keep", lambda t: t.double()), TypeError, "keep to be torch.float32"),
    "alias-missing": (replaced(alias=None), ValueError, "alias with negative=5; got None"),
    "alias-shape": (changed("alias", lambda t: t.T.contiguous()), ValueError, r"alias of shape \[23, 2\]; got \[2, 23\]"),
    "alias-dtype": (changed("alias", lambda t: t.long()), TypeError, "alias to be torch.int32"),
    "alias-strided": (changed("alias", lambda t: t.T.contiguous().T), ValueError, "alias to be contiguous"),
    "alias-too-large": (put("alias", (4, 1), 23), IndexError, r"alias in 0\.\.22; got 23"),
    "alias-negative": (put("alias", (4, 1), -2), IndexError, r"alias in 0\.\.22; got -2"),
    "path-offsets-missing": (replaced(path_offsets=None), ValueError, "path_offsets with a tree_table; got None"),
    "path-nodes-missing": (replaced(path_nodes=None), ValueError, "path_nodes with a tree_table; got None"),
    "path-codes-missing": (replaced(path_codes=None), ValueError, "path_codes with a tree_table; got None"),
    "path-offsets-shape": (changed("path_offsets", lambda t: t[:-1]), ValueError, r"path_offsets of shape \[24\]; got \[23\]"),
    "path-codes-dtype": (changed("path_codes", lambda t: t.bool()), TypeError, "path_codes to be torch.uint8"),
    "path-codes-short": (changed("path_codes", lambda t: t[:-1]), ValueError, "as many path_codes as path_nodes"),
    "path-nodes-too-large": (put("path_nodes", 3, 22), IndexError, r"path_nodes in 0\.\.21; got 22"),
    "path-nodes-negative": (put("path_nodes", 3, -1), IndexError, r"path_nodes in 0\.\.21; got -1"),
    "path-offsets-decrease": (put("path_offsets", 3, 0), ValueError, "expected non-decreasing path_offsets"),
    "path-offsets-beyond": (put("path_offsets", -1, 10**6), IndexError, "path_offsets in"),
    "path-of-no-nodes": (put("path_offsets", 1, 0), ValueError, "a path for every word; got none for word 0"),
    # settings
    "window-0": (replaced(window=0), ValueError, r"window in 1\.\.1048576; got 0"),
    "window-large": (replaced(window=2**20 + 1), ValueError, "window in"),
    "window-float": (replaced(window=5.0), TypeError, "window to be an int; got float"),
    "window-bool": (replaced(window=True), TypeError, "window to be an int; got bool"),
    "negative-negative": (replaced(negative=-1), ValueError, "negative in"),
    "negative-large": (replaced(negative=2**16 + 1), ValueError, "negative in"),
    "nothing-to-train": (replaced(negative=0, tree_table=None), ValueError, "negative=0 and no tree_table"),
    "shared-unknown": (replaced(shared_negatives="batch"), ValueError, "'window' or 'pair'; got 'batch'"),
    "alpha-nan": (replaced(alpha=float("nan")), ValueError, "alpha to be finite and >= 0; got nan"),
    "alpha-inf": (replaced(alpha=float("inf")), ValueError, "alpha to be finite"),
    "alpha-negative": (replaced(alpha=-0.1), ValueError, "got -0.1"),
    "alpha-string": (replaced(alpha="0.1"), TypeError, "alpha to be a float; got str"),
    "min-alpha-nan": (replaced(min_alpha=float("nan")), ValueError, "min_alpha to be finite"),
    "words-before-negative": (replaced(words_before=-1), ValueError, "words_before in"),
    "words-total-0": (replaced(words_total=0), ValueError, "words_total in"),
    "epoch-negative": (replaced(epoch=-1), ValueError, "epoch in"),
    "first-position-negative": (replaced(first_position=-1), ValueError, "first_position in"),
    "seed-float": (replaced(seed=1.5), TypeError, "seed to be an int; got float"),
    "sync_every-negative": (replaced(sync_every=-1), ValueError, r"sync_every in 0\.\.65536; got -1"),
    "sync_every-large": (replaced(sync_every=65537), ValueError, r"sync_every in 0\.\.65536; got 65537"),
    "threads-0": (replaced(num_threads=0), ValueError, r"num_threads in 1\.\.4096; got 0"),
    "threads-float": (replaced(num_threads=1.0), TypeError, "num_threads to be an int"),
    "backend-unknown": (replaced(backend="cpu"), ValueError, "backend to be one of 'native', 'cuda', 'triton', 'reference'; got 'cpu'"),
    "backend-unavailable": (replaced(backend="cuda"), ops.BackendUnavailable, "cuda: it takes cuda tensors, not cpu tensors"),
}  # fmt: skip

BAD_PAIRS = {
    "output-dim": (changed("output_table", lambda t: t[:, :-1]), ValueError, "output_table of D=16; got 15"),
    "tables-are-one": (lambda a: a | {"output_table": a["input_table"]}, ValueError, "shares memory"),
    "centers-int32": (changed("centers", lambda t: t.int()), TypeError, "centers to be torch.int64"),
    "centers-2d": (changed("centers", lambda t: t[None]), ValueError, r"centers of shape \[any\]"),
    "centers-strided": (changed("centers", lambda t: t.repeat_interleave(2)[::2]), ValueError, "centers to be contiguous"),
    "contexts-short": (changed("contexts", lambda t: t[:-1]), ValueError, r"contexts of shape \[60\]; got \[59\]"),
    "negatives-1d": (changed("negatives", lambda t: t[:, 0]), ValueError, r"negatives of shape \[60, any\]"),
    "negatives-meta": (changed("negatives", lambda t: t.to("meta")), ValueError, "negatives on cpu; got it on meta"),
    "centers-too-large": (put("centers", 7, 19), IndexError, r"centers in 0\.\.18; got 19"),
    "centers-negative": (put("centers", 7, -1), IndexError, r"centers in 0\.\.18; got -1"),
    "centers-far": (put("centers", 7, 2**32), IndexError, "got 4294967296"),
    "contexts-too-large": (put("contexts", 7, 31), IndexError, r"contexts in 0\.\.30; got 31"),
    "negatives-too-large": (put("negatives", (7, 1), 31), IndexError, r"negatives in -1\.\.30; got 31"),
    "negatives-too-small": (put("negatives", (7, 1), -2), IndexError, r"negatives in -1\.\.30; got -2"),
    "alpha-nan": (replaced(alpha=float("nan")), ValueError, "alpha to be finite"),
    "sync_every-large": (replaced(sync_every=65537), ValueError, r"sync_every in 0\.\.65536; got 65537"),
    "threads-0": (replaced(num_threads=0), ValueError, "num_threads in"),
    "backend-unknown": (replaced(backend="gpu"), ValueError, "got 'gpu'"),
    "backend-unavailable": (replaced(backend="triton"), ops.BackendUnavailable, "triton: it takes cuda tensors"),
}  # fmt: skip


def check_refusal(operator, bad, error, message):
    tables = [bad[n] for n in ("input_table", "output_table", "tree_table") if n in bad]
    tables = [t for t in tables if isinstance(t, torch.Tensor) and t.device.type == "cpu"]
    before = [t.clone() for t in tables]
    with pytest.raises(error, match=message) as caught:
        operator(**bad)
    assert len(str(caught.value).splitlines()) == 1
    for a, b in zip(tables, before, strict=True):
        if a.layout == torch.strided:
            assert torch.equal(a, b)


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("case", BAD_TEXT)
def test_bad_text(monkeypatch, case, backend):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    change, error, message = BAD_TEXT[case]
    if case in ("backend-unknown", "half-tables") and backend == "reference":
        pytest.skip("says something about the native backend")
    check_refusal(ops.skipgram, change({"backend": backend, **arguments()}), error, message)


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("case", BAD_PAIRS)
def test_bad_pairs(monkeypatch, case, backend):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    change, error, message = BAD_PAIRS[case]
    check_refusal(
        ops.skipgram_pairs, change({"backend": backend, **pair_arguments()}), error, message
    )


def test_sound_arguments_are_sound():
    """What the tables of bad input start from passes."""
    assert ops.skipgram(**arguments())[1] > 0
    assert ops.skipgram_pairs(**pair_arguments())[1] > 0
