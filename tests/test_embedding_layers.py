"""nn.Embedding and nn.EmbeddingBag against torch.nn's: the same arguments, numbers, gradients,
state_dict and behavior, also where there is no fast path."""

from __future__ import annotations

import copy
import inspect
import io

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import forward_ad

from vecsmith import nn, optim
from vecsmith.nn.table import Table

MODES = ("sum", "mean", "max")
ROWS, DIM = 23, 5


@pytest.fixture(autouse=True)
def _clean_compiler():
    torch._dynamo.reset()


class PlainTable(Table):
    """The smallest table: a weight, and torch's functions."""

    def __init__(self, rows: int, dim: int) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = rows, dim
        self.rows_of_mine = torch.nn.Parameter(torch.randn(rows, dim))

    def embedding(self, indices, *, padding_idx=None, sparse=False):
        return torch.nn.functional.embedding(
            indices, self.rows_of_mine, padding_idx=padding_idx, sparse=sparse
        )

    def embedding_bag(self, indices, offsets=None, *, mode="mean", **how):
        return torch.nn.functional.embedding_bag(
            indices, self.rows_of_mine, offsets, mode=mode, **how
        )

    def reset_parameters(self):
        with torch.no_grad():
            self.rows_of_mine.fill_(3)


def twins(kind: str, *args, **kwargs) -> tuple[torch.nn.Module, torch.nn.Module]:
    """(torch's layer, ours) from the same seed."""
    torch.manual_seed(3)
    theirs = getattr(torch.nn, kind)(*args, **kwargs)
    torch.manual_seed(3)
    return theirs, getattr(nn, kind)(*args, **kwargs)


def agree(theirs: torch.nn.Module, ours: torch.nn.Module, *inputs: Tensor, exact=False) -> None:
    """The outputs, and the gradients of a loss that is not symmetric, are the same."""
    out, mine = theirs(*inputs), ours(*inputs)
    assert mine.dtype == out.dtype
    tolerance = {"rtol": 0, "atol": 0} if exact else {}
    torch.testing.assert_close(mine, out, **tolerance)
    slope = torch.randn(out.shape, dtype=torch.float64).to(out.dtype)
    for result in (out, mine):
        if result.requires_grad:
            (result * slope).sum().backward()
    if theirs.weight.grad is None:
        assert ours.weight.grad is None
        return
    assert ours.weight.grad.is_sparse == theirs.weight.grad.is_sparse
    torch.testing.assert_close(
        ours.weight.grad.to_dense(), theirs.weight.grad.to_dense(), **tolerance
    )


# --- construction ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["Embedding", "EmbeddingBag"])
def test_arguments_are_torchs(kind):
    theirs = list(inspect.signature(getattr(torch.nn, kind)).parameters.values())
    ours = list(inspect.signature(getattr(nn, kind)).parameters.values())
    assert [(p.name, p.default, p.kind) for p in ours[: len(theirs)]] == [
        (p.name, p.default, p.kind) for p in theirs
    ]
    assert all(p.kind == p.KEYWORD_ONLY for p in ours[len(theirs) :])


@pytest.mark.parametrize("kind", ["Embedding", "EmbeddingBag"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"padding_idx": 0},
        {"padding_idx": -1},
        {"padding_idx": 4, "max_norm": 1.0, "norm_type": 1.0},
        {"scale_grad_by_freq": True},
        {"sparse": True},
        {"dtype": torch.float16},
        {"dtype": torch.float64, "device": "cpu"},
    ],
    ids=lambda options: "-".join(options) or "plain",
)
def test_the_same_numbers_from_the_same_seed(kind, options):
    theirs, ours = twins(kind, ROWS, DIM, **options)
    assert isinstance(ours, type(theirs))
    assert ours.weight.dtype == theirs.weight.dtype
    assert torch.equal(ours.weight, theirs.weight)
    assert ours.weight.is_contiguous()
    assert ours.extra_repr() == theirs.extra_repr()
    torch.manual_seed(4)
    theirs.reset_parameters()
    torch.manual_seed(4)
    ours.reset_parameters()
    assert torch.equal(ours.weight, theirs.weight)


