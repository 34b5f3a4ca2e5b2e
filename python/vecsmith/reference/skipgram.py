"""word2vec's training step, in plain PyTorch: skip-gram and CBOW, negative sampling and
hierarchical softmax, with every random draw a pure function of (seed, epoch, position).

The model (Mikolov et al. 2013a, 2013b)
---------------------------------------
Input rows x_c = ``input_table[c]`` and output rows o_t. The output rows of a center word w are

* negative sampling: w itself with label 1, and K negatives with label 0 (rows of ``output_table``);
* hierarchical softmax: the inner nodes on w's path through the Huffman tree, with label
  1 - code (rows of ``tree_table``).

One *step* has inputs h_1..h_m and outputs o_1..o_n with labels y_j:

    loss = - sum_ij [ y_j log s(h_i . o_j) + (1 - y_j) log s(-h_i . o_j) ],  s(z) = 1/(1+exp(-z))
    g_ij = alpha * (y_j - s(h_i . o_j))
    o_j += sum_i g_ij h_i        h_i += sum_j g_ij o_j      (right sides: values before the step)

* skip-gram, ``shared_negatives="window"``: one step per center; the h_i are the rows of all the
  words in its window, and all share one set of negatives (Ji et al. 2016, "Parallelizing word2vec
  in shared and distributed memory"). Hierarchical softmax is one such step too.
* skip-gram, ``shared_negatives="pair"``: one step per (context, center), each with its own
  negatives: word2vec's own rule. The steps of a center are a *group*: their g_ij are taken at the
  values before the first of them, then their updates are applied in order.
* CBOW: one step per center with a single h. ``cbow_mean``: h = mean of the window's rows, and each
  of these rows receives the whole update of h. Otherwise h = their sum and each receives 1/m of it.
  Both are what word2vec and gensim do (Irsoy et al. 2021 discuss the choice).

As in word2vec.c, the *context* words are the inputs and the *center* is the positive output. With
both negative sampling and hierarchical softmax, the tree's step comes first.

``sync_every`` = 0: one group after another (a step that is in no group is one of its own).
``sync_every`` = n > 0: local SGD (Stich 2019), which is what deterministic mode trains. The
sentences of the call are cut into four shards: shard s begins with the first sentence that starts
at or after token s/4 of the call. Round by round, each shard trains its next n centers one group
after another, from the tables as they were at the beginning of the round. Then every row r is
merged from the values r_s of the A shards whose steps it was part of:

    r += w sum_s (r_s - r),   w = (1 + (A - 1) / (1 + n / 64)) / A

with n the number of times that a step of one of the A shards met r, on average. That is the whole
change of a row that only one shard met. Where several did, it is the sum of their changes for rows
that changed little (as lock-free workers would have changed them), and comes close to their mean
for those that changed often: changes that all led to the same optimum overshoot it when they are
added up. Within a step a row counts once, except among the inputs of CBOW. All four shards are
there for any number of workers.

Positions, windows, sub-sampling, rate
--------------------------------------
Token i of ``tokens`` has position p = first_position + i. A token w survives sub-sampling if
u < keep[w]. Windows are taken over the survivors of a sentence: r = ``window``, or
1 + floor(window*u) when ``shrink_windows``; the contexts of survivor k are survivors k-r .. k+r of
its sentence except k. The rate falls linearly over the words seen: alpha(p) = alpha +
(min_alpha - alpha) * (words_before + p) / words_total, not below min(alpha, min_alpha).

Random draws
------------
SplitMix64 (Steele, Lea, Flood 2014) as a counter-based generator:

    mix(z):  z ^= z >> 30; z *= 0xBF58476D1CE4E5B9;
             z ^= z >> 27; z *= 0x94D049BB133111EB; z ^= z >> 31
    key(stream)  = mix(mix(mix(seed + G) + epoch + G) + stream + G),   G = 0x9E3779B97F4A7C15
    draw(stream, n) = mix(key(stream) + (n + 1) * G)                   (all modulo 2^64)

    sub-sampling  stream 0, n = p                      u = (bits >> 40) * 2^-24
    window        stream 1, n = p                      r = 1 + ((bits >> 32) * window >> 32)
    negative k    stream 2, n = (p*slots + slot)*K + k i = (bits >> 32) * V >> 32, and of i and
                  alias[i,1], by the alias table       (Walker 1977), i where
                                                       (bits & (2^32-1)) >> 1 < alias[i,0]

``slots`` = 1, slot = 0 for window-shared negatives and CBOW; slots = 2*window+1,
slot = (context index - center index) + window for "pair". A negative that equals its positive is
drawn again with bits <- mix(bits + G), up to 32 times; then the slot stays empty.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

GOLDEN = 0x9E3779B97F4A7C15
STREAM_SUBSAMPLE, STREAM_WINDOW, STREAM_NEGATIVE = 0, 1, 2
REDRAWS = 32
SHARDS = 4
SETTLED = 64  # changes of a row in a round, between few and many


def _signed(value: int) -> int:
    """The int64 with the bits of ``value`` modulo 2^64 (torch has no uint64 arithmetic)."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value


