"""The CUDA kernels of `skipgram` against the reference in fp64.

Without a GPU the very same csrc/cuda/*.cu and module.cpp are compiled by the host's compiler
against tests/cuda_emulation, which runs one fiber per CUDA thread; with one, the real module runs
the same cases, marked `gpu`. The emulated device runs its blocks one after another, so any number
of blocks equals the reference; on a GPU one block does.
"""

from __future__ import annotations

import ctypes
import importlib.util
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
import skipgram_problems
from skipgram_problems import copies, pairs_problem, problem
from test_skipgram_triton import SYNC_REFUSED, check_pairs, check_text, same
from vecsmith.ops import _cuda_skipgram
from vecsmith.reference import skipgram as reference

_one_thread = skipgram_problems.one_thread


def text_operator(module, blocks=None):
    return partial(_cuda_skipgram.skipgram, module=module, blocks=blocks)


def pairs_operator(module, blocks=None):
    return partial(_cuda_skipgram.skipgram_pairs, module=module, blocks=blocks)


TEXT = {
    "sg-ns-window-d1": {"dim": 1},
    "sg-ns-window-d7-fixed": {"dim": 7, "shrink_windows": False, "window": 2},
    "sg-ns-window-d64-strided": {"dim": 64, "strided": True, "window": 5},
    "sg-ns-window-d100-k1": {"dim": 100, "negative": 1, "sample": False},
    "sg-ns-window-d130-k12": {"dim": 130, "negative": 12},
    "sg-ns-window-d128-k7": {"dim": 128, "negative": 7},
    "sg-ns-window-d1500": {"dim": 1500, "lengths": (6, 4), "negative": 9},
    "sg-ns-window-w20": {"dim": 20, "window": 20, "lengths": (50, 30), "vocabulary": 200},
    "sg-ns-window-long": {"lengths": (300, 1, 0, 250), "window": 4, "alpha": 0.025},
    "sg-hs-d7": {"dim": 7, "hs": True, "negative": 0},
    "sg-hs-d100-strided": {"dim": 100, "hs": True, "negative": 0, "strided": True},
    "sg-both-d64": {"dim": 64, "hs": True, "shrink_windows": False},
    "sg-ns-pair-d7": {"dim": 7, "shared_negatives": "pair"},
    "sg-ns-pair-d130-k9": {"dim": 130, "shared_negatives": "pair", "negative": 9},
    "sg-hs-pair-d64": {"dim": 64, "shared_negatives": "pair", "hs": True, "negative": 0},
    "sg-both-pair-d300": {"dim": 300, "shared_negatives": "pair", "hs": True, "lengths": (12, 5)},
    "sg-both-pair-d1500": {
        "dim": 1500,
        "shared_negatives": "pair",
        "hs": True,
        "lengths": (6, 4),
        "negative": 9,
    },
    "sg-ns-pair-repeats": {
        "vocabulary": 3,
        "shared_negatives": "pair",
        "window": 4,
        "negative": 9,
        "alpha": 0.1,
        "lengths": (60,),
        "sample": False,
    },
    "cbow-ns-mean-d100": {"dim": 100, "cbow": True},
    "cbow-ns-sum-d7-fixed": {"dim": 7, "cbow": True, "cbow_mean": False, "shrink_windows": False},
    "cbow-hs-sum-d130": {"dim": 130, "cbow": True, "cbow_mean": False, "hs": True, "negative": 0},
    "cbow-hs-mean-d1": {"dim": 1, "cbow": True, "hs": True, "negative": 0},
    "cbow-both-mean-d64-pair": {"dim": 64, "cbow": True, "hs": True, "shared_negatives": "pair"},
    "cbow-ns-mean-d1500": {"dim": 1500, "cbow": True, "lengths": (6, 4), "negative": 9},
    "one-word-vocabulary": {"vocabulary": 1, "lengths": (5, 3)},
    "one-word-vocabulary-hs": {"vocabulary": 1, "hs": True, "lengths": (5, 3)},
    "negatives-hard-to-find": {"vocabulary": 3, "rare": 0.03, "lengths": (200,), "dim": 4},
    "two-word-vocabulary": {"vocabulary": 2, "hs": True, "window": 5},
    "two-word-vocabulary-pair": {"vocabulary": 2, "shared_negatives": "pair", "window": 5},
    "two-word-vocabulary-cbow": {"vocabulary": 2, "cbow": True, "hs": True, "window": 5},
    "far-position": {"first_position": 2**33 + 5, "skip": 11},
    "one-word-sentences": {"lengths": (1, 1, 0, 1, 2, 1), "sample": False},
}
PAIRS = {
    "d7-strided": {"dim": 7, "strided": True},
    "d128": {"dim": 128},
    "d130-k0": {"dim": 130, "negative": 0},
    "d64-k20": {"dim": 64, "negative": 20},
    "d1500": {"dim": 1500, "count": 12, "negative": 9},
    "tiny": {"dim": 1, "vocabulary": 1, "outputs": 1, "count": 9},
}


