"""Pictures of low rank: the error of each rank, an image at several ranks, a cloud and its axes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vecsmith.io import atomic_file
from vecsmith.low_rank import approximate, rank_errors, smallest_rank
from vecsmith.plot import _COLORS, _DPI, _FAINT, _INK, _PAPER

__all__ = ["cloud_axes", "error_curve", "image_ranks"]


def error_curve(
    matrix: Any,
    path: str | os.PathLike[str],
    *,
    relative_error: float | None = 0.05,
    ranks: Sequence[int] = (),
    title: str | None = None,
) -> None:
    """Draw the relative error of the best approximation against its rank, on a logarithmic scale.

    Args:
        matrix: [m, n], or an image [H, W, C]; see :func:`vecsmith.low_rank.rank_errors`.
        path: the picture, ``.png``; written atomically.
        relative_error: mark the smallest rank within it; None: no mark.
        ranks: ranks that get a dot.
        title: over the picture; a plain one if None, no title if empty.

    Raises:
        ImportError: matplotlib is missing. TypeError, ValueError: as ``rank_errors``; another
            suffix; a rank that there is not.
    """
    path = _png(path)
    errors = rank_errors(matrix, relative=True)
    _check_ranks(ranks, len(errors) - 1)
    figure, axes = _page((6.4, 4.2), title if title is not None else "Error of each rank")
    color, dark = _COLORS[0]
    # What is below rounding is no error, and has no place on a logarithmic scale.
    shown = np.flatnonzero(errors > 1e-15)
    axes.plot(shown, errors[shown], color=color, lw=1.8)
    axes.set_yscale("log")
    axes.set_xlabel("rank r", color=_INK)
    axes.set_ylabel("|A - A_r| / |A|", color=_INK)
    for rank in ranks:
        if errors[rank] > 1e-15:
            axes.plot([rank], [errors[rank]], "o", color=dark, ms=4)
            axes.annotate(
                f"{rank}: {errors[rank]:.1%}", (rank, errors[rank]), xytext=(6, 4),
                textcoords="offset points", fontsize=8, color=dark,
                bbox={"facecolor": _PAPER, "edgecolor": "none", "pad": 0.6, "alpha": 0.85},
            )  # fmt: skip
    if relative_error is not None and relative_error > 0:
        rank = smallest_rank(matrix, relative_error)
        axes.axhline(relative_error, color=_COLORS[1][0], lw=0.9, ls="--")
        axes.axvline(rank, color=_COLORS[1][0], lw=0.9, ls="--")
        # Where the curve is not: it is above the line as far as that rank, and below it behind.
        low, high = axes.get_xlim()
        after = rank - low < 0.65 * (high - low)
        _make_room(axes, relative_error)
        axes.annotate(
            f"within {relative_error:.3g}: rank {rank}", (0.98 if after else 0.02, relative_error),
            xycoords=axes.get_yaxis_transform(), xytext=(0, 3 if after else -4),
            textcoords="offset points", ha="right" if after else "left",
            va="bottom" if after else "top", color=_COLORS[1][1], fontsize=8,
            bbox={"facecolor": _PAPER, "edgecolor": "none", "pad": 0.6, "alpha": 0.85},
        )  # fmt: skip
    _save(figure, path)


def _make_room(axes: Any, height: float) -> None:
    """A tenth of a logarithmic axis above and below that height, for words."""
    bottom, top = np.log(axes.get_ylim())
    line = np.log(height)
    bottom = min(bottom, (line - 0.1 * top) / 0.9)
    top = max(top, (line - 0.1 * bottom) / 0.9)
    axes.set_ylim(np.exp(bottom), np.exp(top))


def image_ranks(
    image: Any,
    ranks: Sequence[int],
    path: str | os.PathLike[str],
    *,
    original: bool = True,
    title: str | None = None,
) -> None:
    """Draw an image at several ranks, side by side, each with its error and how many times fewer
    numbers (or more) its factors are.

    Args:
        image: [H, W] in gray, or [H, W, 3] in color; the range of its numbers is black to white
            (integers of 8 bits: 0 to 255).
        ranks: 1 .. 12 of them, each in 0 .. min(H, W).
        path: the picture, ``.png``; written atomically.
        original: the image itself comes last.
        title: over the picture; none if None or empty.

    Raises:
        ImportError: matplotlib is missing. TypeError, ValueError: no such image, ranks or suffix.
    """
    path = _png(path)
    array = np.asarray(image)
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] != 3):
        raise ValueError(f"expected an image [H, W] or [H, W, 3]; got {list(array.shape)}")
    if not 1 <= len(ranks) <= 12:
        raise ValueError(f"expected 1 .. 12 ranks; got {len(ranks)}")
    _check_ranks(ranks, min(array.shape[:2]))
    low, high = (
        (0.0, 255.0) if array.dtype == np.uint8 else (float(array.min()), float(array.max()))
    )
    panels = []
    for rank in ranks:
        found = approximate(array, rank)
        label = f"rank {rank}\nerror {found.relative_error:.1%}"
        if rank:
            label += f", {_size(found.compression_ratio)}"
        panels.append((found.to_array(), label))
    if original:
        panels.append((array.astype(float), f"the image\n{array.shape[1]} x {array.shape[0]}"))
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = len(panels) if len(panels) <= 5 else 4 if len(panels) > 9 else -(-len(panels) // 2)
    rows = -(-len(panels) // columns)
    side = 2.2
    tall = side * float(np.clip(array.shape[0] / array.shape[1], 0.4, 2.5))
    head = 0.45 if title else 0.1
    size = (columns * (side + 0.15) + 0.15, rows * (tall + 0.55) + head)
    figure = Figure(figsize=size, dpi=_DPI, facecolor=_PAPER)
    FigureCanvasAgg(figure)
    for at, (panel, label) in enumerate(panels):
        row, column = divmod(at, columns)
        left = 0.15 + column * (side + 0.15)
        bottom = size[1] - head - (row + 1) * (tall + 0.55) + 0.5
        axes = figure.add_axes((left / size[0], bottom / size[1], side / size[0], tall / size[1]))
        scaled = np.clip((panel - low) / (high - low or 1.0), 0, 1)
        axes.imshow(scaled, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axes.set_axis_off()
        axes.text(
            0, -0.04, label, transform=axes.transAxes, va="top", fontsize=8, color=_INK,
            linespacing=1.3,
        )  # fmt: skip
    if title:
        figure.text(0.15 / size[0], 1 - 0.28 / size[1], title, fontsize=11, color=_INK, va="center")
    _save(figure, path)


def cloud_axes(
    points: Any, path: str | os.PathLike[str], *, title: str | None = None
) -> np.ndarray:
    """Draw points in the plane with their two principal axes, as long as two standard deviations.

    Args:
        points: [n, 2], n >= 2.
        path: the picture, ``.png``; written atomically.
        title: over the picture; a plain one if None, no title if empty.

    Returns:
        the axes [2, 2], a row each, the longer first.

    Raises:
        ImportError: matplotlib is missing. TypeError, ValueError: no such points or suffix.
    """
    from vecsmith.models.pca import PCA

    path = _png(path)
    points = np.asarray(points, dtype=np.float64)
    if points.ndim != 2 or points.shape[1] != 2 or len(points) < 2:
        raise ValueError(f"expected points of shape [n >= 2, 2]; got {list(points.shape)}")
    model = PCA(2).fit(points)
    figure, axes = _page((6.2, 4.6), title if title is not None else "A cloud and its two axes")
    axes.plot(points[:, 0], points[:, 1], "o", color=_COLORS[0][0], ms=3, alpha=0.55, mew=0)
    parts = model.explained_variance_ratio_
    for row, (axis, variance) in enumerate(
        zip(model.components_, model.explained_variance_, strict=True)
    ):
        tip = model.mean_ + 2 * np.sqrt(variance) * axis
        color = _COLORS[1 if row == 0 else 2][1]
        axes.annotate(
            "",
            tip,
            model.mean_,
            arrowprops={"arrowstyle": "-|>", "color": color, "lw": 2, "shrinkA": 0, "shrinkB": 0},
        )
        axes.annotate(
            f"{parts[row]:.0%}", tip, xytext=tuple(9 * axis), textcoords="offset points",
            color=color, fontsize=9, ha="center", va="center",
            bbox={"facecolor": _PAPER, "edgecolor": "none", "pad": 1.0, "alpha": 0.8},
        )  # fmt: skip
    axes.set_aspect("equal", adjustable="datalim")
    _save(figure, path)
    return model.components_


def _png(path: str | os.PathLike[str]) -> Path:
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise ValueError(f"expected a path that ends in .png, got {path}")
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"drawing needs the package {error.name}: pip install 'vecsmith[plot]'"
        ) from None
    return path


def _size(ratio: float) -> str:
    """How large the factors are next to the image."""
    if round(ratio, 3) == 1:
        return "as large"
    return f"{ratio:.3g}x smaller" if ratio > 1 else f"{1 / ratio:.3g}x larger"


def _check_ranks(ranks: Sequence[int], most: int) -> None:
    for rank in ranks:
        if isinstance(rank, bool) or not isinstance(rank, (int, np.integer)):
            raise TypeError(f"expected ranks to be ints; got {rank!r}")
        if not 0 <= rank <= most:
            raise ValueError(f"expected ranks in 0 .. {most}; got {rank}")


def _page(size: tuple[float, float], title: str) -> tuple[Any, Any]:
    """A figure and its axes, without matplotlib's global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=_DPI, facecolor=_PAPER, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_facecolor(_PAPER)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(_FAINT)
    axes.tick_params(colors=_FAINT, labelsize=8)
    if title:
        axes.set_title(title, color=_INK, fontsize=11, loc="left")
    return figure, axes


def _save(figure: Any, path: Path) -> None:
    with atomic_file(path) as file:
        # No version in the file: the same picture is the same bytes.
        figure.savefig(file, format="png", dpi=_DPI, metadata={"Software": None})
