"""The operator `skipgram` on the CPU, at every ISA level, against the reference in fp64; the
reference against an oracle that shares none of its code; and what the operator refuses.
"""

# ruff: noqa: E501  (the tables of bad input: one line a case)
from __future__ import annotations

import collections
import functools
import itertools
import math
import sys
import threading
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

sys.path.insert(0, str(Path(__file__).parent))
from conftest import assert_close_to_reference
from test_skipgram_triton import alias_of, copies, pairs_problem, problem
from vecsmith import ops
from vecsmith.ops.skipgram import DETERMINISTIC_SYNC
from vecsmith.reference import skipgram as reference

native_cases = pytest.mark.cases(backend="native", dtype=torch.float32)

# What a step consists of, and what trains it.
INPUTS = {
    "sg-window": {},
    "sg-pair": {"shared_negatives": "pair"},
    "cbow-mean": {"cbow": True},
    "cbow-sum": {"cbow": True, "cbow_mean": False},
}
OUTPUTS = {"ns": {}, "hs": {"hs": True, "negative": 0}, "both": {"hs": True}}
MODES = {f"{i}-{o}": {**INPUTS[i], **OUTPUTS[o]} for i in INPUTS for o in OUTPUTS}
FAMILIES = ("sg-window-ns", "sg-pair-ns", "cbow-mean-ns", "cbow-sum-both", "sg-window-hs")
mode_names = pytest.mark.parametrize("mode", MODES)
syncs = pytest.mark.parametrize("sync_every", [0, 1, 8])


