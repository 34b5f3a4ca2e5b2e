"""apply_optimizer_in_backward: one backward pass is one step, equal to the same optimizer on sparse
gradients; nothing is stored, nothing steps that should not, and what cannot work is refused."""

from __future__ import annotations

import copy
import gc
import io

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vecsmith import nn, optim

# torch says so once, when its own optimizers make sparse tensors.
pytestmark = pytest.mark.filterwarnings("ignore:Sparse invariant checks are implicitly disabled")

ROWS, DIM = 17, 6
CLASSES = [
    (optim.SparseSGD, {"lr": 0.1}),
    (optim.SparseSGD, {"lr": 0.1, "momentum": 0.9, "dampening": 0.1}),
    (optim.SparseAdagrad, {"lr": 0.1, "lr_decay": 0.1}),
    (optim.RowwiseAdagrad, {"lr": 0.1, "weight_decay": 0.1}),
    (optim.SparseAdam, {"lr": 0.1}),
    (optim.RowwiseAdam, {"lr": 0.1, "maximize": True}),
]
NAMES = [f"{kind.__name__}-{'-'.join(options)}" for kind, options in CLASSES]


@pytest.fixture(autouse=True)
def _clean_compiler():
    torch._dynamo.reset()


def pair(kind, options, make=nn.EmbeddingBag, **arguments):
    """(a layer stepped in backward, the same layer with sparse gradients, its optimizer)."""
    stepped = make(ROWS, DIM, **arguments)
    plain = make(ROWS, DIM, sparse=True, **arguments)
    plain.load_state_dict(stepped.state_dict())
    optim.apply_optimizer_in_backward(kind, stepped.parameters(), options)
    return stepped, plain, kind(plain.parameters(), **options)


def bags(count: int = 30) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randint(ROWS, (count,)), torch.tensor([0, 7, 7, 12])


# --- the same as the optimizer on sparse gradients ------------------------------------------------


def test_the_indices_of_a_step_may_lie_apart():
    stepped, plain, optimizer = pair(optim.SparseSGD, {"lr": 0.1}, nn.Embedding)
    values = torch.arange(12)
    for indices in (values[::2], values.view(4, 3)[:, 1], values[4:5].expand(6)):
        for layer in (stepped, plain):
            layer(indices).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        torch.testing.assert_close(stepped.weight, plain.weight)
        assert torch.equal(stepped(indices), stepped(indices.contiguous()))


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize(("kind", "options"), CLASSES, ids=NAMES)
def test_a_backward_pass_is_a_step(kind, options, mode):
    stepped, plain, optimizer = pair(kind, options, mode=mode, padding_idx=3)
    for _ in range(4):
        values, offsets = bags()
        for layer in (stepped, plain):
            layer(values, offsets).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        assert stepped.weight.grad is None
    torch.testing.assert_close(stepped.weight, plain.weight)
    (inner,) = stepped.weight._in_backward_optimizers
    for mine, theirs in zip(
        inner.row_state(stepped.weight), optimizer.row_state(plain.weight), strict=True
    ):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize(("kind", "options"), CLASSES, ids=NAMES)
def test_several_uses_of_a_table_are_one_step(kind, options):
    stepped, plain, optimizer = pair(kind, options, mode="sum")
    flat = [nn.Embedding(ROWS, DIM, sparse=True), nn.Embedding(ROWS, DIM, sparse=True)]
    for layer, shared in zip(flat, (stepped, plain), strict=True):
        layer.weight = shared.weight
    values, offsets = bags()
    weights = torch.randn(30)
    for _ in range(3):
        for layer, other in ((stepped, flat[0]), (plain, flat[1])):
            loss = layer(values, offsets, weights).square().sum()
            loss = loss + other(values[:7]).pow(3).sum() + layer(values[:8].view(4, 2)).sum()
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert stepped.weight.grad is None
    torch.testing.assert_close(stepped.weight, plain.weight)
    assert optimizer.state[plain.weight].get("step", 3) == 3
    assert stepped.weight._in_backward_optimizers[0].state[stepped.weight].get("step", 3) == 3