@pytest.mark.parametrize("kind", ["Embedding", "EmbeddingBag"])
def test_state_dict_both_ways(kind):
    theirs, ours = getattr(torch.nn, kind)(ROWS, DIM), getattr(nn, kind)(ROWS, DIM)
    assert list(ours.state_dict()) == list(theirs.state_dict()) == ["weight"]
    ours.load_state_dict(theirs.state_dict())
    assert torch.equal(ours.weight, theirs.weight)
    ours.reset_parameters()
    file = io.BytesIO()
    torch.save(ours.state_dict(), file)
    file.seek(0)
    theirs.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(ours.weight, theirs.weight)


@pytest.mark.parametrize("kind", ["Embedding", "EmbeddingBag"])
def test_from_pretrained(kind):
    table = torch.randn(ROWS, DIM)
    ours = getattr(nn, kind).from_pretrained(table, padding_idx=-2, sparse=True)
    assert type(ours) is getattr(nn, kind)
    assert ours.weight.data_ptr() == table.data_ptr()
    assert not ours.weight.requires_grad
    assert ours.padding_idx == ROWS - 2
    thawed = getattr(nn, kind).from_pretrained(table, freeze=False)
    assert thawed.weight.requires_grad
    with pytest.raises(AssertionError, match="2-dimensional"):
        getattr(nn, kind).from_pretrained(table[0])


def test_freeze_and_given_weight():
    weight = torch.randn(ROWS, DIM)
    layer = nn.Embedding(ROWS, DIM, _weight=weight, _freeze=True)
    assert layer.weight.data_ptr() == weight.data_ptr()
    assert not layer.weight.requires_grad
    assert not layer(torch.tensor([1])).requires_grad


def test_a_large_weight_is_an_ordinary_tensor():
    layer = nn.Embedding(40_000, 64)  # large enough for huge pages
    other = torch.nn.Embedding(40_000, 64)
    assert layer.weight.untyped_storage().nbytes() == other.weight.untyped_storage().nbytes()
    layer.weight.untyped_storage().resize_(40_000 * 64 * 8)
    twin = copy.deepcopy(layer)
    assert torch.equal(twin.weight, layer.weight)
    shared = layer.share_memory()
    assert shared.weight.is_shared()
    assert torch.equal(shared.weight, twin.weight)


# --- forward and gradients ------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_embedding_equals_torchs(data):
    rows = data.draw(st.integers(1, 40))
    dim = data.draw(st.integers(1, 40))
    padding = data.draw(st.none() | st.integers(-rows, rows - 1))
    sparse = data.draw(st.booleans())
    # torch's own sparse gradient of one index without a dimension fails.
    shape = data.draw(st.lists(st.integers(0, 5), min_size=int(sparse), max_size=3))
    dtype = data.draw(st.sampled_from([torch.int32, torch.int64]))
    theirs, ours = twins("Embedding", rows, dim, padding_idx=padding, sparse=sparse)
    agree(theirs, ours, torch.randint(rows, shape, dtype=dtype))


