"""CosineIndex and PackedRows: answers are those of the operator, whatever was changed before."""

from __future__ import annotations

import copy
import json
import random
import re
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

import vecsmith
from vecsmith import CosineIndex, _native, ops

ROOT = Path(__file__).resolve().parent.parent
METRICS = ("cosine", "dot", "l2")
UNITS = ("float32", "bfloat16", "int8")


def same(found, right):
    return torch.equal(found[0], right[0]) and torch.equal(found[1], right[1])


def assert_searches(index, table, queries, k, banned=None):
    """The index finds what the operator finds in a table without the banned rows."""
    right = ops.cosine_topk(queries, table, k, metric=index.metric, banned=banned)
    assert same(index.search(queries, k), right)


# --- PackedRows -----------------------------------------------------------------------------------


@pytest.fixture(params=_native.isa_levels())
def level(request):
    before = _native.isa_level()
    _native.set_isa_level(request.param)
    yield request.param
    _native.set_isa_level(before)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_packed_rows_give_what_the_operator_gives(level, dtype, metric):
    w, q = torch.randn(300, 37).to(dtype), torch.randn(2, 20, 37)
    packed = ops.PackedRows(w, metric=metric)
    assert not packed.is_packed
    assert packed.unit is None
    right = ops.cosine_topk(q, w, 4, metric=metric)
    assert same(packed.search(q, 4), right)
    assert packed.is_packed
    for unit in UNITS:
        packed.pack(unit=unit)
        assert packed.unit == unit
        assert same(packed.search(q, 4), right)
        exclude = right.indices[..., :2]
        banned = torch.rand(300) < 0.3
        masks = {"exclude": exclude, "banned": banned}
        assert same(packed.search(q, 4, **masks), ops.cosine_topk(q, w, 4, metric=metric, **masks))
        if level != "base":
            assert packed.nbytes < (1.5, 0.8, 0.5)[UNITS.index(unit)] * 4 * w.numel()


@pytest.mark.parametrize("unit", UNITS)
def test_rows_that_change_are_packed_again(level, unit):
    w, q = torch.randn(200, 19), torch.randn(12, 19)
    packed = ops.PackedRows(w)
    packed.pack(unit=unit)
    for rows in ([7], [199, 0, 7, 7], [], list(range(40, 130))):
        w[rows] = torch.randn(len(rows), 19)
        assert not rows or not packed.is_packed
        packed.repack(torch.tensor(rows, dtype=torch.int64))
        assert packed.is_packed
        assert packed.unit == unit
        assert same(packed.search(q, 3), ops.cosine_topk(q, w, 3))
    w[5] = q[0]
    assert packed.search(q[:1]).indices.item() == 5  # nobody told


def test_a_change_that_torch_does_not_see_has_to_be_told():
    w, q = torch.randn(200, 19), torch.randn(12, 19)
    packed = ops.PackedRows(w)
    packed.search(q)
    w.numpy()[33] = 2 * q[4].numpy()
    assert packed.is_packed
    packed.repack(torch.tensor([33]))
    assert packed.search(q[4:5]).indices.item() == 33


def test_banned_rows_of_packed_rows():
    w, q = torch.randn(100, 8), torch.randn(30, 8)
    banned = torch.zeros(100, dtype=torch.bool)
    banned[20:40] = True
    w[25] = torch.nan
    packed = ops.PackedRows(w, banned=banned)
    other = torch.rand(100) < 0.2
    assert same(packed.search(q, 3), ops.cosine_topk(q, w, 3, banned=banned))
    right = ops.cosine_topk(q, w, 3, banned=banned | other)
    assert same(packed.search(q, 3, banned=other), right)
    banned[:20], banned[30:40] = True, False
    packed.repack(torch.cat([torch.arange(20), torch.arange(30, 40)]))
    assert same(packed.search(q, 3), ops.cosine_topk(q, w, 3, banned=banned))


def test_packed_rows_follow_the_level():
    w, q = torch.randn(100, 8), torch.randn(30, 8)
    packed = ops.PackedRows(w)
    before = _native.isa_level()
    try:
        for name in (*_native.isa_levels(), "base"):
            _native.set_isa_level(name)
            assert same(packed.search(q, 3), ops.cosine_topk(q, w, 3))
            assert packed.layout["level"] == name
    finally:
        _native.set_isa_level(before)


