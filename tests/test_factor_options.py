"""Options of factorizations, factors that are assigned, and what is refused in clear words."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
import torch

from planted_ratings import random_cells
from vecsmith import ALS, BPR, ExplicitALS, MatrixFactorizationSGD
from vecsmith.models import _factor_options as options_of

KINDS = [ALS, ExplicitALS, MatrixFactorizationSGD, BPR]
MATRIX = random_cells()
BOOLEANS = {
    ALS: ["use_native", "use_cg", "calculate_training_loss", "weighted_regularization"],
    ExplicitALS: ["biases", "weighted_regularization", "nonnegative", "calculate_training_loss"],
    MatrixFactorizationSGD: ["biases"],
    BPR: ["verify_negative_samples"],
}
COMMON = {"factors": 4, "random_state": 5, "progress": False}


def count(kind):
    return "epochs" if kind is MatrixFactorizationSGD else "iterations"


def fitted(kind=ALS, **options):
    return kind(**{**COMMON, count(kind): 2, **options}).fit(MATRIX)


# --- options --------------------------------------------------------------------------------------


@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_options_of_numpy_are_those_of_python(tmp_path, kind, later):
    given = {name: np.bool_(name != "nonnegative") for name in BOOLEANS[kind]}
    given |= {
        "factors": np.int64(4),
        "regularization": np.float32(0.25),
        "tolerance": np.float64(0),
    }
    given |= {count(kind): np.int16(2), "random_state": np.int64(5), "num_threads": np.uint8(1)}
    if kind in (ALS, ExplicitALS):
        given |= {"cg_steps": np.int64(3), "block_size": np.int32(8), "dtype": np.dtype("f4")}
    if kind in (ExplicitALS, MatrixFactorizationSGD):
        given |= {"patience": np.int8(2), "clip": np.array([0.0, 5.0])}
    if kind is ALS:
        given |= {"method": np.str_("cg"), "alpha": np.float32(2)}
    made = {"checkpoint": tmp_path / "run", "checkpoint_every": np.float32(0)}
    made |= {"resume": np.bool_(True), "progress": np.bool_(False)}
    if later:
        model = kind(**made)
        for name, value in given.items():
            setattr(model, name, value)
    else:
        model = kind(**made, **given)
    model.fit(MATRIX, show_progress=False).save(tmp_path / "model")
    for name in set(given) - {"dtype"}:
        assert type(getattr(model, name)) in (bool, int, float, str, tuple), name
    back = kind.load(tmp_path / "model")
    np.testing.assert_array_equal(back.item_factors, model.item_factors)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", ["no", "True", 2, -1, 0.0, None, [], np.array([True, False])])
def test_what_is_neither_true_nor_false_is_refused(kind, value):
    for name in [*BOOLEANS[kind], "resume", *([] if value is None else ["progress"])]:
        with pytest.raises(TypeError, match=f"expected {name} to be True or False"):
            kind(**{name: value})
    for name in BOOLEANS[kind]:
        model = kind(progress=False)
        setattr(model, name, value)
        with pytest.raises(TypeError, match=f"expected {name} to be True or False"):
            model.fit(MATRIX)


def test_one_and_zero_are_true_and_false():
    assert ALS(use_cg=0).use_cg is False
    assert ALS(use_cg=1).use_cg is True
    assert ExplicitALS(biases=torch.tensor(True)).biases is True


@pytest.mark.parametrize("kind", KINDS)
def test_more_threads_than_are_of_use_are_not_begun(kind, monkeypatch):
    begun = []
    monkeypatch.setattr(torch, "set_num_threads", begun.append)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    model = fitted(kind, num_threads=1000)
    assert model.num_threads == 1000  # it may be another machine's
    assert model._threads() == 8
    assert begun[0] == 8
    for wrong in (2**40, 4097):
        with pytest.raises(ValueError, match="expected num_threads <= 4096"):
            kind(num_threads=wrong)
    assert options_of.useful_threads(3) == 3
    assert kind()._threads() is None


# --- assigned factors -----------------------------------------------------------------------------

NAN = np.ones((4, 3))
NAN[2, 1] = np.nan
WRONG = {
    "nan": (NAN, ValueError, "expected finite item_factors"),
    "nan tensor": (torch.from_numpy(NAN).float(), ValueError, "expected finite item_factors"),
    "too large": (np.full((4, 3), 1e300), ValueError, "expected finite item_factors"),
    "complex": (np.ones((4, 3)) * 1j, TypeError, "real numbers; got complex128"),
    "text": (np.full((4, 3), "a"), TypeError, "real numbers"),
    "width": (np.ones((4, 2)), ValueError, "item_factors of 3 columns, as many as user_factors"),
    "one column": (np.ones(4), ValueError, "shape"),
    "no columns": (np.ones((4, 0)), ValueError, "shape"),
    "transposed": (torch.ones(3, 4).T, ValueError, r"each in one piece; got strides \(1, 4\)"),
    "expanded": (torch.ones(1, 3).expand(4, 3), ValueError, r"strides \(0, 1\)"),
    "overlapping": (torch.ones(9).as_strided((4, 3), (2, 1)), ValueError, r"strides \(2, 1\)"),
    "sparse": (torch.eye(4)[:, :3].to_sparse(), ValueError, "torch.sparse_coo"),
}


@pytest.mark.parametrize("name", WRONG)
def test_factors_that_cannot_be_searched_are_refused(name):
    values, error, text = WRONG[name]
    model = ALS()
    model.user_factors, model.item_factors = np.ones((2, 3)), np.ones((4, 3))
    before = model.item_embedding
    with pytest.raises(error, match=text):
        model.item_factors = values
    if isinstance(values, torch.Tensor):
        with pytest.raises(error, match=text):
            model.item_embedding = values
    assert model.item_embedding is before


def test_a_tensor_of_inference_mode_is_refused():
    with torch.inference_mode():
        table = torch.ones(4, 3)
    with pytest.raises(ValueError, match="inference mode"):
        ALS().item_embedding = table
    model = ALS()
    model.item_embedding = table.clone()


def test_rows_may_lie_apart():
    model, table = ALS(), torch.randn(8, 5)
    model.user_factors = np.eye(3)
    model.item_embedding = table[::2, :3]
    assert model.item_embedding.data_ptr() == table.data_ptr()
    ids, scores = model.recommend([0, 1, 2], N=4, filter_already_liked_items=False)
    np.testing.assert_array_equal(scores, -np.sort(-table[::2, :3].T.numpy(), axis=1))
    held = model.item_factors
    held[int(ids[0, 3]), 0] = 99
    assert model.recommend(0, N=1, filter_already_liked_items=False)[0][0] == ids[0, 3]
    model.user_factors = None
    model.item_factors = np.ones((4, 2))  # another width


# --- clear words ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_one_item_is_a_list_of_one(kind):
    model = fitted(kind)
    for option in ("filter_items", "items"):
        one = model.recommend([0, 1], MATRIX[:2], N=5, **{option: 3})
        some = model.recommend([0, 1], MATRIX[:2], N=5, **{option: [3]})
        for mine, theirs in zip(one, some, strict=True):
            np.testing.assert_array_equal(mine, theirs)
    assert model.rank_items(0, MATRIX[:1], 5)[0].tolist() == [5]
    assert model.similar_items(0, filter_items=0, N=1)[0][0] != 0
    with pytest.raises(ValueError, match="got both"):
        model.recommend(0, MATRIX[:1], items=[1], filter_items=2)
    for wrong in (1.5, "a"):
        with pytest.raises(TypeError, match="filter_items to be an integer"):
            model.recommend(0, MATRIX[:1], filter_items=wrong)


def test_an_explanation_needs_one_solution():
    model = ALS(factors=30, regularization=0.0, random_state=0, progress=False)
    model.fit(MATRIX)
    with pytest.raises(ValueError, match=r"one solution .* 30 factors, 20 items .* 0"):
        model.explain(0, MATRIX, 1)


@pytest.mark.parametrize("kind", [ALS, ExplicitALS, MatrixFactorizationSGD])
def test_row_numbers_beyond_all_memory_are_refused(kind, monkeypatch):
    model = fitted(kind)
    before = model.user_embedding
    for far in (10**12, 2**31 - 1):
        with pytest.raises(IndexError, match=f"userids of at most 2147483646; got {far}"):
            model.partial_fit_users([far], MATRIX[:1])

    # As torch does where there is none; to ask for it in earnest would end other processes.
    def none(*shape):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(torch.Tensor, "new_zeros", none)
    with pytest.raises(MemoryError, match=r"expected memory for 1001 rows of [45] numbers"):
        model._users.extended(1001)
    assert model.user_embedding is before


@pytest.mark.parametrize("options", [{}, {"optimizer": "sgd"}, {"minibatch": 8}])
def test_ratings_of_a_spread_beyond_float32_are_refused(options):
    for scale in (1e15, 1e-16):
        model = MatrixFactorizationSGD(**COMMON, **options)
        with pytest.raises(ValueError, match=r"standard deviation in 1e-10 \.\. 1e\+10"):
            model.fit(MATRIX * scale)
        assert model.user_factors is None


@pytest.mark.parametrize("scale", [1e-8, 1e8])
def test_ratings_of_any_other_spread_are_learned_alike(scale):
    one = MatrixFactorizationSGD(**COMMON).fit(MATRIX)
    other = MatrixFactorizationSGD(
        **COMMON, regularization=0.04 * scale, bias_regularization=0.04
    ).fit(MATRIX * scale)
    expected = one.history_[-1]["rmse"] * scale
    assert other.history_[-1]["rmse"] == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(("kind", "name"), [(ALS, "an ALS"), (BPR, "a BPR")])
def test_a_model_before_fit_is_named(kind, name):
    with pytest.raises(ValueError, match=f"expected {name} with item_factors; got one before fit"):
        kind().recommend(0, MATRIX[:1])


# --- folders --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("name", "value"),
    [("checkpoint", "elsewhere"), ("device", "cuda"), ("progress", True), ("resume", False)],
)
def test_a_folder_sets_no_option_of_the_machine(tmp_path, kind, name, value):
    fitted(kind).save(tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    config = json.loads(path.read_text())
    config["parameters"][name] = str(tmp_path / value) if name == "checkpoint" else value
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=rf"damaged .*got \['{name}'\]"):
        kind.load(tmp_path / "model")
    assert os.listdir(tmp_path) == ["model"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_has_a_name(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="expected the name of a folder"):
        fitted(kind).save("")
    assert os.listdir(tmp_path) == []
    fitted(kind).save(".")
    assert kind.load(".").factors == 4