def _shift_right(z: Tensor, bits: int) -> Tensor:
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def mix(z: Tensor) -> Tensor:
    """SplitMix64's finalizer, elementwise on int64 taken as uint64. z: any shape, int64."""
    z = (z ^ _shift_right(z, 30)) * _signed(0xBF58476D1CE4E5B9)
    z = (z ^ _shift_right(z, 27)) * _signed(0x94D049BB133111EB)
    return z ^ _shift_right(z, 31)


def stream_key(seed: int, epoch: int, stream: int) -> int:
    """key(stream) of the module docstring, as a Python int in [-2^63, 2^63)."""
    key = torch.tensor(_signed(seed + GOLDEN))
    key = mix(mix(key) + _signed(epoch + GOLDEN))
    return int(mix(key + _signed(stream + GOLDEN)))


def draw(key: int, counter: Tensor) -> Tensor:
    """64 random bits for each counter. counter: int64, any shape -> int64 of that shape."""
    return mix(key + (counter + 1) * _signed(GOLDEN))


def uniform(bits: Tensor) -> Tensor:
    """[0, 1) in steps of 2^-24, as float32."""
    return _shift_right(bits, 40).to(torch.float32) * 2.0**-24


def below(bits: Tensor, n: int) -> Tensor:
    """An integer in 0..n-1 (n <= 2^31) from the high 32 bits."""
    return _shift_right(_shift_right(bits, 32) * n, 32)


def keep_mask(
    tokens: Tensor, positions: Tensor, keep: Tensor | None, seed: int, epoch: int
) -> Tensor:
    """Which tokens survive sub-sampling. tokens, positions: [N] -> bool [N]."""
    if keep is None:
        return torch.ones_like(tokens, dtype=torch.bool)
    bits = draw(stream_key(seed, epoch, STREAM_SUBSAMPLE), positions)
    return uniform(bits) < keep[tokens.long()]


def window_sizes(positions: Tensor, window: int, shrink: bool, seed: int, epoch: int) -> Tensor:
    """The reduced window r of each center. positions: [N] -> int64 [N]."""
    if not shrink:
        return torch.full_like(positions, window)
    return 1 + below(draw(stream_key(seed, epoch, STREAM_WINDOW), positions), window)


def negatives_for(
    positive: Tensor, counter: Tensor, negative: int, alias: Tensor, seed: int, epoch: int
) -> Tensor:
    """K negatives per positive, never equal to it; -1 where 32 further draws did not help.

    positive: [N] int64; counter: [N] int64, p*slots + slot; alias: [V, 2] int32
    (threshold in 0..2^31-1, alias) -> [N, K] int64
    """
    steps = torch.arange(negative, device=positive.device)
    bits = draw(stream_key(seed, epoch, STREAM_NEGATIVE), counter[:, None] * negative + steps)
    chosen = torch.full_like(bits, -1)
    for _ in range(REDRAWS + 1):
        index = below(bits, alias.shape[0])
        threshold, other = alias[index].long().unbind(-1)
        word = torch.where((bits & 0xFFFFFFFF) >> 1 < threshold, index, other)
        chosen = torch.where((chosen < 0) & (word != positive[:, None]), word, chosen)
        if bool((chosen >= 0).all()):
            break
        bits = mix(bits + _signed(GOLDEN))
    return chosen


class _Step(NamedTuple):
    """One step: rows of the input table against rows of another."""

    rows: Tensor  # [m] of the input table
    table: int  # the index of the other among the trainer's tables
    words: Tensor  # [n] of it
    labels: Tensor  # [n]
    alpha: float


_Group = list[_Step]  # steps whose gradients are taken together
_INPUT, _OUTPUT, _TREE = range(3)