def test_packed_rows_without_a_native_module(monkeypatch):
    w, q = torch.randn(50, 8), torch.randn(3, 8)
    monkeypatch.setattr(ops.PackedRows, "can_be_packed", False)
    packed = ops.PackedRows(w, banned=torch.arange(50) < 5)
    packed.pack()
    found = packed.search(q, 3, banned=torch.arange(50) > 40)
    assert not packed.is_packed
    outside = (torch.arange(50) < 5) | (torch.arange(50) > 40)
    assert same(found, ops.cosine_topk(q, w, 3, banned=outside))


def test_packed_rows_refuse():
    w = torch.randn(60, 8)
    packed = ops.PackedRows(w)
    packed.search(w[:2])
    with pytest.raises(IndexError, match=r"0\.\.59; got 60"):
        packed.repack(torch.tensor([60]))
    with pytest.raises(TypeError, match=r"rows to be torch\.int64"):
        packed.repack(torch.tensor([6], dtype=torch.int32))
    for words, wrong in (
        ("k of at most V=60", {"k": 61}),
        (r"banned of shape \[60\]", {"banned": torch.zeros(6).bool()}),
        ("queries of shape", {"queries": torch.zeros(2, 9)}),
        ("exclude of shape", {"exclude": torch.zeros(2).long()}),
    ):
        with pytest.raises(ValueError, match=words):
            packed.search(**{"queries": w[:2], **wrong})
    w[44, 3] = torch.nan
    with pytest.raises(ValueError, match="row 44 is not"):
        packed.repack(torch.tensor([3, 44]))
    assert not packed.is_packed
    with pytest.raises(ValueError, match="row 44 is not"):
        packed.search(w[:2])
    with pytest.raises(ValueError, match="metric"):
        ops.PackedRows(w, metric="cos")
    with pytest.raises(ValueError, match="unit stride"):
        ops.PackedRows(w.t())
    with pytest.raises(ValueError, match="unit to be one of"):
        packed.pack(unit="int4")
    with pytest.raises(ValueError, match="at least 60 rows"):
        packed.extend(w[:5])


# --- the index ------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", METRICS)
def test_any_order_of_changes(metric):
    """Against a table that is changed alike and searched whole."""
    draw = random.Random(5)
    for dtype in (torch.float32, torch.float16):
        index = CosineIndex(metric=metric, dim=11, dtype=dtype)
        table, removed = torch.empty(0, 11, dtype=dtype), torch.empty(0, dtype=torch.bool)
        searches = 0
        for _ in range(150):
            step = draw.choice(["add", "add", "remove", "update", "update", "search", "search"])
            left = (~removed).nonzero().squeeze(1)
            if step == "add":
                new = torch.randn(draw.choice([0, 1, 3, 60]), 11).to(dtype)
                ids = index.add(new)
                assert torch.equal(ids, torch.arange(len(table), len(table) + len(new)))
                table = torch.cat([table, new])
                removed = torch.cat([removed, torch.zeros(len(new), dtype=torch.bool)])
            elif step == "remove" and len(left) > 20:
                gone = left[torch.randperm(len(left))[: draw.choice([1, 5])]]
                assert index.remove(gone) == len(gone)
                removed[gone] = True
            elif step == "update" and len(left):
                rows = left[torch.randperm(len(left))[: draw.choice([1, 5, 40])]]
                table[rows] = torch.randn(len(rows), 11).to(dtype)
                index.update(rows, table[rows])
            elif step == "search" and len(left) >= 4:
                searches += 1
                assert_searches(index, table, torch.randn(9, 11), 4, banned=removed)
                assert index.is_packed
            assert len(index) == index.ntotal == int((~removed).sum())
            assert index.num_ids == len(table)
        assert searches > 20
        assert removed.any()


