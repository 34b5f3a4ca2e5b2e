"""CachedTable: the bits of a table in memory, whatever comes into the cache and leaves it."""

from __future__ import annotations

import copy
import gc
import io
import os
import pickle
import threading

import numpy as np
import pytest
import torch

from vecsmith import nn, optim
from vecsmith.nn.cached_table import CachedTable

ROWS, DIM, SLOTS = 3000, 11, 500
RULES = [
    (optim.SparseSGD, {"lr": 0.1}),
    (optim.SparseSGD, {"lr": 0.1, "momentum": 0.9, "dampening": 0.1}),
    (optim.SparseAdagrad, {"lr": 0.1, "initial_accumulator_value": 0.1, "lr_decay": 0.01}),
    (optim.RowwiseAdagrad, {"lr": 0.1}),
    (optim.SparseAdam, {"lr": 0.01}),
    (optim.RowwiseAdam, {"lr": 0.01, "weight_decay": 0.01}),
]
RULE_NAMES = ["sgd", "momentum", "adagrad", "rowwise_adagrad", "adam", "rowwise_adam"]


@pytest.fixture(params=["host", "mmap"])
def place(request, tmp_path) -> dict:
    if request.param == "host":
        return {"storage": "host"}
    return {"storage": "mmap", "path": tmp_path / "table"}


def rows_of(batch: int, *shape: int, rows: int = ROWS) -> torch.Tensor:
    """Indices of a batch, the low ones more often."""
    generator = torch.Generator().manual_seed(batch)
    return (torch.rand(*shape, generator=generator) ** 4 * rows).long()


def pair(
    rule: tuple | None, *, mode: str = "sum", rows=ROWS, dim=DIM, dtype=torch.float32, **place
):
    """(cached layer, dense layer with the same rows, table), trained by the same rule."""
    arguments = {"cache_rows": SLOTS, "dtype": dtype, **place}
    table = CachedTable(rows, dim, **arguments)
    cached = nn.EmbeddingBag(rows, dim, mode=mode, table=table)
    dense = nn.EmbeddingBag(rows, dim, mode=mode, dtype=dtype)
    with torch.no_grad():
        dense.weight.copy_(table.export())
    if rule is not None:
        for layer in (cached, dense):
            optim.apply_optimizer_in_backward(rule[0], layer.parameters(), rule[1])
    return cached, dense, table


def same_table(table: CachedTable, dense: torch.nn.Module) -> None:
    assert torch.equal(table.export(), dense.weight.detach())
    state = table.optimizer_state(torch.arange(table.num_embeddings))
    (optimizer,) = optim.get_in_backward_optimizers(dense)
    for name, values in state.items():
        expected = optimizer.state[dense.weight].get(name)
        if expected is not None:
            assert torch.equal(values, expected), name


# --- equality with a table in memory -------------------------------------------------------------


@pytest.mark.parametrize("by_copies", [False, True], ids=["in_place", "by_copies"])
@pytest.mark.parametrize("rule", RULES, ids=RULE_NAMES)
def test_training_is_that_of_a_table_in_memory(place, rule, by_copies):
    """By copies is how a cache on another device is served."""
    cached, dense, table = pair(rule, **place)
    table._slots.by_copies = by_copies
    for batch in range(40):
        indices = rows_of(batch, 40, 8)
        slope = torch.randn(40, DIM)
        if batch % 4 == 1:
            table.prefetch(rows_of(batch + 1, 40, 8))
        out, expected = cached(indices), dense(indices)
        assert torch.equal(out, expected)
        (out * slope).sum().backward()
        (expected * slope).sum().backward()
        if batch % 10 == 5:
            table.flush()
            same_table(table, dense)
    same_table(table, dense)
    found = table.statistics()
    assert found["loads"] > ROWS / 2  # rows have come and gone
    assert found["write_backs"] > ROWS / 4
    table.close()


@pytest.mark.gpu
@pytest.mark.parametrize("rule", RULES, ids=RULE_NAMES)
def test_a_cache_on_a_gpu(place, rule):
    cached, dense, table = pair(rule, device="cuda", **place)
    dense.cuda()
    for batch in range(40):
        indices = rows_of(batch, 40, 8).cuda()
        if batch % 4 == 1:
            table.prefetch(rows_of(batch + 1, 40, 8).cuda())
        for layer in (cached, dense):
            layer(indices).square().sum().backward()
        if batch % 10 == 5:
            table.flush()
    torch.testing.assert_close(table.export(), dense.weight.detach().cpu())
    table.close()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("index", [torch.int32, torch.int64])
