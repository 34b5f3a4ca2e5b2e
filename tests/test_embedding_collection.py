"""EmbeddingBagCollection against torch.nn.EmbeddingBag, table by table: every form of input, shared
tables, optimizers, names, and what is refused."""

from __future__ import annotations

import enum
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vecsmith import nn, optim
from vecsmith.nn import EmbeddingBagCollection, EmbeddingBagConfig
from vecsmith.nn.table import Table


@dataclass
class Jagged:
    """The surface of torchrec's JaggedTensor."""

    of_values: Tensor
    of_lengths: Tensor
    of_weights: Tensor | None = None

    def values(self) -> Tensor:
        return self.of_values

    def lengths(self) -> Tensor:
        return self.of_lengths

    def offsets(self) -> Tensor:
        return torch.nn.functional.pad(self.of_lengths.cumsum(0), (1, 0))

    def weights_or_none(self) -> Tensor | None:
        return self.of_weights


@dataclass
class Keyed(Jagged):
    """The surface of torchrec's KeyedJaggedTensor."""

    of_keys: tuple[str, ...] = ()

    def keys(self) -> list[str]:
        return list(self.of_keys)


class OnlyLengths:
    """One that has lengths alone, and weights by torchrec's other name."""

    def __init__(self, keyed: Keyed) -> None:
        self.keys, self.values, self.lengths = keyed.keys, keyed.values, keyed.lengths
        self.weights = keyed.weights_or_none


class Pooling(enum.Enum):
    SUM = "SUM"
    MEAN = "MEAN"


def tables(**how) -> list[EmbeddingBagConfig]:
    return [
        EmbeddingBagConfig(
            name="users", num_embeddings=11, embedding_dim=4, feature_names=["user"], **how
        ),
        EmbeddingBagConfig(
            name="goods",
            num_embeddings=23,
            embedding_dim=7,
            feature_names=["item", "basket"],
            **({"pooling": "mean"} | how),
        ),
    ]


ROWS = {"user": 11, "item": 23, "basket": 23}
TABLE = {"user": "users", "item": "goods", "basket": "goods"}


def batch(count: int = 5, weighted: bool = False, longest: int = 4) -> dict[str, Jagged]:
    made = {}
    for feature, rows in ROWS.items():
        lengths = torch.randint(longest, (count,))
        total = int(lengths.sum())
        weights = torch.randn(total) if weighted else None
        made[feature] = Jagged(torch.randint(rows, (total,)), lengths, weights)
    return made


def keyed(features: dict[str, Jagged]) -> Keyed:
    parts = list(features.values())
    weighted = parts[0].of_weights is not None
    return Keyed(
        torch.cat([p.of_values for p in parts]),
        torch.cat([p.of_lengths for p in parts]),
        torch.cat([p.of_weights for p in parts]) if weighted else None,
        tuple(features),
    )


def expected(collection: EmbeddingBagCollection, features: dict[str, Jagged]) -> dict[str, Tensor]:
    """Table by table with torch's function."""
    found = {}
    for feature, jagged in features.items():
        layer = collection.embedding_bags[TABLE[feature]]
        found[feature] = torch.nn.functional.embedding_bag(
            jagged.values(),
            layer.weight,
            jagged.offsets(),
            mode=layer.mode,
            per_sample_weights=jagged.weights_or_none(),
            include_last_offset=True,
        )
    return found


# --- forms of input -------------------------------------------------------------------------------


def test_every_form_of_input_gives_the_same():
    collection = EmbeddingBagCollection(tables=tables())
    ending = EmbeddingBagCollection(tables=tables(), include_last_offset=True)
    ending.load_state_dict(collection.state_dict())
    features = batch()
    want = expected(collection, features)
    starts = {f: (j.values(), j.offsets()[:-1]) for f, j in features.items()}
    ends = {f: [j.values(), j.offsets()] for f, j in features.items()}
    for got in (
        collection(starts),
        ending(ends),
        collection(features),
        collection(keyed(features)),
        collection(OnlyLengths(keyed(features))),
        collection(starts | {"unknown": None}),
    ):
        assert list(got) == ["user", "item", "basket"] == collection.embedding_names()
        torch.testing.assert_close(got, want)
    together = collection(starts, concatenated=True)
    torch.testing.assert_close(together, torch.cat(list(want.values()), 1))
    assert [part.shape[1] for part in want.values()] == collection.length_per_key() == [4, 7, 7]


