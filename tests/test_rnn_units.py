"""What the native rnn multiplies in: bfloat16, and floats in two parts, by vectors and by tiles.

No machine without AMX can run its instructions: the kernels are compiled once more against
tests/tile_emulation, which has them in plain C++, and go through the same cases.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess

import pytest
import torch

from conftest import AVX512_FLAGS, COMPILE_FLAGS, ROOT
from test_rnn import CELLS, NAMES, problem, relu_of
from vecsmith.ops import _rnn
from vecsmith.reference import rnn as reference

# One row; more than a block; ends inside of blocks; one row that is longer than the others.
SEQUENCES = ([1] * 40, [33, 33, 20], [17, 4, 4, 2, 1, 1, 1, 1, 1, 1], [9] * 4)
UNITS = {"bfloat16": _rnn.BFLOAT16, "split": _rnn.SPLIT}


def _has_native():
    try:
        _rnn.native()
    except RuntimeError:
        return False
    return True


@pytest.fixture(params=["vectors", "tiles"])
def module(request, monkeypatch):
    """The native module, or the one with emulated tiles, as the operator's."""
    if request.param == "tiles":
        chosen = request.getfixturevalue("emulated_tiles")
        assert chosen.rnn_matrix_units() == 2
        monkeypatch.setattr(_rnn, "native", lambda: chosen)
        return chosen
    if not _has_native():
        pytest.skip("no native module")
    return _rnn.native()


def _oracle(values, sizes, cell, reverse, dtype, output):
    """(results, gradients) of the reference; with a ReLU, of the one that gave `output`."""
    given = {n: v if v is None else v.to(dtype).requires_grad_() for n, v in values.items()}
    with relu_of(cell, output, sizes, reverse):
        results = reference.rnn(
            batch_sizes=torch.tensor(sizes), cell=cell, reverse=reverse, **given
        )
    kept = [r for r in results if r is not None]
    torch.manual_seed(5)
    grads = [torch.randn(r.shape, dtype=torch.float64).bfloat16().to(dtype) for r in kept]
    leaves = [v for v in given.values() if v is not None]
    return [*(k.detach() for k in kept), *torch.autograd.grad(kept, leaves, grads)]


def _ours(values, sizes, cell, reverse, dtype, unit, threads=2):
    given = {n: v if v is None else v.to(dtype) for n, v in values.items()}
    leaves = {n: v for n, v in given.items() if v is not None}
    for leaf in leaves.values():
        leaf.requires_grad_()
    tensors = [given[name] for name in NAMES]
    results = torch.ops.vecsmith.rnn(
        *(tensors[0], torch.tensor(sizes), *tensors[1:], cell, reverse, threads, unit, True)
    )
    kept = list(results[: 3 if cell == "lstm" else 2])
    torch.manual_seed(5)
    grads = [torch.randn(r.shape, dtype=torch.float64).bfloat16().to(dtype) for r in kept]
    return [*(k.detach() for k in kept), *torch.autograd.grad(kept, list(leaves.values()), grads)]


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("sizes", SEQUENCES, ids=lambda sizes: f"{len(sizes)}x{sizes[0]}")
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("kind", ["bfloat16", "medium", "high"])
def test_against_the_reference(module, kind, cell, sizes, reverse):
    dtype = torch.bfloat16 if kind == "bfloat16" else torch.float32
    unit = _rnn.SPLIT if kind == "high" else _rnn.BFLOAT16
    for hidden, inputs in ((1, 3), (33, 7), (70, 40)):
        values = problem(cell, sizes, hidden, inputs, dtype=torch.bfloat16)
        if kind == "high":  # numbers that no bfloat16 holds
            if hidden == 1:  # where a sum may cancel, a single number says nothing
                continue
            values = problem(cell, sizes, hidden, inputs, dtype=torch.float32)
        ours = _ours(values, sizes, cell, reverse, dtype, unit)
        exact = _oracle(values, sizes, cell, reverse, torch.float64, ours[0])
        plain = _oracle(values, sizes, cell, reverse, torch.bfloat16, ours[0])
        for found, theirs, right in zip(ours, plain, exact, strict=True):
            assert found.dtype == dtype
            if kind == "high":
                assert float((found - right).norm() / right.norm().clamp(min=1e-30)) < 2e-5
                continue
            largest = max(1e-30, float(right.abs().max()))
            error = float((found.double() - right).abs().max()) / largest
            of_plain = float((theirs.double() - right).abs().max()) / largest
            assert error <= 2 * of_plain + 16 * torch.finfo(torch.bfloat16).eps


@pytest.mark.parametrize("unit", list(UNITS))
@pytest.mark.parametrize("cell", CELLS)
def test_bits_do_not_depend_on_threads(module, cell, unit):
    sizes = [40, 40, 31, 31, 9]
    values = problem(cell, sizes, 130)
    runs = [
        _ours(values, sizes, cell, False, torch.float32, UNITS[unit], threads)
        for threads in (1, 2, 3, 5)
    ]
    for other in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], other, strict=True))


