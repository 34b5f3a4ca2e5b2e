"""Item embeddings by a two-tower model with sampled softmax, through vecsmith's tables.

    python examples/two_tower.py                  # data made up on the spot, a minute
    python examples/two_tower.py FOLDER           # train.txt, valid.txt, test.txt (see README.md)

The user's tower takes the mean of the vectors of the items in the user's history (an EmbeddingBag)
plus a vector of the user's own (an Embedding); the item's tower takes the vector of the item. Both
end with x + W2 relu(W1 x) and a division by the length. The item that a user took is to score
higher than the other items of the batch and than items drawn by their frequency: sampled softmax,
corrected by how often an item is expected among the candidates (Bengio and Senecal 2008, "Adaptive
importance sampling to accelerate training of a neural probabilistic language model"; Yi et al.
2019, "Sampling-bias-corrected neural modeling for large corpus item recommendations").

The same model is trained twice, from the same numbers, on the same batches: with the layers of
vecsmith.nn, whose rows are updated in backward(), and with those of torch.nn, whose sparse
gradients torch.optim.SparseAdam takes. The two train in turn, a few batches each, and only their
steps are timed: not the drawing of the batches, nor the evaluation.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import json
import math
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import vecsmith
from vecsmith.optim import apply_optimizer_in_backward

LAYERS = {"vecsmith": vecsmith.nn, "torch": torch.nn}
BLOCK = 32  # batches that one framework trains on before it is the other's turn
LIMIT = 0.3  # points that the quality of ours may be under torch's


# --- data -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Interactions:
    """Who took what: user u took ``items[offsets[u]:offsets[u + 1]]``, each item once."""

    offsets: np.ndarray  # [users + 1]
    items: np.ndarray  # [N]

    @classmethod
    def from_pairs(cls, pairs: np.ndarray, num_users: int) -> Interactions:
        """Of pairs of a user and an item: [2, N]."""
        pairs = np.unique(pairs, axis=1)
        return cls(np.searchsorted(pairs[0], np.arange(num_users + 1)), pairs[1])

    @property
    def users(self) -> np.ndarray:
        """The user of each entry of ``items``: [N]."""
        return np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))

    def of(self, user: int) -> np.ndarray:
        return self.items[self.offsets[user] : self.offsets[user + 1]]


@dataclass(frozen=True)
class Data:
    """What is trained on, and what is to be recommended."""

    name: str
    num_users: int
    num_items: int
    train: Interactions
    test: Interactions


def read_pairs(folder: Path, split: str) -> np.ndarray:
    """The lines ``user item item ...`` of split.txt or split.txt.gz as pairs: [2, N]."""
    plain, packed = folder / f"{split}.txt", folder / f"{split}.txt.gz"
    if plain.is_file():
        text = plain.read_text()
    elif packed.is_file():
        text = gzip.decompress(packed.read_bytes()).decode()
    else:
        raise FileNotFoundError(f"expected {plain} or {packed.name} beside it")
    lines = [np.array(line.split(), dtype=np.int64) for line in text.splitlines() if line.strip()]
    users = np.repeat([line[0] for line in lines], [len(line) - 1 for line in lines])
    return np.stack([users, np.concatenate([line[1:] for line in lines])])


def read_data(folder: Path, split: str) -> Data:
    """A folder in LightGCN's format. For "test" the usual training set: train and valid, if any."""
    train, test = read_pairs(folder, "train"), read_pairs(folder, split)
    if split == "test" and any(folder.glob("valid.txt*")):
        train = np.concatenate([train, read_pairs(folder, "valid")], axis=1)
    num_users, num_items = (int(n) + 1 for n in np.maximum(train.max(axis=1), test.max(axis=1)))
    return Data(
        folder.name,
        num_users,
        num_items,
        Interactions.from_pairs(train, num_users),
        Interactions.from_pairs(test, num_users),
    )


