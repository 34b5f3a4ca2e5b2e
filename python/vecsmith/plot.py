"""A map of words: their vectors in two dimensions, with labels that can be read."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from vecsmith.io import atomic_file

# Function words of English: they are the most frequent ones, and say little about the others.
_STOP_TEXT = """
a about above after again against all also although always am among an and another any are
around as at b be because been before being below between both but by c can cannot could d did
do does doing don done down during e each either else ever every few first for from further g
get given gives go h had has have having he hence her here hers him his how however i if in into
is it its itself j just k l less let like ll m made make makes many may me might more most much
must my n neither no nor not now o of off often on once one only onto or other others our out
over own p per perhaps q r rather s same see several shall she should since so some still such t
take than that the their them then there therefore these they this those three through thus to
too two u under until up upon us use used uses using v very via w was we well were what when
where whether which while who whom whose why will with within without would x y yet you your z
"""
_STOP_WORDS = frozenset(_STOP_TEXT.split())

_PAPER = "#fbfaf7"
_INK = "#33322e"
_FAINT = "#8d8a82"
# Muted hues of similar weight: (dot, label). Labels are darker, to be read.
_COLORS = (
    ("#5b7fa6", "#2f4c6b"),
    ("#c17f59", "#7d4526"),
    ("#6f9a6b", "#37592f"),
    ("#a5688f", "#6a3558"),
    ("#b59a4c", "#6b5716"),
    ("#5fa3a0", "#285f5c"),
    ("#b4605c", "#7c2b29"),
    ("#8377b0", "#4a3f77"),
    ("#8a8578", "#4f4b41"),
    ("#7fa253", "#475f23"),
)
_DPI = 150
_FONTS = (
    "DejaVu Sans",
    "Noto Sans",
    "Noto Sans CJK JP",
    "Noto Sans CJK SC",
    "Arial Unicode MS",
    "WenQuanYi Zen Hei",
    "Noto Emoji",
)


@dataclass(frozen=True)
class WordMap:
    """What :func:`word_map` has drawn.

    Attributes:
        words: the words, each with a dot.
        positions: [N, 2], their places before scaling to the page.
        clusters: [N], which color.
        boxes: the labels' boxes (left, bottom, right, top) in pixels by word; a word whose label
            found no room is not in it.
    """

    words: list[str]
    positions: np.ndarray
    clusters: np.ndarray
    boxes: dict[str, tuple[float, float, float, float]]


def word_map(
    keyed_vectors: Any,
    path: str | os.PathLike[str],
    words: Sequence[str] | None = None,
    topn: int = 200,
    method: str = "tsne",
    title: str | None = None,
    seed: int = 0,
    size: tuple[float, float] | None = None,
    skip_stop_words: bool = True,
) -> WordMap:
    """Draw a PNG map of words: near words have near vectors, colors are clusters.

    The unit vectors are projected to two dimensions, by their principal components (``"pca"``) or
    by t-SNE (van der Maaten and Hinton 2008), and grouped by k-means, for the colors. Labels never
    overlap: each is tried at places around its dot, the most frequent word first, and left out
    where there is no room; its dot stays. The same input gives the same picture. Nothing of
    matplotlib's global state (backend, figures, rcParams) is used or changed.

    Args:
        keyed_vectors: a :class:`vecsmith.KeyedVectors`.
        path: the picture, ``.png``; written atomically.
        words: the words to draw; the ``topn`` most frequent ones if None.
        topn: how many.
        method: "pca" or "tsne".
        title: over the map; a plain one if None, no title if empty.
        seed: of t-SNE and k-means.
        size: (width, height) in inches at 150 dots per inch; by the number of words if None.
        skip_stop_words: leave out English function words, single letters and what has no letter in
            it. Only where ``words`` is None.

    Returns:
        What was drawn.

    Raises:
        ImportError: if matplotlib or scikit-learn is missing.
        KeyError: if one of ``words`` is unknown.
        ValueError: for another method or suffix, or fewer than three words to draw.
        OSError: if the file cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise ValueError(f"expected a path that ends in .png, got {path}")
    if method not in ("pca", "tsne"):
        raise ValueError(f"expected the method 'pca' or 'tsne', got {method!r}")
    if topn < 3:
        raise ValueError(f"expected topn >= 3, got {topn}")
    if size is not None and not (len(size) == 2 and all(1 <= side <= 100 for side in size)):
        raise ValueError(f"expected a size of 1 to 100 inches, got {size}")
    _require()
    chosen = words is None
    if words is None:
        words = _frequent(keyed_vectors, topn, skip_stop_words)
        if len(words) < 3 and skip_stop_words:
            words = _frequent(keyed_vectors, topn, False)
    words = list(dict.fromkeys(words))
    if len(words) < 3:
        raise ValueError(f"expected at least three words to draw, got {len(words)}")
    rows = torch.tensor([keyed_vectors.get_index(word) for word in words])
    vectors = keyed_vectors.weight.detach()[rows].double()
    norms = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
    units = vectors / torch.where(norms > 0, norms, 1.0)
    if not bool(torch.isfinite(units).all()):
        raise ValueError("expected finite vectors, got nan or infinity")
    positions = _project(units, method, seed)
    clusters = _cluster(units, seed)
    if title is None:
        title = f"The {len(words)} most frequent words" if chosen else f"{len(words)} words"
    name = {"pca": "principal components", "tsne": "t-SNE"}[method]
    legend = f"{name} of their {vectors.shape[1]}-dimensional vectors; colors by k-means"
    return _draw(path, words, positions, clusters, title, legend, size)