@settings(deadline=None, max_examples=100)
@given(data=st.data())
def test_embedding_bag_equals_torchs(data):
    rows = data.draw(st.integers(1, 40))
    dim = data.draw(st.integers(1, 40))
    mode = data.draw(st.sampled_from(MODES))
    padding = data.draw(st.none() | st.integers(-rows, rows - 1))
    sparse = mode != "max" and data.draw(st.booleans())
    dtype = data.draw(st.sampled_from([torch.int32, torch.int64]))
    lengths = data.draw(st.lists(st.integers(0, 6), min_size=1, max_size=8))
    two = data.draw(st.booleans())
    last = data.draw(st.booleans())
    weighted = mode == "sum" and data.draw(st.booleans())
    theirs, ours = twins(
        "EmbeddingBag",
        rows,
        dim,
        mode=mode,
        padding_idx=padding,
        sparse=sparse,
        include_last_offset=last,
    )
    if two:
        values, offsets = torch.randint(rows, (len(lengths), 1 + lengths[0]), dtype=dtype), None
    else:
        values = torch.randint(rows, (sum(lengths),), dtype=dtype)
        ends = torch.tensor([0, *lengths]).cumsum(0).to(dtype)
        offsets = ends if last else ends[:-1]
    weights = torch.randn(values.shape) if weighted else None
    agree(theirs, ours, values, offsets, weights)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision(mode, dtype, assert_close_to_reference):
    theirs, ours = twins("EmbeddingBag", ROWS, DIM, mode=mode, dtype=dtype)
    values = torch.randint(ROWS, (40,))
    offsets = torch.tensor([0, 3, 3, 20])
    with torch.no_grad():
        exact = torch.nn.EmbeddingBag.from_pretrained(theirs.weight.double(), mode=mode)
        assert_close_to_reference(
            ours(values, offsets), theirs(values, offsets), exact(values, offsets)
        )


def test_gradient_of_per_sample_weights():
    theirs, ours = twins("EmbeddingBag", ROWS, DIM, mode="sum", padding_idx=3)
    values, offsets = torch.randint(ROWS, (30,)), torch.tensor([0, 7, 7, 12])
    grads = []
    for layer in (theirs, ours):
        weights = torch.linspace(-1, 1, 30).requires_grad_()
        layer(values, offsets, weights).square().sum().backward()
        grads.append(weights.grad)
    torch.testing.assert_close(*grads)


def test_indices_and_offsets_of_two_dtypes_are_promoted():
    theirs, ours = twins("EmbeddingBag", ROWS, DIM)
    values, offsets = torch.randint(ROWS, (9,)), torch.tensor([0, 4])
    expected = theirs(values, offsets)
    torch.testing.assert_close(ours(values.int(), offsets), expected)
    torch.testing.assert_close(ours(values, offsets.int()), expected)
    torch.testing.assert_close(ours(values, torch.tensor([0, 9, 4, 9])[::2]), expected)


def test_sparse_gradients_hold_each_row_once():
    layer = nn.Embedding(ROWS, DIM, sparse=True)
    layer(torch.tensor([5, 2, 5, 5])).sum().backward()
    assert layer.weight.grad._indices().tolist() == [[2, 5]]
    bag = nn.EmbeddingBag(ROWS, DIM, sparse=True, mode="max")  # which torch refuses
    bag(torch.tensor([[5, 2], [5, 5]])).sum().backward()
    assert bag.weight.grad.is_sparse


# --- what goes through torch's own functions ------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"scale_grad_by_freq": True},
        {"max_norm": 0.7},
        {"max_norm": 0.7, "norm_type": 1.0, "padding_idx": 2},
        {"dtype": torch.float64},
        {"dtype": torch.float64, "sparse": True},
    ],
    ids=lambda options: "-".join(map(str, options)),
)
def test_without_a_fast_path_the_answers_are_torchs(options):
    values, offsets = torch.randint(ROWS, (30,)), torch.tensor([0, 7, 7, 12])
    theirs, ours = twins("Embedding", ROWS, DIM, **options)
    agree(theirs, ours, values, exact=True)
    assert torch.equal(ours.weight, theirs.weight)  # max_norm changes it
    for mode in MODES:
        if mode == "max" and ("scale_grad_by_freq" in options or "sparse" in options):
            continue
        theirs, ours = twins("EmbeddingBag", ROWS, DIM, mode=mode, **options)
        agree(theirs, ours, values, offsets, exact=True)
        assert torch.equal(ours.weight, theirs.weight)


