"""The operator `skipgram` on the CPU, at every ISA level, against the reference in fp64. What
several workers do: test_skipgram_workers.py; the reference itself: test_skipgram_reference.py; what
the operator refuses: test_skipgram_refused.py.
"""

from __future__ import annotations

import functools
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))
import skipgram_problems
from conftest import assert_close_to_reference
from skipgram_problems import (
    FAMILIES,
    MODES,
    call,
    copies,
    mode_names,
    native_cases,
    pairs_problem,
    problem,
    syncs,
)
from vecsmith import ops
from vecsmith.reference import skipgram as reference

_one_thread = skipgram_problems.one_thread

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
                **MODES[mode], dim=dim, sync_every=sync_every, lengths=(14, 3),
                aligned=(n + dim + sync_every // 8) % 2 == 0,
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
@pytest.mark.parametrize("negative", [63, 64, 65, 2047, 2048])
def test_many_negatives(operator_case, negative):
    """How those that come twice are found changes with their number; and where none does."""
    for vocabulary, rare in ((50, None), (3000, 0.9997)):
        for mode in ("sg-window-ns", "sg-pair-ns", "cbow-mean-ns"):
            check_text(
                **{**MODES[mode], "negative": negative}, vocabulary=vocabulary, rare=rare,
                lengths=(4,), dim=5,
            )  # fmt: skip
    tables, rest = pairs_problem(negative=negative, count=5, dim=5)
    exact, plain, ours = copies(tables, torch.float64), copies(tables), copies(tables)
    reference.skipgram_pairs(*exact, *rest, alpha=0.05, sync_every=0)
    reference.skipgram_pairs(*plain, *rest, alpha=0.05, sync_every=0)
    ops.skipgram_pairs(*ours, *rest, alpha=0.05, num_threads=1)
    for a, b, c in zip(ours, plain, exact, strict=True):
        close(a, b, c, what=f"pairs, {negative} negatives")


@native_cases
@pytest.mark.parametrize("vocabulary", [1, 2, 3, 50])
@mode_names
def test_small_vocabularies(operator_case, vocabulary, mode):
    """Words repeat within windows and among negatives; a vocabulary of one has no negatives."""
    for sync_every in (0, 8):
        check_text(
            **MODES[mode], vocabulary=vocabulary, sync_every=sync_every, dim=9, window=4,
            lengths=(12, 1, 0, 5),
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