@pytest.mark.parametrize("mode", ["sum", "mean", "max", "none"])
@pytest.mark.parametrize("dim", [1, 37])
def test_modes_and_dtypes(tmp_path, dtype, index, mode, dim):
    place = {"storage": "mmap", "path": tmp_path / "table"}
    rule = (optim.SparseAdam, {"lr": 0.01})
    bag = "sum" if mode == "none" else mode
    _, dense, table = pair(rule, mode=bag, rows=300, dim=dim, dtype=dtype, **place)
    generator = torch.Generator().manual_seed(0)
    for batch in range(8):
        indices = rows_of(batch, 150, rows=300).to(index)
        if mode == "none":
            out = table.embedding(indices.view(10, 15), padding_idx=batch % 3)
            expected = optim.in_backward.embedding(
                indices.view(10, 15), dense.weight, padding_idx=batch % 3
            )
        else:
            last = batch % 2 == 1
            offsets = torch.randint(0, 151, (20 + last,), generator=generator).sort().values
            offsets[0] = 0
            if last:
                offsets[-1] = 150
            weights = None
            if mode == "sum" and batch % 2:
                weights = torch.randn(150, generator=generator).to(dtype)
            how = {
                "mode": mode,
                "include_last_offset": last,
                "padding_idx": [None, -1, 0][batch % 3],
            }
            use = [None if weights is None else weights.clone().requires_grad_() for _ in range(2)]
            offsets = offsets.to(index)
            out = table.embedding_bag(indices, offsets, per_sample_weights=use[0], **how)
            expected = optim.in_backward.embedding_bag(
                indices, dense.weight, offsets, per_sample_weights=use[1], **how
            )
        assert out.dtype == dtype
        assert torch.equal(out, expected)
        slope = torch.randn(out.shape, generator=generator).to(dtype)
        (out * slope).sum().backward()
        (expected * slope).sum().backward()
        if mode != "none" and weights is not None:
            assert torch.equal(use[0].grad, use[1].grad)
    same_table(table, dense)
    table.close()