class _Trainer:
    """Trains tables [input, output, tree] in place, group by group."""

    def __init__(self, tables: list[Tensor | None], cbow: bool = False, cbow_mean: bool = False):
        self.tables, self.cbow, self.cbow_mean = tables, cbow, cbow_mean
        self.loss, self.terms = 0.0, 0

    def _rows(self, table: int, rows: Tensor) -> Tensor:
        values = self.tables[table]
        assert values is not None  # for the type checker
        return values[rows]

    def _add(self, table: int, rows: Tensor, update: Tensor) -> None:
        values = self.tables[table]
        assert values is not None
        values.index_add_(0, rows, update)

    def _inputs(self, step: _Step) -> Tensor:
        x = self._rows(_INPUT, step.rows)
        if not self.cbow:
            return x
        return x.mean(0, keepdim=True) if self.cbow_mean else x.sum(0, keepdim=True)

    def _gradient(self, step: _Step) -> Tensor:
        """g [m, n]; its loss is counted."""
        score = self._inputs(step) @ self._rows(step.table, step.words).T
        labels = step.labels.to(score.dtype)
        sign = (2 * labels - 1).double()
        self.loss += float(torch.nn.functional.softplus(-sign * score.double()).sum())
        self.terms += score.numel()
        return step.alpha * (labels - torch.sigmoid(score))

    def _update(self, step: _Step, gradient: Tensor) -> None:
        h, o = self._inputs(step), self._rows(step.table, step.words)
        dh = gradient @ o
        if self.cbow:
            m = step.rows.numel()
            dh = (dh if self.cbow_mean else dh / m).expand(m, -1)
        self._add(_INPUT, step.rows, dh)
        self._add(step.table, step.words, gradient.T @ h)

    def train(self, group: _Group) -> None:
        gradients = [self._gradient(step) for step in group]
        for step, gradient in zip(group, gradients, strict=True):
            self._update(step, gradient)

    def result(self) -> Tensor:
        return torch.tensor([self.loss, self.terms], dtype=torch.float64)


def _train(
    trainer: _Trainer,
    centers: Callable[[range], Iterator[list[_Group]]],
    bounds: list[int],
    sync_every: int,
) -> Tensor:
    """Trains the sentences or pairs bounds[0] .. bounds[-1], if ``sync_every`` in shards
    bounds[s] .. bounds[s + 1]; returns the result. centers: the groups of each center of a range of
    them."""
    if sync_every:
        shards = [centers(range(a, b)) for a, b in itertools.pairwise(bounds)]
        _train_shards(trainer, shards, sync_every)
    else:
        for group in itertools.chain.from_iterable(centers(range(bounds[0], bounds[-1]))):
            trainer.train(group)
    return trainer.result()


def _train_shards(trainer: _Trainer, shards: list[Iterator[list[_Group]]], sync_every: int) -> None:
    """Local SGD. shards: of each, an iterator over the groups of its centers."""
    shared = trainer.tables
    while True:
        rounds = [list(itertools.islice(shard, sync_every)) for shard in shards]
        if not any(rounds):
            return
        own, met = [], []
        for centers in rounds:
            trainer.tables = [None if t is None else t.clone() for t in shared]
            times = [
                torch.zeros(0 if t is None else t.shape[0], dtype=torch.float64) for t in shared
            ]
            for group in itertools.chain.from_iterable(centers):
                trainer.train(group)
                for step in group:
                    inputs = step.rows if trainer.cbow else step.rows.unique()
                    for t, rows in ((_INPUT, inputs), (step.table, step.words.unique())):
                        times[t].index_add_(0, rows.cpu(), torch.ones(rows.numel()).double())
            own.append(trainer.tables)
            met.append(times)
        trainer.tables = shared
        for t, table in enumerate(shared):
            if table is None:
                continue
            times = torch.stack([counts[t] for counts in met])
            meeting = (times > 0).sum(0).clamp(min=1)
            weight = (1 + (meeting - 1) / (1 + times.sum(0) / meeting / SETTLED)) / meeting
            change = sum(tables[t] - table for tables in own)
            table += weight.to(table)[:, None] * change


def _text_centers(
    sentences: range,
    tokens: Tensor,
    offsets: Tensor,
    keep: Tensor | None,
    alias: Tensor | None,
    paths: tuple[Tensor, Tensor, Tensor] | None,
    rate: Callable[[int], float],
    *,
    window: int,
    negative: int,
    shrink_windows: bool,
    pairwise: bool,
    seed: int,
    epoch: int,
    first_position: int,
) -> Iterator[list[_Group]]:
    """The groups of each center of the sentences that has a window."""
    for s in sentences:
        first, last = int(offsets[s]), int(offsets[s + 1])
        positions = first_position + torch.arange(first, last, device=tokens.device)
        sentence = tokens[first:last]
        survives = keep_mask(sentence, positions, keep, seed, epoch)
        sentence, positions = sentence[survives].long(), positions[survives]
        reach = window_sizes(positions, window, shrink_windows, seed, epoch).tolist()
        for k in range(sentence.numel()):
            p, r = int(positions[k]), reach[k]
            around = [j for j in range(max(0, k - r), min(sentence.numel(), k + r + 1)) if j != k]
            if not around:
                continue
            contexts, center = sentence[around], sentence[k]
            groups: list[_Group] = []
            if paths is not None:
                path_offsets, path_nodes, path_codes = paths
                path = slice(int(path_offsets[center]), int(path_offsets[center + 1]))
                nodes, labels = path_nodes[path].long(), 1 - path_codes[path].float()
                if nodes.numel():
                    groups.append([_Step(contexts, _TREE, nodes, labels, rate(p))])
            if negative:
                assert alias is not None  # for the type checker
                at = torch.tensor([p], device=tokens.device)
                if pairwise:
                    slots = torch.tensor(around, device=tokens.device) - k + window
                    at = at * (2 * window + 1) + slots
                positive = center.expand(at.numel())
                drawn = negatives_for(positive, at, negative, alias, seed, epoch)
                groups.append(
                    [
                        _with_negatives(
                            contexts[i : i + 1] if pairwise else contexts, center, row, rate(p)
                        )
                        for i, row in enumerate(drawn)
                    ]
                )
            yield groups


