"""Training rate against dimension, vocabulary and threads, on generated Zipf text: curves without a
knee that nothing explains. Writes JSON and docs/img/word2vec-curves.png."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import torch

from ._runner import RESULTS, ROOT, Check, finish, machine, parser, spread

DIMENSIONS = (16, 32, 48, 64, 96, 100, 128, 160, 200, 256, 300, 384, 512, 640, 768, 1024)
VOCABULARIES = (10_000, 30_000, 100_000, 300_000, 1_000_000)
SENTENCE = 1000
PICTURE = (ROOT / "docs" / "img" if ROOT else RESULTS) / "word2vec-curves.png"


class Text:
    """Generated text: word r of V with probability proportional to 1 / (r + 2.7) (Mandelbrot)."""

    def __init__(self, vocabulary: int, tokens: int) -> None:
        from vecsmith.data import Vocabulary

        generator = np.random.default_rng(1)
        weights = 1.0 / (np.arange(vocabulary) + 2.7)
        cumulative = np.cumsum(weights / weights.sum())
        drawn = np.searchsorted(cumulative, generator.random(tokens)).astype(np.int32)
        drawn = np.minimum(drawn, vocabulary - 1)
        self.tokens = torch.from_numpy(drawn)
        self.offsets = torch.arange(0, tokens + 1, SENTENCE)
        if int(self.offsets[-1]) != tokens:
            self.offsets = torch.cat([self.offsets, torch.tensor([tokens])])
        # Expected counts, of a text long enough that the rarest word is seen five times: what a
        # vocabulary cut at min_count 5 looks like.
        counts = np.maximum(np.round(weights / weights[-1] * 5), 1).astype(np.int64)
        words = Vocabulary([str(i) for i in range(vocabulary)], counts)
        self.keep = words.keep_probabilities(1e-4)
        self.alias = words.alias_table(0.75)
        self.rows = vocabulary


def tables(rows: int, dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Fresh input and output tables, as Word2Vec makes them."""
    from vecsmith import ops

    first, second = ops.empty_table(rows, dim), ops.empty_table(rows, dim)
    first.uniform_(-0.5 / dim, 0.5 / dim)
    second.zero_()
    return first, second


def rate(text: Text, dim: int, threads: int) -> float:
    """Raw words/s of one pass."""
    from vecsmith import ops

    first, second = tables(text.rows, dim)
    started = time.perf_counter()
    ops.skipgram(
        first,
        second,
        text.tokens,
        text.offsets,
        keep=text.keep,
        alias=text.alias,
        num_threads=threads,
        compute_loss=False,
    )
    seconds = time.perf_counter() - started
    if not torch.isfinite(first).all():
        raise RuntimeError(f"dim {dim}, {text.rows} words: the vectors are not finite")
    return text.tokens.numel() / seconds


def check() -> list[Check]:
    """The native kernel against the reference on a little of the same text."""
    from vecsmith import ops

    text, found = Text(1000, 300), []
    for dim in (16, 100):
        start = tables(text.rows, dim)
        start[1].uniform_(-0.1, 0.1)
        results = []
        for backend in ("native", "reference"):
            work = [table.clone() for table in start]
            ops.skipgram(
                *work,
                text.tokens,
                text.offsets,
                keep=text.keep,
                alias=text.alias,
                num_threads=1,
                backend=backend,
            )
            results.append(torch.cat(work))
        error = float((results[0] - results[1]).abs().max())
        scale = float((results[1] - torch.cat(list(start))).abs().max())
        what = f"dim {dim}: native differs from the reference by {error:.1e}, moved {scale:.1e}"
        found.append(Check(what, error <= 1e-4 * scale))
    return found


def draw(curves: dict[str, list[dict]], path: Path) -> None:
    """The three curves as one picture."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(13, 4), constrained_layout=True)
    for axis, (name, points) in zip(axes, curves.items(), strict=True):
        x = [point["x"] for point in points]
        y = [point["median"] / 1e6 for point in points]
        low = [point["min"] / 1e6 for point in points]
        high = [point["max"] / 1e6 for point in points]
        axis.fill_between(x, low, high, alpha=0.25)
        axis.plot(x, y, marker="o", markersize=4)
        if name != "threads":
            axis.set_xscale("log", base=2 if name == "dimension" else 10)
        else:
            axis.set_xticks(x)
        axis.set_xlabel(name)
        axis.set_ylabel("million raw words/s")
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main(arguments: list[str] | None = None) -> int:
    options = parser(__doc__, rounds=5, corpus=False)
    options.add_argument("--tokens", type=int, default=3_000_000, help="length of the text")
    options.add_argument("--no-picture", action="store_true")
    given = options.parse_args(arguments)
    checks = check()
    for one in checks:
        print(f"   {'agrees' if one.passed else 'DISAGREES'}: {one.what}")
    cases = [("dimension", d, 100_000, d, given.threads) for d in DIMENSIONS]
    cases += [("vocabulary", v, v, 100, given.threads) for v in VOCABULARIES]
    cases += [("threads", n, 100_000, 100, n) for n in range(1, given.threads + 1)]
    samples: dict[tuple[str, int], list[float]] = {(c[0], c[1]): [] for c in cases}
    texts = {rows: Text(rows, given.tokens) for rows in sorted({c[2] for c in cases})}
    for n in range(given.rounds):
        for name, x, rows, dim, threads in cases:
            samples[name, x].append(rate(texts[rows], dim, threads))
        print(f"   round {n + 1}/{given.rounds} done", flush=True)
    curves: dict[str, list[dict]] = {"dimension": [], "vocabulary": [], "threads": []}
    for (name, x), values in samples.items():
        curves[name].append({"x": x, **spread(values), "samples": values})
        print(f"   {name:<10} {x:>9,}  {spread(values)['median'] / 1e6:6.2f}M raw words/s")
    record: dict[str, object] = {
        "name": "word2vec_curves",
        "title": "word2vec training rate against dimension, vocabulary and threads",
        "unit": "raw words/s",
        "settings": {
            "tokens": given.tokens,
            "threads": given.threads,
            "vector_size": 100,
            "vocabulary": 100_000,
            "window": 5,
            "negative": 5,
            "sample": 1e-4,
        },
        "machine": machine(),
        "date": time.strftime("%Y-%m-%d"),
        "rounds": given.rounds,
        "agreement": [{"what": c.what, "passed": c.passed} for c in checks],
        "curves": curves,
    }
    if all(c.passed for c in checks):
        record["ratios"] = []
        if not given.no_picture and not given.no_write:
            draw(curves, PICTURE)
    return finish([record], given)


if __name__ == "__main__":
    sys.exit(main())
