"""The operator `skipgram` with several workers: the same bits in deterministic mode, the same
learning without it; and a corpus in several calls.
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
import skipgram_problems
from skipgram_problems import (
    FAMILIES,
    MODES,
    call,
    copies,
    mode_names,
    native_cases,
    pairs_problem,
    problem,
)
from vecsmith import ops
from vecsmith.ops.skipgram import DETERMINISTIC_SYNC

_one_thread = skipgram_problems.one_thread


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