@pytest.mark.parametrize("unit", list(UNITS))
def test_nan_stays_in_its_row(module, unit):
    sizes = [40] * 3
    values = problem("lstm", sizes, 33)
    values["input"][45, 0] = float("nan")
    found = _ours(values, sizes, "lstm", False, torch.float32, UNITS[unit])[0]
    bad = [n for n in range(120) if found[n].isnan().any()]
    assert bad == [45, 85]
    assert found[bad].isnan().all()


def test_frozen_weights_have_no_gradients(module):
    sizes = [40] * 2
    values = {n: v if v is None else v.float() for n, v in problem("gru", sizes, 20).items()}
    values["input"].requires_grad_()
    tensors = [values[name] for name in NAMES]
    out = torch.ops.vecsmith.rnn(
        *(tensors[0], torch.tensor(sizes), *tensors[1:], "gru", False, 2, _rnn.FLOAT, True)
    )[0]
    (found,) = torch.autograd.grad(out.sum(), values["input"])
    exact = problem("gru", sizes, 20)
    exact = {n: v if v is None else values[n].detach().double() for n, v in exact.items()}
    exact["input"].requires_grad_()
    right = reference.rnn(batch_sizes=torch.tensor(sizes), cell="gru", **exact)[0]
    (wanted,) = torch.autograd.grad(right.sum(), exact["input"])
    torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-5)


def test_the_unit_follows_the_precision(module):
    fast = module.rnn_matrix_units()
    assert _rnn.unit_of(torch.float32, "highest") == _rnn.FLOAT
    assert _rnn.unit_of(torch.float32, "high") == (_rnn.SPLIT if fast == 2 else _rnn.FLOAT)
    for dtype, precision in ((torch.float32, "medium"), (torch.bfloat16, "highest")):
        assert _rnn.unit_of(dtype, precision) == (_rnn.BFLOAT16 if fast else _rnn.FLOAT)


@pytest.mark.parametrize("unit", list(UNITS))
@pytest.mark.parametrize("cell", CELLS)
def test_memory_that_was_used_before_does_not_show(module, cell, unit):
    """A call leaves NaN in the memory that the next one is given."""
    for hidden in (1, 5, 33, 65):
        sizes = [40, 40, 3]
        values = problem(cell, sizes, hidden)
        bad = {n: v if v is None else v * float("nan") for n, v in values.items()}
        right = _ours(values, sizes, cell, False, torch.float32, UNITS[unit], 1)
        _ours(bad, sizes, cell, False, torch.float32, UNITS[unit], 1)
        found = _ours(values, sizes, cell, False, torch.float32, UNITS[unit], 1)
        assert all(torch.equal(a, b) for a, b in zip(found, right, strict=True))
        assert not any(t.isnan().any() for t in found)


def test_gates_of_floats_are_kept_as_floats(module):
    """1 - f of a forget gate near 1 would be lost in bfloat16."""
    sizes = [2] * 100
    values = problem("lstm", sizes, 32)
    values["b_ih"][32:64] = 6
    values = {n: v.float().double() for n, v in values.items()}
    ours = _ours(values, sizes, "lstm", False, torch.float32, _rnn.BFLOAT16)
    exact = _oracle(values, sizes, "lstm", False, torch.float64, ours[0])
    for found, right in zip(ours, exact, strict=True):
        assert float((found - right).norm() / right.norm()) < 0.03


@pytest.mark.parametrize("unit", list(UNITS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_forward_is_the_same_without_gradients(module, dtype, unit):
    for cell in CELLS:
        sizes = [40, 40, 7]
        values = problem(cell, sizes, 33, dtype=torch.bfloat16)
        given = [None if values[n] is None else values[n].to(dtype) for n in NAMES]
        if dtype == torch.bfloat16 and unit == "split":
            continue
        runs = [
            torch.ops.vecsmith.rnn(
                *(given[0], torch.tensor(sizes), *given[1:], cell, False, 2, UNITS[unit], save)
            )[:3]
            for save in (False, True)
        ]
        assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_float16_does_not_follow_the_precision(module):
    for precision in ("highest", "high", "medium"):
        assert _rnn.unit_of(torch.float16, precision) == _rnn.FLOAT


def test_all_of_a_tile_configuration_is_written(tmp_path):
    """GCC takes the instruction to read eight bytes of it, and would leave out the rest."""
    if platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("AMX is x86-64's")
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")
    more = ["-mavx512bf16", "-mamx-tile", "-mamx-bf16", "-DVECSMITH_LEVEL=amx", "-O3"]
    source, made = ROOT / "csrc/cpu/rnn_products.kernel.cpp", tmp_path / "amx.o"
    subprocess.run(
        [
            compiler,
            *COMPILE_FLAGS,
            *AVX512_FLAGS,
            *more,
            f"-I{ROOT / 'csrc'}",
            "-c",
            source,
            "-o",
            made,
        ],
        check=True,
    )
    assert b"\x10" * 8 in made.read_bytes()  # 16 rows each