def test_a_change_packs_only_what_changed(monkeypatch):
    index = CosineIndex(np.random.default_rng(0).normal(size=(500, 9)).astype(np.float32))
    q = torch.randn(20, 9)
    index.search(q)
    packs = []
    monkeypatch.setattr(ops.PackedRows, "pack", lambda self, **how: packs.append(how))
    index.update([3, 499], q[:2])
    index.remove([7, 8])
    index.update(torch.tensor([5]), q[2:3])
    found = index.search(q[:3]).indices.squeeze(1)
    assert found.tolist() == [3, 499, 5]
    assert not packs
    monkeypatch.undo()
    index.add(torch.randn(100, 9))
    index.search(q)
    monkeypatch.setattr(ops.PackedRows, "pack", lambda self, **how: packs.append(how))
    for i in range(3, 20):  # there is room
        index.add(2 * q[i : i + 1])
        assert index.search(q[i], 1).indices.tolist() == [index.num_ids - 1]
    assert not packs


def test_adding_does_not_copy_everything_each_time():
    index = CosineIndex(dim=4)
    tables = set()
    for _ in range(2000):
        index.add(torch.randn(1, 4))
        tables.add(index._table.data_ptr())
    assert len(tables) < 25
    assert len(index) == 2000


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_numpy_in_and_out(dtype):
    draw = np.random.default_rng(1)
    vectors, queries = draw.normal(size=(90, 7)).astype(dtype), draw.normal(size=(5, 7))
    index = CosineIndex(metric="l2")
    ids = index.add(vectors)
    assert isinstance(ids, np.ndarray)
    assert ids.dtype == np.int64
    assert index.dtype == torch.from_numpy(vectors).dtype
    distances = ((queries.astype(dtype).astype(float)[:, None] - vectors.astype(float)) ** 2).sum(2)
    values, indices = index.search(queries.astype(dtype), np.int64(3))
    assert isinstance(values, np.ndarray)
    assert values.dtype == (np.float64 if dtype == np.float64 else np.float32)
    assert np.array_equal(indices, distances.argsort(1)[:, :3])
    assert np.allclose(values, np.sort(distances, 1)[:, :3])
    again = index.search(torch.from_numpy(queries.astype(dtype)), 3)
    assert isinstance(again.values, torch.Tensor)
    assert np.array_equal(again.indices.numpy(), indices)
    banned = np.zeros(90, dtype=bool)
    banned[indices[:, 0]] = True
    masked = index.search(queries.astype(dtype), 1, banned=banned, exclude=indices[:, 1:2])
    wanted = [[i for i in row if not banned[i]][:2] for row in distances.argsort(1)]
    right = [
        row[0] if row[0] != exclude else row[1]
        for row, exclude in zip(wanted, indices[:, 1], strict=True)
    ]
    assert masked.indices.squeeze(1).tolist() == right
    # Strided, read-only, of the other byte order, a single one.
    other = np.asfortranarray(queries.astype(dtype).astype(np.dtype(dtype).newbyteorder()))
    other.flags.writeable = False
    assert np.array_equal(index.search(other, 3)[1], indices)
    assert index.search(queries.astype(dtype)[0], 3)[1].shape == (3,)
    assert index.remove(indices[:, 0]) == len(set(indices[:, 0]))
    index.update(np.array([1]) if 1 not in indices[:, 0] else np.array([2]), vectors[:1])


def test_vectors_are_copied_but_where_they_are_shared():
    table = torch.randn(50, 6)
    index = CosineIndex(table)
    right = index.search(table[:9], 2)
    table.zero_()
    q = torch.randn(9, 6)
    assert same(index.search(q, 2), CosineIndex(index._table).search(q, 2))
    assert right.indices[:, 0].tolist() == list(range(9))


def test_a_shared_embedding_that_is_trained():
    torch.manual_seed(1)
    layer = torch.nn.Embedding(300, 12)
    index = CosineIndex(layer.weight, share=True)
    assert index._table.data_ptr() == layer.weight.data_ptr()
    optimizer = torch.optim.SGD(layer.parameters(), lr=5.0)
    q = torch.randn(25, 12)
    for step in range(6):
        assert_searches(index, layer.weight.detach(), q, 5)
        ids = torch.randint(300, (40,))
        optimizer.zero_grad()
        layer(ids).square().sum().backward()
        optimizer.step()
        if step % 2:  # else it is noticed
            index.update(ids)
            assert index.is_packed
    assert layer.weight.requires_grad
    index.update([4], q[:1])
    assert torch.equal(layer.weight[4], q[0])
    assert index.search(q[0]).indices.item() == 4
    with pytest.raises(ValueError, match="the table is shared"):
        index.add(q)
    index.remove([4])
    assert index.search(q[0]).indices.item() != 4
    with torch.no_grad():
        layer.weight[77, 3] = torch.nan
    with pytest.raises(ValueError, match="the one of id 77 is not"):
        index.update([3, 77])
    with pytest.raises(ValueError, match="row 77 is not"):
        index.search(q)


