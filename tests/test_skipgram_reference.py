"""The reference of `skipgram`: its draws, and its training against an oracle that shares none of
its code.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from scipy import stats

sys.path.insert(0, str(Path(__file__).parent))
import skipgram_problems
from skipgram_oracle import oracle
from skipgram_problems import MODES, alias_of, copies, mode_names, problem, syncs
from vecsmith.reference import skipgram as reference

_one_thread = skipgram_problems.one_thread


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
