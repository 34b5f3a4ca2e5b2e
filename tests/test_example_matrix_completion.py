"""examples/matrix_completion.py, on the textbook's table and on few ratings."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest

PATH = Path(__file__).parent.parent / "examples" / "matrix_completion.py"


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("matrix_completion", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("nonnegative", [False, True])
def test_the_textbook_table_comes_back_with_two_tastes(example, nonnegative):
    model = example.complete(example.TABLE, 2, nonnegative)
    known = ~np.isnan(example.TABLE)
    assert known.sum() == 14
    assert abs(model.predict_all() - example.TABLE)[known].max() < 0.3
    assert example.tastes(model).tolist() == [0, 0, 1, 1]
    assert model.n_parameters == 2 * (4 + 5)
    assert ((model.user_factors >= 0).all() and (model.item_factors >= 0).all()) == nonnegative


def test_a_file_is_completed(example, tmp_path, capsys):
    made = example.made_up(200, 120)
    coo = made.matrix.tocoo()
    lines = [f"{u}::{100 + i}::{r:g}\n" for u, i, r in zip(coo.row, coo.col, coo.data, strict=True)]
    (tmp_path / "ratings.dat").write_text("".join(lines))
    assert example.main([str(tmp_path / "ratings.dat"), "--factors", "3", "--epochs", "25"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("tastes of the four people: [0, 0, 1, 1]") == 2
    assert "18 numbers" in printed
    assert f"{len(made):,} ratings of 200 users and 120 items" in printed
    rows = [line.split() for line in printed.splitlines()]
    errors = {row[0]: row for row in rows if row and row[0] in ("mean", "least", "gradient")}
    assert float(errors["least"][3]) < 0.95 * float(errors["mean"][2])
    assert float(errors["gradient"][3]) < 0.95 * float(errors["mean"][2])
    assert errors["least"][2] == f"{4 * (200 + 120) + 1:,}"
    last = re.findall(r"(\d+) \((\d\.\d\d)\)", printed.splitlines()[-1])
    keys, stars = [int(key) for key, _ in last], [float(star) for _, star in last]
    assert len(set(keys)) == 5
    assert not set(keys) & {100 + item for item in made.matrix[0].indices}
    assert sorted(stars, reverse=True) == stars
    assert all(1 <= star <= 5 for star in stars)


def test_what_is_wrong_with_the_file_is_said(example, tmp_path, capsys):
    assert example.main([str(tmp_path / "nothing.csv")]) == 2
    assert "nothing.csv" in capsys.readouterr().err
    (tmp_path / "bad.csv").write_text("user,item,rating\n1,2,good\n")
    assert example.main([str(tmp_path / "bad.csv")]) == 2
    assert capsys.readouterr().err.startswith("matrix_completion.py: ")