def test_rows_that_come_from_the_disk(tmp_path):
    place = {"storage": "mmap", "path": tmp_path / "table"}
    rule, loaded = RULES[4], 0
    cached, dense, table = pair(rule, **place)
    for batch in range(25):
        if batch % 5 == 4:
            table.close()
            with open(tmp_path / "table") as raw:  # out of the memory of the system
                os.posix_fadvise(raw.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            table = CachedTable(ROWS, DIM, cache_rows=SLOTS, **place)
            cached = nn.EmbeddingBag(ROWS, DIM, mode="sum", table=table)
            optim.apply_optimizer_in_backward(rule[0], table.parameters(), rule[1])
        for layer in (cached, dense):
            layer(rows_of(batch, 40, 8)).square().sum().backward()
        loaded += table.statistics()["loads"]
    assert loaded > ROWS
    same_table(table, dense)
    table.close()


@pytest.mark.parametrize("slots", [1, 2, 3, 40, ROWS])
def test_small_and_large_caches(place, slots):
    cached, dense, table = pair(RULES[4], cache_rows=slots, **place)
    for batch in range(30):
        indices = rows_of(batch, 1, min(slots, 60))
        out, expected = cached(indices), dense(indices)
        assert torch.equal(out, expected)
        out.sum().backward()
        expected.sum().backward()
    same_table(table, dense)
    assert table.statistics()["slots_used"] <= slots
    table.close()


def test_threads_do_not_matter(place):
    tables = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            here = dict(place)
            if "path" in here:
                here["path"] = here["path"].with_name(f"table{threads}")
            table = CachedTable(50000, 8, cache_rows=20000, seed=1, **here)
            optim.apply_optimizer_in_backward(optim.SparseAdagrad, table.parameters(), {"lr": 0.1})
            for batch in range(6):
                out = table.embedding_bag(rows_of(batch, 2000, 15, rows=50000), mode="sum")
                out.square().sum().backward()
            tables.append(table.export())
            table.close()
    finally:
        torch.set_num_threads(before)
    assert torch.equal(tables[0], tables[1])
    assert torch.equal(tables[0], tables[2])


def test_several_batches_before_their_backward_passes(place):
    """Rows stay where they are until the step that changes them."""
    cached, dense, table = pair(RULES[4], **place)
    for batch in range(12):
        losses = []
        for layer in (cached, dense):
            outs = [layer(rows_of(3 * batch + k, 20, 5)) for k in range(3)]
            losses.append(sum((out * (k + 1)).square().sum() for k, out in enumerate(outs)))
        # Others come by, more than there are slots, and may not push them out.
        with torch.no_grad():
            for k in range(25):
                indices = rows_of(1000 + batch * 25 + k, 20, 5)
                assert torch.equal(cached(indices), dense(indices))
        for loss in losses:
            loss.backward()
    same_table(table, dense)
    table.close()


def test_a_shared_table_and_two_passes(place):
    cached, dense, table = pair(RULES[2], **place)
    for batch in range(10):
        first = [layer(rows_of(batch, 10, 5)) for layer in (cached, dense)]
        second = [layer(rows_of(batch + 500, 10, 5)) for layer in (cached, dense)]
        for out in (*second, *first):  # in the other order
            out.square().sum().backward()
    same_table(table, dense)
    table.close()


def test_the_numbers_of_batches_start_over(place):
    cached, dense, table = pair(RULES[4], **place)
    table._slots.native.start_at(table._slots.native.most_batches - 17)
    for batch in range(60):
        indices = rows_of(batch, 30, 6)
        waiting = [layer(rows_of(batch + 900, 10, 2)) for layer in (cached, dense)]
        for layer, other in zip((cached, dense), waiting, strict=True):
            (layer(indices).sum() + other.sum()).backward()
    same_table(table, dense)
    assert 0.3 < table.hit_rate < 1
    table.close()


def test_a_frozen_table_answers(place):
    cached, dense, table = pair(None, **place)
    table.requires_grad_(False)
    for batch in range(10):
        indices = rows_of(batch, 50, 6)
        out = cached(indices)
        assert torch.equal(out, dense(indices))
        assert not out.requires_grad
    assert table.statistics()["write_backs"] == 0
    table.close()


def test_without_an_optimizer(place):
    cached, dense, table = pair(None, **place)
    indices = rows_of(0, 50, 6)
    out = cached(indices)
    assert torch.equal(out, dense(indices))
    with pytest.raises(RuntimeError, match="expected an optimizer in backward for a CachedTable"):
        out.sum().backward()
    assert table.cache.grad is None
    with torch.no_grad():
        cached(indices)
    optim.apply_optimizer_in_backward(optim.SparseAdam, table.parameters(), {"lr": 0.1})
    optim.apply_optimizer_in_backward(optim.SparseAdam, dense.parameters(), {"lr": 0.1})
    for layer in (cached, dense):
        layer(indices).sum().backward()
    same_table(table, dense)
    table.close()


def test_optimizers_that_are_not_of_rows(place):
    _, _, table = pair(None, **place)
    optim.apply_optimizer_in_backward(torch.optim.SGD, table.parameters(), {"lr": 0.1})
    with pytest.raises(TypeError, match=r"expected one optimizer of vecsmith\.optim.*got SGD"):
        table.embedding(rows_of(0, 5))
    optim.remove_optimizer_in_backward(table.parameters())
    table.embedding(rows_of(0, 5))
    table.close()


def test_another_optimizer_later(place):
    cached, dense, table = pair(RULES[4], **place)
    for layer in (cached, dense):
        layer(rows_of(0, 30, 6)).sum().backward()
        optim.remove_optimizer_in_backward(layer.parameters())
        optim.apply_optimizer_in_backward(optim.SparseAdam, layer.parameters(), {"lr": 0.3})
    (old,) = optim.get_in_backward_optimizers(dense)
    # The rows keep their state: a dense layer's optimizer begins with none.
    reference = copy.deepcopy(table.optimizer_state(torch.arange(ROWS)))
    assert reference["exp_avg"].any()
    cached(rows_of(1, 30, 6)).sum().backward()
    optim.remove_optimizer_in_backward(table.parameters())
    optim.apply_optimizer_in_backward(optim.SparseAdagrad, table.parameters(), {"lr": 0.3})
    before = table.export()
    with pytest.raises(ValueError, match=r"the state that the rows have.*drop_optimizer_state"):
        cached(rows_of(2, 30, 6))
    with pytest.raises(RuntimeError, match="expected no optimizer in backward"):
        table.drop_optimizer_state()
    optim.remove_optimizer_in_backward(table.parameters())
    table.drop_optimizer_state()
    assert table.optimizer_state(torch.arange(5)) == {}
    assert torch.equal(table.export(), before)
    optim.apply_optimizer_in_backward(optim.SparseAdagrad, table.parameters(), {"lr": 0.3})
    cached(rows_of(2, 30, 6)).sum().backward()
    assert list(table.optimizer_state(torch.arange(5))) == ["sum"]
    assert old is not None
    table.close()


def test_steps_are_counted_on(place):
    """Also where there was no optimizer for a while, and the table was flushed meanwhile."""
    cached, dense, table = pair(RULES[4], **place)
    for batch in range(12):
        for layer in (cached, dense):
            layer(rows_of(batch, 40, 8)).square().sum().backward()
        if batch % 4 == 3:
            optim.remove_optimizer_in_backward(table.parameters())
            with torch.no_grad():
                cached(rows_of(batch + 50, 40, 8))
            assert table.steps == batch + 1
            table.flush()
            if table.path is not None:
                table.close()
                table = CachedTable.open(table.path, cache_rows=SLOTS)
                cached = nn.EmbeddingBag(ROWS, DIM, mode="sum", table=table)
                assert table.steps == batch + 1
            optim.apply_optimizer_in_backward(RULES[4][0], table.parameters(), RULES[4][1])
    same_table(table, dense)
    table.close()


@pytest.mark.parametrize("change", ["set", "one_cycle"])
def test_momentum_that_comes_later(place, change):
    """Which state a row has is asked at each look-up, not when the optimizer comes."""
    cached, dense, table = pair(RULES[0], **place)
    layers = (cached, dense)
    groups = [optim.get_in_backward_optimizers(layer)[0].param_groups[0] for layer in layers]
    for batch in range(40):
        if change == "set" and batch in (6, 14, 22):
            for group in groups:
                group["momentum"] = 0.0 if group["momentum"] else 0.9
        elif change == "one_cycle" and batch == 6:
            for layer in layers:
                torch.optim.lr_scheduler.OneCycleLR(
                    optim.get_in_backward_optimizers(layer)[0], max_lr=0.2, total_steps=100
                )
        for layer in layers:
            layer(rows_of(batch, 40, 8)).sin().sum().backward()
        if batch % 5 == 3:
            table.flush()
    assert list(table.optimizer_state(torch.arange(3))) == ["momentum_buffer"]
    same_table(table, dense)
    table.close()
    if table.path is not None:
        with CachedTable.open(table.path, cache_rows=50) as again:
            same_table(again, dense)


@pytest.mark.parametrize("change", ["momentum", "optimizer"])
def test_state_that_changes_between_the_passes(place, change):
    cached, dense, table = pair(RULES[0], **place)
    layers = (cached, dense)
    for layer in layers:
        layer(rows_of(0, 40, 8)).square().sum().backward()
    out = cached(rows_of(1, 40, 8)).square().sum()
    for layer in layers:
        if change == "optimizer":
            optim.remove_optimizer_in_backward(layer.parameters())
            optim.apply_optimizer_in_backward(*RULES[1][:1], layer.parameters(), RULES[1][1])
        else:
            optim.get_in_backward_optimizers(layer)[0].param_groups[0]["momentum"] = 0.9
    with pytest.raises(RuntimeError, match="between its forward and backward pass"):
        out.backward()
    same_table(table, dense)
    with pytest.raises(RuntimeError, match="between its forward and backward pass"):
        cached(rows_of(2, 40, 8))
    del out
    gc.collect()
    for batch in range(2, 30):
        for layer in layers:
            layer(rows_of(batch, 40, 8)).square().sum().backward()
    same_table(table, dense)
    table.close()


@pytest.mark.parametrize("rule", [RULES[2], RULES[4]], ids=["adagrad", "adam"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_state_dict_of_its_optimizer(place, rule, dtype):
    """It has no rows of state: those in the slots are others by the time it is loaded."""
    cached, dense, table = pair(rule, dtype=dtype, **place)
    (own,), (other,) = (optim.get_in_backward_optimizers(layer) for layer in (cached, dense))

    def train(batches: range) -> None:
        for batch in batches:
            for layer in (cached, dense):
                layer(rows_of(batch, 40, 8)).square().sum().backward()

    train(range(10))
    saved = own.state_dict()
    assert saved["state"] == {}
    assert own.state[table.cache]  # and it still has it
    for optimizer in (own, other):
        optimizer.param_groups[0]["lr"] = 0.3
    train(range(10, 20))
    own.load_state_dict(saved)
    other.param_groups[0]["lr"] = rule[1]["lr"]
    assert own.param_groups[0]["lr"] == rule[1]["lr"]
    same_table(table, dense)
    train(range(20, 30))
    same_table(table, dense)
    with pytest.raises(ValueError, match="expected a state_dict without state of the rows"):
        own.load_state_dict(other.state_dict())
    train(range(30, 35))
    same_table(table, dense)
    assert table.steps == 35
    table.close()


def test_state_that_was_loaded_before_the_first_batch(place):
    _, dense, _ = pair(RULES[4], rows=SLOTS)
    dense(rows_of(0, 40, 8, rows=SLOTS)).square().sum().backward()
    (other,) = optim.get_in_backward_optimizers(dense)
    table = CachedTable(ROWS, DIM, cache_rows=SLOTS, **place)
    optim.apply_optimizer_in_backward(optim.SparseAdam, table.parameters(), {"lr": 0.1})
    (own,) = optim.get_in_backward_optimizers(table)
    own.load_state_dict(other.state_dict())
    with pytest.raises(ValueError, match="expected a state_dict without state of the rows"):
        table.embedding(torch.arange(5))
    own.load_state_dict({**other.state_dict(), "state": {}})
    table.embedding(torch.arange(5)).sum().backward()
    assert table.steps == 1
    assert own.param_groups[0]["lr"] == 0.01
    table.close()


# --- the cache -----------------------------------------------------------------------------------


def zipf(rows: int, exponent: float = 1.05) -> np.ndarray:
    share = np.arange(1, rows + 1) ** -exponent
    return share / share.sum()


def test_the_cache_holds_what_is_used_most(place):
    rows, slots, count = 40000, 10000, 4000
    generator = np.random.default_rng(0)
    share = zipf(rows)
    names = generator.permutation(rows)
    table = CachedTable(rows, 2, cache_rows=slots, **place)
    table.requires_grad_(False)

    def run(batches: int) -> float:
        table.reset_statistics()
        for _ in range(batches):
            table.embedding(torch.from_numpy(names[generator.choice(rows, count, p=share)]))
        return 1 - table.hit_rate

    best = share[slots:].sum()
    run(600)
    assert run(100) < 1.15 * best
    # What was hot is forgotten when it is not used any more.
    names = generator.permutation(rows)
    assert run(10) > 2 * best
    run(400)
    assert run(100) < 1.25 * best
    table.close()


def test_a_scan_does_not_empty_the_cache(place):
    table = CachedTable(20000, 2, cache_rows=1000, **place)
    table.requires_grad_(False)
    hot = torch.arange(800)
    for _ in range(200):
        table.embedding(hot)
    for start in range(1000, 20000, 100):
        table.embedding(torch.arange(start, start + 100))
    table.reset_statistics()
    table.embedding(hot)
    assert table.hit_rate > 0.95
    table.close()


def test_statistics(place):
    table = CachedTable(100, 2, cache_rows=50, **place)
    assert np.isnan(table.hit_rate)
    with torch.no_grad():
        table.embedding(torch.tensor([1, 2, 2, 3]))
        assert table.hit_rate == 0
        table.embedding(torch.tensor([[3, 4], [4, 1]]))
    zero = dict.fromkeys(("evictions", "write_backs", "prefetched"), 0)
    expected = {"batches": 2, "lookups": 8, "hits": 2, "hit_rate": 0.25, "loads": 4}
    assert table.statistics() == {**zero, **expected, "slots_used": 4}
    table.reset_statistics()
    assert table.statistics()["lookups"] == 0
    assert "cache_rows=50" in repr(table)
    # Batches that are refused do not count.
    for by_copies in (False, True):
        table._slots.by_copies = by_copies
        with pytest.raises(ValueError, match="at most 50 distinct rows"):
            table.embedding(torch.arange(60))
        with pytest.raises(IndexError):
            table.embedding(torch.tensor([1, 100]))
        with pytest.raises((ValueError, IndexError), match="offsets"):
            table.embedding_bag(torch.arange(7), torch.tensor([0, 9]))
        found = table.statistics()
        assert (found["batches"], found["lookups"], found["hits"]) == (0, 0, 0)
    table.close()


def test_prefetched_rows_are_there(place):
    table = CachedTable(1000, 2, cache_rows=100, **place)
    with torch.no_grad():
        for batch in range(20):
            indices = rows_of(batch, 60, rows=1000)
            table.prefetch(indices.int() if batch % 2 else indices.view(6, 10))
            table._wait()
            table.reset_statistics()
            assert torch.equal(table.embedding(indices), table.rows(indices))
            assert table.hit_rate == 1
    table.close()


def test_prefetch_is_advice(place):
    cached, dense, table = pair(RULES[4], cache_rows=100, rows=1000, **place)
    for bad in (torch.tensor([1000]), torch.tensor([-1]), torch.arange(500)):
        table.prefetch(bad)
    for batch in range(20):
        # Too much of it, for other batches: it is given up where room is needed.
        for k in range(5):
            table.prefetch(rows_of(batch + k * 50, 80, rows=1000))
        indices = rows_of(batch, 10, 9, rows=1000)
        for layer in (cached, dense):
            layer(indices).square().sum().backward()
    same_table(table, dense)
    table.close()


def test_two_threads_of_python(place):
    _, dense, table = pair(None, **place)
    table.requires_grad_(False)
    wrong = []

    def ask(start: int) -> None:
        for batch in range(start, start + 60):
            indices = rows_of(batch, 50, 3)
            if not torch.equal(table.embedding(indices), dense.weight[indices]):
                wrong.append(batch)

    threads = [threading.Thread(target=ask, args=(100 * k,)) for k in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    table.close()


def test_a_flush_while_rows_are_stepped(tmp_path):
    """What another thread flushes or reads is whole: rows are before a step, or behind it."""
    rows, dim = 400, 512
    table = CachedTable(
        rows, dim, storage="mmap", path=tmp_path / "t", init=("constant", 0.0, 0.0), cache_rows=rows
    )
    # Every step adds one to every number.
    optim.apply_optimizer_in_backward(
        optim.SparseSGD, table.parameters(), {"lr": 1.0, "momentum": 1e-30}
    )
    indices = torch.arange(rows)
    table.embedding(indices).neg().sum().backward()
    stop, wrong, flushes = threading.Event(), [], []

    def flush() -> None:
        while not stop.is_set():
            table.flush()
            flushes.append(table._file.metadata)
            flushed = table._file.read(indices)[0]  # written by this thread alone
            if not torch.equal(flushed, flushed[:1, :1].expand(rows, dim)):
                wrong.append("torn in the file")
            if b'"step": %d}' % int(flushed[0, 0]) not in flushes[-1]:
                wrong.append("another step in the file")
            found = table.rows(indices)
            if not torch.equal(found, found[:1, :1].expand(rows, dim)):
                wrong.append("torn where it is read")

    thread = threading.Thread(target=flush)
    thread.start()
    for _ in range(400):
        table.embedding(indices).neg().sum().backward()
    stop.set()
    thread.join()
    assert len(set(flushes)) > 10
    assert not wrong, (len(wrong), set(wrong))
    assert torch.equal(table.export(), torch.full((rows, dim), 401.0))
    table.close()


# --- rows from outside ---------------------------------------------------------------------------


def test_rows_and_load_rows(place):
    cached, dense, table = pair(RULES[4], **place)
    for batch in range(10):
        for layer in (cached, dense):
            layer(rows_of(batch, 40, 8)).sum().backward()
        indices = rows_of(batch + 70, 12, 5)
        loads = table.statistics()["loads"]
        assert torch.equal(table.rows(indices), dense.weight[indices])
        assert table.statistics()["loads"] == loads
        some = torch.randperm(ROWS)[:200]
        values = torch.randn(200, DIM)
        table.load_rows(some, values)
        with torch.no_grad():
            dense.weight[some] = values
    same_table(table, dense)
    for values, indices, error in (
        (torch.zeros(2, DIM), torch.tensor([0, ROWS]), IndexError),
        (torch.zeros(2, DIM), torch.tensor([3, 3]), ValueError),
        (torch.zeros(2, DIM + 1), torch.tensor([3, 4]), ValueError),
        (torch.zeros(2, DIM).double(), torch.tensor([3, 4]), TypeError),
        (torch.zeros(1, DIM), torch.tensor([1.7]), TypeError),
        (torch.zeros(2, DIM), torch.tensor([False, True]), TypeError),
        (torch.zeros(1, DIM), torch.tensor([3], dtype=torch.uint8), TypeError),
        (torch.zeros(1, DIM), [3], TypeError),
        (torch.zeros(1, DIM), torch.tensor([[3]]), ValueError),
        ([[0.0] * DIM], torch.tensor([3]), TypeError),
    ):
        with pytest.raises(error, match="expected"):
            table.load_rows(indices, values)
    for use in (table.rows, table.optimizer_state, table.prefetch, table.embedding):
        for indices in (torch.tensor([1.7]), torch.tensor([True]), [1], np.array([1])):
            with pytest.raises(TypeError, match="expected indices"):
                use(indices)
    same_table(table, dense)
    table.close()


def test_from_pretrained(place):
    for dtype in (torch.float32, torch.bfloat16):
        here = dict(place)
        if "path" in here:
            here["path"] = here["path"].with_name(f"table-{dtype}")
        weight = torch.randn(100, 5, dtype=dtype)
        table = CachedTable.from_pretrained(weight, freeze=True, cache_rows=10, **here)
        assert torch.equal(table.export(), weight)
        assert not table.cache.requires_grad
        table.close()
        if "path" in here:
            with pytest.raises(FileExistsError):
                CachedTable.from_pretrained(weight, **here)
            with CachedTable.open(here["path"], cache_rows=10, file_mode="r") as again:
                assert again.dtype == dtype
                assert torch.equal(again.export(), weight)


def test_the_layer_makes_its_table(tmp_path):
    for kind in (nn.Embedding, nn.EmbeddingBag):
        host = kind(50, 4, storage="host", cache_rows=20)
        assert isinstance(host.table, CachedTable)
        path = tmp_path / kind.__name__
        mapped = kind(50, 4, storage="mmap", path=path, cache_rows=20)
        assert path.exists()
        mapped.table.close()


def test_new_rows(tmp_path):
    torch.manual_seed(5)
    one = CachedTable(50, 4, padding_idx=-1)
    torch.manual_seed(5)
    other = CachedTable(50, 4, padding_idx=49)
    assert torch.equal(one.export(), other.export())
    assert not one.export()[49].any()
    assert one.export()[:49].all()
    before = one.export()
    one.reset_parameters()
    assert not torch.equal(one.export(), before)
    assert not one.export()[49].any()
    # The optimizer begins anew with them.
    cached, _, table = pair(RULES[4])
    cached(rows_of(0, 40, 8)).square().sum().backward()
    table.reset_parameters()
    dense = nn.EmbeddingBag.from_pretrained(table.export(), freeze=False, mode="sum")
    optim.apply_optimizer_in_backward(RULES[4][0], dense.parameters(), RULES[4][1])
    for layer in (cached, dense):
        layer(rows_of(1, 40, 8)).square().sum().backward()
    same_table(table, dense)
    assert table.steps == 1
    with CachedTable(50, 4, storage="mmap", path=tmp_path / "t") as mapped:
        with pytest.raises(NotImplementedError, match="make a new one"):
            mapped.reset_parameters()
        assert f"path={str(tmp_path / 't')!r}" in repr(mapped)


def test_state_dict(tmp_path):
    layer = nn.Embedding(60, 4, table=CachedTable(60, 4, cache_rows=7))
    with torch.no_grad():
        layer(torch.arange(7))
    saved = io.BytesIO()
    torch.save(layer.state_dict(), saved)
    saved.seek(0)
    loaded = torch.load(saved, weights_only=True)
    assert list(loaded) == ["table.weight"]
    assert torch.equal(loaded["table.weight"], layer.table.export())
    with CachedTable(60, 4, storage="mmap", path=tmp_path / "t", cache_rows=7) as mapped:
        other = nn.Embedding(60, 4, table=mapped)
        assert list(other.state_dict()) == []
        before = mapped.export()
        other.load_state_dict(other.state_dict())
        assert torch.equal(mapped.export(), before)
        other.load_state_dict(loaded)
        assert torch.equal(mapped.export(), layer.table.export())
        with pytest.raises(RuntimeError, match="expected values of shape"):
            other.load_state_dict({"table.weight": torch.zeros(60, 5)})
        with pytest.raises(RuntimeError, match="Unexpected key"):
            other.load_state_dict({"table.cache": torch.zeros(60, 4)})
    with pytest.raises(RuntimeError, match="Missing key"):
        layer.load_state_dict({})


def test_no_copies(place):
    table = CachedTable(10, 2, **place)
    with pytest.raises(TypeError, match="expected no copy"):
        copy.deepcopy(table)
    with pytest.raises(TypeError, match="expected no pickling"):
        pickle.dumps(table)
    table.close()


# --- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"num_embeddings": 0}, ValueError, "expected num_embeddings in 1"),
        ({"num_embeddings": 2**31 + 1}, ValueError, "expected num_embeddings in 1"),
        ({"embedding_dim": 1.5}, TypeError, "expected embedding_dim to be an int"),
        ({"cache_rows": 0}, ValueError, "expected cache_rows in 1"),
        ({"storage": "disk"}, ValueError, "expected storage to be 'host' or 'mmap'; got 'disk'"),
        ({"storage": "mmap"}, ValueError, "expected a path with storage 'mmap'"),
        ({"path": "x"}, ValueError, "expected a path with storage 'mmap' and none with 'host'"),
        ({"dtype": torch.float64}, TypeError, "expected dtype float32, float16 or bfloat16"),
        ({"padding_idx": 10}, ValueError, r"expected padding_idx in -10\.\.9; got 10"),
        ({"file_mode": "w"}, ValueError, "expected file_mode"),
        ({"init": ("normal", 0.0, float("inf"))}, ValueError, "expected finite numbers in init"),
    ],
)
def test_bad_arguments(change, error, message):
    with pytest.raises(error, match=message):
        CachedTable(**{"num_embeddings": 10, "embedding_dim": 4, **change})


def test_bad_indices_change_nothing(place):
    cached, dense, table = pair(RULES[4], **place)
    for layer in (cached, dense):
        layer(rows_of(0, 10, 6)).sum().backward()
    ones = torch.ones(3, dtype=torch.long)
    for indices, more, error, message in (
        (torch.tensor([0, ROWS]), [torch.tensor([0])], IndexError, f"0..{ROWS - 1}; got {ROWS}"),
        (torch.tensor([-1]), [torch.tensor([0])], IndexError, "got -1 at position 0"),
        (torch.tensor([2**40]), [torch.tensor([0])], IndexError, "expected indices in"),
        (torch.tensor([0.5]), [torch.tensor([0])], TypeError, "expected indices of int32"),
        (ones, [torch.tensor([0, 5])], (ValueError, IndexError), "offsets"),
        (ones, [torch.tensor([2, 1])], ValueError, "offsets"),
        (ones, [torch.tensor([0]).int()], TypeError, "expected offsets to be torch.int64"),
        (ones, [torch.tensor([0]), "sum", torch.ones(4)], ValueError, "per_sample_weights"),
    ):
        how = dict(zip(("offsets", "mode", "per_sample_weights"), more, strict=False))
        with pytest.raises(error, match=message):
            table.embedding_bag(indices, **{"mode": "sum", **how})
    same_table(table, dense)
    # Nor does a batch with an index out of range mark those before it as changed.
    table.flush()
    here = rows_of(0, 10, 6).flatten()
    for bad in (torch.cat([here, here[:1] + ROWS]), torch.cat([here, -1 - here[:1]]).int()):
        with pytest.raises(IndexError, match="at position 60"):
            table.embedding(bad)
    assert not len(table._slots.native.changed()[0])
    # And no row is held for what was refused.
    table._slots.write_changed(table._parts())
    assert table._slots.native.clear()
    same_table(table, dense)
    table.close()


def test_too_many_rows_for_the_cache(place):
    cached, dense, table = pair(RULES[4], cache_rows=20, **place)
    for batch in range(10):
        for layer in (cached, dense):
            layer(rows_of(batch, 2, 10)).sum().backward()
        with pytest.raises(ValueError, match=r"at most 20 distinct rows.*make cache_rows larger"):
            cached(torch.arange(7 * batch, 7 * batch + 21)[None])
    waiting = cached(torch.arange(15)[None])
    with pytest.raises(ValueError, match="that wait for their backward pass"):
        cached(torch.arange(100, 110)[None])
    with torch.no_grad():
        assert torch.equal(cached(torch.arange(3000)[None, :5]), dense(torch.arange(5)[None]))
    del waiting
    gc.collect()
    assert torch.equal(cached(torch.arange(100, 120)[None]), dense(torch.arange(100, 120)[None]))
    gc.collect()
    assert table.rows(torch.arange(ROWS)).shape == (ROWS, DIM)
    same_table(table, dense)
    table.close()


def test_gradients_that_are_not_finite(place):
    cached, dense, table = pair(RULES[4], **place)
    for layer in (cached, dense):
        layer(rows_of(0, 10, 6)).sum().backward()
    with pytest.raises(ValueError, match="finite"):
        (cached(rows_of(1, 10, 6)) * float("nan")).sum().backward()
    same_table(table, dense)
    for layer in (cached, dense):
        layer(rows_of(2, 10, 6)).sum().backward()
    same_table(table, dense)
    table.close()


def test_one_backward_pass_for_a_batch(place):
    cached, dense, table = pair(RULES[4], **place)
    for layer in (cached, dense):
        loss = layer(rows_of(0, 10, 6)).square().sum()
        loss.backward(retain_graph=layer is cached)
        if layer is cached:
            with pytest.raises(RuntimeError, match="expected one backward pass"):
                loss.backward()
    same_table(table, dense)
    table.close()


def test_a_cast_of_the_cache(place):
    cached, dense, table = pair(RULES[4], **place)
    table.flush()
    for layer in (cached, dense):
        layer(rows_of(0, 10, 6)).sum().backward()
    for cast in (
        table.half,
        table.double,
        cached.bfloat16,
        lambda: torch.nn.Sequential(cached).to(torch.float16),
        lambda: cached.to("cpu", torch.float64),
    ):
        with pytest.raises(
            TypeError, match=r"expected the cache to stay torch\.float32; got torch"
        ):
            cast()
    cached.float()
    cached.to("cpu")
    same_table(table, dense)
    for layer in (cached, dense):
        layer(rows_of(1, 10, 6)).sum().backward()
    same_table(table, dense)
    table.close()
    if table.path is not None:
        with CachedTable.open(table.path) as again:
            same_table(again, dense)


def test_a_closed_table(tmp_path):
    table = CachedTable(100, 4, storage="mmap", path=tmp_path / "t")
    table.close()
    table.close()
    for use in (
        lambda: table.embedding(torch.tensor([1])),
        lambda: table.rows(torch.tensor([1])),
        lambda: table.load_rows(None, torch.zeros(100, 4)),
        lambda: table.prefetch(torch.tensor([1])),
        table.flush,
        table.export,
    ):
        with pytest.raises(ValueError, match="closed"):
            use()


@pytest.mark.filterwarnings("ignore")
def test_torch_compile(place):
    torch._dynamo.reset()
    cached, dense, table = pair(RULES[4], **place)
    indices = rows_of(0, 10, 6)
    with pytest.raises(Exception, match="CachedTable"):
        torch.compile(cached, backend="eager", fullgraph=True)(indices)
    compiled = torch.compile(cached, backend="eager")
    for batch in range(4):
        indices = rows_of(batch, 10, 6)
        compiled(indices).square().sum().backward()
        dense(indices).square().sum().backward()
    same_table(table, dense)
    table.close()