def test_an_update_does_not_hide_what_others_changed():
    table = torch.randn(60, 6)
    index = CosineIndex(table, share=True)
    q = torch.randn(2, 6)
    index.search(q)
    table[10] = q[0]
    index.update([20], q[1:])
    assert index.search(q).indices.squeeze(1).tolist() == [10, 20]


def test_removed_ids_are_gone_and_others_stay():
    w = torch.randn(40, 5)
    index = CosineIndex(w)
    assert index.search(w, 1).indices.squeeze(1).tolist() == list(range(40))
    assert index.remove(3) == 1
    assert index.remove([3, 4, 4]) == 1
    assert index.remove([]) == 0
    assert len(index) == 38
    assert index.num_ids == 40
    ids = index.search(w, 38).indices
    assert not ((ids == 3) | (ids == 4)).any()
    assert index.search(w[39], 1).indices.item() == 39
    assert index.add(w[3:4]).tolist() == [40]
    assert index.search(w[3]).indices.item() == 40
    for k in (0, 40):
        with pytest.raises(ValueError, match=r"k in 1\.\.39.*got"):
            index.search(w, k)
    with pytest.raises(ValueError, match="no removed id; got 3"):
        index.update([5, 3], w[:2])
    with pytest.raises(ValueError, match="no removed id; got 4"):
        index.reconstruct(4)
    assert torch.equal(index.reconstruct(5), w[5])
    copied = index.reconstruct(5)
    copied.zero_()
    assert index.reconstruct(5).any()
    index.remove(range(41))
    assert len(index) == 0
    with pytest.raises(ValueError, match=r"k in 1\.\.0"):
        index.search(w)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("metric", METRICS)
def test_vectors_that_are_not_finite_are_refused_before_anything_changes(bad, metric):
    w, q = torch.randn(40, 5), torch.randn(6, 5)
    index = CosineIndex(w, metric=metric)
    right = index.search(q, 3)
    wrong = torch.randn(30, 5)
    wrong[17, 2] = bad
    with pytest.raises(ValueError, match=r"CosineIndex\.add: .*finite.*row 17 is not"):
        index.add(wrong)
    with pytest.raises(ValueError, match=r"CosineIndex\.update: .*the one of id 37 is not"):
        index.update(range(20, 50)[:20], wrong[:20])
    with pytest.raises(ValueError, match="row 17 is not"):
        CosineIndex(wrong, metric=metric)
    with pytest.raises(ValueError, match="row 17 is not"):
        CosineIndex(wrong, metric=metric, share=True)
    with pytest.raises(ValueError, match=r"queries to be finite.*row 17 is not"):
        index.search(wrong)
    assert index.num_ids == 40
    assert same(index.search(q, 3), right)
    # Finite, but not in the dtype that is kept.
    with pytest.raises(ValueError, match="row 1 is not"):
        index.add(torch.tensor([[1.0] * 5, [1e300] * 5], dtype=torch.float64))
    if metric != "cosine":
        with pytest.raises(ValueError, match=r"at most 1e\+18; row 0 is not"):
            index.add(torch.full((1, 5), 1e18))