@pytest.fixture(autouse=True)
def _one_thread():
    """The reference's tensors are tiny: a second thread only waits for its turn."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# --- Running a problem. ---------------------------------------------------------------------------

SENTINEL = 12345.0
TABLES = ("input", "output", "tree")


def close(actual, plain, exact, what="table") -> None:
    """The rule of the house, with more room where plain torch is lucky: it sums what a step adds to
    a row and rounds the row once, the fused kernels round the row for each of the step's products.
    24 roundings at the scale of the table are allowed at least (16 were seen): 1.4e-6 of its
    largest value, where one update that is missing or wrong is 1e-3 of it.
    """
    if not exact.numel():
        return
    error = float((actual.double() - exact).abs().max())
    if not error <= 24 * 2**-24 * float(exact.abs().max()):
        assert_close_to_reference(actual, plain, exact, what=what)


class Guarded:
    """A copy of a table inside a buffer whose other values must not change."""

    def __init__(self, values: torch.Tensor, aligned: bool) -> None:
        rows, dim = values.shape
        stride = (dim + 31) // 16 * 16 if aligned else dim + 3
        self.buffer = torch.full((rows * stride + 96,), SENTINEL)
        start = 32 + -self.buffer.data_ptr() % 64 // 4 + (0 if aligned else 1)
        self.view = self.buffer[start : start + rows * stride].view(rows, stride)[:, :dim]
        self.view.copy_(values)

    def check(self, what: str) -> None:
        table = self.view.clone()
        self.view.fill_(SENTINEL)
        assert (self.buffer == SENTINEL).all(), f"{what}: written outside of the rows"
        self.view.copy_(table)


def call(tables, rest, options, **more):
    """ops.skipgram on what test_skipgram_triton.problem makes."""
    tokens, offsets, keep, alias, path_offsets, path_nodes, path_codes = rest
    return ops.skipgram(
        tables[0], tables[1], tokens, offsets, tree_table=tables[2], keep=keep, alias=alias,
        path_offsets=path_offsets, path_nodes=path_nodes, path_codes=path_codes,
        **{"num_threads": 1, **options, **more},
    )  # fmt: skip


def text_problem(**fields):
    """The same, with as many inner nodes as the tree has: none in a vocabulary of one word."""
    (inputs, outputs, tree), rest, options = problem(**fields)
    return (inputs, outputs, None if tree is None else tree[: len(inputs) - 1]), rest, options


@functools.lru_cache(maxsize=256)
def solved(items):
    """A problem with its answers at fp64 and at fp32: (problem, exact, plain, result)."""
    tables, rest, options = given_problem = text_problem(**dict(items))
    exact, plain = copies(tables, torch.float64), copies(tables)
    result = reference.skipgram(*exact, *rest, **options)
    reference.skipgram(*plain, *rest, **options)
    return given_problem, exact, plain, result


def check_text(*, aligned=True, loss=True, **fields):
    """The native kernels of the current level on one problem."""
    (tables, rest, options), exact, plain, expected = solved(tuple(fields.items()))
    ours = [None if t is None else Guarded(t, aligned) for t in tables]
    views = [None if t is None else t.view for t in ours]
    result = call(views, rest, options, backend="native", compute_loss=loss)
    for name, a, b, c in zip(TABLES, ours, plain, exact, strict=True):
        if a is not None:
            close(a.view, b, c, what=f"{name}: {fields}")
            a.check(f"{name}: {fields}")
    assert result.dtype == torch.float64
    assert result.shape == (2,)
    assert int(result[1]) == int(expected[1]), f"terms of {fields}"
    if loss:
        torch.testing.assert_close(result[0], expected[0], rtol=3e-6, atol=1e-6)
    else:
        assert result[0] == 0


# --- The kernels against the reference. -----------------------------------------------------------


@native_cases
@syncs
@mode_names
def test_every_mode(operator_case, mode, sync_every):
    for shrink in (True, False):
        for sample in (True, False):
            check_text(
                **MODES[mode], sync_every=sync_every, shrink_windows=shrink, sample=sample, dim=20,
                aligned=shrink == sample,
            )  # fmt: skip


@native_cases
@pytest.mark.parametrize("dim", [1, 3, 7, 16, 31, 33, 50, 64, 100, 130, 300])
def test_every_dimension(operator_case, dim):
    for n, mode in enumerate(FAMILIES):
        for sync_every in (0, 8):
            check_text(
                **MODES[mode], dim=dim, sync_every=sync_every, aligned=(n + dim + sync_every // 8) % 2 == 0,
                lengths=(14, 3),
            )  # fmt: skip


@native_cases
@pytest.mark.parametrize("window", [1, 2, 5, 9, 20])
@pytest.mark.parametrize("negative", [1, 5, 6, 12, 20])
def test_windows_and_negatives(operator_case, window, negative):
    for mode in ("sg-window-ns", "sg-pair-ns", "cbow-mean-ns"):
        check_text(
            **{**MODES[mode], "negative": negative}, window=window, sync_every=(0, 3)[negative % 2],
            lengths=(26,), vocabulary=50, dim=17, shrink_windows=window < 9,
        )  # fmt: skip


@native_cases
@pytest.mark.parametrize("vocabulary", [1, 2, 3, 50])
@mode_names
def test_small_vocabularies(operator_case, vocabulary, mode):
    """Words repeat within windows and among negatives; a vocabulary of one has no negatives."""
    for sync_every in (0, 8):
        check_text(
            **MODES[mode], vocabulary=vocabulary, sync_every=sync_every, dim=9, window=4, lengths=(12, 1, 0, 5),
        )  # fmt: skip


@native_cases
def test_the_last_redraws(operator_case):
    """Where nearly every negative equals the positive, slots stay empty after 32 redraws."""
    for mode in ("sg-window-ns", "sg-pair-ns", "cbow-mean-ns"):
        check_text(
            **MODES[mode], vocabulary=3, rare=0.01, negative=12, lengths=(30,), dim=8,
        )  # fmt: skip
    (_, rest, options), *_, result = solved(
        (("vocabulary", 3), ("rare", 0.01), ("negative", 12), ("lengths", (30,)), ("dim", 8))
    )
    drawn = reference.negatives_for(
        torch.zeros(30, dtype=torch.int64), torch.arange(30), 12, rest[3], options["seed"], 3
    )
    assert (drawn == -1).any()
    assert result[1] > 0


@native_cases
@pytest.mark.parametrize("sync_every", [0, 8, 100])
def test_a_sentence_over_several_blocks(operator_case, sync_every):
    """Centers are planned 32 at a time; windows reach across."""
    for mode in ("sg-window-ns", "sg-pair-ns", "cbow-sum-both"):
        check_text(
            **MODES[mode], sync_every=sync_every, lengths=(110,), vocabulary=40, alpha=0.025,
        )  # fmt: skip


@native_cases
def test_sentences_that_train_nothing(operator_case):
    """None, empty ones, ones of one word, and keep = 0: the tables stay as they are."""
    for lengths, keep in [((), None), ((0, 0), None), ((1, 1, 0, 1), None), ((40,), 0.0)]:
        for mode in FAMILIES:
            for sync_every in (0, 8):
                tables, rest, options = problem(
                    **MODES[mode], lengths=lengths, sample=keep is not None, sync_every=sync_every
                )
                if keep is not None:
                    rest[2].fill_(keep)
                ours = copies(tables)
                assert call(ours, rest, options).tolist() == [0.0, 0.0]
                for a, b in zip(ours, tables, strict=True):
                    assert a is None or torch.equal(a, b)
    tables, rest, options = problem(lengths=())
    for sentences in (0, 1, 3):
        empty = (rest[0][:0], torch.zeros(sentences + 1, dtype=torch.int64), *rest[2:])
        for sync_every in (0, 8):
            assert call(tables, empty, {**options, "sync_every": sync_every}).tolist() == [0, 0]


@native_cases
@pytest.mark.parametrize("mode", ["sg-window-ns", "sg-pair-both", "cbow-mean-both"])
def test_without_the_loss(operator_case, mode):
    for sync_every in (0, 8):
        check_text(**MODES[mode], sync_every=sync_every, loss=False)


@native_cases
@pytest.mark.parametrize("sync_every", [0, 8])
@mode_names
def test_thousands_of_updates(operator_case, mode, sync_every):
    """Some 5,000 updates of 40 rows. An update rounds at 2^-24 of its row; what rounding makes of
    one row feeds into the others, for plain torch at fp32 as well: it ends within 15 roundings at
    the scale of the table, the kernels within 22. Allowed: 40, and 1e-4 of the largest change.
    """
    fields = {
        **MODES[mode],
        "sync_every": sync_every,
        "lengths": (150, 1, 97),
        "vocabulary": 40,
        "dim": 24,
    }
    (tables, rest, options), exact, _, expected = solved(tuple(fields.items()))
    ours = copies(tables)
    result = call(ours, rest, options)
    assert result[1] == expected[1]
    torch.testing.assert_close(result[0], expected[0], rtol=3e-6, atol=0)
    for name, a, b, start in zip(TABLES, ours, exact, tables, strict=True):
        if a is None:
            continue
        error = float((a.double() - b).abs().max())
        assert error <= 40 * 2**-24 * float(b.abs().max()), name
        assert error <= 1e-4 * float((b - start.double()).abs().max()), name


@native_cases
@pytest.mark.parametrize("mode", ["sg-window-ns", "sg-pair-ns", "cbow-mean-both"])
@pytest.mark.parametrize("sync_every", [0, 8])
def test_a_corpus_of_several_loads(operator_case, mode, sync_every):
    """Survivors are drawn for a few thousand tokens at a time. Few survive here, so that the
    reference can follow."""
    fields = {**MODES[mode], "sync_every": sync_every, "lengths": (900, 3000, 17000, 1200, 2500)}
    tables, rest, options = problem(**fields, sample=True, vocabulary=60, dim=12)
    rest[2].fill_(0.006)
    exact, plain, ours = copies(tables, torch.float64), copies(tables), copies(tables)
    expected = reference.skipgram(*exact, *rest, **options)
    reference.skipgram(*plain, *rest, **options)
    result = call(ours, rest, options)
    assert expected[1] > 500
    assert result[1] == expected[1]
    for a, b, c in zip(ours, plain, exact, strict=True):
        if a is not None:
            close(a, b, c)


@native_cases
def test_far_positions_seeds_and_epochs(operator_case):
    for seed in (0, 1, 2**63 - 1, 2**64 - 1, -7):
        tables, rest, options = problem(lengths=(20, 9), first_position=2**41 + 5)
        options |= {"epoch": 2**33 + 1, "words_before": 2**42, "words_total": 2**44}
        exact, plain, ours = copies(tables, torch.float64), copies(tables), copies(tables)
        options |= {"seed": seed}
        expected = reference.skipgram(*exact, *rest, **options)
        reference.skipgram(*plain, *rest, **options)
        result = call(ours, rest, options)
        assert result[1] == expected[1]
        for a, b, c in zip(ours[:2], plain[:2], exact[:2], strict=True):
            close(a, b, c)


@native_cases
def test_the_rate_falls_and_stays(operator_case):
    """min_alpha above and below alpha, words beyond words_total, and a rate of zero."""
    for alpha, least, before, total in [
        (0.05, 0.001, 0, 20), (0.001, 0.05, 0, 20), (0.05, 0.01, 500, 20), (0.0, 0.0, 0, 9)
    ]:  # fmt: skip
        tables, rest, options = problem(lengths=(20, 9))
        options |= {
            "alpha": alpha, "min_alpha": least, "words_before": before, "words_total": total,
        }  # fmt: skip
        exact, plain, ours = copies(tables, torch.float64), copies(tables), copies(tables)
        reference.skipgram(*exact, *rest, **options)
        reference.skipgram(*plain, *rest, **options)
        call(ours, rest, options)
        for a, b, c, start in zip(ours[:2], plain[:2], exact[:2], tables[:2], strict=True):
            close(a, b, c)
            assert torch.equal(a, start) == (alpha == least == 0)


@native_cases
def test_parts_of_the_token_array(operator_case):
    """offsets that begin after the first token, and end before the last."""
    check_text(skip=11, lengths=(8, 5))


@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_any_shape(data):
    draw = data.draw
    fields = {
        **MODES[draw(st.sampled_from(sorted(MODES)))],
        "vocabulary": draw(st.integers(1, 12)),
        "dim": draw(st.integers(1, 70)),
        "lengths": tuple(draw(st.lists(st.integers(0, 9), max_size=4))),
        "window": draw(st.integers(1, 6)),
        "sync_every": draw(st.sampled_from((0, 1, 2, 7))),
        "sample": draw(st.booleans()),
        "shrink_windows": draw(st.booleans()),
        "first_position": draw(st.integers(0, 2**45)),
        "seed": draw(st.integers(1, 1000)),
    }
    if fields.get("negative") != 0:
        fields["negative"] = draw(st.integers(1, 14))
    tables, rest, options = text_problem(**fields)
    exact = copies(tables, torch.float64)
    expected = reference.skipgram(*exact, *rest, **options)
    ours = [None if t is None else Guarded(t, draw(st.booleans())) for t in tables]
    result = call([None if t is None else t.view for t in ours], rest, options)
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-6)
    for a, b in zip(ours, exact, strict=True):
        if a is not None:
            torch.testing.assert_close(a.view.double(), b, rtol=1e-5, atol=2e-6)
            a.check("any shape")


# --- Pairs. ---------------------------------------------------------------------------------------


@native_cases
@syncs
def test_pairs(operator_case, sync_every):
    for dim in (1, 7, 16, 33, 100, 130, 300):
        for negative in (0, 1, 5, 6, 12, 20):
            tables, rest = pairs_problem(dim=dim, negative=negative, count=35)
            exact, plain = copies(tables, torch.float64), copies(tables)
            expected = reference.skipgram_pairs(*exact, *rest, alpha=0.05, sync_every=sync_every)
            reference.skipgram_pairs(*plain, *rest, alpha=0.05, sync_every=sync_every)
            ours = [Guarded(t, (dim + negative) % 2 == 0) for t in tables]
            views = [t.view for t in ours]
            result = ops.skipgram_pairs(
                *views, *rest, alpha=0.05, sync_every=sync_every, num_threads=1
            )
            for name, a, b, c in zip(TABLES, ours, plain, exact, strict=False):
                what = f"{name}, D={dim}, {negative} negatives"
                close(a.view, b, c, what=what)
                a.check(what)
            assert result[1] == expected[1]
            torch.testing.assert_close(result[0], expected[0], rtol=3e-6, atol=1e-6)


@native_cases
def test_pairs_of_nothing_and_of_one_row(operator_case):
    tables, rest = pairs_problem(count=0)
    ours = copies(tables)
    assert ops.skipgram_pairs(*ours, *rest).tolist() == [0.0, 0.0]
    assert torch.equal(ours[0], tables[0])
    tables, rest = pairs_problem(vocabulary=1, outputs=1, count=40, negative=3)
    exact, plain, ours = copies(tables, torch.float64), copies(tables), copies(tables)
    expected = reference.skipgram_pairs(*exact, *rest, alpha=0.05, sync_every=0)
    reference.skipgram_pairs(*plain, *rest, alpha=0.05, sync_every=0)
    result = ops.skipgram_pairs(*ours, *rest, alpha=0.05, num_threads=1)
    assert result[1] == expected[1] == 40
    for a, b, c in zip(ours, plain, exact, strict=True):
        close(a, b, c)


# --- Every backend behind the same door. ----------------------------------------------------------


def test_each_backend(operator_case):
    """What the registry lists is what runs: the public functions with each backend forced."""
    for fields in ({"hs": True}, {"shared_negatives": "pair"}, {"cbow": True, "sample": False}):
        tables, rest, options = problem(**fields, lengths=(9, 1), dim=12)
        exact, plain = copies(tables, torch.float64), copies(tables, operator_case.dtype)
        expected = reference.skipgram(*exact, *rest, **options)
        reference.skipgram(*plain, *rest, **options)
        place = {"device": operator_case.device}
        ours = copies(tables, operator_case.dtype, operator_case.device)
        moved = [None if t is None else t.to(**place) for t in rest]
        result = call(ours, moved, options, backend=operator_case.backend).cpu()
        assert result[1] == expected[1]
        torch.testing.assert_close(result[0], expected[0], rtol=3e-6, atol=1e-6)
        if operator_case.backend in ("native", "reference"):  # the others share out the centers
            for a, b, c in zip(ours, plain, exact, strict=True):
                if a is not None:
                    close(a, b, c)
    tables, rest = pairs_problem(count=9)
    exact = copies(tables, torch.float64)
    expected = reference.skipgram_pairs(*exact, *rest, alpha=0.05, sync_every=0)
    ours = copies(tables, operator_case.dtype, operator_case.device)
    moved = [t.to(operator_case.device) for t in rest]
    result = ops.skipgram_pairs(*ours, *moved, alpha=0.05, backend=operator_case.backend).cpu()
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)


# --- Several workers. -----------------------------------------------------------------------------


def zipf_problem(tokens=20000, vocabulary=300, dim=24, **fields):
    lengths = tuple([tokens // 20] * 20)
    return problem(lengths=lengths, vocabulary=vocabulary, dim=dim, **fields)


@native_cases
@pytest.mark.parametrize("sync_every", [1, 40, 512])
@mode_names
def test_the_same_bits_for_any_number_of_threads(operator_case, mode, sync_every):
    fields = {
        **MODES[mode],
        "lengths": (700, 3, 0, 500),
        "vocabulary": 60,
        "sync_every": sync_every,
    }
    for dim in (20, 300):
        tables, rest, options = problem(**fields, dim=dim)
        answers = []
        for threads in (1, 2, 3, 5):
            ours = copies(tables)
            result = call(ours, rest, options, num_threads=threads)
            answers.append([result, *[t for t in ours if t is not None]])
        for other in answers[1:]:
            assert all(torch.equal(a, b) for a, b in zip(answers[0], other, strict=True))


@native_cases
def test_the_same_bits_for_any_number_of_threads_over_pairs(operator_case):
    for dim in (20, 300):
        tables, rest = pairs_problem(count=3000, dim=dim, vocabulary=50, outputs=70)
        answers = []
        for threads in (1, 2, 3, 5):
            ours = copies(tables)
            result = ops.skipgram_pairs(*ours, *rest, sync_every=8, num_threads=threads)
            answers.append([result, *ours])
        for other in answers[1:]:
            assert all(torch.equal(a, b) for a, b in zip(answers[0], other, strict=True))


@pytest.mark.parametrize("mode", ["sg-window-ns", "sg-pair-ns", "sg-window-hs", "cbow-mean-both"])
@native_cases
def test_several_workers_learn_what_one_does(operator_case, mode):
    """Lock-free workers with copies of the hot rows (there must be enough text for that), and
    shards, against one worker: they are slower to start, the loss ends at the same value, and no
    row is left behind."""
    fields = {**MODES[mode], "vocabulary": 300, "dim": 20, "lengths": (500,) * 420}
    tables, rest, options = problem(**fields)  # frequent words are the first

    def losses(threads, sync_every):
        ours = copies(tables)
        found = []
        for epoch in range(3):
            result = call(
                *(ours, rest, {**options, "epoch": epoch, "sync_every": sync_every}),
                num_threads=threads,
            )
            found.append(float(result[0] / result[1]))
        for table, start in zip(ours, tables, strict=True):
            if table is not None:
                assert bool(table.isfinite().all())
                assert bool((table != start).any(1).all())
        return found

    one = losses(1, 0)
    assert one[2] < one[0]
    for threads, sync_every in ((2, 0), (4, 0), (2, 256)):
        several = losses(threads, sync_every)
        assert several[2] == pytest.approx(one[2], rel=0.02)


def test_deterministic_mode_syncs():
    tables, rest, options = problem(lengths=(60, 40))
    del options["sync_every"]
    pair_tables, pairs = pairs_problem()

    def trained(sync_every):
        ours, pair_ours = copies(tables), copies(pair_tables)
        call(ours, rest, options, sync_every=sync_every)
        ops.skipgram_pairs(*pair_ours, *pairs, sync_every=sync_every, num_threads=1)
        return [*ours[:2], *pair_ours]

    usual = trained(None)
    torch.use_deterministic_algorithms(True)
    try:
        deterministic, forced = trained(None), trained(0)
    finally:
        torch.use_deterministic_algorithms(False)
    for sync_every, ours in ((0, usual), (DETERMINISTIC_SYNC, deterministic), (0, forced)):
        assert all(torch.equal(a, b) for a, b in zip(trained(sync_every), ours, strict=True))
    assert not torch.equal(usual[0], deterministic[0])


@native_cases
@pytest.mark.parametrize("mode", FAMILIES)
def test_hogwild_learns(operator_case, mode):
    """Lock-free workers see stale rows now and then; the loss must hardly notice."""

    def final_loss(threads):
        tables, rest, options = zipf_problem(60000, **MODES[mode])
        tables[0].mul_(0.1)
        for table in tables[1:]:
            if table is not None:
                table.zero_()
        options |= {"words_before": 0, "words_total": 10**6}
        for epoch in range(2):
            result = call(tables, rest, options | {"epoch": epoch}, num_threads=threads)
        return float(result[0] / result[1]), int(result[1])

    start = 0.6931471805599453  # of zero scores
    one, terms = final_loss(1)
    assert one < 0.97 * start
    for threads in (2, 4):
        several, same_terms = final_loss(threads)
        assert same_terms == terms
        assert abs(several - one) < 0.03 * one


@native_cases
def test_two_calls_are_one(operator_case):
    """A corpus in pieces: by slices of the offsets, and by slices of both with first_position."""
    for mode in MODES.values():
        tables, rest, options = problem(**mode, lengths=(40, 1, 33, 50, 0, 21), vocabulary=30)
        tokens, offsets, *others = rest
        whole = copies(tables)
        expected = call(whole, rest, options)
        for cut in (1, 3, 5):
            sliced, moved = copies(tables), copies(tables)
            sums = torch.zeros(2, 2, dtype=torch.float64)
            for part in (offsets[: cut + 1], offsets[cut:]):
                sums[0] += call(sliced, (tokens, part, *others), options)
                first, last = int(part[0]), int(part[-1])
                piece = (tokens[first:last].clone(), part - first, *others)
                sums[1] += call(moved, piece, {**options, "first_position": first})
            for a, b, c in zip(whole, sliced, moved, strict=True):
                assert a is None or (torch.equal(a, b) and torch.equal(a, c))
            torch.testing.assert_close(sums, expected.expand(2, 2), rtol=1e-7, atol=0)


def test_two_calls_at_once_keep_apart():
    """The GIL is released; nothing is shared between calls."""
    tables, rest, options = zipf_problem(20000)
    alone = copies(tables)
    call(alone, rest, options)
    several = [copies(tables) for _ in range(3)]
    workers = [threading.Thread(target=call, args=(t, rest, options)) for t in several]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for ours in several:
        assert torch.equal(ours[0], alone[0])
        assert torch.equal(ours[1], alone[1])


# --- The draws. -----------------------------------------------------------------------------------


def test_splitmix64_known_answers():
    """The first outputs of SplitMix64 with seed 0, as its authors' code gives them."""
    steps = torch.tensor([reference._signed(k * reference.GOLDEN) for k in (1, 2, 3)])
    bits = [int(b) % 2**64 for b in reference.mix(steps)]
    assert bits == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert [int(b) % 2**64 for b in reference.draw(0, torch.arange(3))] == bits


