"""cosine_topk is exact: first passes in floats, bfloat16 and bytes, at every level, on rows made to
defeat them. The rows, and what counts as wrong, are those of bench/topk_mismatches.py."""

from __future__ import annotations

import functools
import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from conftest import NATIVE_LEVELS
from vecsmith import _native

PATH = Path(__file__).parent.parent / "bench" / "topk_mismatches.py"
spec = importlib.util.spec_from_file_location("topk_mismatches", PATH)
mismatches = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = mismatches
spec.loader.exec_module(mismatches)

QUERIES, K = 56, 10
METRICS = ("cosine", "dot", "l2")
# Rows of a length above 1e18 are for cosines alone.
HUGE = {"huge for cosines": lambda q, v, d: tuple(1e34 * x for x in mismatches._random(q, v, d))}


@functools.cache
def problem(kind, metric):
    """Queries, rows, what is right."""
    torch.manual_seed(len(kind))
    make = {**mismatches.DATA, **HUGE}[kind]
    # Three stages; or two, with so few rows that not all are scored in the end.
    rows = {"low bits": 450, "denormal": 450, "tiny": 450}.get(kind, 1500)
    q, w = make(QUERIES, rows, 43)
    return q, w, mismatches.Truth(q, w, K, metric)


@pytest.fixture(params=NATIVE_LEVELS)
def level(request):
    if request.param not in _native.isa_levels():
        pytest.skip(f"no {request.param} on this machine")
    before = _native.isa_level()
    _native.set_isa_level(request.param)
    yield request.param
    _native.set_isa_level(before)


CASES = [(kind, metric) for kind in mismatches.DATA for metric in METRICS]


@pytest.mark.parametrize(("kind", "metric"), [*CASES, ("huge for cosines", "cosine")])
def test_no_mismatch(level, kind, metric):
    q, w, truth = problem(kind, metric)
    # Few queries for two threads: each has half of the rows.
    for k, queries, threads in ((1, QUERIES, 1), (K, QUERIES, 1), (K, 6, 2)):
        assert_no_unit_is_wrong(truth, q[:queries], w, k, metric, threads)


def assert_no_unit_is_wrong(truth, q, w, k, metric, threads=1):
    wrong, right = {}, None
    for unit in (None, 0, 1, 2):
        found = mismatches.search(q, w, k, metric, unit, threads)
        if right is not None and all(torch.equal(*pair) for pair in zip(found, right, strict=True)):
            continue
        bad = truth.wrong(*found).nonzero().squeeze(1).tolist()
        if bad:
            wrong[unit] = bad
        else:
            assert right is None, "two right answers that differ"
            right = found
    assert not wrong, "queries by unit"


@pytest.mark.parametrize(
    ("kind", "metric"),
    [
        *(("coherent", "cosine"), ("offset 30", "cosine"), ("offset 1e3", "dot")),
        *(("offset 1e5", "l2"), ("tiny rows", "l2"), ("near-duplicate 1e-6", "cosine")),
    ],
)
def test_rows_that_are_scored_more_than_once(level, kind, metric):
    """So many rows, and so many candidates, that some are looked at again stage after stage."""
    torch.manual_seed(0)
    for k in (1, 60):
        q, w = mismatches.DATA[kind](16, 6000, 43)
        assert_no_unit_is_wrong(mismatches.Truth(q, w, k, metric), q, w, k, metric)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("metric", METRICS)
def test_other_dtypes(level, dtype, metric):
    for kind in ("clustered 0.05", "near-duplicate 1e-6", "integers"):
        q, w, _ = problem(kind, metric)
        q, w = q.to(dtype), w.to(dtype)
        truth = mismatches.Truth(q, w, K, metric)
        assert_no_unit_is_wrong(truth, q, w, K, metric)


@pytest.mark.parametrize("size", [1e-150, 1e-60, 1e-40])
@pytest.mark.parametrize("metric", METRICS)
def test_numbers_that_floats_do_not_hold(level, size, metric):
    for queries, rows in ((90, 450), (20, 1000)):
        q, w = (x.double() for x in mismatches.DATA["clustered 0.3"](queries, rows, 20))
        for of_queries, of_rows in ((1, size), (size, 1), (size, size)):
            if size * of_queries * of_rows < 1e-300:
                continue
            given = of_queries * q, of_rows * w
            truth = mismatches.Truth(*given, K, metric)
            assert_no_unit_is_wrong(truth, *given, K, metric)


@pytest.mark.parametrize("dim", [1, 2, 15, 64, 768, 1500])
def test_dimensions(level, dim):
    for metric in METRICS:
        q, w = mismatches.DATA["clustered 0.05"](40, 400, dim)
        truth = mismatches.Truth(q, w, 5, metric)
        assert_no_unit_is_wrong(truth, q, w, 5, metric)


def test_the_count_sees_what_is_wrong():
    """Wrong rows, rows that come twice, later ones of equal rows, wrong values."""
    torch.manual_seed(0)
    q, w = torch.randn(9, 5), torch.randn(40, 5)
    w[30] = w[3]
    q[0] = w[3]
    for metric in METRICS:
        truth = mismatches.Truth(q, w, 4, metric)
        values, indices = mismatches.search(q, w, 4, metric, 0, 1)
        assert not truth.wrong(values, indices).any()
        changes = {
            "worse": indices.roll(1, 1),
            "none": torch.where(torch.arange(4) == 3, -1, indices),
            "twice": indices[:, [0, 0, 2, 3]],
        }
        for changed in changes.values():
            assert truth.wrong(values, changed).all()
        assert truth.wrong(values * (1 + 1e-5), indices).all()
    later = indices.clone()
    later[0, 0] = 30
    truth = mismatches.Truth(q, w, 1, "l2")
    assert truth.wrong(values[:, :1], later[:, :1]).tolist() == [True] + 8 * [False]


def test_the_count_of_a_run(tmp_path):
    path = tmp_path / "count.json"
    arguments = ["--queries", "210", "--rows", "300", "--dim", "24", "--json", str(path)]
    status = mismatches.main([*arguments, "--threads", "1", "--unit", "floats"])
    result = mismatches.json.loads(path.read_text())
    assert result["queries"] == 210
    assert set(result["kinds"]) == {*mismatches.DATA, "trained"}
    assert status == (result["mismatches"] > 0)
    assert result["kinds"]["trained"]["mismatches"] == 0