@pytest.mark.parametrize("case", TEXT)
@pytest.mark.parametrize("order", ["forward", "random"])
def test_text(emulated, monkeypatch, case, order):
    """Both schedules must agree with the reference: a missing barrier shows in one of them."""
    monkeypatch.setenv("VECSMITH_EMULATED_ORDER", order)
    blocks = 1 if order == "forward" else None
    check_text(operator=text_operator(emulated, blocks), **TEXT[case])


@pytest.mark.parametrize("case", PAIRS)
@pytest.mark.parametrize("order", ["forward", "random"])
def test_pairs(emulated, monkeypatch, case, order):
    monkeypatch.setenv("VECSMITH_EMULATED_ORDER", order)
    blocks = 1 if order == "forward" else 7
    check_pairs(operator=pairs_operator(emulated, blocks), **PAIRS[case])


@pytest.mark.parametrize(
    "settings",
    [
        {"dim": 130, "hs": True},
        {"dim": 130, "shared_negatives": "pair", "hs": True, "lengths": (12, 5)},
        {"dim": 130, "cbow": True, "hs": True},
        {"dim": 130, "lengths": (6, 1), "sample": False},
    ],
    ids=["window", "pair", "cbow", "alone-at-the-end"],
)
def test_every_schedule_gives_the_same_bits(emulated, monkeypatch, settings):
    """Between two barriers the threads of a block may run in any order."""
    tables, rest, options = problem(**settings)
    results = []
    for order in ("forward", "reverse", "random"):
        monkeypatch.setenv("VECSMITH_EMULATED_ORDER", order)
        ours = copies(tables)
        text_operator(emulated, 2)(*ours, *rest, **options)
        results.append([t for t in ours if t is not None])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("blocks", [2, 5, 29, 1000])
def test_cut_anywhere(emulated, blocks):
    """Blocks begin and end within sentences: their rings reach over a cut, not their centers."""
    check_text(operator=text_operator(emulated, blocks), lengths=(9, 0, 1, 17, 2), hs=True)


@pytest.mark.parametrize("shared", [60_000, 6_000, 1_500, 300])
@pytest.mark.parametrize("mode", [{}, {"cbow": True}, {"shared_negatives": "pair"}])
def test_rings_and_scores_that_do_not_fit_on_chip(emulated, monkeypatch, shared, mode):
    monkeypatch.setenv("VECSMITH_EMULATED_SHARED", str(shared))
    check_text(operator=text_operator(emulated, 3), dim=260, hs=True, lengths=(9, 6), **mode)


@pytest.mark.parametrize("shared", [1_500, 100])
def test_pairs_that_do_not_fit_on_chip(emulated, monkeypatch, shared):
    monkeypatch.setenv("VECSMITH_EMULATED_SHARED", str(shared))
    check_pairs(operator=pairs_operator(emulated, 3), dim=260)


def test_no_room_even_for_the_bookkeeping(emulated, monkeypatch):
    monkeypatch.setenv("VECSMITH_EMULATED_SHARED", "200")
    with pytest.raises(ValueError, match="bookkeeping of a window to fit in 200 bytes"):
        check_text(operator=text_operator(emulated), window=30)