def p_value(observed: torch.Tensor, expected: torch.Tensor) -> float:
    return float(stats.chisquare(observed.numpy(), expected.numpy()).pvalue)


def test_windows_are_uniform():
    for window in (2, 5, 9):
        sizes = reference.window_sizes(torch.arange(90000), window, True, 3, 1)
        counts = torch.bincount(sizes - 1, minlength=window).double()
        assert p_value(counts, torch.full((window,), 90000 / window)) > 1e-4
    assert (reference.window_sizes(torch.arange(50), 7, False, 3, 1) == 7).all()


def test_negatives_follow_the_alias_table():
    weights = 1.0 / torch.arange(1, 41).double() ** 0.75
    positive = torch.zeros(30000, dtype=torch.int64)
    drawn = reference.negatives_for(positive, torch.arange(30000), 5, alias_of(weights), 9, 2)
    assert (drawn > 0).all()  # never the positive
    counts = torch.bincount(drawn.flatten(), minlength=40).double()[1:]
    assert p_value(counts, counts.sum() * weights[1:] / weights[1:].sum()) > 1e-4
    # The draws of one center, and of neighbors, do not depend on one another.
    pairs = torch.cat([drawn[:, :2], torch.stack([drawn[:-1, 0], drawn[1:, 0]], 1)])
    common = (pairs <= 3).long()
    table = torch.bincount(2 * common[:, 0] + common[:, 1], minlength=4).reshape(2, 2)
    assert float(stats.chi2_contingency(table.numpy()).pvalue) > 1e-4