def _require() -> None:
    try:
        import matplotlib  # noqa: F401
        import sklearn  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"drawing a map needs the package {error.name}: pip install 'vecsmith[plot]'"
        ) from None


def _frequent(keyed_vectors: Any, topn: int, skip: bool) -> list[str]:
    words = keyed_vectors.index_to_key
    counts = keyed_vectors.expandos.get("count")
    order = range(len(words)) if counts is None else np.argsort(-counts, kind="stable").tolist()
    chosen: list[str] = []
    for row in order:
        word = words[row]
        letters = re.sub(r"[\W\d_]", "", word)
        if skip and (word.lower() in _STOP_WORDS or not letters or _lone_letter(word)):
            continue
        chosen.append(word)
        if len(chosen) == topn:
            break
    return chosen


def _lone_letter(word: str) -> bool:
    # One letter says nothing in an alphabet, but is a word in Chinese.
    return len(word) == 1 and word.isascii()


def _project(units: torch.Tensor, method: str, seed: int) -> np.ndarray:
    """[N, 2] from unit vectors [N, D]."""
    centered = units - units.mean(dim=0)
    components = min(50, *centered.shape)
    _, values, axes = torch.linalg.svd(centered, full_matrices=False)
    # The sign of an axis is arbitrary: make its greatest entry positive.
    greatest = axes.abs().argmax(dim=1)
    axes = axes * torch.sign(axes[torch.arange(len(axes)), greatest])[:, None]
    coordinates = centered @ axes.T
    flat = torch.zeros(len(units), 2, dtype=units.dtype)
    flat[:, : min(2, coordinates.shape[1])] = coordinates[:, :2]
    spread = float(values[0]) if len(values) else 0.0
    if method == "pca" or spread == 0.0:
        return flat.numpy()
    from sklearn.manifold import TSNE

    start = flat / flat[:, 0].std().clamp_min(1e-12) * 1e-4  # as scikit-learn's init="pca"
    exact = len(units) <= 800  # Barnes-Hut sums in the order of its threads
    model = TSNE(
        n_components=2,
        init=cast("Any", start.numpy().astype(np.float32)),  # its stubs know strings only
        perplexity=max(1.0, min(20.0, (len(units) - 1) / 3)),
        method="exact" if exact else "barnes_hut",
        random_state=seed,
    )
    return np.asarray(model.fit_transform(coordinates[:, :components].numpy()), dtype=np.float64)


def _cluster(units: torch.Tensor, seed: int) -> np.ndarray:
    """[N]: k-means clusters, the largest first."""
    distinct = len(torch.unique(units, dim=0))
    number = min(len(_COLORS), distinct, max(2, round((len(units) / 4) ** 0.5)))
    from sklearn.cluster import KMeans

    labels = KMeans(number, n_init=cast("Any", 10), random_state=seed).fit_predict(units.numpy())
    sizes = np.bincount(labels, minlength=number)
    rank = np.empty(number, dtype=np.int64)
    rank[np.argsort(-sizes, kind="stable")] = np.arange(number)
    return rank[labels]