def test_gradcheck_in_float64():
    layer = nn.EmbeddingBag(6, 3, mode="sum", dtype=torch.float64)
    values, offsets = torch.tensor([0, 5, 5, 2, 1]), torch.tensor([0, 3, 3])

    def of(weight, weights):
        return torch.func.functional_call(layer, {"weight": weight}, (values, offsets, weights))

    weights = torch.randn(5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(of, (layer.weight, weights))


def test_tables_of_no_kernel_go_through_torch():
    values = torch.tensor([3, 1, 3])
    for weight in (torch.randn(DIM, ROWS).t(), torch.randn(ROWS, 0)):
        theirs = torch.nn.Embedding.from_pretrained(weight, freeze=False)
        ours = nn.Embedding.from_pretrained(weight, freeze=False)
        agree(theirs, ours, values)
    nested = torch.nested.nested_tensor([[1, 2], [3]], layout=torch.jagged)
    theirs, ours = twins("EmbeddingBag", ROWS, DIM)
    torch.testing.assert_close(ours(nested), theirs(nested))


def test_functorch_goes_through_torch():
    theirs, ours = twins("Embedding", ROWS, DIM)
    values = torch.tensor([[3, 1, 3], [2, 2, 0]])
    results = []
    for layer in (theirs, ours):

        def loss(weight, value, layer=layer):
            out = torch.func.functional_call(layer, {"weight": weight}, (value,))
            return out.square().sum()

        weight = layer.weight.detach()
        results.append(torch.func.vmap(torch.func.grad(loss), (None, 0))(weight, values))
    torch.testing.assert_close(*results)


def duals(layer, *inputs) -> Tensor:
    """The tangent of a layer's answer, for a tangent of ones of its weight."""
    with forward_ad.dual_level():
        weight = forward_ad.make_dual(layer.weight, torch.ones_like(layer.weight))
        out = torch.func.functional_call(layer, {"weight": weight}, inputs)
        return forward_ad.unpack_dual(out).tangent


@pytest.mark.parametrize("trained", [False, True])
def test_forward_mode_goes_through_torch(trained):
    theirs, ours = (twin.requires_grad_(trained) for twin in twins("Embedding", ROWS, DIM))
    values = torch.tensor([[3, 1, 3], [2, 2, 0]])
    assert torch.equal(duals(ours, values), duals(theirs, values))
    bag = nn.EmbeddingBag(ROWS, DIM).requires_grad_(trained)
    with pytest.raises(NotImplementedError, match="forward AD"):  # torch's own answer
        duals(bag, values)
    # A gradient with a tangent comes to a look-up that was made outside.
    out = nn.Embedding(ROWS, DIM)(values)
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="without tangents"):
        out.backward(forward_ad.make_dual(torch.ones_like(out), torch.ones_like(out)))
    stepped = nn.Embedding(ROWS, DIM)
    optim.apply_optimizer_in_backward(optim.SparseSGD, stepped.weight, {"lr": 1.0})
    out = stepped(values)
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="without tangents"):
        out.backward(forward_ad.make_dual(torch.ones_like(out), torch.ones_like(out)))


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # of torch's own functions
@pytest.mark.parametrize("how", ["fx", "trace"])
@pytest.mark.parametrize("kind", ["Embedding", "EmbeddingBag"])
def test_symbolic_and_recorded_traces_go_through_torch(kind, how):
    theirs, ours = twins(kind, ROWS, DIM, padding_idx=2)
    given = (torch.tensor([1, 2, 3]), torch.tensor([0, 1]))[: 1 + (kind == "EmbeddingBag")]
    traced = torch.fx.symbolic_trace(ours) if how == "fx" else torch.jit.trace(ours, given)
    other = (torch.tensor([7, 2, 8, 9]), torch.tensor([0, 3]))[: len(given)]
    torch.testing.assert_close(traced(*other), theirs(*other))


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_recorded_trace_computes_what_it_is_given():
    """Not what the operator gave while it was recorded."""
    table = nn.HashedTable(1000, DIM, buckets=ROWS)
    layer = nn.Embedding(1000, DIM, table=table)
    traced = torch.jit.trace(layer, (torch.tensor([1, 2]),))
    other = torch.tensor([999, 4])
    assert torch.equal(traced(other), layer(other))
    optim.apply_optimizer_in_backward(optim.SparseSGD, layer.parameters(), {"lr": 1.0})
    with pytest.raises(RuntimeError, match=r"expected eager execution .* got torch\.jit\.trace"):
        torch.jit.trace(layer, (torch.tensor([1, 2]),))