def ten(**changed):
    return CosineIndex(torch.eye(10), **changed)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: CosineIndex(metric="euclid"), ValueError, "'cosine', 'dot', 'l2'; got 'euclid'"),
        (lambda: CosineIndex(dim=0), ValueError, "dim to be an int >= 1"),
        (lambda: CosineIndex(dtype=torch.int8), TypeError, r"dtype among .*got torch\.int8"),
        (lambda: CosineIndex([[1.0]]), TypeError, "a torch.Tensor or an array; got list"),
        (lambda: CosineIndex(np.eye(3), share=True), TypeError, "to share; got ndarray"),
        (lambda: CosineIndex(share=True), TypeError, "to share; got NoneType"),
        (lambda: CosineIndex(torch.eye(3), dim=4), ValueError, r"D=4\]; got \[3, 3\]"),
        (lambda: CosineIndex(torch.eye(3), dim=4, share=True), ValueError, "D=4; got"),
        (lambda: CosineIndex(torch.eye(3).t()[:, ::2], share=True), ValueError, "unit stride"),
        (lambda: CosineIndex(num_threads=0, vectors=torch.eye(2)).search(torch.eye(2)),
         ValueError, "num_threads in 1"),
        (lambda: CosineIndex(np.arange(6).reshape(2, 3)), TypeError, "got int64"),
        (lambda: CosineIndex(torch.arange(6).view(2, 3)), TypeError, r"got torch\.int64"),
        (lambda: CosineIndex(torch.eye(3)[0]), ValueError, r"shape \[n, D=>= 1\]; got \[3\]"),
        (lambda: CosineIndex().search(torch.eye(3)), ValueError, r"k in 1\.\.0"),
        (lambda: ten().add(torch.zeros(2, 9)), ValueError, r"D=10\]; got \[2, 9\]"),
        (lambda: ten().search(torch.zeros(2, 9)), ValueError, r"D=10\]; got \[2, 9\]"),
        (lambda: ten().search([[1.0] * 10]), TypeError, "got list"),
        (lambda: ten().search(torch.eye(10).to_sparse()), TypeError, "queries to be dense"),
        (lambda: CosineIndex(torch.eye(10).to_sparse()), TypeError, "vectors to be dense"),
        (lambda: ten().search(np.zeros((2, 10), dtype=np.int32)), TypeError, "got int32"),
        (lambda: ten().search(torch.eye(10), 11), ValueError, r"k in 1\.\.10.*got 11"),
        (lambda: ten().search(torch.eye(10), 1.0), TypeError, "k to be an int; got float"),
        (lambda: ten().search(torch.eye(10), True), TypeError, "k to be an int; got bool"),
        (lambda: ten().search(torch.eye(10), banned=torch.zeros(9).bool()), ValueError, "banned"),
        (lambda: ten().search(torch.eye(10), exclude=[[1]]), ValueError, "10 lists"),
        (lambda: ten().search(torch.eye(10)[:1], exclude=[[10]]), IndexError, "got 10"),
        (lambda: ten().remove([10]), IndexError, r"ids in 0\.\.9; got 10"),
        (lambda: ten().remove(-1), IndexError, r"ids in 0\.\.9; got -1"),
        (lambda: ten().remove([1.0]), TypeError, "integers; got float64"),
        (lambda: ten().remove(torch.zeros(10).bool()), TypeError, r"int64 \[n\]; got torch\.bool"),
        (lambda: ten().remove([[1, 2]]), TypeError, r"int64 \[n\]; got torch\.int64 \[1, 2\]"),
        (lambda: CosineIndex(dim=3).remove([0]), IndexError, "there are no vectors"),
        (lambda: ten().update([1, 2], torch.eye(10)[:1]), ValueError, "2 vectors.*got 1"),
        (lambda: ten().update([1, 2, 1], torch.eye(10)[:3]), ValueError, "each id once; got 1"),
        (lambda: ten().update([10], torch.eye(10)[:1]), IndexError, "got 10"),
        (lambda: ten().reconstruct(10), IndexError, "got 10"),
        (lambda: CosineIndex().save("nowhere"), ValueError, "has had vectors"),
    ],
)  # fmt: skip
def test_bad_input_is_refused(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_an_index_is_a_public_class_and_says_what_it_is():
    assert vecsmith.CosineIndex is CosineIndex
    index = ten(metric="dot")
    assert repr(index) == "CosineIndex<10 vectors, dim=10, metric='dot'>"
    assert (index.dim, index.dtype) == (10, torch.float32)
    assert index.nbytes == 400
    index.search(torch.eye(10))
    assert index.nbytes > 400
    assert CosineIndex().dim is CosineIndex().dtype is None


def test_copies_go_their_own_way():
    index = ten()
    index.search(torch.eye(10))
    other = copy.deepcopy(index)
    other.update([3], -torch.eye(10)[3:4])
    other.remove([5])
    assert index.search(torch.eye(10)).indices.squeeze(1).tolist() == list(range(10))
    assert other.search(torch.eye(10)[[3, 5]]).indices.squeeze(1).tolist() == [0, 0]


def test_inference_mode():
    with torch.inference_mode():
        index = CosineIndex(torch.eye(10))
        index.search(torch.eye(10))
    index.update([3], 2 * torch.ones(1, 10))
    assert index.search(torch.ones(10)).indices.item() == 3


# --- files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_save_and_load(tmp_path, dtype, mmap, monkeypatch):
    w, q = torch.randn(150, 21).to(dtype), torch.randn(30, 21)
    index = CosineIndex(w, metric="l2")
    index.add(torch.randn(1, 21))  # room for more than there is
    index.remove([4, 60])
    index.save(tmp_path / "a" / "index")
    right = index.search(q, 4)
    before = {p.name: p.read_bytes() for p in (tmp_path / "a/index").iterdir()}
    assert set(before) == {"config.json", "vectors.safetensors", "packed.safetensors"}
    assert not any(data.startswith(b"\x80") for data in before.values())
    with monkeypatch.context() as patch:
        patch.setattr(ops.PackedRows, "pack", None)  # it need not
        loaded = CosineIndex.load(tmp_path / "a/index", mmap=mmap)
        assert loaded.is_packed
        assert same(loaded.search(q, 4), right)
    assert (len(loaded), loaded.num_ids, loaded.metric) == (149, 151, "l2")
    # Changes stay in memory.
    loaded.update([9], q[:1])
    loaded.remove([10])
    assert loaded.add(q[1:2]).tolist() == [151]
    assert loaded.search(q[:2]).indices.squeeze(1).tolist() == [9, 151]
    assert before == {p.name: p.read_bytes() for p in (tmp_path / "a/index").iterdir()}
    assert same(CosineIndex.load(tmp_path / "a/index").search(q, 4), right)
    loaded.save(tmp_path / "a/index")
    again = CosineIndex.load(tmp_path / "a/index")
    assert same(again.search(q, 4), loaded.search(q, 4))
    assert same(index.search(q, 4), right)


def test_packed_rows_of_another_level_are_packed_anew(tmp_path):
    w, q = torch.randn(150, 21), torch.randn(30, 21)
    before = _native.isa_level()
    try:
        for name in _native.isa_levels():
            _native.set_isa_level(name)
            CosineIndex(w).save(tmp_path / name)
        for name in _native.isa_levels():
            _native.set_isa_level(name)
            for saved in _native.isa_levels():
                index = CosineIndex.load(tmp_path / saved)
                assert index.is_packed == (name == saved)
                assert same(index.search(q, 3), ops.cosine_topk(q, w, 3))
    finally:
        _native.set_isa_level(before)


def test_an_index_without_packed_rows_is_saved(tmp_path, monkeypatch):
    empty = CosineIndex(np.zeros((0, 5), dtype=np.float32))
    empty.save(tmp_path / "empty")
    loaded = CosineIndex.load(tmp_path / "empty")
    assert (len(loaded), loaded.dim) == (0, 5)
    assert loaded.add(torch.eye(5)).tolist() == [0, 1, 2, 3, 4]
    ten().save(tmp_path / "index")
    monkeypatch.setattr(ops.PackedRows, "can_be_packed", False)
    ten().save(tmp_path / "index")
    assert not (tmp_path / "index/packed.safetensors").exists()
    found = CosineIndex.load(tmp_path / "index").search(torch.eye(10))
    assert found.indices.squeeze(1).tolist() == list(range(10))


def cut(name):
    def damage(folder):
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: len(data) // 2])

    return damage


def configured(**changed):
    def damage(folder):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **changed}))

    return damage