def test_survivors_keep_their_rates():
    keep = torch.tensor([0.0, 0.01, 0.3, 0.9, 1.0, 1.7])
    tokens = torch.arange(6, dtype=torch.int32).repeat_interleave(40000)
    mask = reference.keep_mask(tokens, torch.arange(tokens.numel()), keep, 5, 0)
    kept = mask.reshape(6, -1).sum(1)
    assert kept[0] == 0
    assert (kept[4:] == 40000).all()
    for n, p in zip(kept[1:4].tolist(), keep[1:4].tolist(), strict=True):
        assert stats.binomtest(n, 40000, p).pvalue > 1e-4


def test_streams_differ_with_seed_epoch_and_stream():
    keys = {
        reference.stream_key(seed, epoch, stream)
        for seed in (0, 1, 2, -1, 2**63)
        for epoch in range(4)
        for stream in range(3)
    }
    assert len(keys) == 60


# --- An oracle for the reference. -----------------------------------------------------------------

M64 = 2**64 - 1
GOLDEN = 0x9E3779B97F4A7C15


def splitmix(z: int) -> int:
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & M64
    z = (z ^ z >> 27) * 0x94D049BB133111EB & M64
    return z ^ z >> 31


def random_bits(seed: int, epoch: int, stream: int, n: int) -> int:
    key = splitmix((splitmix((splitmix((seed + GOLDEN) & M64) + epoch + GOLDEN) & M64) + stream
                    + GOLDEN) & M64)  # fmt: skip
    return splitmix((key + (n + 1) * GOLDEN) & M64)