@pytest.mark.parametrize("dim", [1, 6, 100, 131])
@pytest.mark.parametrize("vector", [True, False])
def test_nothing_is_written_beside_a_row(emulated, dim, vector):
    """Whatever lies between rows stays, also where rows are written 16 bytes at a time."""
    tables, rest, options = problem(dim=dim, hs=True)
    buffers, views = [], []
    for t in tables:
        stride = (dim + 7) // 4 * 4 + (0 if vector else 1)
        buffer = torch.full((t.shape[0] + 1, stride), 12345.0)
        offset = 0 if vector else 1
        view = buffer[:-1, offset : offset + dim]
        view.copy_(t)
        buffers.append(buffer)
        views.append(view)
        assert (view.data_ptr() % 16 == 0) == vector
    exact = copies(tables, torch.float64)
    reference.skipgram(*exact, *rest, **options)
    text_operator(emulated, 2)(*views, *rest, **options)
    for buffer, view, a, start in zip(buffers, views, exact, tables, strict=True):
        same(view, a, start, "table")
        view.fill_(12345.0)
        assert (buffer == 12345.0).all()


@pytest.mark.parametrize("form", ["text", "pairs"])
def test_somebody_else_at_the_same_rows(emulated, form):
    """A row is written back as what it changed by: updates that others make meanwhile stay."""
    library = ctypes.CDLL(emulated.__file__)
    library.emulation_visit.argtypes = [
        ctypes.c_void_p, ctypes.c_longlong, ctypes.c_float, ctypes.c_longlong,
    ]  # fmt: skip
    library.emulation_barriers.restype = ctypes.c_longlong
    began = library.emulation_barriers()
    if form == "text":
        tables, rest, options = problem(alpha=0.0, sample=False)
        options["min_alpha"] = 0.0
        train = partial(text_operator(emulated, 1), *tables, *rest, **options)
    else:
        tables, rest = pairs_problem()
        train = partial(pairs_operator(emulated, 1), *tables, *rest, alpha=0.0, sync_every=0)
    before = tables[0].clone()
    train()
    barriers = library.emulation_barriers() - began
    assert torch.equal(tables[0], before)
    tables[0].copy_(torch.randint(-8, 8, tables[0].shape))  # so that sums are exact
    before = tables[0].clone()
    library.emulation_visit(tables[0].data_ptr(), tables[0].numel(), 4.0, barriers // 2)
    train()
    assert torch.equal(tables[0], before + 4.0)


def test_survivors_are_the_references(emulated):
    g = torch.Generator().manual_seed(3)
    tokens = torch.randint(9, (3000,), generator=g, dtype=torch.int32)
    keep = torch.rand(9, generator=g)
    for start, first_position, seed in [(0, 0, 5), (17, 2**40 + 3, -5 & 2**64 - 1)]:
        mask = torch.zeros(3000 - start, dtype=torch.bool)
        emulated.mark_survivors(
            tokens=tokens.data_ptr(), keep=keep.data_ptr(), mask=mask.data_ptr(), start=start,
            count=3000 - start, first_position=first_position, seed=seed, epoch=2,
            device=0, stream=0,
        )  # fmt: skip
        positions = first_position + torch.arange(start, 3000)
        expected = reference.keep_mask(tokens[start:], positions, keep, seed, 2)
        assert torch.equal(mask, expected)
        assert 0 < int(expected.sum()) < expected.numel()


def test_nothing_to_do(emulated):
    for lengths, keep in [((), None), ((0, 0), None), ((1, 1, 0, 1), None), ((9,), 0.0)]:
        tables, rest, options = problem(lengths=lengths, sample=keep is not None)
        if keep is not None:
            rest[2].fill_(keep)
        ours = copies(tables)
        assert text_operator(emulated)(*ours, *rest, **options).tolist() == [0.0, 0.0]
        assert torch.equal(ours[0], tables[0])
        assert torch.equal(ours[1], tables[1])
    tables, rest = pairs_problem(count=0)
    assert pairs_operator(emulated)(*tables, *rest, alpha=0.1, sync_every=0).tolist() == [0, 0]


def test_no_loss(emulated):
    tables, rest, options = problem(hs=True)
    a, b = copies(tables), copies(tables)
    full = text_operator(emulated, 1)(*a, *rest, **options)
    terms = text_operator(emulated, 1)(*b, *rest, **options, compute_loss=False)
    assert terms.tolist() == [0.0, float(full[1])]
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_deterministic_mode_is_refused(emulated):
    tables, rest, options = problem(sync_every=8)
    with pytest.raises(RuntimeError, match=SYNC_REFUSED.format(8)):
        text_operator(emulated)(*tables, *rest, **options)
    tables, rest = pairs_problem()
    with pytest.raises(RuntimeError, match=SYNC_REFUSED.format(4)):
        pairs_operator(emulated)(*tables, *rest, alpha=0.1, sync_every=4)


BAD = {
    "mode": ({"shared_negatives": "all"}, ValueError, "expected mode 'window', 'pair' or 'cbow'"),
    "window": ({"window": 0}, ValueError, "expected 1 <= window"),
    "words_total": ({"words_total": 0}, ValueError, "expected words_total >= 1, got 0"),
    "negative": ({"negative": 0}, ValueError, "expected negative > 0 or a tree table"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(emulated, case):
    change, error, message = BAD[case]
    tables, rest, options = problem()
    with pytest.raises(error, match=message):
        text_operator(emulated)(*tables, *rest, **{**options, **change})


def test_module_refuses_what_does_not_add_up(emulated):
    with pytest.raises(KeyError, match="missing argument: dim"):
        emulated.skipgram()
    tables, rest = pairs_problem()
    broken = tables[0].as_strided(tables[0].shape, (3, 1))
    with pytest.raises(ValueError, match="expected a row stride of input_table of at least 16"):
        pairs_operator(emulated)(broken, tables[1], *rest, alpha=0.1, sync_every=0)


def test_device_count(emulated):
    assert emulated.device_count() == 1


def test_real_module_imports_without_a_driver():
    """Built or not, and with or without a driver: an import, and a number of devices."""
    if importlib.util.find_spec("vecsmith._cuda") is None:
        pytest.skip("built without the CUDA module")
    from vecsmith import _cuda

    assert _cuda.device_count() == torch.cuda.device_count()


# --- On a GPU. ------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("case", TEXT)
def test_gpu_text(case):
    check_text(device="cuda", operator=text_operator(None, 1), **TEXT[case])


@pytest.mark.gpu
@pytest.mark.parametrize("case", PAIRS)
def test_gpu_pairs(case):
    check_pairs(device="cuda", operator=pairs_operator(None, 1), **PAIRS[case])


@pytest.mark.gpu
@pytest.mark.parametrize("mode", [{}, {"cbow": True}, {"shared_negatives": "pair"}, {"hs": True}])
def test_gpu_many_blocks_learn_as_much(mode):
    """Hogwild: updates race, so losses after three passes are compared, not bits."""
    tables, rest, options = problem(
        vocabulary=500, dim=64, lengths=(400,) * 30, alpha=0.025, **mode
    )
    moved = [None if t is None else t.cuda() for t in rest]
    losses = []
    for blocks in (1, None):
        ours = copies(tables, device="cuda")
        for epoch in range(3):
            settings = {**options, "epoch": epoch}
            loss = text_operator(None, blocks)(*ours, *moved, **settings)
        losses.append(float(loss[0] / loss[1]))
    assert losses[1] == pytest.approx(losses[0], rel=0.03)


@pytest.mark.gpu
def test_gpu_streams_are_independent():
    """Two trainings at once, on streams that are not the default, give what one alone gives."""
    tables, rest, options = problem(lengths=(300, 200), dim=100)
    moved = [None if t is None else t.cuda() for t in rest]
    alone = copies(tables, device="cuda")
    text_operator(None, 1)(*alone, *moved, **options)
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in range(2)]
    both = [copies(tables, device="cuda") for _ in streams]
    torch.cuda.synchronize()
    for stream, ours in zip(streams, both, strict=True):
        with torch.cuda.stream(stream):
            text_operator(None, 1)(*ours, *moved, **options)
    torch.cuda.synchronize()
    for ours in both:
        assert torch.equal(ours[0], alone[0])
        assert torch.equal(ours[1], alone[1])


@pytest.mark.gpu
def test_gpu_that_is_not_the_current_one():
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    with torch.cuda.device(0):
        check_text(device="cuda:1", operator=text_operator(None, 1))
        assert torch.cuda.current_device() == 0