# --- a module like every other --------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["Embedding", "EmbeddingBag"])
def test_copies_casts_and_freezing(kind):
    layer = getattr(nn, kind)(ROWS, DIM, padding_idx=1)
    values = torch.randint(ROWS, (4, 3))
    twin = copy.deepcopy(layer)
    assert type(twin) is type(layer)
    assert torch.equal(twin(values), layer(values))
    with torch.no_grad():
        twin.weight.zero_()
    assert layer.weight.abs().sum() > 0
    for cast, dtype in (("half", torch.float16), ("bfloat16", torch.bfloat16)):
        assert getattr(copy.deepcopy(layer), cast)()(values).dtype == dtype
    assert copy.deepcopy(layer).to(torch.float64)(values).dtype == torch.float64
    layer.requires_grad_(False)
    assert not layer(values).requires_grad


@pytest.mark.parametrize("kind", ["Embedding", "EmbeddingBag"])
def test_meta_device(kind):
    layer = getattr(nn, kind)(2**40, 8, device="meta")
    out = layer(torch.zeros(3, 2, dtype=torch.int64, device="meta"))
    assert out.is_meta
    with torch.device("meta"):
        layer = getattr(nn, kind)(ROWS, DIM)
    assert layer.weight.is_meta
    layer.to_empty(device="cpu")
    layer.reset_parameters()
    assert layer(torch.zeros(3, 2, dtype=torch.int64)).isfinite().all()


def test_functional_call_uses_the_given_weight():
    layer = nn.EmbeddingBag(ROWS, DIM, mode="sum")
    other = torch.ones(ROWS, DIM, requires_grad=True)
    values = torch.tensor([[1, 2, 2]])
    out = torch.func.functional_call(layer, {"weight": other}, (values,))
    assert torch.equal(out, torch.full((1, DIM), 3.0))
    out.sum().backward()
    assert layer.weight.grad is None
    assert other.grad[2].tolist() == [2.0] * DIM


@pytest.mark.parametrize("mode", MODES)
def test_compiles_in_one_graph(mode):
    theirs, ours = twins("EmbeddingBag", ROWS, DIM, mode=mode, padding_idx=2)
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    values, offsets = torch.randint(ROWS, (30,)), torch.tensor([0, 7, 7, 12])
    torch.testing.assert_close(compiled(values, offsets), theirs(values, offsets))
    compiled(values, offsets).square().sum().backward()
    theirs(values, offsets).square().sum().backward()
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad)


def test_embedding_compiles_in_one_graph():
    theirs, ours = twins("Embedding", ROWS, DIM, padding_idx=2)
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    values = torch.randint(ROWS, (4, 6))
    compiled(values).square().sum().backward()
    theirs(values).square().sum().backward()
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad)


def test_torch_optimizers_train_it():
    theirs, ours = twins("EmbeddingBag", ROWS, DIM, mode="sum", sparse=True)
    for layer in (theirs, ours):
        torch.manual_seed(5)
        optimizer = torch.optim.SparseAdam(layer.parameters(), lr=0.1)
        for _ in range(5):
            optimizer.zero_grad()
            layer(torch.randint(ROWS, (6, 3))).square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(ours.weight, theirs.weight)


# --- tables in the place of the weight ------------------------------------------------------------