def oracle(tables, rest, o):
    """Training in Python integers and autograd: scores S of a step's inputs and outputs, gradients
    g = - rate * dloss/dS by autograd, and the update of every row as the gradient of sum(g * S)."""
    tables = [None if t is None else t.double().clone() for t in tables]
    tokens, offsets, keep, alias, path_offsets, path_nodes, path_codes = rest
    vocabulary = tables[0].shape[0]
    loss, terms, shared = 0.0, 0, tables

    def score(rows, which, words):
        x = tables[0][rows].clone().requires_grad_()
        y = tables[which][words].clone().requires_grad_()
        h = x
        if o["cbow"]:
            h = (x.mean(0) if o["cbow_mean"] else x.sum(0))[None]
        return h, x, y, (h[:, None, :] * y[None]).sum(2)

    def look(rows, which, words, labels, rate):
        nonlocal loss, terms
        *_, s = score(rows, which, words)
        s = s.detach().requires_grad_()
        labels = torch.tensor(labels, dtype=torch.float64).expand_as(s)
        value = -(labels * torch.log(1 / (1 + torch.exp(-s)))
                  + (1 - labels) * torch.log(1 - 1 / (1 + torch.exp(-s)))).sum()  # fmt: skip
        (gradient,) = torch.autograd.grad(value, s)
        loss, terms = loss + float(value.detach()), terms + s.numel()
        return rows, which, words, -rate * gradient

    def apply(rows, which, words, g):
        h, x, y, s = score(rows, which, words)
        dx, dy, dh = torch.autograd.grad((g * s).sum(), (x, y, h))
        if o["cbow"]:  # the sum's chain rule would give every row the whole; word2vec gives 1/m
            dx = dh.expand_as(x) if o["cbow_mean"] else dh.expand_as(x) / len(rows)
        for row, d in zip(rows, dx, strict=True):
            tables[0][row] += d
        for word, d in zip(words, dy, strict=True):
            tables[which][word] += d

    def train(center):
        for group in center:
            for step in [look(*step) for step in group]:
                apply(*step)

    seed = o["seed"] & M64
    centers = []  # (token at which the sentence starts, groups)
    for s in range(len(offsets) - 1):
        alive = []
        for i in range(int(offsets[s]), int(offsets[s + 1])):
            p = o["first_position"] + i
            u = (random_bits(seed, o["epoch"], 0, p) >> 40) / 2**24
            if keep is None or u < float(keep[tokens[i]]):
                alive.append((int(tokens[i]), p))
        for k, (center, p) in enumerate(alive):
            reach = o["window"]
            if o["shrink_windows"]:
                reach = 1 + ((random_bits(seed, o["epoch"], 1, p) >> 32) * reach >> 32)
            around = [j for j in range(k - reach, k + reach + 1) if j != k and 0 <= j < len(alive)]
            contexts = [alive[j][0] for j in around]
            if not contexts:
                continue
            progress = (o["words_before"] + p) / o["words_total"]
            rate = o["alpha"] + (o["min_alpha"] - o["alpha"]) * progress
            rate = max(rate, min(o["alpha"], o["min_alpha"]))
            groups = []
            centers.append((int(offsets[s]) - int(offsets[0]), groups))
            if tables[2] is not None:
                path = range(int(path_offsets[center]), int(path_offsets[center + 1]))
                nodes = [int(path_nodes[n]) for n in path]
                if nodes:
                    groups.append(
                        [(contexts, 2, nodes, [1.0 - int(path_codes[n]) for n in path], rate)]
                    )
            if not o["negative"]:
                continue
            sets = [(contexts, p)]
            if o["shared_negatives"] == "pair" and not o["cbow"]:
                slots = 2 * o["window"] + 1
                sets = [([alive[j][0]], p * slots + j - k + o["window"]) for j in around]
            group = []
            for rows, counter in sets:
                words = [center]
                for n in range(o["negative"]):
                    bits = random_bits(seed, o["epoch"], 2, counter * o["negative"] + n)
                    for _ in range(33):
                        i = (bits >> 32) * vocabulary >> 32
                        threshold, other = alias[i].tolist()
                        word = i if (bits & 0xFFFFFFFF) >> 1 < threshold else other
                        if word != center:
                            words.append(word)
                            break
                        bits = splitmix((bits + GOLDEN) & M64)
                labels = [1.0] + [0.0] * (len(words) - 1)
                group.append((rows, 1, words, labels, rate))
            groups.append(group)
    every = o["sync_every"]
    if not every:
        for _, groups in centers:
            train(groups)
        return tables, torch.tensor([loss, terms], dtype=torch.float64)
    starts = [(int(offsets[-1]) - int(offsets[0])) * s // 4 for s in range(4)] + [math.inf]
    shards = [
        [groups for start, groups in centers if a <= start < b]
        for a, b in itertools.pairwise(starts)
    ]
    for first in range(0, max(map(len, shards)), every):
        own, met = [], []
        for shard in shards:
            tables = [None if t is None else t.clone() for t in shared]
            met.append(collections.Counter())
            for groups in shard[first : first + every]:
                train(groups)
                for rows, which, words, *_ in itertools.chain.from_iterable(groups):
                    met[-1].update((0, row) for row in (rows if o["cbow"] else set(rows)))
                    met[-1].update((which, word) for word in set(words))
            own.append(tables)
        for t, row in set().union(*met):
            having = [tables for tables, m in zip(own, met, strict=True) if (t, row) in m]
            often = sum(m[t, row] for m in met) / len(having)
            weight = (1 + (len(having) - 1) / (1 + often / 64)) / len(having)
            shared[t][row] += weight * sum(tables[t][row] - shared[t][row] for tables in having)
    return shared, torch.tensor([loss, terms], dtype=torch.float64)


@syncs
@mode_names
def test_the_reference_is_what_autograd_says(mode, sync_every):
    tables, rest, options = problem(
        **MODES[mode],
        sync_every=sync_every,
        vocabulary=6,
        dim=3,
        lengths=(7, 1, 5),
        first_position=2**40,
    )
    expected, result = oracle(tables, rest, options)
    ours = copies(tables, torch.float64)
    got = reference.skipgram(*ours, *rest, **options)
    for a, b in zip(ours, expected, strict=True):
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(got, result, rtol=1e-11, atol=0)


# --- What is refused. -----------------------------------------------------------------------------


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
