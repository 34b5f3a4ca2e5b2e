"""Low rank in pictures: principal axes, images of few numbers, and a network that finds the same.

    python examples/low_rank.py                        # into ./low_rank
    python examples/low_rank.py --image photograph.jpg -o pictures

Draws

    cloud.png               points in the plane, and the two axes that PCA finds
    generated.png           a generated 80 x 80 gray picture at ranks 1, 3, 10, 30
    generated-errors.png    its error against the rank
    photograph.png          with --image: that one at ranks 1, 5, 20, 50, in color where it has any
    photograph-errors.png   its error against the rank, and the smallest rank under 5 %

and prints the numbers behind them, the angles between PCA's plane and that of a linear autoencoder
that was trained by gradient, and the two tastes in a 4 x 5 table of ratings with unknown cells.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path

import numpy as np

import vecsmith
from vecsmith import low_rank
from vecsmith.plot_low_rank import cloud_axes, error_curve, image_ranks

RATINGS = np.array(
    [
        [5, 4, np.nan, 1, np.nan],
        [np.nan, 5, 5, np.nan, 2],
        [1, np.nan, 2, 5, 5],
        [np.nan, 1, 1, 4, 5],
    ]
)


def cloud(seed: int = 0) -> np.ndarray:
    """[400, 2] points, long in one direction that is no axis of the plane."""
    points = np.random.default_rng(seed).standard_normal((400, 2)) * [2.0, 0.6]
    angle = np.deg2rad(30)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    return points @ turn + [1.0, -0.5]


def picture(size: int = 80) -> np.ndarray:
    """[size, size] in 0 .. 1: evening sky, sun, hills, a house and its fence. The sky is of rank 1,
    the fence adds one, the round sun and the slopes need many."""
    y, x = np.mgrid[0:size, 0:size] / (size - 1)
    image = 0.35 + 0.5 * (1 - y) * (0.6 + 0.4 * x)
    image[(x - 0.72) ** 2 + (y - 0.26) ** 2 < 0.014] = 1.0
    image[y > 0.62 + 0.1 * np.sin(5 * x + 0.6)] = 0.42
    image[y > 0.8 + 0.04 * np.sin(9 * x)] = 0.26
    house = (abs(x - 0.3) < 0.13) & (y > 0.5) & (y < 0.8)
    roof = (y > 0.34) & (y <= 0.5) & (abs(x - 0.3) < (y - 0.34) * 1.1)
    image[house], image[roof] = 0.75, 0.12
    image[(abs(x - 0.25) < 0.035) & (abs(y - 0.61) < 0.04)] = 0.15
    image[(abs(x - 0.36) < 0.03) & (y > 0.64) & (y < 0.8)] = 0.3
    fence = (x > 0.55) & (y > 0.76) & (y < 0.9) & ((x * size // 2) % 2 == 0)
    image[fence] = 0.9
    return image


def read_image(path: Path) -> np.ndarray:
    """[H, W] or [H, W, 3] in 0 .. 1 of a PNG, or of what Pillow reads. Transparency is dropped."""
    from matplotlib.image import imread

    image = np.asarray(imread(path))
    if image.dtype.kind in "ui":
        image = image / np.iinfo(image.dtype).max
    if image.ndim == 3:
        image = image[:, :, 0] if image.shape[2] < 3 else image[:, :, :3]
    if image.ndim == 3 and np.array_equal(image[:, :, :1].repeat(3, axis=2), image):
        image = image[:, :, 0]
    return image.astype(float)


def show_ranks(name: str, image: np.ndarray, ranks: list[int], folder: Path) -> None:
    """Two pictures, and a table."""
    ranks = [rank for rank in ranks if rank <= min(image.shape[:2])]
    size = f"{image.shape[1]} x {image.shape[0]}"
    image_ranks(image, ranks, folder / f"{name}.png", title=f"{size}, at ranks {ranks}")
    error_curve(
        image, folder / f"{name}-errors.png", ranks=ranks, title=f"{size}: error of each rank"
    )
    print(f"\n{name}, {size}: {image.size} numbers")
    print(f"{'rank':>6} {'error':>8} {'numbers':>8} {'ratio':>7}")
    for rank in ranks:
        found = low_rank.approximate(image, rank)
        print(
            f"{rank:6} {found.relative_error:8.2%} {found.numbers:8} {found.compression_ratio:7.2f}"
        )
    print(f"the smallest rank under 5 %: {low_rank.smallest_rank(image, 0.05)}")


def show_autoencoder(seed: int = 0) -> None:
    """A linear autoencoder beside PCA, on rows of 20 features around a plane of 4."""
    generator = np.random.default_rng(seed)
    rows = generator.standard_normal((500, 4)) * [4, 3, 2, 1.5]
    rows = rows @ generator.standard_normal((4, 20)) / 4 + 0.3 * generator.standard_normal(
        (500, 20)
    )
    import torch

    model = vecsmith.LinearAutoencoder(20, 4, dtype=torch.float64).fit(rows)
    pca = vecsmith.PCA(4).fit(rows)
    angles = low_rank.principal_angles(model.principal_axes(rows), pca.components_)
    with torch.no_grad():
        loss = float((torch.from_numpy(rows) - model(torch.from_numpy(rows))).square().sum())
    left = pca.inverse_transform(pca.transform(rows)) - rows
    print(
        f"\nlinear autoencoder and PCA: greatest angle of their planes {angles.max():.1e} radians, "
        f"error {np.sqrt(loss):.6f} and {np.linalg.norm(left):.6f}"
    )


def show_ratings() -> None:
    """Unknown cells are left out of the loss, and get a number from the two factors."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # all iterations are wanted
        model = vecsmith.NMF(
            2, missing=np.nan, alpha_W=1e-3, max_iter=500, tol=1e-7, random_state=0
        )
        tastes = model.fit_transform(RATINGS)
    print("\nratings, and what two nonnegative factors make of them (known cells in brackets):")
    for known, row in zip(RATINGS, tastes @ model.components_, strict=True):
        print(
            " ".join(
                f"{value:5.1f}    " if np.isnan(k) else f"{value:5.1f} ({k:.0f})"
                for k, value in zip(known, row, strict=True)
            )
        )
    print("tastes of the four people:", tastes.argmax(axis=1).tolist())


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--image", type=Path, help="a photograph: PNG, or what Pillow reads")
    parser.add_argument("-o", "--output", type=Path, default=Path("low_rank"))
    options = parser.parse_args(arguments)
    try:
        photograph = None if options.image is None else read_image(options.image)
        options.output.mkdir(parents=True, exist_ok=True)
        axes = cloud_axes(cloud(), options.output / "cloud.png")
        print("axes of the cloud:", ", ".join(np.array2string(axis, precision=3) for axis in axes))
        show_ranks("generated", picture(), [1, 3, 10, 30], options.output)
        if photograph is not None:
            show_ranks("photograph", photograph, [1, 5, 20, 50], options.output)
        show_autoencoder()
        show_ratings()
    except (OSError, ValueError) as error:
        print(f"low_rank.py: {error}", file=sys.stderr)
        return 2
    print(f"\npictures in {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
