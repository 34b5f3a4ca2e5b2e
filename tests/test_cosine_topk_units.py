"""The first pass of cosine_topk in each unit, forced: floats, bfloat16 (by vectors, and by tiles,
which tests/tile_emulation has in plain C++) and bytes, at the levels that would not choose them as
well."""

from __future__ import annotations

import functools
import platform

import pytest
import torch

from conftest import NATIVE_LEVELS
from vecsmith.ops import _cosine_topk as registered
from vecsmith.reference import cosine_topk as reference

pytestmark = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64"), reason="levels of x86-64"
)
FLOATS, PAIRS, BYTES = range(3)
# Rows that end inside of panels, dimensions inside of words and vectors, queries inside of blocks.
SHAPES = ((1, 100, 5, 3), (37, 97, 31, 7), (70, 700, 64, 1), (20, 1100, 130, 40))


def packed_search(native, queries, rows, k, metric, unit, threads=2):
    """The search through panels of a unit."""
    dim = rows.shape[1]
    center = torch.zeros((dim + 127) // 64 * 64)
    table, code = registered.rows_of(rows), registered.METRICS.index(metric)
    native.cosine_topk_choose((table, code, 0, 0, center.data_ptr(), 0))
    per_panel, _, size = native.cosine_topk_layout(unit, dim)
    count = (len(rows) + per_panel - 1) // per_panel
    panels = torch.empty(count * size, dtype=torch.uint8)
    packed = (panels.data_ptr(), center.data_ptr(), unit)
    native.cosine_topk_pack((table, code, 0, *packed), 0, 0, threads)
    return registered.search_native(
        queries, rows, k, metric, None, None, None, threads, packed=packed
    )


@pytest.fixture(params=[*NATIVE_LEVELS, "emulated tiles"])
def native(request, monkeypatch):
    """The native module at a level, or the one with emulated tiles."""
    if request.param == "emulated tiles":
        module = request.getfixturevalue("emulated_tiles")
        assert module.cosine_topk_has_unit(PAIRS)
        monkeypatch.setattr(registered, "native", lambda: module)
        yield module
        return
    module = pytest.importorskip("vecsmith._native")
    if request.param not in module.isa_levels():
        pytest.skip(f"no {request.param} on this machine")
    before = module.isa_level()
    module.set_isa_level(request.param)
    yield module
    module.set_isa_level(before)


@functools.cache
def problem(metric):
    """(queries, rows, k, what the reference finds) of every shape."""
    torch.manual_seed(0)
    made = []
    for count, size, dim, k in SHAPES:
        queries, rows = torch.randn(count, dim).double(), (torch.randn(size, dim) + 0.5).double()
        rows[size // 2] = rows[3]
        queries[0] = rows[3]
        found = reference.cosine_topk(queries, rows, k, metric=metric)
        made.append((queries, rows, k, found))
    return made


@pytest.mark.parametrize("metric", registered.METRICS)
@pytest.mark.parametrize("unit", [FLOATS, PAIRS, BYTES], ids=["floats", "pairs", "bytes"])
def test_each_unit_finds_the_rows_of_the_reference(native, unit, metric):
    for queries, rows, k, expected in problem(metric):
        values, indices = packed_search(native, queries, rows, k, metric, unit)
        torch.testing.assert_close(values, expected[0], atol=1e-11, rtol=1e-12)
        assert torch.equal(indices, expected[1])