def test_bags_of_one_length():
    collection = EmbeddingBagCollection(tables=tables())
    features = {f: torch.randint(rows, (5, 3)) for f, rows in ROWS.items()}
    got = collection(features)
    for feature, values in features.items():
        layer = collection.embedding_bags[TABLE[feature]]
        theirs = torch.nn.functional.embedding_bag(values, layer.weight, mode=layer.mode)
        torch.testing.assert_close(got[feature], theirs)


def test_weights_of_the_entries():
    collection = EmbeddingBagCollection(tables=tables(pooling=Pooling.SUM), is_weighted=True)
    assert collection.is_weighted
    features = batch(weighted=True)
    want = expected(collection, features)
    torch.testing.assert_close(collection(features), want)
    torch.testing.assert_close(collection(keyed(features)), want)
    torch.testing.assert_close(collection(OnlyLengths(keyed(features))), want)
    triples = {f: (j.values(), j.offsets()[:-1], j.weights_or_none()) for f, j in features.items()}
    torch.testing.assert_close(collection(triples), want)
    values, weights = torch.randint(11, (2, 3)), torch.randn(2, 3)
    got = collection(dict.fromkeys(ROWS, (values, weights)))
    rows = collection.embedding_bags["users"].weight[values]
    torch.testing.assert_close(got["user"], (rows * weights[..., None]).sum(1))


@settings(deadline=None, max_examples=30)
@given(data=st.data())
def test_any_shape(data):
    count = data.draw(st.integers(1, 6))
    longest = data.draw(st.integers(1, 5))
    features = batch(count, longest=longest)
    collection = EmbeddingBagCollection(tables=tables(), sparse=data.draw(st.booleans()))
    theirs = {
        name: torch.nn.Parameter(layer.weight.detach().clone())
        for name, layer in collection.embedding_bags.items()
    }
    got, want = collection(keyed(features)), expected(collection, features)
    torch.testing.assert_close(got, want)
    (sum(t.square().sum() for t in got.values())).backward()
    for name, weight in theirs.items():
        loss = torch.zeros(())
        for feature, jagged in features.items():
            if TABLE[feature] == name:
                mode = collection.embedding_bags[name].mode
                loss = (
                    loss
                    + torch.nn.functional.embedding_bag(
                        *(jagged.values(), weight, jagged.offsets()),
                        mode=mode,
                        include_last_offset=True,
                    )
                    .square()
                    .sum()
                )
        loss.backward()
        grad = collection.embedding_bags[name].weight.grad
        assert grad.is_sparse == collection.embedding_bags[name].sparse
        torch.testing.assert_close(grad.to_dense(), weight.grad, rtol=1e-4, atol=1e-5)


# --- training -------------------------------------------------------------------------------------


