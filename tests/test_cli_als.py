"""vecsmith als, recommend and similar, and their errors."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from planted_ratings import groups, random_cells
from vecsmith import ALS, BPR, ExplicitALS, MatrixFactorizationSGD
from vecsmith.data import Interactions
from vecsmith.models._checkpoint import NAME
from vecsmith.models._factor_training import FactorCheckpoint

FIRST = 2**33


def write(path: Path, matrix, users, items, header="user,item,rating") -> Path:
    coo = matrix.tocoo()
    rows = zip(coo.row, coo.col, coo.data, strict=True)
    lines = [f"{users[row]},{items[column]},{value:g}" for row, column, value in rows]
    path.write_text("\n".join([header, *lines]) + "\n")
    return path


@pytest.fixture(scope="module")
def ratings(tmp_path_factory):
    users, items = [f"user {n}" for n in range(40)], FIRST + np.arange(24)
    return write(tmp_path_factory.mktemp("ratings") / "r.csv", groups(), users, items)


@pytest.fixture(scope="module")
def folder(ratings):
    made = ratings.parent / "model"
    model = ALS(factors=4, random_state=1, progress=False, num_threads=1)
    model.fit(Interactions.read(ratings)).save(made)
    return made


# --- als ------------------------------------------------------------------------------------------


def test_a_file_becomes_a_model(vecsmith, ratings, tmp_path):
    done = vecsmith("als", ratings, "-o", tmp_path / "m", "--factors", 4, "-i", 5, "--alpha", 10)
    assert (done.code, done.out) == (0, "")
    assert "40 users and 24 items" in done.err
    assert done.err.count("iteration") == 5
    assert done.err.count("loss 0.") == 5
    assert f"recommend {tmp_path / 'm'} --user 'user 0'" in done.err
    model = ALS.load(tmp_path / "m")
    assert (model.factors, model.alpha, model.iterations) == (4, 10, 5)
    expected = ALS(factors=4, alpha=10, iterations=5, random_state=1, progress=False)
    expected.fit(Interactions.read(ratings))
    np.testing.assert_allclose(model.user_factors, expected.user_factors, atol=1e-5)
    assert not (tmp_path / "m" / NAME).exists()
    again = vecsmith("als", ratings, "-o", tmp_path / "m", "--factors", 4, "--quiet")
    assert (again.code, again.out, again.err) == (0, "", "")


def test_training_stops_early(vecsmith, ratings, tmp_path):
    done = vecsmith(
        *("als", ratings, "-o", tmp_path, "-d", 4, "-i", 50, "--tolerance", 0.05),
        *("--method", "cholesky", "--regularization", 0.1, "--weighted"),
    )
    assert 2 < done.err.count("iteration") < 50
    model = ALS.load(tmp_path)
    assert (model.method, model.regularization, model.weighted_regularization) == (
        *("cholesky", 0.1),
        True,
    )


def test_ratings_are_predicted(vecsmith, tmp_path):
    path = write(tmp_path / "r.csv", random_cells(), range(30), range(20), "who,what,stars")
    options = ("--explicit", "--factors", 3, "--held-out", 0.2, "--clip", "--seed", 4)
    columns = ("--user", "who", "--item", 1, "--rating", "stars")
    done = vecsmith("als", path, "-o", tmp_path / "m", *options, *columns, "--no-biases")
    assert done.code == 0, done.err
    assert "held out RMSE" in done.err
    model = ExplicitALS.load(tmp_path / "m")
    assert (model.clip, model.biases, model.random_state) == (True, False, 4)
    # All of them are known to the user, also those that were held out.
    assert len(model.interactions) == random_cells().nnz
    assert vecsmith("recommend", tmp_path / "m", "--user", 3).code == 0


def test_lists_and_plain_columns(vecsmith, tmp_path):
    (tmp_path / "l.txt").write_text("1 10 11 12\n2 11 13\n3 10 13\n")
    (tmp_path / "c.tsv").write_text("skip\n1\t5\n1\t7\n2\t5\n2\t5\n")
    assert vecsmith("als", tmp_path / "l.txt", "-o", tmp_path / "l", "--format", "lists").code == 0
    options = ("--sep", "\\t", "--no-header", "--skip-lines", 1, "--no-rating")
    done = vecsmith(
        "als", tmp_path / "c.tsv", "-o", tmp_path / "c", *options, "--duplicates", "sum"
    )
    assert done.code == 0, done.err
    assert ALS.load(tmp_path / "l").interactions.items.tolist() == [10, 11, 12, 13]
    assert ALS.load(tmp_path / "c").interactions.matrix.toarray().tolist() == [[1, 1], [2, 0]]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--explicit", "--alpha", 2], "expected --implicit with --alpha"),
        (["--nonnegative"], "expected --explicit with --nonnegative"),
        (["--held-out", 0.1], "expected --explicit with --held-out"),
        (["--explicit", "--patience", 3], "expected --held-out with --patience"),
        (["--explicit", "--held-out", 2], "expected --held-out between 0 and 1; got 2"),
        (["--no-rating", "--explicit"], "--no-rating"),
        (["--factors", 0], "expected factors >= 1; got 0"),
        (["--regularization", -1], "expected regularization"),
        (["--method", "lu"], "lu"),
        (["--user", "who"], "who"),
        (["--rating", 9], "9"),
        (["--checkpoint-every", -1], "expected --checkpoint-every to be finite and >= 0; got -1"),
        (["--checkpoint-every", "nan"], "expected --checkpoint-every"),
        (["--threads", 2**40], "expected num_threads <= 4096"),
    ],
)
def test_als_refuses(vecsmith, ratings, tmp_path, options, text):
    assert text in vecsmith("als", ratings, "-o", tmp_path / "m", *options).error()
    assert not (tmp_path / "m").exists()


def test_als_refuses_files(vecsmith, tmp_path):
    assert "no such file" in vecsmith("als", tmp_path / "no.csv", "-o", tmp_path / "m").error()
    (tmp_path / "bad.csv").write_text("user,item,rating\n1,2,nan\n")
    assert "2" in vecsmith("als", tmp_path / "bad.csv", "-o", tmp_path / "m").error()
    (tmp_path / "twice.csv").write_text("user,item,rating\n1,2,3\n1,2,4\n")
    assert "1" in vecsmith("als", tmp_path / "twice.csv", "-o", tmp_path / "m").error()
    assert not (tmp_path / "m").exists()


def test_a_field_without_end_is_no_rating(vecsmith, tmp_path):
    (tmp_path / "long.csv").write_text(f"user,item,rating\n{'a' * 140_000},2,3\n")
    error = vecsmith("als", tmp_path / "long.csv", "-o", tmp_path / "m").error()
    assert "expected keys of users of at most 4096 characters; got one of 140000" in error
    assert "Error:" not in error
    assert not (tmp_path / "m").exists()


def test_keys_do_not_speak_to_the_terminal(vecsmith, tmp_path):
    (tmp_path / "r.csv").write_text('user,item,rating\n"\x1b[2Ja\tb",\x1b]0;x\x07,3\n')
    done = vecsmith("als", tmp_path / "r.csv", "-o", tmp_path / "m", "-d", 2)
    assert done.code == 0, done.err
    assert not set(done.err) & {"\x1b", "\x07"}
    lines = done.err.splitlines()
    assert lines[-2].endswith("--user ' [2Ja b'")
    assert lines[-1].endswith("--item ' ]0;x '")
    assert ALS.load(tmp_path / "m").interactions.users.tolist() == ["\x1b[2Ja\tb"]


def test_a_list_is_as_long_as_there_are_items(vecsmith, tmp_path):
    model = ALS(factors=2)
    model.user_factors, model.item_factors = np.eye(2), [[1, 0], [-1e-9, 1], [2, -0.0]]
    model.save(tmp_path)
    done = vecsmith("recommend", tmp_path, "--user", 0, "--liked", "-n", 10**12)
    assert done.code == 0, done.err
    assert done.out.split() == ["user", "0", "2", "2.0000", "0", "1.0000", "1", "0.0000"]
    done = vecsmith("recommend", tmp_path, "--user", 0, "--liked", "-n", 10**12, "--json")
    assert '"score": 0.0}]' in done.out
    done = vecsmith("similar", tmp_path, "--item", 1, "-n", 10**12)
    assert done.code == 0, done.err
    assert [line.split()[1] for line in done.out.splitlines()[1:]] == ["0.0000", "0.0000"]


def test_ctrl_c_leaves_a_checkpoint_that_the_same_command_goes_on_from(tmp_path, vecsmith):
    path = write(tmp_path / "r.csv", groups(), range(40), range(24))
    command = ["als", path, "-o", tmp_path / "m", "-d", 4, "-i", 1_000_000, "--tolerance", 0]
    with subprocess.Popen(
        [sys.executable, "-m", "vecsmith", *map(str, command)], stderr=subprocess.PIPE, text=True
    ) as child:
        for line in child.stderr:
            if line.startswith("iteration 3,"):
                break
        child.send_signal(signal.SIGINT)
        errors = child.stderr.read()
    assert child.returncode == 130
    assert "give the same command again to go on" in errors
    checkpoint = FactorCheckpoint(tmp_path / "m")
    state, found = checkpoint.read()
    half = state["cursor"]["steps"]
    state["settings"]["iterations"] = half // 2 + 2
    checkpoint.write({name: table.clone() for name, table in found.items()}, state)
    command[command.index(1_000_000)] = half // 2 + 2
    done = vecsmith(*command)
    assert done.code == 0, done.err
    assert "going on from" in done.err
    assert 1 < done.err.count("loss") < 4
    assert not (tmp_path / "m" / NAME).exists()
    whole = ALS(factors=4, iterations=half // 2 + 2, random_state=1, progress=False)
    whole.fit(Interactions.read(path))
    np.testing.assert_allclose(ALS.load(tmp_path / "m").user_factors, whole.user_factors, atol=1e-4)
    assert "another run" in refused_while_another_runs(path, tmp_path / "m", vecsmith)


def refused_while_another_runs(path, folder, vecsmith):
    with FactorCheckpoint(folder).hold():
        return vecsmith("als", path, "-o", folder).error()


# --- recommend ------------------------------------------------------------------------------------


def test_items_are_recommended(vecsmith, folder):
    done = vecsmith("recommend", folder, "--user", "user 3", "-n", 4)
    assert done.code == 0
    head, *lines = done.out.splitlines()
    assert head == "user user 3"
    model = ALS.load(folder)
    ids, scores = model.recommend(model.interactions.user_index("user 3"), N=4)
    assert [line.split() for line in lines] == [
        [str(FIRST + item), f"{score:.4f}"]
        for item, score in zip(ids.tolist(), scores, strict=True)
    ]
    with_liked = vecsmith("recommend", folder, "--user", "user 3", "-n", 24, "--liked").out
    assert len(with_liked.splitlines()) == 25
    without = vecsmith("recommend", folder, "--user", "user 3", "-n", 24).out.splitlines()
    liked = model.interactions.matrix[model.interactions.user_index("user 3")].nnz
    assert len(without) == 25 - liked
    best = lines[0].split()[0]
    left = vecsmith("recommend", folder, "--user", "user 3", "-n", 4, "--leave-out", best).out
    assert best not in left
    assert lines[1] in left


def test_many_users_as_json(vecsmith, folder):
    done = vecsmith("recommend", folder, "-u", "user 3", "-u", "user 39", "--json", "-n", 2)
    one, two = (json.loads(line) for line in done.out.splitlines())
    assert (one["user"], two["user"]) == ("user 3", "user 39")
    assert len(one["found"]) == 2
    assert one["found"][0]["key"] < FIRST + 12 <= two["found"][0]["key"]  # their tastes
    assert one["found"][0]["score"] >= one["found"][1]["score"]


def test_all_users_into_a_file(vecsmith, folder, tmp_path, monkeypatch):
    monkeypatch.setattr("vecsmith.cli._recommend._AT_ONCE", 7)
    done = vecsmith("recommend", folder, "--all", "-o", tmp_path / "all.csv", "-n", 3)
    assert (done.code, done.out) == (0, "")
    assert "40 users" in done.err
    with open(tmp_path / "all.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 40 * 3
    model = ALS.load(folder)
    ids, scores = model.recommend(np.arange(40), N=3)
    expected = [
        [user, str(rank + 1), str(model.interactions.items[ids[row, rank]])]
        for row, user in enumerate(model.interactions.users)
        for rank in range(3)
    ]
    assert [[row["user"], row["rank"], row["item"]] for row in rows] == expected
    np.testing.assert_allclose([float(row["score"]) for row in rows], scores.ravel(), rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--user", "nobody"], "no user 'nobody'"),
        (["--user", "user 1", "--user", "7"], "no user '7'"),
        (["--user", "user 1", "--leave-out", "ann"], "no item 'ann': keys are integers"),
        (["--user", "user 1", "--leave-out", 5], "no item 5"),
        ([], "expected --user or --all; got neither"),
        (["--all", "--user", "user 1"], "got both"),
        (["--all", "--json", "-o", "x.csv"], "expected --json or --output; got both"),
        (["--user", "user 1", "-n", 0], "--number"),
    ],
)
def test_recommend_refuses(vecsmith, folder, options, text):
    assert text in vecsmith("recommend", folder, *options).error()


def test_recommend_refuses_folders(vecsmith, folder, tmp_path):
    assert "no such one" in vecsmith("recommend", tmp_path / "no", "--all").error()
    assert "config.json" in vecsmith("recommend", tmp_path, "--all").error()
    error = vecsmith("recommend", folder, "--all", "-o", tmp_path / "no" / "x.csv").error()
    assert "expected a folder for the file" in error


def test_a_model_without_keys_goes_by_numbers(vecsmith, tmp_path):
    ALS(factors=3, random_state=0, progress=False).fit(random_cells()).save(tmp_path)
    assert "--liked" in vecsmith("recommend", tmp_path, "--user", 3).error()
    done = vecsmith("recommend", tmp_path, "--user", 3, "--liked", "-n", 2)
    assert done.out.startswith("user 3\n")
    for key in ("30", "ann", "-1"):
        error = vecsmith("recommend", tmp_path, f"--user={key}", "--liked").error()
        assert f"no user '{key}': the model has no keys, but 0..29" in error
    assert vecsmith("similar", tmp_path, "--item", 3).out.startswith("item 3\n")


@pytest.mark.parametrize("kind", [ALS, ExplicitALS, MatrixFactorizationSGD, BPR])
def test_folders_of_all_factorizations_are_opened(vecsmith, ratings, tmp_path, kind):
    model = kind(factors=4, random_state=1, progress=False, num_threads=1)
    model.fit(Interactions.read(ratings)).save(tmp_path)
    done = vecsmith("recommend", tmp_path, "--user", "user 3", "-n", 4, "--threads", 1)
    assert done.code == 0, done.err
    head, *lines = done.out.splitlines()
    assert head == "user user 3"
    ids, scores = model.recommend(model.interactions.user_index("user 3"), N=4)
    assert [line.split() for line in lines] == [
        [str(FIRST + item), f"{score:.4f}"]
        for item, score in zip(ids.tolist(), scores, strict=True)
    ]
    done = vecsmith("recommend", tmp_path, "--all", "-o", tmp_path / "all.csv", "-n", 3)
    assert done.code == 0, done.err
    done = vecsmith("similar", tmp_path, "--item", FIRST + 2, "-n", 3)
    nearest = [item for item in model.similar_items(2, N=4)[0].tolist() if item != 2]
    assert [int(line.split()[0]) - FIRST for line in done.out.splitlines()[1:]] == nearest[:3]
    assert vecsmith("similar", tmp_path, "--user", "user 3").out.startswith("user user 3\n")


# --- similar --------------------------------------------------------------------------------------


def test_similar_items_and_users(vecsmith, folder):
    done = vecsmith("similar", folder, "--item", FIRST + 2, "--item", FIRST + 20, "-n", 3)
    assert done.code == 0
    lines = done.out.splitlines()
    assert [lines[0], lines[4]] == [f"item {FIRST + 2}", f"item {FIRST + 20}"]
    model = ALS.load(folder)
    ids, _ = model.similar_items(2, N=4)
    assert [int(line.split()[0]) - FIRST for line in lines[1:4]] == ids[1:].tolist()
    done = vecsmith("similar", folder, "--user", "user 3", "-n", 2, "--json")
    (record,) = map(json.loads, done.out.splitlines())
    assert record["user"] == "user 3"
    assert all(0 < one["score"] <= 1 for one in record["found"])
    assert len(vecsmith("similar", folder, "--item", FIRST, "-n", 99).out.splitlines()) == 24


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ([], "expected --item or --user; got neither"),
        (["--item", 1, "--user", 1], "got both"),
        (["--item", 1], "no item 1"),
        (["--item", "007"], "no item '007': keys are integers"),
        (["--user", "5"], "no user '5'"),
    ],
)
def test_similar_refuses(vecsmith, folder, options, text):
    assert text in vecsmith("similar", folder, *options).error()
