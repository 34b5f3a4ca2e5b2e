"""Maps of words: readable (no labels that overlap), deterministic, without side effects."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.image import imread

from vecsmith import KeyedVectors
from vecsmith.plot import word_map


def vectors_of(words: list[str], clusters: int = 6, dim: int = 12, counts=None) -> KeyedVectors:
    generator = torch.Generator().manual_seed(3)
    centers = torch.randn(clusters, dim, generator=generator)
    noise = torch.randn(len(words), dim, generator=generator)
    return KeyedVectors(words, centers[torch.arange(len(words)) % clusters] + 0.3 * noise, counts)


def overlap(first, second) -> bool:
    return (
        first[0] < second[2]
        and second[0] < first[2]
        and first[1] < second[3]
        and second[1] < first[3]
    )


@pytest.mark.parametrize("method", ["pca", "tsne"])
def test_the_map_is_readable_and_deterministic(tmp_path, method):
    words = [f"word{i}" + "x" * (i % 9) for i in range(90)]
    kv = vectors_of(words)
    drawn = word_map(kv, tmp_path / "a.png", topn=80, method=method, seed=1)
    assert drawn.words == words[:80]
    assert drawn.positions.shape == (80, 2)
    boxes = list(drawn.boxes.values())
    assert len(boxes) > 50
    height, width = imread(tmp_path / "a.png").shape[:2]
    for at, box in enumerate(boxes):
        assert 0 <= box[0] < box[2] <= width
        assert 0 <= box[1] < box[3] <= height
        assert not any(overlap(box, other) for other in boxes[:at])
    word_map(kv, tmp_path / "b.png", topn=80, method=method, seed=1)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_the_boxes_are_where_the_ink_is(tmp_path):
    drawn = word_map(vectors_of(["aa", "bb", "cc", "dd"]), tmp_path / "a.png", method="pca")
    picture = imread(tmp_path / "a.png")[:, :, :3]
    paper = picture[0, 0]
    ink = np.abs(picture - paper).max(axis=2) > 0.3
    assert len(drawn.boxes) == 4
    for left, bottom, right, top in drawn.boxes.values():
        rows = slice(int(len(ink) - top), int(len(ink) - bottom) + 1)
        assert ink[rows, int(left) : int(right) + 1].any()


def test_crowded_labels_are_left_out_but_their_dots_stay(tmp_path):
    words = [f"word{i}" for i in range(60)]
    crowd = torch.ones(60, 4) + 1e-6 * torch.randn(60, 4, generator=torch.Generator())
    crowd[:2] = torch.tensor([[1.0, 0, 0, 0], [0, 0, 0, 1.0]])  # stretch the page
    drawn = word_map(KeyedVectors(words, crowd), tmp_path / "a.png", method="pca")
    assert 3 <= len(drawn.boxes) < 60
    assert len(drawn.positions) == 60


def test_which_words_are_drawn(tmp_path):
    words = ["the", "cat", ",", "7", "x", "of", "dog", "Of", "mouse", "日", "horse"]
    counts = [5, 1, 9, 9, 9, 9, 3, 9, 2, 4, 0]
    kv = vectors_of(words, counts=counts)
    path = tmp_path / "a.png"
    assert word_map(kv, path, topn=4, method="pca").words == ["日", "dog", "mouse", "cat"]
    assert word_map(kv, path, topn=3, method="pca", skip_stop_words=False).words == [",", "7", "x"]
    assert word_map(kv, path, ["of", "cat", "the", "of"], method="pca").words == [
        "of",
        "cat",
        "the",
    ]
    assert word_map(kv, path, topn=100, method="pca").words[-1] == "horse"


def test_strange_words_and_vectors_are_drawn(tmp_path):
    words = [
        "$x_1^2$",
        "\\frac{",
        "tab\tnew\nline",
        "nul\0",
        "w" * 300,
        "𓀀",
        "é",
        "",
        "zero",
        "\ud800",
    ]
    kv = vectors_of(words)
    kv.vectors[8] = 0
    for method in ("pca", "tsne"):
        drawn = word_map(
            kv, tmp_path / "a.png", words, method=method, title="$a\n" + "t" * 400, size=(3, 2)
        )
        assert drawn.words == words
    same = KeyedVectors(["a", "b", "c", "d"], torch.ones(4, 1))
    for method in ("pca", "tsne"):
        assert len(word_map(same, tmp_path / "b.png", method=method).positions) == 4
    assert imread(tmp_path / "a.png").shape[:2] == (300, 450)


def test_no_global_state_is_touched(tmp_path):
    backend, settings = matplotlib.get_backend(), dict(matplotlib.rcParams)
    import matplotlib.pyplot as pyplot

    before = np.random.get_state()[1].copy()  # noqa: NPY002 (the global state is the point)
    seed = torch.initial_seed(), torch.get_rng_state()
    word_map(vectors_of([f"w{i}" for i in range(9)]), tmp_path / "a.png", method="tsne")
    assert matplotlib.get_backend() == backend
    assert dict(matplotlib.rcParams) == settings
    assert pyplot.get_fignums() == []
    assert np.array_equal(np.random.get_state()[1], before)  # noqa: NPY002
    assert torch.initial_seed() == seed[0]
    assert torch.equal(torch.get_rng_state(), seed[1])


def test_bad_input_is_refused_and_leaves_the_old_picture(tmp_path):
    kv = vectors_of(["one", "cat", "dog", "mouse"])
    path = tmp_path / "a.png"
    path.write_bytes(b"old")
    with pytest.raises(KeyError, match="unicorn"):
        word_map(kv, path, ["cat", "dog", "unicorn"])
    for wrong, match in (
        ({"method": "umap"}, "method"),
        ({"topn": 2}, "topn"),
        ({"words": ["cat", "dog"]}, "at least three"),
        ({"size": (0, 4)}, "inches"),
    ):
        with pytest.raises(ValueError, match=match):
            word_map(kv, path, **wrong)
    with pytest.raises(ValueError, match=r"\.png"):
        word_map(kv, tmp_path / "a.jpg")
    kv.vectors[1] = float("nan")
    with pytest.raises(ValueError, match="finite"):
        word_map(kv, path)
    with pytest.raises(FileNotFoundError):
        word_map(vectors_of(["cat", "dog", "cow"]), tmp_path / "no" / "a.png")
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize("missing", ["matplotlib", "sklearn"])
def test_a_missing_package_is_named(tmp_path, missing):
    script = """
        import sys
        import torch
        from vecsmith import KeyedVectors
        sys.modules[sys.argv[1]] = None
        from vecsmith.plot import word_map
        try:
            word_map(KeyedVectors(["a", "b", "c"], torch.eye(3)), sys.argv[2])
        except ImportError as error:
            print(error)
    """
    out = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), missing, str(tmp_path / "a.png")],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    ).stdout
    assert missing in out
    assert "vecsmith[plot]" in out