def swapped(name):
    def damage(folder):
        CosineIndex(torch.randn(10, 10)).save(folder.parent / "other")
        (folder / name).write_bytes((folder.parent / "other" / name).read_bytes())

    return damage


@pytest.mark.parametrize(
    ("damage", "error", "words"),
    [
        (cut("config.json"), ValueError, "not an index's config.json"),
        (cut("vectors.safetensors"), ValueError, "not a whole safetensors file"),
        (cut("packed.safetensors"), ValueError, "not a whole safetensors file"),
        (lambda f: (f / "config.json").unlink(), FileNotFoundError, "no config.json"),
        (lambda f: (f / "config.json").write_text("[]"), ValueError, "not an index's"),
        (lambda f: (f / "vectors.safetensors").unlink(), FileNotFoundError, "no vectors.safe"),
        (lambda f: (f / "packed.safetensors").unlink(), FileNotFoundError, "no packed.safe"),
        (swapped("config.json"), ValueError, "does not belong"),
        (swapped("vectors.safetensors"), ValueError, "vectors.safetensors does not belong"),
        (swapped("packed.safetensors"), ValueError, "packed.safetensors does not belong"),
        (configured(format="vecsmith.Word2Vec"), ValueError, "expected vecsmith.CosineIndex"),
        (configured(version=2), ValueError, "of version <= 1; got .* of version 2"),
        (configured(metric="cos"), ValueError, "damaged .*'cos'"),
        (configured(dtype="float64"), ValueError, "expected .*float64"),
        (configured(num_ids=11), ValueError, r"expected .*\(11, 10\)"),
        (configured(num_ids=-1), ValueError, "damaged .*num_ids"),
        (configured(dim="10"), ValueError, "damaged .*dim"),
        (configured(removed=3), ValueError, "removed"),
        (configured(packed=5), ValueError, "damaged .*packed"),
        (configured(mark=None), ValueError, "damaged .*mark"),
    ],
)
def test_damaged_folders_are_refused(tmp_path, damage, error, words):
    ten().save(tmp_path / "index")
    damage(tmp_path / "index")
    with pytest.raises(error, match=words):
        CosineIndex.load(tmp_path / "index")