@pytest.mark.parametrize("in_backward", [False, True])
def test_a_shared_table_is_stepped_once(in_backward):
    collection = EmbeddingBagCollection(tables=tables(), sparse=True)
    plain = EmbeddingBagCollection(tables=tables())
    plain.load_state_dict(collection.state_dict())
    other = torch.optim.Adagrad(plain.parameters(), lr=0.1)
    optimizer = None
    if in_backward:
        optim.apply_optimizer_in_backward(optim.SparseAdagrad, collection.parameters(), {"lr": 0.1})
        assert len(optim.get_in_backward_optimizers(collection)) == 2
    else:
        optimizer = optim.SparseAdagrad(collection.parameters(), lr=0.1)
    for _ in range(4):
        features = keyed(batch())
        for model in (collection, plain):
            model(features, concatenated=True).square().sum().backward()
        if optimizer is not None:
            optimizer.step()
            optimizer.zero_grad()
        other.step()
        other.zero_grad()
        assert all(p.grad is None for p in collection.parameters())
    for mine, theirs in zip(collection.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_it_compiles_in_one_graph():
    torch._dynamo.reset()
    collection = EmbeddingBagCollection(tables=tables())
    compiled = torch.compile(collection, fullgraph=True, backend="aot_eager")
    features = {f: (j.values(), j.offsets()[:-1]) for f, j in batch().items()}
    torch.testing.assert_close(compiled(features), collection(features))


# --- tables, names, first numbers -----------------------------------------------------------------


def test_names_are_torchrecs():
    collection = EmbeddingBagCollection(tables=tables())
    assert list(collection.state_dict()) == [
        "embedding_bags.users.weight",
        "embedding_bags.goods.weight",
    ]
    assert [c.name for c in collection.embedding_bag_configs()] == ["users", "goods"]
    assert isinstance(collection.embedding_bags["users"], nn.EmbeddingBag)
    shared = [
        EmbeddingBagConfig(3, 2, "a", feature_names=["x", "y"]),
        EmbeddingBagConfig(3, 5, "b", feature_names=["y"]),
    ]
    collection = EmbeddingBagCollection(shared)
    assert collection.embedding_names() == ["x", "y@a", "y@b"]
    got = collection({"x": torch.zeros(2, 1).long(), "y": torch.ones(2, 1).long()})
    assert {name: t.shape[1] for name, t in got.items()} == {"x": 2, "y@a": 2, "y@b": 5}


def test_first_numbers():
    configs = [
        EmbeddingBagConfig(400, 8, "a", feature_names=["x"]),
        EmbeddingBagConfig(
            400, 8, "b", feature_names=["x"], weight_init_min=2.0, weight_init_max=3.0
        ),
        EmbeddingBagConfig(400, 8, "c", feature_names=["x"], init_fn=torch.nn.init.ones_),
    ]
    collection = EmbeddingBagCollection(configs)
    for _ in range(2):
        a, b, c = (layer.weight for layer in collection.embedding_bags.values())
        assert 0.045 < a.abs().max() <= 0.05
        assert 2 <= b.min() < b.max() <= 3
        assert (c == 1).all()
        with torch.no_grad():
            for weight in (a, b, c):
                weight.zero_()
        collection.reset_parameters()


@pytest.mark.parametrize(
    ("given", "dtype"),
    [(torch.bfloat16, torch.bfloat16), ("FP16", torch.float16), ("FP32", torch.float32)],
    ids=str,
)
def test_data_types(given, dtype):
    config = EmbeddingBagConfig(5, 3, "a", feature_names=["x"], data_type=given, pooling="MEAN")
    collection = EmbeddingBagCollection([config])
    assert collection.embedding_bags["a"].weight.dtype == dtype
    assert collection.embedding_bags["a"].mode == "mean"


class Constant(Table):
    num_embeddings, embedding_dim = 5, 3

    def embedding_bag(self, indices, offsets=None, **how):
        return torch.ones(offsets.numel() - 1, 3)


def test_a_table_in_the_place_of_a_weight():
    config = EmbeddingBagConfig(5, 3, "a", feature_names=["x"], table=Constant())
    collection = EmbeddingBagCollection([config], device="cpu")
    collection.reset_parameters()
    assert torch.equal(collection({"x": torch.tensor([[1], [2]])})["x"], torch.ones(2, 3))


def test_devices():
    collection = EmbeddingBagCollection(tables(), device="meta")
    assert all(p.is_meta for p in collection.parameters())


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_embeddings": 0}, "num_embeddings >= 1"),
        ({"embedding_dim": 0}, "embedding_dim >= 1"),
        ({"pooling": "median"}, "'sum', 'mean' or 'max'; got 'median'"),
        ({"pooling": 3}, "'sum', 'mean' or 'max'; got 3"),
        ({"data_type": "INT8"}, "data_type to be one of"),
        ({"feature_names": "abc"}, "a list of names; got 'abc'"),
    ],
    ids=str,
)
def test_configs_that_there_are_not(options, message):
    with pytest.raises(ValueError, match=message):
        EmbeddingBagConfig(**({"num_embeddings": 3, "embedding_dim": 2} | options))


