"""Low-rank tools: Eckart and Young's error, ranks, ratios, angles; the pictures and the example."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.image import imread, imsave

from low_rank_matrices import random_sparse, with_spectrum
from vecsmith import low_rank, plot_low_rank
from vecsmith.plot_low_rank import cloud_axes, error_curve, image_ranks

VALUES = [8.0, 4, 2, 1, 0.5]


@pytest.mark.parametrize("shape", [(7, 5), (5, 9), (6, 6)])
def test_the_error_is_what_was_dropped(shape):
    A = with_spectrum(*shape, VALUES)
    np.testing.assert_allclose(low_rank.singular_values(A)[:5], VALUES)
    errors = low_rank.rank_errors(A)
    assert len(errors) == min(shape) + 1
    for rank in range(min(shape) + 1):
        found = low_rank.approximate(A, rank)
        assert found.rank == rank
        assert found.to_array().shape == shape
        expected = math.sqrt(sum(v * v for v in VALUES[rank:]))
        assert found.error == pytest.approx(expected, abs=1e-12)
        assert found.error == pytest.approx(np.linalg.norm(A - found.to_array()), abs=1e-12)
        assert found.relative_error == pytest.approx(expected / np.linalg.norm(A), abs=1e-12)
        assert errors[rank] == pytest.approx(expected, abs=1e-12)
        assert found.numbers == rank * (sum(shape) + 1)
        ratio = low_rank.compression_ratio(shape, rank)
        assert found.compression_ratio == pytest.approx(ratio)
    assert low_rank.rank_errors(A, relative=True)[0] == 1
    # No other matrix of that rank is nearer.
    generator = np.random.default_rng(0)
    for _ in range(20):
        left = generator.standard_normal((shape[0], 2))
        nearest = left @ np.linalg.lstsq(left, A, rcond=None)[0]
        assert np.linalg.norm(A - nearest) >= errors[2] - 1e-12


def test_the_smallest_rank():
    A = with_spectrum(9, 6, [3.0, 4.0])
    assert low_rank.smallest_rank(A, 0.59) == 2
    assert low_rank.smallest_rank(A, 0.61) == 1
    assert low_rank.smallest_rank(A, 1.0) == 0
    assert low_rank.smallest_rank(np.eye(4), 0.0) == 4
    assert low_rank.smallest_rank(np.zeros((3, 2)), 0.05) == 0
    with pytest.raises(ValueError, match=r"0 \.\. 1"):
        low_rank.smallest_rank(A, 5)


def test_small_errors_are_not_lost():
    A = with_spectrum(20, 20, 10.0 ** -np.arange(0, 8))
    errors = low_rank.rank_errors(A)
    np.testing.assert_allclose(errors[1:8], [1.005e-1 * 10.0**-i for i in range(7)], rtol=5e-3)


@pytest.mark.parametrize("scale", [1e-300, 1e-170, 1e160, 1e300])
@pytest.mark.parametrize("shape", [(8, 6), (8, 6, 3)])
def test_any_scale_has_the_same_ranks(shape, scale):
    """Squares would be 0, or no numbers."""
    A = np.random.default_rng(0).random(shape)
    expected = low_rank.rank_errors(A, relative=True)
    np.testing.assert_allclose(low_rank.rank_errors(A * scale, relative=True), expected, atol=1e-12)
    np.testing.assert_allclose(
        low_rank.rank_errors(A * scale) / scale, low_rank.rank_errors(A), atol=1e-12
    )
    for error in (0.05, 0.3):
        assert low_rank.smallest_rank(A * scale, error) == low_rank.smallest_rank(A, error) > 0
    one, found = low_rank.approximate(A, 2), low_rank.approximate(A * scale, 2)
    assert found.relative_error == pytest.approx(one.relative_error)
    assert found.error / scale == pytest.approx(one.error)


def test_equal_are_those_of_the_same_numbers():
    A = np.random.default_rng(0).random((5, 4))
    found = low_rank.approximate(A, 2)
    assert found == low_rank.approximate(A.copy(), 2)
    assert found != low_rank.approximate(A, 3)
    assert found != low_rank.approximate(A + 1, 2)
    assert found != low_rank.approximate(A.T, 2)
    assert found != "found"
    with pytest.raises(TypeError, match="hash"):
        hash(found)


def test_channels_share_a_rank():
    generator = np.random.default_rng(0)
    image = generator.random((8, 6, 3))
    found = low_rank.approximate(image, 2)
    assert found.to_array().shape == image.shape
    assert found.error == pytest.approx(np.linalg.norm(image - found.to_array()))
    assert found.compression_ratio == pytest.approx(8 * 6 / (2 * 15))
    assert low_rank.compression_ratio(image.shape, 2) == pytest.approx(8 * 6 / (2 * 15))
    parts = [low_rank.approximate(image[:, :, c], 2) for c in range(3)]
    assert found.error == pytest.approx(math.sqrt(sum(part.error**2 for part in parts)))
    for c, part in enumerate(parts):
        np.testing.assert_allclose(found.to_array()[:, :, c], part.to_array(), atol=1e-12)
    assert low_rank.singular_values(image).shape == (3, 6)


def test_any_numbers_will_do():
    A = np.arange(12).reshape(3, 4)
    expected = low_rank.singular_values(A)
    for given in (A.tolist(), A.astype(np.uint8), torch.from_numpy(A), A.astype(np.float32),
                  np.asfortranarray(A), A[::-1], torch.from_numpy(A).bfloat16()):  # fmt: skip
        np.testing.assert_allclose(low_rank.singular_values(given), expected, atol=1e-6)
    assert low_rank.singular_values([[True, False]]).tolist() == [1]
    assert low_rank.approximate([[3.0]], 1).to_array() == [[3]]
    zero = low_rank.approximate(np.zeros((3, 2)), 1)
    assert (zero.error, zero.relative_error) == (0, 0)


def test_bad_input_is_refused():
    for bad, error, match in (
        (np.ones(3), ValueError, "got shape"),
        (np.ones((0, 3)), ValueError, "not empty"),
        ([["a"]], TypeError, "numbers"),
        ([[1.0, math.nan]], ValueError, "finite"),
        (np.ones((2, 2), dtype=complex), TypeError, "numbers"),
        (random_sparse(5, 4, 0.5), TypeError, "TruncatedSVD"),
    ):
        for function in (low_rank.singular_values, low_rank.rank_errors):
            with pytest.raises(error, match=match):
                function(bad)
    for rank, error in ((3, ValueError), (-1, ValueError), (1.5, TypeError), (True, TypeError)):
        with pytest.raises(error, match="rank"):
            low_rank.approximate(np.eye(2), rank)
    for shape, rank, error, match in (
        ((3,), 1, ValueError, r"shape .* got \[3\]"),
        ((3, 0), 1, ValueError, r"shape .* got \[3, 0\]"),
        ((3, 4), -1, ValueError, r"rank in 0 \.\. 3; got -1"),
        ((3, 4, 9), 4, ValueError, r"rank in 0 \.\. 3; got 4"),
        ((3, 4), 1.5, TypeError, "rank to be an int; got 1.5"),
    ):
        with pytest.raises(error, match=match):
            low_rank.compression_ratio(shape, rank)


def test_angles_of_subspaces():
    x, y, z = np.eye(3)
    assert low_rank.principal_angles([x, y], [y, x]) == pytest.approx([0, 0], abs=1e-15)
    assert low_rank.principal_angles([x], [y]) == pytest.approx([math.pi / 2])
    assert low_rank.principal_angles([x, y], [x, z]) == pytest.approx([0, math.pi / 2], abs=1e-15)
    for angle in (1e-9, 0.3, 1.2, math.pi / 2 - 1e-9):
        turned = math.cos(angle) * y + math.sin(angle) * z
        found = low_rank.principal_angles([2 * x, x + y], [5 * turned])
        assert found == pytest.approx([angle], rel=1e-6)
        assert low_rank.principal_angles([turned], [x, y]) == pytest.approx([angle], rel=1e-6)
        both = low_rank.principal_angles([x, y], [x, turned])
        assert both == pytest.approx([0, angle], rel=1e-6, abs=1e-15)
    with pytest.raises(ValueError, match="one size"):
        low_rank.principal_angles([x], [[1.0, 0]])
    with pytest.raises(ValueError, match="p <= d"):
        low_rank.principal_angles(np.ones((4, 3)), [x])


# --- pictures -------------------------------------------------------------------------------------


def test_pictures_are_drawn(tmp_path):
    generator = np.random.default_rng(0)
    gray, color = generator.random((20, 30)), generator.random((20, 30, 3))
    backend, settings = matplotlib.get_backend(), dict(matplotlib.rcParams)
    image_ranks(gray, [1, 3, 10], tmp_path / "a.png", title="$gray_")
    image_ranks((color * 255).astype(np.uint8), [0, 20], tmp_path / "b.png", original=False)
    error_curve(color, tmp_path / "c.png", ranks=[1, 20])
    error_curve(np.zeros((3, 3)), tmp_path / "d.png", relative_error=None, title="")
    axes = cloud_axes(generator.standard_normal((50, 2)) * [3, 1], tmp_path / "e.png")
    assert abs(axes[0, 0]) > 0.95
    for name in "abcde":
        picture = imread(tmp_path / f"{name}.png")[:, :, :3]
        assert min(picture.shape[:2]) > 150
        assert np.ptp(picture) > 0.4 or name == "d"
    first = (tmp_path / "a.png").read_bytes()
    image_ranks(gray, [1, 3, 10], tmp_path / "a.png", title="$gray_")
    assert (tmp_path / "a.png").read_bytes() == first
    assert matplotlib.get_backend() == backend
    assert dict(matplotlib.rcParams) == settings


def test_a_panel_shows_its_approximation(tmp_path):
    """The one of full rank is the image; one of rank 0 is black."""
    image = np.zeros((40, 40))
    image[:20] = 1
    image_ranks(image, [0, 1], tmp_path / "a.png", original=False)
    picture = imread(tmp_path / "a.png")[:, :, 0]
    width = picture.shape[1]
    row = np.flatnonzero(picture[:, width // 4] == 0)[5]
    assert picture[row, width // 4] == 0
    assert picture[row, 3 * width // 4] == 1


@pytest.fixture
def figures(monkeypatch):
    """The figures that are drawn, in place of files."""
    found: list = []
    monkeypatch.setattr(plot_low_rank, "_save", lambda figure, path: found.append(figure))
    return found


@pytest.mark.parametrize(
    "values",
    [
        1 - np.arange(17) / 17,  # the rank is the last but one
        0.7 ** np.arange(40),
        0.9 ** np.arange(40),
        np.r_[np.ones(20), np.full(20, 1e-6)],
        np.ones(1),
        np.r_[np.ones(26), np.full(14, 0.01)],
    ],
    ids=lambda values: f"{len(values)}",
)
@pytest.mark.parametrize("relative_error", [0.05, 0.3, 1.0])
def test_the_mark_is_readable(values, relative_error, figures):
    """Neither the curve nor a dashed line goes through the words, which are inside the axes."""
    A = with_spectrum(len(values), len(values), values)
    error_curve(A, "a.png", relative_error=relative_error)
    (figure,) = figures
    figure.canvas.draw()
    (axes,) = figure.axes
    (words,) = axes.texts
    assert words.get_text() == (
        f"within {relative_error:.3g}: rank {low_rank.smallest_rank(A, relative_error)}"
    )
    box, frame = words.get_window_extent(), axes.get_window_extent()
    assert frame.contains(box.x0, box.y0)
    assert frame.contains(box.x1, box.y1)
    curve, across, down = axes.lines
    points = curve.get_transform().transform(curve.get_xydata())
    if len(points) > 1:
        x = np.linspace(points[0, 0], points[-1, 0], 5000)
        y = np.interp(x, points[:, 0], points[:, 1])
        inside = (x > box.x0) & (x < box.x1) & (y > box.y0) & (y < box.y1)
        assert not inside.any()
    height = across.get_transform().transform(across.get_xydata())[0, 1]
    assert not box.y0 < height < box.y1
    place = down.get_transform().transform(down.get_xydata())[0, 0]
    assert not box.x0 < place < box.x1


def test_more_numbers_are_not_called_smaller(figures):
    image = np.random.default_rng(0).random((80, 80))
    image_ranks(image, [0, 1, 39, 50], "a.png")
    image_ranks(np.random.default_rng(0).random((2, 3)), [1], "a.png")
    labels = [axes.texts[0].get_text() for figure in figures for axes in figure.axes]
    assert "smaller" not in labels[0]
    assert labels[1].endswith("%, 39.8x smaller")
    assert labels[2].endswith("%, 1.02x smaller")
    assert labels[3].endswith("%, 1.26x larger")
    assert labels[5].endswith("%, as large")


def test_bad_pictures_are_refused(tmp_path):
    path = tmp_path / "a.png"
    for call, match in (
        (lambda: image_ranks(np.ones((3, 3)), [4], path), r"0 \.\. 3"),
        (lambda: image_ranks(np.ones((3, 3)), [], path), r"1 \.\. 12"),
        (lambda: image_ranks(np.ones((3, 3, 4)), [1], path), r"\[H, W, 3\]"),
        (lambda: image_ranks(np.ones((3, 3)), [1], tmp_path / "a.jpg"), r"\.png"),
        (lambda: error_curve(np.ones((3, 3)), path, ranks=[-1]), r"0 \.\. 3"),
        (lambda: cloud_axes(np.ones((3, 3)), path), r"\[n >= 2, 2\]"),
    ):
        with pytest.raises(ValueError, match=match):
            call()
    for rank in (1.5, True, "1"):
        with pytest.raises(TypeError, match="ranks to be ints; got"):
            error_curve(np.ones((3, 3)), path, ranks=[rank])
        with pytest.raises(TypeError, match="ranks to be ints; got"):
            image_ranks(np.ones((3, 3)), [rank], path)
    assert not path.exists()


def test_the_example(tmp_path, capsys):
    source = Path(__file__).parent.parent / "examples" / "low_rank.py"
    spec = importlib.util.spec_from_file_location("low_rank_example", source)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    generator = np.random.default_rng(0)
    photograph = (generator.random((24, 60, 4)) * 255).astype(np.uint8)
    imsave(tmp_path / "photo.png", photograph)
    out = tmp_path / "out"
    assert module.main(["--image", str(tmp_path / "photo.png"), "-o", str(out)]) == 0
    printed = capsys.readouterr().out
    names = ("cloud", "generated", "generated-errors", "photograph", "photograph-errors")
    assert sorted(path.stem for path in out.iterdir()) == sorted(names)
    image = module.picture()
    assert image.shape == (80, 80)
    assert image.min() >= 0
    assert image.max() <= 1
    errors = low_rank.rank_errors(image, relative=True)
    assert f"the smallest rank under 5 %: {np.argmax(errors < 0.05)}" in printed
    assert "tastes of the four people: [0, 0, 1, 1]" in printed
    angle = float(printed.split("planes ")[1].split(" radians")[0])
    assert angle < 1e-3
    imsave(tmp_path / "gray.png", np.eye(5), cmap="gray")
    assert module.read_image(tmp_path / "gray.png").shape == (5, 5)
    assert module.main(["--image", str(tmp_path / "none.png"), "-o", str(out)]) == 2
    assert "none.png" in capsys.readouterr().err