def test_a_table_in_the_place_of_the_weight():
    table = PlainTable(ROWS, DIM)
    layer = nn.EmbeddingBag(ROWS, DIM, mode="sum", table=table, padding_idx=-1)
    assert list(layer.state_dict()) == ["table.rows_of_mine"]
    assert not hasattr(layer, "weight")
    values = torch.tensor([[1, 2, ROWS - 1]])
    expected = table.rows_of_mine[1] + table.rows_of_mine[2]
    torch.testing.assert_close(layer(values)[0], expected)
    flat = nn.Embedding(ROWS, DIM, table=table, _freeze=True)
    assert not table.rows_of_mine.requires_grad
    assert torch.equal(flat(values), table.rows_of_mine[values])
    assert torch.equal(table.rows(values), table.rows_of_mine[values])
    flat.reset_parameters()
    assert torch.equal(flat(values), torch.full((1, 3, DIM), 3.0))
    assert "PlainTable(23, 5)" in repr(flat)
    assert torch.equal(copy.deepcopy(flat)(values), flat(values))


def test_a_table_may_stand_for_more_numbers_than_a_tensor_has():
    rows = 2**60
    table = nn.HashedTable(rows, 8, buckets=100)
    last = torch.tensor([[rows - 1]])
    for make in (nn.Embedding, nn.EmbeddingBag):
        layer = make(rows, 8, table=table, padding_idx=-2)
        assert (layer.num_embeddings, layer.padding_idx) == (rows, rows - 2)
        assert str(rows) in repr(layer)
        torch.testing.assert_close(layer(last).view(1, 1, 8), table.rows(last))
        assert not layer(last - 1).any()
        with pytest.raises(IndexError):
            layer(last + 1)
    config = nn.EmbeddingBagConfig(rows, 8, "t", feature_names=["x"], table=table)
    assert nn.EmbeddingBagCollection([config])({"x": last})["x"].shape == (1, 8)


@pytest.mark.parametrize("storage", ["host", "mmap"])
def test_rows_that_are_kept_elsewhere(storage, tmp_path):
    where = {"path": tmp_path / "rows"} if storage == "mmap" else {}
    layer = nn.EmbeddingBag(
        ROWS, DIM, mode="sum", storage=storage, cache_rows=ROWS - 3, padding_idx=-1, **where
    )
    assert isinstance(layer.table, Table)
    values = torch.randint(ROWS, (3, 4))
    rows = layer.table.rows(torch.arange(ROWS))
    assert rows.dtype == torch.float32
    assert not rows[-1].any()
    theirs = torch.nn.functional.embedding_bag(values, rows, mode="sum", padding_idx=-1)
    torch.testing.assert_close(layer(values), theirs)
    other = nn.Embedding(ROWS, DIM, storage="host", dtype=torch.float16)
    assert other(values).dtype == torch.float16


def test_a_table_says_what_it_does_not_do():
    table = Table()
    table.num_embeddings, table.embedding_dim = 3, 2
    for call in (
        lambda: table.embedding(torch.tensor([0])),
        lambda: table.embedding_bag(torch.tensor([[0]])),
        lambda: table.reset_parameters(),
    ):
        with pytest.raises(NotImplementedError, match="Table does not implement"):
            call()


# --- bad input ------------------------------------------------------------------------------------

BAD_ARGUMENTS = [
    ({"padding_idx": ROWS}, ValueError, "padding_idx in -23..22; got 23"),
    ({"padding_idx": -ROWS - 1}, ValueError, "padding_idx in -23..22; got -24"),
    ({"padding_idx": 1.0}, TypeError, "padding_idx to be an int"),
    ({"_weight": torch.zeros(3, 3)}, ValueError, r"_weight of shape \[23, 5\]"),
    ({"storage": "disk"}, ValueError, "'device', 'host' or 'mmap'; got 'disk'"),
    ({"path": "x"}, ValueError, "expected path with storage"),
    ({"cache_rows": 3}, ValueError, "expected cache_rows with storage"),
    ({"table": "x"}, TypeError, "expected table to be a vecsmith.nn.Table"),
    ({"table": PlainTable(3, DIM)}, ValueError, r"table of \[23, 5\]; got \[3, 5\]"),
    ({"table": PlainTable(ROWS, DIM), "storage": "host"}, ValueError, "got both"),
    ({"table": PlainTable(ROWS, DIM), "max_norm": 1.0}, ValueError, "expected no max_norm"),
    (
        {"table": PlainTable(ROWS, DIM), "scale_grad_by_freq": True},
        ValueError,
        "expected no scale_grad_by_freq",
    ),
    ({"table": PlainTable(ROWS, DIM), "dtype": torch.float16}, ValueError, "got both"),
    ({"storage": "host", "_weight": torch.zeros(ROWS, DIM)}, ValueError, "expected no _weight"),
]