@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_any_shape(data):
    rows, dim = data.draw(st.integers(1, 20)), data.draw(st.integers(1, 20))
    kind, options = data.draw(st.sampled_from(CLASSES))
    shape = data.draw(st.lists(st.integers(1, 4), max_size=3))
    padding = data.draw(st.none() | st.integers(-rows, rows - 1))
    layer = nn.Embedding(rows, dim, padding_idx=padding)
    twin = torch.nn.Parameter(layer.weight.detach().clone())
    optimizer = kind([twin], **options)
    optim.apply_optimizer_in_backward(kind, layer.parameters(), options)
    values = torch.randint(rows, shape)
    out = layer(values)
    assert out.shape == (*shape, dim)
    slope = torch.randn(out.shape)
    (out * slope).sum().backward()
    kept = torch.ones(rows, dim)
    if padding is not None:
        kept[padding] = 0
    grad = torch.zeros(rows, dim).index_add_(0, values.reshape(-1), slope.reshape(-1, dim)) * kept
    touched = torch.unique(values[values != layer.padding_idx])
    twin.grad = torch.sparse_coo_tensor(
        touched[None], grad[touched], (rows, dim), check_invariants=True
    )
    optimizer.step()
    torch.testing.assert_close(layer.weight, twin, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("uses", [1, 2])
def test_other_precisions(dtype, uses):
    stepped, plain, optimizer = pair(optim.SparseAdam, {"lr": 0.1}, dtype=dtype, mode="sum")
    values, offsets = bags()
    sum(stepped(values, offsets).square().sum() for _ in range(uses)).backward()
    # torch cannot add sparse float16 gradients.
    (uses * plain(values, offsets).square().sum()).backward()
    optimizer.step()
    assert stepped.weight.grad is None
    bound = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(stepped.weight, plain.weight, rtol=bound, atol=bound)


def test_weights_of_the_entries_get_gradients_of_the_rows_as_they_were():
    stepped, plain, _ = pair(optim.SparseSGD, {"lr": 10.0}, mode="sum")
    values, offsets = bags()
    grads = []
    for layer in (stepped, plain):
        weights = torch.linspace(-1, 1, 30).requires_grad_()
        for _ in range(2):  # the second use is not of changed rows
            layer(values, offsets, weights).square().sum()
        loss = sum(layer(values, offsets, weights).square().sum() for _ in range(2))
        loss.backward()
        grads.append(weights.grad)
    torch.testing.assert_close(*grads)
    assert not torch.equal(stepped.weight, plain.weight)


@pytest.mark.parametrize("how", ["step", "copy"])
def test_weights_of_the_entries_get_no_gradients_of_other_rows(how):
    layer = nn.EmbeddingBag(ROWS, DIM, mode="sum")
    optim.apply_optimizer_in_backward(optim.SparseSGD, layer.parameters(), {"lr": 1.0})
    values, offsets = bags()
    weights = torch.ones(30, requires_grad=True)
    first, second = (layer(values, offsets, weights).sum() for _ in range(2))
    third = layer(values, offsets, weights.detach()).sum()
    if how == "step":
        first.backward()
        weights.grad = None
    else:
        with torch.no_grad():
            layer.weight.copy_(torch.randn(ROWS, DIM))
    before = layer.weight.detach().clone()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        second.backward()
    assert weights.grad is None
    assert torch.equal(layer.weight, before)
    third.backward()  # what the table itself gets is no matter of its rows
    assert not torch.equal(layer.weight, before)


def test_rows_that_come_into_a_cache_are_no_change_of_those_that_are_there():
    table = nn.CachedTable(100, DIM, storage="host", cache_rows=20)
    table._slots.by_copies = True
    optim.apply_optimizer_in_backward(optim.SparseSGD, table.parameters(), {"lr": 1.0})
    rows = table.export()
    weights = torch.ones(2, 5, requires_grad=True)
    first, second = torch.arange(10).view(2, 5), torch.arange(10, 20).view(2, 5)
    out = table.embedding_bag(first, mode="sum", per_sample_weights=weights)
    table.embedding_bag(second, mode="sum", per_sample_weights=weights)
    out.sum().backward()
    torch.testing.assert_close(weights.grad, rows[:10].sum(1).view(2, 5))
    table.close()


def test_uses_that_are_not_look_ups_are_added():
    stepped, plain, optimizer = pair(optim.SparseAdagrad, {"lr": 0.1}, mode="sum")
    values, offsets = bags()
    for layer in (stepped, plain):
        loss = layer(values, offsets).square().sum() + layer.weight.square().sum()
        loss.backward()
    optimizer.step()
    assert stepped.weight.grad is None
    torch.testing.assert_close(stepped.weight, plain.weight)


def test_layers_without_a_fast_path_and_torchs_own_are_stepped_by_a_hook():
    for make in (
        lambda **how: nn.Embedding(ROWS, DIM, max_norm=1.0, **how),
        lambda **how: torch.nn.Embedding(ROWS, DIM, **how),
    ):
        for kind, options in CLASSES:
            stepped, plain, optimizer = pair(
                kind, options, lambda *_, make=make, sparse=True: make(sparse=sparse)
            )
            for layer in (stepped, plain):
                layer(torch.tensor([1, 2, 2])).square().sum().backward()
            optimizer.step()
            assert stepped.weight.grad is None
            torch.testing.assert_close(stepped.weight, plain.weight)


def test_optimizers_of_torch_are_stepped_by_a_hook():
    a, b = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    b.load_state_dict(a.state_dict())
    optim.apply_optimizer_in_backward(torch.optim.AdamW, a.parameters(), {"lr": 0.1})
    other = torch.optim.AdamW(b.parameters(), lr=0.1)
    for _ in range(3):
        inputs = torch.randn(5, 3)
        for layer in (a, b):
            layer(inputs).square().sum().backward()
        other.step()
        other.zero_grad()
    torch.testing.assert_close(dict(a.named_parameters()), dict(b.named_parameters()))
    assert a.weight.grad is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("kind", "options"), CLASSES, ids=NAMES)