def _with_negatives(rows: Tensor, positive: Tensor, negatives: Tensor, alpha: float) -> _Step:
    """The step of a positive and those of its negatives that are there and differ from it."""
    negatives = negatives[(negatives >= 0) & (negatives != positive)]
    words = torch.cat([positive[None], negatives])
    labels = torch.zeros(words.numel(), device=words.device)
    labels[0] = 1
    return _Step(rows, _OUTPUT, words, labels, alpha)


def skipgram(
    input_table: Tensor,
    output_table: Tensor | None,
    tree_table: Tensor | None,
    tokens: Tensor,
    offsets: Tensor,
    keep: Tensor | None,
    alias: Tensor | None,
    path_offsets: Tensor | None,
    path_nodes: Tensor | None,
    path_codes: Tensor | None,
    *,
    window: int,
    negative: int,
    cbow: bool,
    cbow_mean: bool,
    shrink_windows: bool,
    shared_negatives: str,
    alpha: float,
    min_alpha: float,
    words_before: int,
    words_total: int,
    seed: int,
    epoch: int,
    first_position: int,
    sync_every: int,
) -> Tensor:
    """Train on a chunk of corpus, in place; see the module docstring for every formula.

    input_table [V, D]; output_table [V, D] (negative > 0) or None; tree_table [V-1, D]
    (hierarchical softmax) or None; tokens [N] int32; offsets [S+1] int64: sentence s is
    tokens[offsets[s]:offsets[s+1]]; keep [V] float32 or None; alias [V, 2] int32;
    path_offsets [V+1] int64, path_nodes [P] int32, path_codes [P] uint8: word w's path is
    path_nodes[path_offsets[w]:path_offsets[w+1]], root first.

    Returns float64 [2]: the summed loss and the number of (input, output) terms in it.
    """

    def rate(p: int) -> float:
        falling = alpha + (min_alpha - alpha) * ((words_before + p) / words_total)
        return max(falling, min(alpha, min_alpha))

    paths = None
    if tree_table is not None:
        assert path_offsets is not None  # for the type checker
        assert path_nodes is not None
        assert path_codes is not None
        paths = (path_offsets, path_nodes, path_codes)

    def centers(sentences: range) -> Iterator[list[_Group]]:
        return _text_centers(
            *(sentences, tokens, offsets, keep, alias, paths, rate),
            window=window,
            negative=negative,
            shrink_windows=shrink_windows,
            pairwise=shared_negatives == "pair" and not cbow,
            seed=seed,
            epoch=epoch,
            first_position=first_position,
        )

    trainer = _Trainer([input_table, output_table, tree_table], cbow, cbow_mean)
    start, size = int(offsets[0]), int(offsets[-1] - offsets[0])
    first = [
        int(torch.searchsorted(offsets[:-1], start + size * s // SHARDS)) for s in range(1, SHARDS)
    ]
    return _train(trainer, centers, [0, *first, offsets.numel() - 1], sync_every)


def skipgram_pairs(
    input_table: Tensor,
    output_table: Tensor,
    centers: Tensor,
    contexts: Tensor,
    negatives: Tensor,
    *,
    alpha: float,
    sync_every: int,
) -> Tensor:
    """The explicit form: one step per pair, in order, each with h = input_table[centers[i]], the
    positive output contexts[i] and the negative outputs negatives[i] (those that are -1 or equal
    the positive are left out). Each pair is a group of its own; ``sync_every`` as in the module
    docstring, in pairs.

    centers, contexts: [N] int64; negatives: [N, K] int64. Returns float64 [2]: loss, terms.
    """

    def groups(pairs: range) -> Iterator[list[_Group]]:
        for i in pairs:
            yield [[_with_negatives(centers[i : i + 1], contexts[i], negatives[i], alpha)]]

    trainer = _Trainer([input_table, output_table, None])
    bounds = [centers.numel() * s // SHARDS for s in range(SHARDS + 1)]
    return _train(trainer, groups, bounds, sync_every)
