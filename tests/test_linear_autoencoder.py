"""LinearAutoencoder: gradients find the plane of PCA (Baldi and Hornik 1989)."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import vecsmith
from vecsmith.low_rank import principal_angles


def rows(count: int = 300, size: int = 12, seed: int = 0) -> np.ndarray:
    """[count, size] of falling variance in turned directions, away from the origin."""
    generator = np.random.default_rng(seed)
    scales = 3 * 0.7 ** np.arange(size)
    turn = np.linalg.qr(generator.standard_normal((size, size)))[0]
    return generator.standard_normal((count, size)) * scales @ turn + 4


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("components", [1, 3, 12])
def test_it_finds_the_plane_of_pca(tied, components):
    X = rows()
    model = vecsmith.LinearAutoencoder(12, components, tied=tied, dtype=torch.float64).fit(X)
    pca = vecsmith.PCA(components).fit(X)
    axes = model.principal_axes(X).numpy()
    assert principal_angles(axes, pca.components_).max() < 1e-3
    np.testing.assert_allclose(axes, pca.components_, atol=5e-3)
    with torch.no_grad():
        back = model(torch.from_numpy(X)).numpy()
    expected = pca.inverse_transform(pca.transform(X))
    np.testing.assert_allclose(back, expected, atol=1e-2)
    assert np.linalg.norm(X - back) <= np.linalg.norm(X - expected) + 1e-6


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_batches_find_it_too(optimizer):
    X = rows(200, 6)
    model = vecsmith.LinearAutoencoder(6, 2).fit(
        X, optimizer=optimizer, batch_size=50, max_iter=300
    )
    pca = vecsmith.PCA(2).fit(X)
    assert principal_angles(model.principal_axes(X), pca.components_).max() < 0.05


def test_a_wrong_plane_is_told_from_it():
    X = rows()
    untrained = vecsmith.LinearAutoencoder(12, 3, dtype=torch.float64)
    assert principal_angles(untrained.principal_axes(X), vecsmith.PCA(3).fit(X).components_)[-1] > 1


def test_it_is_a_module():
    X = torch.from_numpy(rows()).float()
    model = vecsmith.LinearAutoencoder(12, 4).fit(X)
    codes = model.encode(X[:5])
    assert codes.shape == (5, 4)
    torch.testing.assert_close(model.decode(codes), model(X[:5]))
    other = vecsmith.LinearAutoencoder(12, 4, seed=9)
    assert not torch.equal(other(X), model(X))
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(X), model(X))
    assert set(model.state_dict()) == {"encoder.weight", "decoder.weight", "mean"}
    assert set(vecsmith.LinearAutoencoder(3, 2, tied=True).state_dict()) == {
        "encoder.weight",
        "mean",
    }
    assert model(X[:2].reshape(1, 2, 12)).shape == (1, 2, 12)


def test_the_same_seed_gives_the_same():
    X = rows(60, 5)
    for optimizer in ("lbfgs", "adam"):
        options = {"optimizer": optimizer, "max_iter": 5, "batch_size": 16}
        first, second = (
            vecsmith.LinearAutoencoder(5, 2, seed=3).fit(X, seed=1, **options) for _ in range(2)
        )
        assert torch.equal(first.encoder.weight, second.encoder.weight)


def test_odd_sizes():
    one = vecsmith.LinearAutoencoder(3, 2).fit(np.ones((1, 3), dtype=np.float32))
    torch.testing.assert_close(one(torch.ones(1, 3)), torch.ones(1, 3))
    assert one.principal_axes(np.ones((1, 3))).shape == (2, 3)
    flat = vecsmith.LinearAutoencoder(3, 1).fit(np.full((9, 3), 2.0))
    assert flat(torch.full((1, 3), 2.0)).tolist() == [[2, 2, 2]]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": "sgd", "lr": 100.0},
        {"optimizer": "sgd", "lr": 100.0, "max_iter": 2, "batch_size": 7},
        {"optimizer": "sgd", "lr": float("inf"), "max_iter": 1},
        {"optimizer": "adam", "lr": 1e30},
    ],
    ids=str,
)
def test_a_loss_that_runs_off_is_refused(options, tied):
    X = rows(60, 6)
    model = vecsmith.LinearAutoencoder(6, 2, tied=tied).fit(X)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"an lr .* stays finite; got (100|inf|1e\+30): a loss of"):
        model.fit(X + 1, **options)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    model.fit(X, optimizer=options["optimizer"], max_iter=3)


def test_bad_input_is_refused():
    for options, match in (
        ({"in_features": 0, "n_components": 1}, "in_features >= 1"),
        ({"in_features": 3, "n_components": 4}, "n_components <= 3"),
    ):
        with pytest.raises(ValueError, match=match):
            vecsmith.LinearAutoencoder(**options)
    model = vecsmith.LinearAutoencoder(3, 2)
    before = model.encoder.weight.clone()
    for bad, options, error, match in (
        (np.ones((4, 2)), {}, ValueError, r"\[n >= 1, 3\]; got \[4, 2\]"),
        (np.ones((0, 3)), {}, ValueError, "n >= 1"),
        (np.full((4, 3), np.nan), {}, ValueError, "finite"),
        ([[1, 2, 3]], {}, TypeError, "got list"),
        (np.ones((4, 3)), {"optimizer": "rmsprop"}, ValueError, "adam"),
        (np.ones((4, 3)), {"lr": 0}, ValueError, "lr > 0"),
        (np.ones((4, 3)), {"tol": -1}, ValueError, "tol >= 0"),
        (np.ones((4, 3)), {"max_iter": 0}, ValueError, "max_iter"),
        (np.ones((4, 3)), {"batch_size": 0}, ValueError, "batch_size"),
    ):
        with pytest.raises(error, match=match):
            model.fit(bad, **options)
    assert torch.equal(model.encoder.weight, before)
    assert not model.mean.any()