def test_a_batch_that_touches_no_row(kind, options, dtype):
    layer = nn.EmbeddingBag(ROWS, DIM, dtype=dtype, mode="sum", padding_idx=0)
    optim.apply_optimizer_in_backward(kind, layer.parameters(), options)
    before = layer.weight.detach().clone()
    layer(torch.zeros(1, 3, dtype=torch.int64)).sum().backward()
    assert torch.equal(layer.weight, before)


def layer_and_its_weight(kind: str, dtype: torch.dtype):
    """(a function of indices [B, L] that sums rows, the parameter behind it)."""
    if kind == "collection":
        config = nn.EmbeddingBagConfig(ROWS, DIM, "t", dtype, ["x"])
        model = nn.EmbeddingBagCollection([config])
        return lambda indices: model({"x": indices})["x"], model.embedding_bags["t"].weight
    if kind == "compressed":
        table = nn.HashedTable(100, DIM, buckets=ROWS, dtype=dtype)
        table.hashes = lambda ids: ids.unsqueeze(-1)
        return lambda indices: table.embedding_bag(indices, mode="sum"), table.weight
    layer = {"Embedding": nn.Embedding, "EmbeddingBag": nn.EmbeddingBag}[kind](
        ROWS, DIM, dtype=dtype, **({"mode": "sum"} if kind == "EmbeddingBag" else {})
    )
    return layer, layer.weight


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("kind", ["Embedding", "EmbeddingBag", "collection", "compressed"])
def test_hooks_of_the_parameter_are_given_its_gradient(kind, dtype):
    """And what they return is stepped: of the touched rows alone, as without hooks."""
    look_up, weight = layer_and_its_weight(kind, dtype)
    options = {"lr": 0.1, "weight_decay": 0.1}
    optim.apply_optimizer_in_backward(optim.SparseAdam, weight, options)
    twin = torch.nn.Parameter(weight.detach().clone())
    other = optim.SparseAdam([twin], **options)
    indices = torch.tensor([[1, 2, 2], [5, 1, 4]])
    counts = torch.bincount(indices.reshape(-1), minlength=ROWS)[:, None].expand(ROWS, DIM)
    seen = []
    handle = weight.register_hook(lambda grad: seen.append(grad) or 2 * grad)
    for factor in (2, 2, 1):
        if factor == 1:
            handle.remove()
        look_up(indices).sum().backward()
        assert weight.grad is None
        twin.grad = (factor * counts).to(dtype).to_sparse(1)
        other.step()
        torch.testing.assert_close(weight, twin)
    assert len(seen) == 2
    for grad in seen:
        assert grad.is_sparse
        assert torch.equal(grad.to_dense(), counts.to(dtype))


