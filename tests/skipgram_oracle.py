"""An oracle for the reference of `skipgram`: the same training with Python's integers and autograd,
sharing none of its code.
"""

from __future__ import annotations

import collections
import itertools
import math

import torch

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