def test_what_is_no_index_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        CosineIndex.load(tmp_path / "none")
    (tmp_path / "file").write_text("x")
    with pytest.raises(NotADirectoryError):
        CosineIndex.load(tmp_path / "file")
    with pytest.raises(NotADirectoryError):
        ten().save(tmp_path / "file")


def test_a_save_that_fails_leaves_the_old_one(tmp_path, monkeypatch):
    ten().save(tmp_path / "index")
    before = {p.name: p.read_bytes() for p in (tmp_path / "index").iterdir()}

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(json, "dumps", full)
    with pytest.raises(OSError, match="no space left on the disk"):
        CosineIndex(torch.randn(4, 3)).save(tmp_path / "index")
    assert before == {p.name: p.read_bytes() for p in (tmp_path / "index").iterdir()}


# --- the page -------------------------------------------------------------------------------------


def test_the_examples_of_the_documentation_run(tmp_path, monkeypatch):
    page = (ROOT / "docs" / "search.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 5
    monkeypatch.chdir(tmp_path)
    known = {}
    for block in blocks:
        exec(compile(block, "docs/search.md", "exec"), known)
    assert (tmp_path / "index" / "config.json").exists()


def test_threads_may_make_the_first_search_together():
    table, queries = torch.randn(5000, 24), torch.randn(8, 24)
    expected = CosineIndex(table).search(queries, 3).indices
    for _ in range(5):
        index, found = CosineIndex(table), []
        start = threading.Barrier(4)

        def search(index=index, found=found, start=start):
            start.wait()
            found.append(index.search(queries, 3).indices)

        threads = [threading.Thread(target=search) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == 4
        assert all(torch.equal(one, expected) for one in found)


def test_remove_does_not_hide_what_changed_in_a_shared_table():
    table, queries = torch.randn(40, 8), torch.randn(6, 8)
    index = CosineIndex(table, share=True)
    index.search(queries)
    table.copy_(torch.randn(40, 8))
    index.remove([0])
    banned = torch.zeros(40, dtype=torch.bool)
    banned[0] = True
    expected = ops.cosine_topk(queries, table, banned=banned).indices
    assert torch.equal(index.search(queries).indices, expected)


def test_bytes_are_refused_where_their_sums_do_not_fit():
    packed = ops.PackedRows(torch.ones(2, 65537))
    with pytest.raises(ValueError, match="at most 65536"):
        packed.pack(unit="int8")