@pytest.mark.parametrize("kind", ["Embedding", "EmbeddingBag"])
@pytest.mark.parametrize(
    ("options", "error", "message"), BAD_ARGUMENTS, ids=[str(list(b[0])) for b in BAD_ARGUMENTS]
)
def test_arguments_that_do_not_fit_are_refused(kind, options, error, message):
    with pytest.raises(error, match=message):
        getattr(nn, kind)(ROWS, DIM, **options)


def test_a_mode_that_there_is_not_is_refused():
    with pytest.raises(ValueError, match="'sum', 'mean' or 'max'; got 'median'"):
        nn.EmbeddingBag(ROWS, DIM, mode="median")


BAD_INPUTS = [
    ((torch.tensor([ROWS]), torch.tensor([0])), IndexError, "23"),
    ((torch.tensor([-1]), torch.tensor([0])), IndexError, "-1"),
    ((torch.tensor([1.0]), torch.tensor([0])), TypeError, "int32 or int64"),
    ((torch.tensor([1, 2]), torch.tensor([0, 2, 1])), ValueError, "offsets"),
    ((torch.tensor([1, 2]), torch.tensor([0, 3])), ValueError, "offsets"),
    ((torch.tensor([1, 2]), torch.tensor([1])), ValueError, "offsets"),
    ((torch.tensor([1, 2]),), ValueError, "offsets"),
    ((torch.tensor([[1, 2]]), torch.tensor([0])), ValueError, "offsets"),
    ((torch.tensor([[1, 2]]), None, torch.ones(1, 3)), ValueError, "per_sample_weights"),
    ((torch.tensor([[1, 2]], device="meta"),), ValueError, "cpu"),
]


def test_lists_are_refused():
    values, offsets = torch.tensor([1, 2]), torch.tensor([0, 1])
    for stepped in (False, True):
        for table in (None, nn.HashedTable(ROWS, DIM, 3)):
            one = nn.Embedding(ROWS, DIM, table=table)
            bag = nn.EmbeddingBag(ROWS, DIM, mode="sum", table=table)
            if stepped and table is None:
                for layer in (one, bag):
                    optim.apply_optimizer_in_backward(optim.SparseSGD, layer.weight, {})
            with pytest.raises(TypeError, match=r"expected in.* to be a torch\.Tensor; got list"):
                one([1, 2])
            for inputs, name in (
                (([1, 2], offsets), "in.*"),
                (([[1, 2]],), "in.*"),
                ((values, [0, 1]), "offsets"),
                ((values, offsets, [0.5, 1.0]), "per_sample_weights"),
            ):
                with pytest.raises(TypeError, match=f"expected {name} to be a .*Tensor; got list"):
                    bag(*inputs)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("stepped", [False, True], ids=["graph", "in_backward"])
@pytest.mark.parametrize(
    ("inputs", "error", "message"), BAD_INPUTS, ids=[str(n) for n in range(len(BAD_INPUTS))]
)
def test_bad_input_is_refused_before_anything_changes(inputs, error, message, stepped, sparse):
    layer = nn.EmbeddingBag(ROWS, DIM, mode="sum", sparse=sparse)
    if stepped:
        optim.apply_optimizer_in_backward(optim.SparseSGD, layer.weight, {"lr": 1.0})
    before = layer.weight.detach().clone()
    with pytest.raises(error, match=message):
        layer(*inputs).sum().backward()
    assert torch.equal(layer.weight, before)