def make_data(num_users: int, num_items: int, seed: int = 0) -> Data:
    """Users with two tastes out of many, and items of one, some of them popular (Zipf): of about
    thirty items that a user took, a fifth is to be recommended."""
    random = np.random.default_rng(seed)
    tastes = max(num_items // 50, 2)
    taste_of_item = random.integers(tastes, size=num_items)
    popularity = 1 / (1 + random.permutation(num_items)) ** 0.7
    users, items = [], []
    for user in range(num_users):
        liked = random.choice(tastes, size=2, replace=False)
        weight = popularity * (0.02 + np.isin(taste_of_item, liked))
        count = min(random.poisson(25) + 5, num_items // 4)
        taken = random.choice(num_items, size=count, replace=False, p=weight / weight.sum())
        users.append(np.full(count, user))
        items.append(taken)
    pairs = np.stack([np.concatenate(users), np.concatenate(items)])
    held_out = random.random(len(pairs[0])) < 0.2
    train = Interactions.from_pairs(pairs[:, ~held_out], num_users)
    test = Interactions.from_pairs(pairs[:, held_out], num_users)
    return Data("made up", num_users, num_items, train, test)


@dataclass(frozen=True)
class Batch:
    """B pairs of a user and an item, each with the other items of that user, and S negatives."""

    users: Tensor  # [B]
    history: Tensor  # the bags, one after the other
    offsets: Tensor  # [B + 1]: where they begin, and where the last one ends
    candidates: Tensor  # [B + S]: the items of the pairs, then the negatives


class Sampler:
    """Batches of the training set, a function of the seed."""

    def __init__(self, data: Data, options: argparse.Namespace, seed: int) -> None:
        self.train = data.train
        self.options = options
        self.random = np.random.default_rng(seed)
        share = np.bincount(data.train.items, minlength=data.num_items) / len(data.train.items)
        drawn = (share + 1 / len(data.train.items)) ** options.power
        drawn /= drawn.sum()
        self.cumulative = np.cumsum(drawn)
        expected = options.batch * share + options.negatives * drawn
        self.log_expected = torch.from_numpy(np.log(expected)).float()  # [V], of a batch

    def epoch(self) -> Iterator[Batch]:
        """Every pair once (what is left at the end of a batch's size is left out)."""
        train, size = self.train, self.options.batch
        shuffled = train.items[np.lexsort((self.random.random(len(train.items)), train.users))]
        places = self.random.permutation(len(train.items))
        users = train.users
        for start in range(0, len(places) - size + 1, size):
            chosen = places[start : start + size]
            yield self._batch(chosen, users[chosen], shuffled)

    def _batch(self, places: np.ndarray, users: np.ndarray, shuffled: np.ndarray) -> Batch:
        # The history is what follows the item in the user's shuffled list, around its end: never
        # the item itself, and another choice in each epoch.
        begin = self.train.offsets[users]
        degree = self.train.offsets[users + 1] - begin
        lengths = np.minimum(degree - 1, self.options.history)
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        step = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths) + 1
        around = np.repeat(places - begin, lengths) + step
        history = shuffled[np.repeat(begin, lengths) + around % np.repeat(degree, lengths)]
        drawn = self.random.random(self.options.negatives)
        negatives = np.searchsorted(self.cumulative[:-1], drawn)
        candidates = np.concatenate([shuffled[places], negatives])
        return Batch(*map(torch.from_numpy, (users, history, offsets, candidates)))


# --- the model ------------------------------------------------------------------------------------


class Tower(nn.Module):
    """x + W2 relu(W1 x + b1) + b2, divided by its length: [B, D] -> [B, D]."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        nn.init.zeros_(self.outer.weight)
        nn.init.zeros_(self.outer.bias)

    def forward(self, vectors: Tensor) -> Tensor:
        vectors = vectors + self.outer(self.inner(vectors).relu())
        return nn.functional.normalize(vectors, dim=1)


class TwoTower(nn.Module):
    """Vectors of users and items. ``layers`` is torch.nn or vecsmith.nn: nothing else differs."""

    def __init__(self, layers: Any, data: Data, options: argparse.Namespace) -> None:
        super().__init__()
        self.users = layers.Embedding(data.num_users, options.dim, sparse=True)
        self.items = layers.Embedding(data.num_items, options.dim, sparse=True)
        self.history = layers.EmbeddingBag(
            data.num_items, options.dim, mode="mean", sparse=True, include_last_offset=True
        )
        self.history.weight = self.items.weight  # one table, used in two ways
        for table in self.tables():
            nn.init.normal_(table, std=0.1)
        self.user_tower = Tower(options.dim, options.hidden)
        self.item_tower = Tower(options.dim, options.hidden)

    def tables(self) -> list[nn.Parameter]:
        """The large parameters, of which a batch touches few rows."""
        return [self.users.weight, self.items.weight]

    def towers(self) -> list[nn.Parameter]:
        """The small parameters, which every batch changes."""
        return [*self.user_tower.parameters(), *self.item_tower.parameters()]

    def user_vectors(self, users: Tensor, history: Tensor, offsets: Tensor) -> Tensor:
        return self.user_tower(self.history(history, offsets) + self.users(users))

    def item_vectors(self, items: Tensor) -> Tensor:
        return self.item_tower(self.items(items))


def sampled_softmax(
    users: Tensor, items: Tensor, candidates: Tensor, log_expected: Tensor, temperature: float
) -> Tensor:
    """-log p of the item of each user among all candidates, the mean over the batch.

    users [B, D], items [B + S, D] of candidates [B + S], of which the first B are the items of the
    users. Item j scores u . i_j / temperature - log E_j, with E_j how often j is expected among the
    candidates: so the sum over the candidates estimates the one over all items. Where a candidate
    is the user's item once more, it is not a negative of that user.
    """
    own = candidates[: len(users)]
    again = own[:, None] == candidates
    again.fill_diagonal_(False)
    scores = torch.addmm(-log_expected[candidates], users / temperature, items.T)
    with torch.no_grad():  # a score of -inf has no gradient anyway
        scores.masked_fill_(again, -math.inf)
    return nn.functional.cross_entropy(scores, torch.arange(len(users)))


class Trainer:
    """The model in one of the two frameworks, with its optimizers."""

    def __init__(self, name: str, data: Data, options: argparse.Namespace, seed: int) -> None:
        torch.manual_seed(seed)
        self.model = TwoTower(LAYERS[name], data, options)
        self.temperature = options.temperature
        self.losses: list[float] = []
        self.seconds: list[float] = []  # of each epoch
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.Adam(self.model.towers(), lr=options.tower_lr)
        ]
        tables, settings = self.model.tables(), {"lr": options.lr}
        if name == "vecsmith":  # backward() itself updates the rows
            apply_optimizer_in_backward(vecsmith.optim.SparseAdam, tables, settings)
        else:
            self.optimizers.append(torch.optim.SparseAdam(tables, **settings))

    def train(self, batches: list[Batch], log_expected: Tensor) -> float:
        """A step on each batch; returns the seconds that they took."""
        started = time.perf_counter()
        for batch in batches:
            users = self.model.user_vectors(batch.users, batch.history, batch.offsets)
            items = self.model.item_vectors(batch.candidates)
            loss = sampled_softmax(users, items, batch.candidates, log_expected, self.temperature)
            for optimizer in self.optimizers:
                optimizer.zero_grad()
            loss.backward()
            for optimizer in self.optimizers:
                optimizer.step()
            self.losses.append(loss.item())
        return time.perf_counter() - started


# --- evaluation -----------------------------------------------------------------------------------


@torch.no_grad()
def evaluate(model: TwoTower, data: Data, top: int = 20) -> dict[str, float]:
    """Recall and NDCG of the ``top`` items for each user who has some in the test set, in percent.

    All items compete but those of the training set. As LightGCN (He et al. 2020) computes them:
    recall is hits / the user's test items, the best DCG is that of min(top, test items) hits.
    """
    train, test = data.train, data.test
    items = model.item_vectors(torch.arange(data.num_items))
    discount = 1 / np.log2(np.arange(2, top + 2))
    best = np.cumsum(discount)
    recall, ndcg = [], []
    users = np.flatnonzero(np.diff(test.offsets))
    for start in range(0, len(users), 1024):
        part = users[start : start + 1024]
        known = [train.of(user) for user in part]
        offsets = np.concatenate([[0], np.cumsum([len(some) for some in known])])
        history = np.concatenate(known)
        vectors = model.user_vectors(*map(torch.from_numpy, (part, history, offsets)))
        scores = vectors @ items.T
        rows = torch.from_numpy(np.repeat(np.arange(len(part)), np.diff(offsets)))
        scores[rows, torch.from_numpy(history)] = -math.inf
        for user, found in zip(part, scores.topk(top).indices.numpy(), strict=True):
            wanted = test.of(user)
            hits = np.isin(found, wanted)
            recall.append(float(hits.sum() / len(wanted)))
            ndcg.append(float((hits * discount).sum() / best[min(top, len(wanted)) - 1]))
    return {
        f"Recall@{top}": 100 * statistics.fmean(recall),
        f"NDCG@{top}": 100 * statistics.fmean(ndcg),
    }


# --- both frameworks ------------------------------------------------------------------------------


def compare(data: Data, options: argparse.Namespace, seed: int) -> dict[str, dict[str, Any]]:
    """Trains both from one seed: for each its measures, first loss, and seconds of each epoch."""
    trainers = {name: Trainer(name, data, options, seed) for name in LAYERS}
    sampler = Sampler(data, options, seed)
    for epoch in range(1, options.epochs + 1):
        batches = sampler.epoch()
        spent = dict.fromkeys(trainers, 0.0)
        order = list(trainers)
        while some := list(itertools.islice(batches, BLOCK)):
            for name in order:
                spent[name] += trainers[name].train(some, sampler.log_expected)
            order.reverse()
        shown = []
        for name, trainer in trainers.items():
            trainer.seconds.append(spent[name])
            loss = statistics.mean(trainer.losses[-BLOCK:])
            shown.append(f"{name} loss {loss:.4f}, {spent[name]:.2f} s")
        print(f"   seed {seed}  epoch {epoch}/{options.epochs}  {'; '.join(shown)}", flush=True)
    return {
        name: {
            "measures": evaluate(trainer.model, data),
            "first_loss": trainer.losses[0],
            "seconds": trainer.seconds,
        }
        for name, trainer in trainers.items()
    }


def ratios(runs: list[dict[str, dict[str, Any]]]) -> list[float]:
    """How many times as fast vecsmith was, for each epoch."""
    pairs = [
        pair for run in runs for pair in zip(*(run[n]["seconds"] for n in LAYERS), strict=True)
    ]
    return [torch_seconds / ours for ours, torch_seconds in pairs]


def report(runs: list[dict[str, dict[str, Any]]]) -> str:
    """Quality and time of both as a small table, and the ratio of the times."""
    measures = list(runs[0]["torch"]["measures"])
    heads = [f"{measure}, %" for measure in measures] + ["training, s"]
    lines = [" " * 10 + "".join(f"{head:>26}" for head in heads)]
    for name in LAYERS:
        columns = [[run[name]["measures"][measure] for run in runs] for measure in measures]
        columns.append([sum(run[name]["seconds"]) for run in runs])
        cells = (f"{statistics.mean(v):.2f} ({min(v):.2f} .. {max(v):.2f})" for v in columns)
        lines.append(f"{name:<10}" + "".join(f"{cell:>26}" for cell in cells))
    times = ratios(runs)
    lines += [
        f"The mean of {len(runs)} seeds, and the range.",
        f"vecsmith trains {statistics.median(times):.2f} times as fast (the median of {len(times)} "
        f"epochs, which range from {min(times):.2f} to {max(times):.2f})",
    ]
    return "\n".join(lines)


def record(
    runs: list[dict[str, dict[str, Any]]], data: Data, options: argparse.Namespace
) -> dict[str, Any]:
    """The runs as a record of the benchmarks: bench/_runner.py says what is in it."""
    from bench._runner import Check, Ratio, judge, machine, spread

    measures = list(runs[0]["torch"]["measures"])
    losses = [[run[name]["first_loss"] for name in LAYERS] for run in runs]
    checks = [
        Check(
            "the first loss is the same for every seed",
            all(math.isclose(*pair, rel_tol=1e-5) for pair in losses),
        )
    ]
    scores: dict[str, dict[str, Any]] = {name: {} for name in LAYERS}
    for name, measure in itertools.product(LAYERS, measures):
        samples = [run[name]["measures"][measure] for run in runs]
        scores[name][measure] = {"mean": statistics.mean(samples), "samples": samples}
    differences = []
    for measure in measures:
        points = scores["vecsmith"][measure]["mean"] - scores["torch"][measure]["mean"]
        differences.append(
            {
                "what": f"vecsmith: {measure}, points over torch",
                "ours": "vecsmith",
                "other": "torch",
                "points": points,
                "bar": -LIMIT,
                "reached": points >= -LIMIT,
            }
        )
    seconds = {name: [s for run in runs for s in run[name]["seconds"]] for name in LAYERS}
    names = ("split", "epochs", "batch", "negatives", "history", "dim", "hidden", "temperature")
    return {
        "name": "two_tower",
        "title": f"two-tower model with sampled softmax on {data.name}, {len(runs)} seeds",
        "unit": "s/epoch",
        "higher_is_better": False,
        "settings": {
            "users": data.num_users,
            "items": data.num_items,
            "training pairs": len(data.train.items),
            **{name: getattr(options, name) for name in (*names, "power", "lr", "tower_lr")},
            "threads": torch.get_num_threads(),
            "seeds": len(runs),
        },
        "machine": machine(),
        "date": time.strftime("%Y-%m-%d"),
        "rounds": len(seconds["torch"]),
        "agreement": [{"what": check.what, "passed": check.passed} for check in checks],
        "entries": {name: {**spread(s), "samples": s} for name, s in seconds.items()},
        "scores": scores,
        "ratios": [
            judge(Ratio("training, vecsmith over torch", "vecsmith", "torch"), ratios(runs))
        ],
        "differences": differences,
    }


def read_options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("folder", type=Path, nargs="?", help="data (None: made up)")
    parser.add_argument("--split", choices=("valid", "test"), default="test", help="measured on")
    parser.add_argument("--seeds", type=int, default=2, help="how often both are trained")
    parser.add_argument("--epochs", type=int, default=10, help="over the training set")
    parser.add_argument("--batch", type=int, default=1024, help="pairs of a user and an item")
    parser.add_argument("--negatives", type=int, default=512, help="drawn for a whole batch")
    parser.add_argument("--power", type=float, default=0.75, help="of an item's frequency in them")
    parser.add_argument("--history", type=int, default=50, help="items of a bag, at most")
    parser.add_argument("--dim", type=int, default=64, help="of the vectors")
    parser.add_argument("--hidden", type=int, default=64, help="units of each tower")
    parser.add_argument("--temperature", type=float, default=0.1, help="divides the scores")
    parser.add_argument("--lr", type=float, default=0.01, help="of the tables")
    parser.add_argument("--tower-lr", type=float, default=0.001, help="of the towers")
    parser.add_argument("--users", type=int, default=4000, help="of made-up data")
    parser.add_argument("--items", type=int, default=2000, help="of made-up data")
    parser.add_argument(
        "--threads", type=int, default=torch.get_num_threads(), help="of both frameworks"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there")
    parser.add_argument(
        "--record",
        action="store_true",
        help="write them to bench/results (run as python -m examples.two_tower)",
    )
    options = parser.parse_args(arguments)
    for name, value in vars(options).items():
        if isinstance(value, (int, float)) and not isinstance(value, bool) and not value > 0:
            parser.error(f"expected --{name.replace('_', '-')} to be positive; got {value}")
    return options


def main(arguments: list[str] | None = None) -> int:
    options = read_options(arguments)
    torch.set_num_threads(options.threads)
    try:
        data = (
            make_data(options.users, options.items)
            if options.folder is None
            else read_data(options.folder, options.split)
        )
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    pairs = len(data.train.items)
    if pairs < options.batch:
        print(
            f"expected --batch of at most the {pairs} pairs; got {options.batch}", file=sys.stderr
        )
        return 2
    print(
        f"{data.name}: {data.num_users:,} users, {data.num_items:,} items, {pairs:,} pairs to "
        f"train on, {len(data.test.items):,} to recommend"
    )
    runs = [compare(data, options, seed) for seed in range(1, options.seeds + 1)]
    print(f"\n{report(runs)}")
    if options.json:
        options.json.write_text(json.dumps({"data": data.name, "runs": runs}, indent=1) + "\n")
    if options.record:
        from bench import _runner

        print(f"written: {_runner.write(record(runs, data, options))}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