def test_each_backward_pass_steps():
    stepped, plain, optimizer = pair(optim.SparseAdam, {"lr": 0.1})
    values, offsets = bags()
    loss = stepped(values, offsets).sum()
    loss.backward(retain_graph=True)
    loss.backward()
    for _ in range(2):
        optimizer.zero_grad()
        plain(values, offsets).sum().backward()
        optimizer.step()
    torch.testing.assert_close(stepped.weight, plain.weight)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing(reentrant):
    stepped, plain, optimizer = pair(optim.SparseAdam, {"lr": 0.1})
    values, offsets = bags()
    dummy = torch.zeros(1, requires_grad=True)  # a re-entrant segment needs such an input
    torch.utils.checkpoint.checkpoint(
        lambda v, d: stepped(v, offsets).square() + d, values, dummy, use_reentrant=reentrant
    ).sum().backward()
    plain(values, offsets).square().sum().backward()
    optimizer.step()
    torch.testing.assert_close(stepped.weight, plain.weight)


def test_no_gradient_is_stored_and_the_graph_is_let_go():
    layer = nn.EmbeddingBag(ROWS, DIM, mode="sum")
    optim.apply_optimizer_in_backward(optim.SparseSGD, layer.parameters(), {"lr": 0.1})
    for _ in range(3):
        layer(*bags()).sum().backward()
    gc.collect()
    kept = [t for t in gc.get_objects() if type(t) is torch.Tensor and t.shape == (4, DIM)]
    assert not kept
    from vecsmith.optim import in_backward

    assert not in_backward._PASSES


# --- what does not step ---------------------------------------------------------------------------


def test_what_does_not_want_the_table_does_not_step():
    layer = nn.EmbeddingBag(ROWS, DIM, mode="sum")
    optim.apply_optimizer_in_backward(optim.SparseAdam, layer.parameters(), {"lr": 0.1})
    before = layer.weight.detach().clone()
    values, offsets = bags()
    weights = torch.randn(30, requires_grad=True)
    (grad,) = torch.autograd.grad(layer(values, offsets, weights).sum(), weights)
    torch.testing.assert_close(
        grad[:7], before[values[:7]].sum(1), rtol=1e-4, atol=1e-5
    )  # d sum / d w_n
    layer(values, offsets, weights).sum().backward(inputs=[weights])
    with torch.no_grad():
        layer(values, offsets)
    layer(values, offsets).sum()  # no backward pass
    layer.requires_grad_(False)
    layer(values, offsets, weights).sum().backward()
    assert torch.equal(layer.weight, before)
    layer.requires_grad_(True)
    layer(values, offsets).sum().backward(inputs=[layer.weight])
    assert not torch.equal(layer.weight, before)


def test_a_frozen_table_can_be_thawed():
    layer = nn.Embedding(ROWS, DIM, _freeze=True)
    optim.apply_optimizer_in_backward(optim.SparseSGD, layer.parameters(), {"lr": 1.0})
    assert not layer.weight.requires_grad
    layer.requires_grad_(True)
    before = layer.weight.detach().clone()
    layer(torch.tensor([2])).sum().backward()
    torch.testing.assert_close(before[2] - layer.weight[2], torch.ones(DIM))