def _draw(
    path: Path,
    words: list[str],
    positions: np.ndarray,
    clusters: np.ndarray,
    title: str,
    legend: str,
    size: tuple[float, float] | None,
) -> WordMap:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.font_manager import FontProperties, fontManager
    from matplotlib.patches import Circle

    if size is None:
        side = float(np.clip(3.2 + 0.42 * len(words) ** 0.5, 4.5, 26.0))
        size = (side * 1.18, side)
    installed = {font.name for font in fontManager.ttflist}
    families = [family for family in _FONTS if family in installed] or ["sans-serif"]
    figure = Figure(figsize=size, dpi=_DPI, facecolor=_PAPER)
    canvas = FigureCanvasAgg(figure)
    renderer = canvas.get_renderer()
    width, height = (side * _DPI for side in size)
    point = _DPI / 72  # pixels

    def text(x: float, y: float, what: str, points: float, color: str, **more: Any) -> Any:
        # Words may hold dollar signs and anything else: no mathtext, no TeX.
        return figure.text(
            x / width,
            y / height,
            what,
            fontproperties=FontProperties(family=families, size=points),
            color=color,
            parse_math=False,
            usetex=False,
            **more,
        )

    margin = 22 * point
    head = 46 * point if title else margin
    if title:
        text(margin, height - 18 * point, _shorten(title, 90), 14, _INK, va="center", ha="left")
        text(margin, height - 34 * point, legend, 8, _FAINT, va="center", ha="left")
    dots = _to_page(
        positions, (margin + 18 * point, margin, width - margin - 18 * point, height - head)
    )

    sizes = np.linspace(10.5, 7.0, len(words))  # the most frequent words are the largest
    radius = 2.1 * point
    for (x, y), cluster in zip(dots, clusters, strict=True):
        figure.add_artist(
            Circle((x, y), radius, transform=None, color=_COLORS[cluster][0], alpha=0.85, lw=0)
        )
    boxes: dict[str, tuple[float, float, float, float]] = {}
    page = (4 * point, 4 * point, width - 4 * point, height - head + 10 * point)
    space = _Space(page, dots, radius + 0.6 * point)
    with warnings.catch_warnings():
        # A glyph that no installed font has is drawn as a box.
        warnings.filterwarnings("ignore", message=".*[Gg]lyph .* missing from .*font")
        for row, word in enumerate(words):
            label = _shorten(word)
            artist = text(
                0, 0, label, sizes[row], _COLORS[clusters[row]][1], va="bottom", ha="left"
            )
            extent = artist.get_window_extent(renderer)
            place = space.place(row, float(extent.width), float(extent.height), point)
            if place is None:
                artist.remove()
                continue
            left, bottom, far = place
            artist.set_position((left / width, bottom / height))
            boxes[word] = (left, bottom, left + float(extent.width), bottom + float(extent.height))
            if far:
                _leader(figure, dots[row], boxes[word], _COLORS[clusters[row]][0], point)
        with atomic_file(path) as file:
            # No version in the file: the same picture is the same bytes.
            figure.savefig(file, format="png", dpi=_DPI, metadata={"Software": None})
    return WordMap(words, positions, clusters, boxes)


def _to_page(positions: np.ndarray, page: tuple[float, float, float, float]) -> np.ndarray:
    """Pixels [N, 2] inside (left, bottom, right, top)."""
    low, high = positions.min(axis=0), positions.max(axis=0)
    span = np.where(high > low, high - low, 1.0)
    scaled = np.where(high > low, (positions - low) / span, 0.5)
    corner = np.array(page[:2])
    return corner + scaled * (np.array(page[2:]) - corner)


def _shorten(text: str, most: int = 24) -> str:
    shown = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
    return shown if len(shown) <= most else shown[: most - 1] + "…"


def _leader(figure: Any, dot: np.ndarray, box: Sequence[float], color: str, point: float) -> None:
    """A thin line from a dot to a label that is not beside it."""
    from matplotlib.lines import Line2D

    x = float(np.clip(dot[0], box[0], box[2]))
    y = float(np.clip(dot[1], box[1] + point, box[3] - point))
    figure.add_artist(
        Line2D([dot[0], x], [dot[1], y], transform=None, color=color, lw=0.5, alpha=0.6, zorder=0)
    )


class _Space:
    """What is taken on the page: the dots, and the labels that were placed."""

    def __init__(
        self, page: tuple[float, float, float, float], dots: np.ndarray, radius: float
    ) -> None:
        self.page = page
        self.dots = dots
        self.radius = radius
        self.taken = np.empty((0, 4))

    def free(self, row: int, box: tuple[float, float, float, float], gap: float) -> bool:
        left, bottom, right, top = box
        if (
            left < self.page[0]
            or bottom < self.page[1]
            or right > self.page[2]
            or top > self.page[3]
        ):
            return False
        taken = self.taken
        if np.any(
            (left < taken[:, 2] + gap)
            & (right > taken[:, 0] - gap)
            & (bottom < taken[:, 3])
            & (top > taken[:, 1])
        ):
            return False
        near = (
            (self.dots[:, 0] > left - self.radius)
            & (self.dots[:, 0] < right + self.radius)
            & (self.dots[:, 1] > bottom - self.radius)
            & (self.dots[:, 1] < top + self.radius)
        )
        near[row] = False
        return not near.any()

    def place(
        self, row: int, width: float, height: float, point: float
    ) -> tuple[float, float, bool] | None:
        """(left, bottom, is it far from its dot) of a label, or None where there is no room."""
        x, y = self.dots[row].tolist()
        for distance in (3.4, 8.0, 14.0, 21.0):
            d = distance * point
            # Right, left, above, below, then the corners.
            for horizontal, vertical in (
                (1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1)
            ):  # fmt: skip
                diagonal = 0.75 if horizontal and vertical else 1.0
                left = x + diagonal * d * horizontal - width * (1 - horizontal) / 2
                bottom = y + diagonal * d * vertical - height * (1 - vertical) / 2
                box = (left, bottom, left + width, bottom + height)
                if self.free(row, box, 2 * point):
                    self.taken = np.vstack((self.taken, box))
                    return left, bottom, distance > 5
        return None
