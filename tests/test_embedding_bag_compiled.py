"""The Triton kernels of `embedding_bag` compiled to machine code, which needs no GPU: every launch
that its functions make is taken down and built, and looked at for spilled registers and for the
width of its loads."""

from __future__ import annotations

import os
import re

import pytest
import torch

from compiled_launches import Recorder, build
from vecsmith.ops import UpdateRule

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter takes the compiler's place"
)


@pytest.fixture
def launches(monkeypatch, tmp_path):
    pytest.importorskip("triton", reason="Triton is not installed")
    from triton.runtime.jit import JITFunction
    from vecsmith.kernels import _row_update, _segments, embedding_bag

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    found = []
    for module, names in (
        (embedding_bag, ("_pool", "_sample_gradients")),
        (_row_update, ("_update",)),
        (_segments, ("_write_keys", "_count_kept", "_resolve", "_write_starts", "_sum_blocks")),
    ):
        for name in names:
            kernel = getattr(module, name)
            assert isinstance(kernel, JITFunction)
            monkeypatch.setattr(module, name, Recorder(kernel, found))
    return found


def check(launches, folder, wide=True, capabilities=(90,)):
    """No values spilled to memory; rows of tables and gradients are loaded 16 bytes at a time."""
    assert launches
    for launch in launches:
        for capability in capabilities:
            ptx, usage, _ = build(launch, capability, folder)
            registers, stack = map(int, re.search(r"REG:(\d+) STACK:(\d+)", usage).groups())
            assert registers <= 168, usage  # 12 warps on a multiprocessor
            # A pointer or two that are read once, put away to let one more warp live.
            assert stack <= 16, usage
            if wide and launch[0].__name__ in ("_pool", "_update", "_sum_blocks"):
                assert re.search(r"ld\.global\S*\.v4\.b32", ptx)


def problem(dim, dtype=torch.float32, entries=82000, bags=4096, rows=100000):
    """(table, indices, offsets) that hold anything: nothing runs."""
    width = dim + 8 * (dtype == torch.uint8)
    return (
        torch.empty(rows, width, dtype=dtype),
        torch.empty(entries, dtype=torch.int64),
        torch.empty(bags, dtype=torch.int64),
    )


@pytest.mark.parametrize("mode", ["none", "sum", "mean", "max"])
def test_forward(launches, tmp_path, mode):
    from vecsmith.kernels import embedding_bag as kernels

    for dim, dtype in ((128, torch.float32), (100, torch.float32), (64, torch.bfloat16)):
        kernels.embedding_bag(*problem(dim, dtype), mode=mode)
    check(launches, tmp_path, capabilities=(80, 90))


def test_forward_of_other_forms(launches, tmp_path):
    from vecsmith.kernels import embedding_bag as kernels

    table, indices, offsets = problem(128)
    weights = torch.empty(indices.numel())
    kernels.embedding_bag(table, indices, offsets, weights, mode="sum", padding_idx=3)
    kernels.embedding_bag(table, indices, offsets[:4], mode="mean")
    kernels.embedding_bag(table, indices.view(-1, 20).int(), mode="sum")
    check(launches, tmp_path)
    launches.clear()
    kernels.embedding_bag(*problem(37), mode="sum")
    kernels.embedding_bag(*problem(128, torch.uint8), mode="sum")
    kernels.embedding_bag(*problem(37, torch.uint8), mode="sum")
    kernels.per_sample_weights_gradient(offsets.new_empty(4096, 128).float(), *problem(128))
    check(launches, tmp_path, wide=False)


@pytest.mark.parametrize(
    "name", ["sgd", "momentum", "adagrad", "rowwise_adagrad", "adam", "rowwise_adam"]
)
def test_update(launches, tmp_path, name):
    from vecsmith.kernels import embedding_bag as kernels

    momentum = 0.9 if name == "momentum" else 0.0
    rule = UpdateRule("sgd" if momentum else name, 0.1, momentum=momentum)
    for dim, dtype in ((128, torch.float32), (64, torch.float16), (2000, torch.float32)):
        table, indices, offsets = problem(dim, dtype, rows=20000)
        states = [torch.empty(shape) for shape in rule.state_shapes(*table.shape)]
        grad = torch.empty(offsets.numel(), dim, dtype=dtype)
        kernels.embedding_bag_update(table, states, indices, grad, offsets, rule=rule, mode="sum")
    # What comes before is the same for every rule; test_gradient builds it.
    own = [launch for launch in launches if launch[0].__name__ == "_update"]
    assert len(own) == 3
    check(own, tmp_path)


@pytest.mark.parametrize("mode", ["none", "mean", "max"])
def test_gradient(launches, tmp_path, mode):
    from vecsmith.kernels import embedding_bag as kernels

    _, indices, offsets = problem(128, rows=1)
    grad = torch.empty(indices.numel() if mode == "none" else offsets.numel(), 128)
    positions = torch.empty(grad.shape if mode == "max" else 0, dtype=torch.int64)
    kernels.embedding_bag_gradient(
        grad, indices, 1000, offsets, None, positions, mode=mode, dense=True, padding_idx=3
    )
    check(launches, tmp_path)


def test_batches(launches, tmp_path):
    from vecsmith.kernels import embedding_bag as kernels
    from vecsmith.kernels._table_batch import TableBatch

    tables = [torch.empty(1000, dim) for dim in (128, 64, 32)]
    states = [[torch.empty_like(table) for table in tables] for _ in range(2)]
    batch = TableBatch(tables, None, states)
    _, indices, offsets = problem(1, bags=3 * 4096 + 1, rows=1)
    kernels.embedding_bags(batch, indices, offsets)
    grad = torch.empty(4096, 224)
    kernels.embedding_bags_update(batch, indices, grad, offsets, rule=UpdateRule("adam", 0.1))
    check(launches, tmp_path)