@pytest.mark.parametrize(
    ("configs", "how", "message"),
    [
        ([], {}, "at least one table"),
        ([EmbeddingBagConfig(3, 2, "", feature_names=["x"])], {}, "names of their own; got ''"),
        ([EmbeddingBagConfig(3, 2, "a", feature_names=["x"])] * 2, {}, "got 'a'"),
        ([EmbeddingBagConfig(3, 2, "items", feature_names=["x"])], {}, "does not use itself"),
        ([EmbeddingBagConfig(3, 2, "a.b", feature_names=["x"])], {}, "without dots"),
        ([EmbeddingBagConfig(3, 2, "a")], {}, "feature_names for table 'a'"),
        ([EmbeddingBagConfig(3, 2, "a", feature_names=["x", "x"])], {}, "each feature once"),
        (
            [EmbeddingBagConfig(3, 2, "a", feature_names=["x"], pooling="mean")],
            {"is_weighted": True},
            "pooling 'sum' with is_weighted; got 'mean'",
        ),
    ],
    ids=["none", "nameless", "twice", "items", "dot", "featureless", "feature twice", "mean"],
)
def test_collections_that_there_are_not(configs, how, message):
    with pytest.raises(ValueError, match=message):
        EmbeddingBagCollection(configs, **how)


ONE = (torch.tensor([1, 2]), torch.tensor([0, 1]))
TWO = torch.tensor([1, 2])
BAD_FEATURES = [
    ({"user": ONE, "item": ONE}, KeyError, "expected feature 'basket'; got 'user', 'item'"),
    ([ONE], TypeError, "a mapping or a KeyedJaggedTensor; got list"),
    (dict.fromkeys(ROWS, 3), TypeError, r"\(values, offsets\).*for 'user'; got int"),
    (dict.fromkeys(ROWS, (TWO, 3)), TypeError, "for 'user'; got tuple"),
    (dict.fromkeys(ROWS, TWO), ValueError, r"got 1 tensors, the first of shape \[2\]"),
    (dict.fromkeys(ROWS, (*ONE, TWO, TWO)), ValueError, "got 4 tensors"),
    (dict.fromkeys(ROWS, (*ONE, torch.ones(2))), ValueError, "no weights for 'user'"),
    (dict.fromkeys(ROWS, ONE) | {"item": (TWO, TWO[:1] * 0)}, ValueError, "expected 2 bags"),
    (dict.fromkeys(ROWS, ONE) | {"item": (TWO * 20, ONE[1])}, IndexError, "40"),
    (dict.fromkeys(ROWS, (TWO.float(), ONE[1])), TypeError, "int32 or int64"),
    (dict.fromkeys(ROWS, (TWO, TWO)), ValueError, "offsets"),
    (Keyed(TWO, torch.tensor([1, 1]), None, ("a", "b", "c")), ValueError, "for each of 3 keys"),
    (Keyed(TWO, TWO * 0, None, ()), ValueError, "for each of 0 keys"),
]


@pytest.mark.parametrize(
    ("features", "error", "message"), BAD_FEATURES, ids=[str(n) for n in range(len(BAD_FEATURES))]
)
def test_features_that_do_not_fit_are_refused(features, error, message):
    collection = EmbeddingBagCollection(tables=tables(), sparse=True)
    optim.apply_optimizer_in_backward(optim.SparseSGD, collection.parameters(), {"lr": 1.0})
    before = [p.detach().clone() for p in collection.parameters()]
    with pytest.raises(error, match=message):
        collection(features, concatenated=True).sum().backward()
    for old, new in zip(before, collection.parameters(), strict=True):
        assert torch.equal(old, new)


def test_weights_are_needed_where_they_are_promised():
    collection = EmbeddingBagCollection(tables=tables(pooling="sum"), is_weighted=True)
    with pytest.raises(ValueError, match="expected weights for 'user' with is_weighted=True"):
        collection(dict.fromkeys(ROWS, ONE))
