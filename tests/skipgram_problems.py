"""What the tests of `skipgram` train on: problems with every kind of step, copies of their tables,
and the call.
"""

from __future__ import annotations

import pytest
import torch

from vecsmith import ops

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
def one_thread():
    """The reference's tensors are tiny: a second thread only waits for its turn. Used by every test
    of a file that gives it a name (`_one_thread = skipgram_problems.one_thread`)."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def random_tables(vocabulary: int, dim: int, *, tree: bool, strided: bool, generator):
    def table(rows):
        full = torch.randn(rows, dim + (5 if strided else 0), generator=generator) * 0.4
        return full[:, 2 : 2 + dim] if strided else full

    return table(vocabulary), table(vocabulary), table(max(vocabulary - 1, 1)) if tree else None


def alias_of(weights: torch.Tensor) -> torch.Tensor:
    """Walker's alias table of the reference's layout: (threshold in 0..2^31-1, alias)."""
    n = weights.numel()
    p = (weights.double() * n / weights.sum()).tolist()
    small = [i for i in range(n) if p[i] < 1]
    large = [i for i in range(n) if p[i] >= 1]
    table = torch.empty(n, 2, dtype=torch.int32)
    top = 2**31 - 1
    while small and large:
        i, j = small.pop(), large.pop()
        table[i] = torch.tensor([int(p[i] * top), j])
        p[j] -= 1 - p[i]
        (small if p[j] < 1 else large).append(j)
    for i in small + large:
        table[i] = torch.tensor([top, i])
    return table


def chain_tree(vocabulary: int, generator):
    """A tree in which word w leaves at depth w + 1: paths of every length up to V - 1."""
    offsets, nodes, codes = [0], [], []
    for w in range(vocabulary):
        depth = min(w + 1, vocabulary - 1)
        nodes += range(depth)
        codes += [1] * (depth - 1) + [0 if w < vocabulary - 1 else 1] if depth else []
        offsets.append(len(nodes))
    return (
        torch.tensor(offsets),
        torch.tensor(nodes, dtype=torch.int32),
        torch.tensor(codes, dtype=torch.uint8),
    )


def problem(
    *,
    vocabulary=23,
    dim=16,
    lengths=(9, 0, 1, 17, 2),
    hs=False,
    negative=5,
    window=3,
    cbow=False,
    cbow_mean=True,
    shrink_windows=True,
    shared_negatives="window",
    sample=True,
    strided=False,
    sync_every=0,
    first_position=0,
    skip=0,
    alpha=0.05,
    rare=None,
    seed=1,
):
    """Arguments of skipgram: tables, the other tensors, the rest. Tokens are Zipf-like, so that
    words repeat within windows and sets of negatives. ``rare``: how likely a negative is another
    word than the first, so that redraws come to their end."""
    g = torch.Generator().manual_seed(seed)
    input_table, output_table, tree_table = random_tables(
        vocabulary, dim, tree=hs, strided=strided, generator=g
    )
    counts = 1.0 / torch.arange(1, vocabulary + 1)
    tokens = torch.multinomial(counts, skip + sum(lengths) + 3, replacement=True, generator=g).int()
    offsets = skip + torch.tensor([0, *lengths]).cumsum(0)
    weights = counts**0.75
    if rare is not None:
        weights = torch.tensor([1 - rare] + [rare / (vocabulary - 1)] * (vocabulary - 1))
    path = chain_tree(vocabulary, g) if hs else (None, None, None)
    tables = (input_table, output_table if negative else None, tree_table)
    rest = (
        tokens,
        offsets,
        (0.5 + torch.rand(vocabulary, generator=g)) if sample else None,
        alias_of(weights) if negative else None,
        *path,
    )
    options = {
        "window": window,
        "negative": negative,
        "cbow": cbow,
        "cbow_mean": cbow_mean,
        "shrink_windows": shrink_windows,
        "shared_negatives": shared_negatives,
        "alpha": alpha,
        "min_alpha": 0.0001,
        "words_before": 1000,
        "words_total": 9000,
        "seed": seed * 0x9E3779B97F4A7C15 % 2**63,
        "epoch": 3,
        "first_position": first_position,
        "sync_every": sync_every,
    }
    return tables, rest, options


def copies(tensors, dtype=None, device=None):
    """Same values and strides, so that a row-strided table stays one."""

    def copy(t):
        if t is None:
            return None
        like = torch.empty_strided(t.shape, t.stride(), dtype=dtype or t.dtype, device=device)
        return like.copy_(t)

    return [copy(t) for t in tensors]


def pairs_problem(
    *, vocabulary=19, outputs=31, dim=16, count=60, negative=4, strided=False, seed=1
):
    g = torch.Generator().manual_seed(seed)
    input_table = random_tables(vocabulary, dim, tree=False, strided=strided, generator=g)[0]
    output_table = random_tables(outputs, dim, tree=False, strided=strided, generator=g)[1]
    centers = torch.randint(vocabulary, (count,), generator=g).sort().values
    centers[count // 2 :] = centers[count // 2 :].flip(0)
    contexts = torch.randint(min(outputs, 6), (count,), generator=g)
    negatives = torch.randint(-1, min(outputs, 9), (count, negative), generator=g)
    return (input_table, output_table), (centers, contexts, negatives)


def call(tables, rest, options, **more):
    """ops.skipgram on what problem makes."""
    tokens, offsets, keep, alias, path_offsets, path_nodes, path_codes = rest
    return ops.skipgram(
        tables[0], tables[1], tokens, offsets, tree_table=tables[2], keep=keep, alias=alias,
        path_offsets=path_offsets, path_nodes=path_nodes, path_codes=path_codes,
        **{"num_threads": 1, **options, **more},
    )  # fmt: skip