def test_a_failed_backward_pass_leaves_nothing_behind():
    stepped, plain, optimizer = pair(optim.SparseSGD, {"lr": 0.1}, mode="sum")
    before = stepped.weight.detach().clone()
    values, offsets = bags()

    class Fails(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            raise RuntimeError("on purpose")

    # The table's node is reached first: the other one hangs on a graph that was made before it.
    inputs = Fails.apply(torch.ones(1, requires_grad=True))
    with pytest.raises(RuntimeError, match="on purpose"):
        (stepped(values, offsets).sum() + inputs.sum()).backward()
    assert torch.equal(stepped.weight, before)
    for layer in (stepped, plain):
        layer(values, offsets).square().sum().backward()
    optimizer.step()
    torch.testing.assert_close(stepped.weight, plain.weight)


@pytest.mark.parametrize("uses", [1, 2])
@pytest.mark.parametrize("which", [0, 1])
def test_a_gradient_that_is_not_finite_changes_no_table(which, uses):
    layers = [nn.EmbeddingBag(ROWS, DIM, mode="sum") for _ in range(2)]
    for layer in layers:
        optim.apply_optimizer_in_backward(optim.SparseAdam, layer.parameters(), {"lr": 0.1})
    before = [layer.weight.detach().clone() for layer in layers]
    factors = [1.0, 1.0]
    factors[which] = float("nan")
    values, offsets = bags()
    loss = sum(
        (layer(values, offsets) * factor).sum()
        for _ in range(uses)
        for layer, factor in zip(layers, factors, strict=True)
    )
    with pytest.raises(ValueError, match="finite"):
        loss.backward()
    for layer, old in zip(layers, before, strict=True):
        assert torch.equal(layer.weight, old)
        (optimizer,) = optim.get_in_backward_optimizers(layer)
        assert optimizer.state[layer.weight].get("step", 0) == 0


# --- schedulers, checkpoints, taking it away ------------------------------------------------------


def test_schedulers_and_checkpoints():
    stepped, plain, optimizer = pair(optim.SparseAdam, {"lr": 0.1})
    (inner,) = optim.get_in_backward_optimizers(torch.nn.Sequential(stepped, torch.nn.ReLU()))
    schedules = [torch.optim.lr_scheduler.ExponentialLR(o, 0.5) for o in (inner, optimizer)]

    def train(layers, optimizer, schedules):
        for _ in range(3):
            values, offsets = bags()
            for layer in layers:
                layer(values, offsets).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            inner.step()  # finds nothing to do
            inner.zero_grad()
            for schedule in schedules:
                schedule.step()

    train([stepped, plain], optimizer, schedules)
    torch.testing.assert_close(stepped.weight, plain.weight)
    file = io.BytesIO()
    torch.save([stepped.state_dict(), inner.state_dict()], file)
    file.seek(0)
    weights, state = torch.load(file, weights_only=True)
    resumed = nn.EmbeddingBag(ROWS, DIM)
    resumed.load_state_dict(weights)
    optim.apply_optimizer_in_backward(optim.SparseAdam, resumed.parameters(), {"lr": 9.0})
    optim.get_in_backward_optimizers(resumed)[0].load_state_dict(state)
    values, offsets = bags()
    for layer in (stepped, resumed):
        layer(values, offsets).square().sum().backward()
    assert torch.equal(stepped.weight, resumed.weight)


@pytest.mark.filterwarnings("error:Detected call of:UserWarning")
@pytest.mark.parametrize("make", [nn.Embedding, torch.nn.Embedding])
def test_schedulers_see_the_steps(make):
    layer = make(ROWS, DIM)
    optim.apply_optimizer_in_backward(optim.SparseAdagrad, layer.parameters(), {"lr": 1.0})
    (optimizer,) = optim.get_in_backward_optimizers(layer)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    for n in range(3):
        assert optimizer.param_groups[0]["lr"] == 0.5**n
        layer(torch.tensor([1])).sum().backward()
        schedule.step()


def test_loading_with_assign_takes_the_optimizer_along():
    stepped, plain, optimizer = pair(optim.SparseAdam, {"lr": 0.1})
    model = torch.nn.Sequential(stepped)
    values, offsets = bags()
    for loaded in range(3):
        for layer in (stepped, plain):
            layer(values, offsets).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        if loaded == 1:
            late = stepped(values, offsets).sum()
            old = stepped.weight
            model.load_state_dict(copy.deepcopy(model.state_dict()), assign=True)
            assert stepped.weight is not old
            assert optim.get_in_backward_optimizers(model)[0].param_groups[0]["params"] == [
                stepped.weight
            ]
            assert not hasattr(old, "_in_backward_optimizers")
    assert stepped.weight.grad is None
    torch.testing.assert_close(stepped.weight, plain.weight)
    assert optim.get_in_backward_optimizers(model)[0].state[stepped.weight]["step"] == 3
    with pytest.raises(RuntimeError, match="is another parameter's now"):
        late.backward()
    optim.remove_optimizer_in_backward(model.parameters())
    stepped(values, offsets).sum().backward()
    assert stepped.weight.grad is not None


@pytest.mark.parametrize("make", ["layer", "table"])
def test_a_model_from_the_meta_device(make):
    with torch.device("meta"):
        layer = nn.Embedding(ROWS, DIM)
        if make == "table":
            layer = nn.EmbeddingBag(
                ROWS, DIM, mode="sum", table=nn.HashedTable(ROWS, DIM, 5, device="meta")
            )
    optim.apply_optimizer_in_backward(optim.SparseAdam, layer.parameters(), {"lr": 0.1})
    filled = {name: torch.ones(t.shape, dtype=t.dtype) for name, t in layer.state_dict().items()}
    layer.load_state_dict(filled, assign=True)
    layer(torch.tensor([[2]])).sum().backward()
    (weight,) = layer.parameters()
    assert weight.grad is None
    assert weight.device.type == "cpu"
    assert (weight < 1).any()


def test_a_shared_parameter_cannot_be_replaced():
    one, two = nn.Embedding(ROWS, DIM), nn.Embedding(ROWS, DIM)
    two.weight = one.weight
    optim.apply_optimizer_in_backward(optim.SparseAdam, one.parameters(), {"lr": 0.1})
    model = torch.nn.Sequential(one, two)
    with pytest.raises(RuntimeError, match=r"1\.weight: expected a parameter of its own"):
        model.load_state_dict(copy.deepcopy(model.state_dict()), assign=True)
    other = nn.Embedding(ROWS, DIM)
    optim.apply_optimizer_in_backward(optim.SparseAdam, other.parameters(), {"lr": 0.1})
    with pytest.raises(RuntimeError, match="or that has one already"):
        other.load_state_dict(one.state_dict(keep_vars=True), assign=True)


@pytest.mark.parametrize("then", ["nothing", "torchs", "frozen", "another"])
def test_taking_it_away_between_the_passes(then):
    layer = nn.EmbeddingBag(ROWS, DIM, mode="sum")
    optim.apply_optimizer_in_backward(optim.SparseSGD, layer.parameters(), {"lr": 1.0})
    before = layer.weight.detach().clone()
    values, offsets = bags()
    weights = torch.ones(30, requires_grad=True)
    out = layer(values, offsets, weights).sum()
    optim.remove_optimizer_in_backward(layer.parameters())
    torch.autograd.grad(out, weights, retain_graph=True)  # does not want the table
    if then == "frozen":
        layer.requires_grad_(False)
        out.backward()
        assert torch.equal(layer.weight, before)
        return
    if then == "another":
        optim.apply_optimizer_in_backward(optim.SparseAdam, layer.parameters(), {"lr": 1.0})
        out.backward()
        assert not torch.equal(layer.weight, before)
        return
    if then == "torchs":
        optim.apply_optimizer_in_backward(torch.optim.SGD, layer.parameters(), {"lr": 1.0})
    with pytest.raises(RuntimeError, match="expected the optimizer in backward that the table had"):
        out.backward()
    assert torch.equal(layer.weight, before)


def test_taking_it_away():
    layer = nn.Embedding(ROWS, DIM)
    optim.apply_optimizer_in_backward(optim.SparseSGD, layer.parameters(), {"lr": 1.0})
    optim.remove_optimizer_in_backward(layer.parameters())
    optim.remove_optimizer_in_backward(layer.weight)
    assert optim.get_in_backward_optimizers(layer) == []
    before = layer.weight.detach().clone()
    layer(torch.tensor([1])).sum().backward()
    assert torch.equal(layer.weight, before)
    assert layer.weight.grad.sum() == DIM
    optim.apply_optimizer_in_backward(optim.SparseSGD, layer.weight, {"lr": 1.0})
    assert layer.weight.grad is None
    layer(torch.tensor([1])).sum().backward()
    torch.testing.assert_close(before[1] - layer.weight[1], torch.ones(DIM))


def test_copies_and_saved_numbers_have_no_optimizer():
    layer = nn.Embedding(ROWS, DIM)
    optim.apply_optimizer_in_backward(optim.SparseSGD, layer.parameters(), {"lr": 1.0})
    twin = copy.deepcopy(layer)
    twin(torch.tensor([1])).sum().backward()
    assert twin.weight.grad is not None
    assert type(layer.state_dict()["weight"]) is torch.Tensor


# --- what is refused ------------------------------------------------------------------------------


# torch._dynamo looks for a gradient of what the eager part returned.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_compilation_is_refused_in_one_graph_and_left_out_else():
    stepped, plain, optimizer = pair(optim.SparseAdam, {"lr": 0.1})
    values, offsets = bags()
    with pytest.raises(RuntimeError, match="expected eager execution of a table with an optimizer"):
        torch.compile(stepped, fullgraph=True, backend="eager")(values, offsets)
    torch._dynamo.reset()
    model = torch.nn.Sequential(stepped, torch.nn.ReLU())
    compiled = torch.compile(lambda v, o: model[1](model[0](v, o)), backend="aot_eager")
    for _ in range(2):
        compiled(values, offsets).sum().backward()
        optimizer.zero_grad()
        plain(values, offsets).relu().sum().backward()
        optimizer.step()
    torch.testing.assert_close(stepped.weight, plain.weight)


@pytest.mark.filterwarnings("ignore:Using backward\\(\\) with create_graph=True")
def test_differentiating_twice_is_refused():
    layer = nn.Embedding(ROWS, DIM)
    optim.apply_optimizer_in_backward(optim.SparseSGD, layer.parameters(), {"lr": 1.0})
    before = layer.weight.detach().clone()
    with pytest.raises(RuntimeError, match="without create_graph"):
        layer(torch.tensor([1])).square().sum().backward(create_graph=True)
    with pytest.raises(RuntimeError, match=r"expected backward\(\); got torch.autograd.grad"):
        torch.autograd.grad(layer(torch.tensor([1])).sum(), layer.weight)
    assert torch.equal(layer.weight, before)


def test_dense_gradients_are_refused_where_the_rule_is_for_sparse_ones():
    layer = torch.nn.Embedding(ROWS, DIM)  # not ours, and not sparse
    optim.apply_optimizer_in_backward(optim.SparseAdam, layer.parameters(), {"lr": 1.0})
    with pytest.raises(RuntimeError, match="sparse=True"):
        layer(torch.tensor([1])).sum().backward()
    assert layer.weight.grad is None


def test_bad_arguments():
    weight = torch.nn.Parameter(torch.randn(ROWS, DIM))
    apply = optim.apply_optimizer_in_backward
    for bad in (
        lambda: apply(optim.SparseSGD, [], {}),
        lambda: apply(optim.SparseSGD, [weight * 2], {}),
        lambda: apply(optim.SparseSGD, [weight, weight], {}),
        lambda: apply(optim.SparseSGD, [weight], {"lr": -1.0}),
    ):
        with pytest.raises(ValueError, match="expected"):
            bad()
    for bad in (
        lambda: apply("sgd", [weight], {}),
        lambda: apply(optim.SparseSGD([weight]), [weight], {}),
        lambda: apply(optim.SparseSGD, ["weight"], {}),
        lambda: apply(optim.SparseSGD, [weight], {"nonsense": 1}),
    ):
        with pytest.raises(TypeError):
            bad()
    assert not hasattr(weight, "_in_backward_optimizers")
    apply(optim.SparseSGD, [weight], {"lr": 0.1})
    with pytest.raises(ValueError, match="remove_optimizer_in_backward takes it away"):
        apply(optim.SparseAdam, [weight], {})
    assert len(weight._in_backward_optimizers) == 1
