"""The optimizers of tables against torch.optim's: steps on sparse and dense gradients, state_dict,
groups, schedulers, GradScaler, clipping, and what they refuse."""

from __future__ import annotations

import copy
import inspect
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vecsmith import nn, ops, optim
from vecsmith.reference.embedding_bag import embedding_bag_update as reference_update

# torch says so once, when its own optimizers make sparse tensors.
pytestmark = pytest.mark.filterwarnings("ignore:Sparse invariant checks are implicitly disabled")

ROWS, DIM = 19, 6
CLASSES = [
    optim.SparseSGD,
    optim.SparseAdagrad,
    optim.RowwiseAdagrad,
    optim.SparseAdam,
    optim.RowwiseAdam,
]
# Ours, torch's, settings that both take.
COUNTERPARTS = [
    (optim.SparseSGD, torch.optim.SGD, {"lr": 0.3}),
    (optim.SparseSGD, torch.optim.SGD, {"lr": 0.3, "maximize": True}),
    (optim.SparseAdagrad, torch.optim.Adagrad, {"lr": 0.3}),
    (
        optim.SparseAdagrad,
        torch.optim.Adagrad,
        {"lr": 0.3, "lr_decay": 0.1, "initial_accumulator_value": 0.2, "eps": 1e-6},
    ),
    (optim.SparseAdagrad, torch.optim.Adagrad, {"lr": 0.3, "maximize": True}),
    (optim.SparseAdam, torch.optim.SparseAdam, {"lr": 0.05}),
    (
        optim.SparseAdam,
        torch.optim.SparseAdam,
        {"lr": 0.05, "betas": (0.7, 0.9), "eps": 1e-4, "maximize": True},
    ),
]
NAMES = [f"{ours.__name__}-{'-'.join(options)}" for ours, _, options in COUNTERPARTS]


def sparse_gradient(rows: Tensor, values: Tensor, size: int = ROWS, coalesced: bool = False):
    made = torch.sparse_coo_tensor(
        rows[None], values, (size, *values.shape[1:]), check_invariants=True
    )
    return made.coalesce() if coalesced else made


def random_gradient(count: int = 12, **how) -> Tensor:
    return sparse_gradient(torch.randint(ROWS, (count,)), torch.randn(count, DIM), **how)


def parameter(*shape: int) -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.randn(*(shape or (ROWS, DIM))))


def twin(param: Tensor) -> torch.nn.Parameter:
    return torch.nn.Parameter(param.detach().clone())


# --- equal to torch.optim -------------------------------------------------------------------------


@pytest.mark.parametrize("coalesced", [False, True], ids=["uncoalesced", "coalesced"])
@pytest.mark.parametrize(("ours", "theirs", "options"), COUNTERPARTS, ids=NAMES)
def test_sparse_steps_equal_torchs(ours, theirs, options, coalesced):
    a = parameter()
    b = twin(a)
    mine, other = ours([a], **options), theirs([b], **options)
    for _ in range(25):
        a.grad = random_gradient(coalesced=coalesced)
        b.grad = a.grad.clone()
        mine.step()
        other.step()
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    for name, value in other.state[b].items():
        if isinstance(value, Tensor):
            torch.testing.assert_close(mine.state[a][name], value)


@settings(deadline=None, max_examples=30)
@given(data=st.data())
def test_any_shape_and_number_of_entries(data):
    rows, dim = data.draw(st.integers(1, 30)), data.draw(st.integers(1, 40))
    count = data.draw(st.integers(0, 50))
    ours, theirs, options = data.draw(st.sampled_from(COUNTERPARTS))
    a = parameter(rows, dim)
    b = twin(a)
    mine, other = ours([a], **options), theirs([b], **options)
    for _ in range(2):
        a.grad = sparse_gradient(torch.randint(rows, (count,)), torch.randn(count, dim), rows)
        b.grad = a.grad.clone()
        mine.step()
        other.step()
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"momentum": 0.9},
        {"momentum": 0.9, "nesterov": True},
        {"momentum": 0.8, "dampening": 0.3},
        {"weight_decay": 0.1},
        {"momentum": 0.9, "weight_decay": 0.1, "maximize": True},
    ],
    ids=lambda options: "-".join(options),
)
@pytest.mark.parametrize("dense", [False, True], ids=["sparse", "dense"])
def test_sgd_equals_torchs_where_every_row_is_touched(options, dense):
    a = parameter()
    b = twin(a)
    mine = optim.SparseSGD([a], lr=0.1, **options)
    other = torch.optim.SGD([b], lr=0.1, **options)
    for _ in range(15):
        values = torch.randn(ROWS, DIM)
        order = torch.randperm(ROWS)
        a.grad = values.clone() if dense else sparse_gradient(order, values[order])
        b.grad = values
        mine.step()
        other.step()
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"weight_decay": 0.05, "lr_decay": 0.1}], ids=str)
def test_adagrad_equals_torchs_on_dense_gradients(options):
    a = parameter()
    b = twin(a)
    mine = optim.SparseAdagrad([a], lr=0.1, **options)
    other = torch.optim.Adagrad([b], lr=0.1, **options)
    for _ in range(10):
        a.grad = torch.randn(ROWS, DIM)
        b.grad = a.grad.clone()
        mine.step()
        other.step()
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


LAZY = [
    (optim.SparseSGD, {"lr": 0.1, "momentum": 0.9, "dampening": 0.2, "weight_decay": 0.1}),
    (optim.SparseSGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
    (optim.SparseAdagrad, {"weight_decay": 0.1, "lr_decay": 0.2}),
    (optim.RowwiseAdagrad, {"initial_accumulator_value": 0.1}),
    (optim.RowwiseAdagrad, {"lr_decay": 0.1, "weight_decay": 0.1, "maximize": True}),
    (optim.SparseAdam, {"weight_decay": 0.1}),
    (optim.RowwiseAdam, {"betas": (0.8, 0.95), "weight_decay": 0.1}),
]


@pytest.mark.parametrize(
    ("kind", "options"), LAZY, ids=[f"{k.__name__}-{'-'.join(o)}" for k, o in LAZY]
)
def test_lazy_rules_equal_the_reference_and_leave_other_rows(kind, options):
    a = parameter()
    exact = a.detach().double()
    mine = kind([a], **options)
    rule = mine.next_rule(a)
    start = options.get("initial_accumulator_value", 0.0)
    state = [torch.full(s, start, dtype=torch.float64) for s in rule.state_shapes(ROWS, DIM)]
    mine.state.clear()
    for _ in range(8):
        rows, values = torch.randint(ROWS // 2, (7,)) * 2, torch.randn(7, DIM)
        before, old = a.detach().clone(), [t.clone() for t in mine.row_state(a)]
        a.grad = sparse_gradient(rows, values)
        mine.step()
        step = int(mine.state[a].get("step", 1))
        rule = mine._make_rule(mine.param_groups[0], step)
        reference_update(exact, state, rows, values.double(), mode="none", rule=rule)
        away = torch.ones(ROWS, dtype=torch.bool).index_fill_(0, rows, False)
        assert torch.equal(a.detach()[away], before[away])
        for new, kept in zip(mine.row_state(a), old, strict=True):
            assert torch.equal(new[away], kept[away])
    torch.testing.assert_close(a.detach().double(), exact, rtol=1e-4, atol=1e-5)
    for mine_state, exact_state in zip(mine.row_state(a), state, strict=True):
        torch.testing.assert_close(mine_state.double(), exact_state, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_other_precisions(kind, dtype):
    a = torch.nn.Parameter(torch.randn(ROWS, DIM).to(dtype))
    exact = twin(a.double())
    mine, other = kind([a], lr=0.01), kind([exact], lr=0.01)
    for _ in range(3):
        a.grad = random_gradient().to(dtype)
        exact.grad = a.grad.double()
        mine.step()
        other.step()
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert all(t.dtype == wide for t in mine.row_state(a))
    allowed = 4 * torch.finfo(dtype).eps * exact.abs().max().item()
    assert (a.double() - exact).abs().max() <= allowed


@pytest.mark.parametrize("shape", [(7,), (5, 4), (5, 2, 3)], ids=str)
def test_parameters_of_any_number_of_dimensions(shape):
    for ours, theirs, options in (COUNTERPARTS[0], COUNTERPARTS[2]):
        a = parameter(*shape)
        b = twin(a)
        mine, other = ours([a], **options), theirs([b], **options)
        for _ in range(3):
            a.grad = torch.randn(shape)
            b.grad = a.grad.clone()
            mine.step()
            other.step()
        torch.testing.assert_close(a, b)
        rows = torch.randint(shape[0], (4,))
        a.grad = sparse_gradient(rows, torch.randn(4, *shape[1:]), shape[0])
        b.grad = a.grad.coalesce()
        mine.step()
        other.step()
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_it_trains_layers(kind):
    torch.manual_seed(1)
    layer = nn.EmbeddingBag(ROWS, DIM, sparse=True)
    optimizer = kind(layer.parameters(), lr=1.0 if kind is optim.SparseSGD else 0.05)
    values, losses = torch.randint(ROWS, (8, 4)), []
    for _ in range(20):
        optimizer.zero_grad()
        loss = (layer(values) - 1).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] * 0.9


# --- the rest of the interface --------------------------------------------------------------------


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("how", ["state_dict", "pickle", "deepcopy"])
def test_training_goes_on_from_a_saved_state(kind, how):
    options = {"momentum": 0.9, "dampening": 0.1} if kind is optim.SparseSGD else {}
    a = parameter()
    mine = kind([a], lr=0.1, **options)
    grads = [random_gradient() for _ in range(6)]
    for grad in grads[:3]:
        a.grad = grad
        mine.step()
    a.grad = None
    if how == "state_dict":
        b = twin(a)
        other = kind([b], lr=0.7)
        other.load_state_dict(copy.deepcopy(mine.state_dict()))
    else:
        through = pickle.loads(pickle.dumps(mine)) if how == "pickle" else copy.deepcopy(mine)
        other, b = through, through.param_groups[0]["params"][0]
    for grad in grads[3:]:
        a.grad, b.grad = grad, grad.clone()
        mine.step()
        other.step()
    assert torch.equal(a, b)
    assert mine.state_dict()["param_groups"] == other.state_dict()["param_groups"]


@pytest.mark.parametrize("back", [False, True], ids=["from torch", "to torch"])
@pytest.mark.parametrize(("ours", "theirs", "options"), COUNTERPARTS, ids=NAMES)
def test_state_dicts_are_torchs(ours, theirs, options, back):
    first, second = (ours, theirs) if back else (theirs, ours)
    a = parameter()
    b = twin(a)
    one, two = first([a], **options), second([b], lr=9.0)
    reference = first([c := twin(a)], **options)
    for n in range(6):
        grad = random_gradient(coalesced=True)
        if n == 3:
            with torch.no_grad():
                b.copy_(a)
            two.load_state_dict(one.state_dict())
        for param, optimizer in ((a, one), (c, reference)) if n < 3 else ((b, two), (c, reference)):
            param.grad = grad.clone()
            optimizer.step()
    torch.testing.assert_close(b, c, rtol=1e-5, atol=1e-6)


def test_momentum_of_torchs_sgd_is_taken_over():
    a = parameter()
    b = twin(a)
    options = {"lr": 0.1, "momentum": 0.9, "dampening": 0.5}
    other, mine = torch.optim.SGD([b], **options), optim.SparseSGD([a], **options)
    for n in range(4):
        values = torch.randn(ROWS, DIM)
        if n == 2:
            with torch.no_grad():
                a.copy_(b)
            mine.load_state_dict(copy.deepcopy(other.state_dict()))
        a.grad = sparse_gradient(torch.arange(ROWS), values)
        b.grad = values
        if n >= 2:
            mine.step()
        other.step()
    torch.testing.assert_close(a, b)


def test_state_of_a_half_precision_table_keeps_its_bits():
    a = torch.nn.Parameter(torch.randn(ROWS, DIM).half())
    mine = optim.RowwiseAdam([a])
    a.grad = random_gradient().half()
    mine.step()
    other = optim.RowwiseAdam([twin(a)])
    other.load_state_dict(mine.state_dict())
    (b,) = other.param_groups[0]["params"]
    for x, y in zip(mine.row_state(a), other.row_state(b), strict=True):
        assert x.dtype == y.dtype == torch.float32
        assert torch.equal(x, y)
        assert x.data_ptr() != y.data_ptr()


def test_groups_have_settings_of_their_own():
    a, b, c = parameter(), parameter(), parameter()
    before = [p.detach().clone() for p in (a, b, c)]
    mine = optim.SparseSGD([{"params": [a]}, {"params": [b], "lr": 0.5}], lr=1.0)
    mine.add_param_group({"params": c, "lr": 0.0})
    for param in (a, b, c):
        param.grad = sparse_gradient(torch.tensor([3]), torch.ones(1, DIM))
    mine.step()
    moved = [(old - new)[3, 0].item() for old, new in zip(before, (a, b, c), strict=True)]
    assert moved == pytest.approx([1.0, 0.5, 0.0])


def test_schedulers():
    a = parameter()
    b = twin(a)
    mine, other = optim.SparseAdam([a], lr=0.1), torch.optim.SparseAdam([b], lr=0.1)
    schedules = [
        torch.optim.lr_scheduler.SequentialLR(
            optimizer,
            [
                torch.optim.lr_scheduler.LinearLR(optimizer, total_iters=3),
                torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5),
            ],
            milestones=[3],
        )
        for optimizer in (mine, other)
    ]
    for _ in range(8):
        a.grad = random_gradient()
        b.grad = a.grad.clone()
        for optimizer, schedule in zip((mine, other), schedules, strict=True):
            optimizer.step()
            schedule.step()
    torch.testing.assert_close(a, b)
    tensor_rate = optim.SparseSGD([a], lr=torch.tensor(0.1))
    a.grad = random_gradient()
    tensor_rate.step()


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_grad_scaler(kind):
    a, b = nn.Embedding(ROWS, DIM, sparse=True), nn.Embedding(ROWS, DIM, sparse=True)
    b.load_state_dict(a.state_dict())
    mine, plain = kind(a.parameters(), lr=0.1), kind(b.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler(device="cpu", init_scale=1024.0)
    values = torch.randint(ROWS, (8,))
    for step in range(4):
        mine.zero_grad()
        plain.zero_grad()
        scaler.scale(a(values).square().sum()).backward()
        if step == 2:  # an overflow: no step, half the scale
            a.weight.grad._values()[0, 0] = float("inf")
        else:
            b(values).square().sum().backward()
            plain.step()
        scaler.unscale_(mine)
        if step == 3:
            norm = optim.clip_grad_norm_(a.parameters(), 1e9)
            assert norm.isfinite()
        scaler.step(mine)
        scaler.update()
    assert scaler.get_scale() == 512.0
    torch.testing.assert_close(a.weight, b.weight)


def test_closures_hooks_and_zero_grad():
    layer = nn.Embedding(ROWS, DIM, sparse=True)
    mine = optim.SparseAdagrad(layer.parameters())
    calls = []
    mine.register_step_pre_hook(lambda *_: calls.append("before"))
    mine.register_step_post_hook(lambda *_: calls.append("after"))

    def closure():
        mine.zero_grad()
        loss = layer(torch.tensor([1, 2])).square().sum()
        loss.backward()
        calls.append("closure")
        return loss

    before = layer.weight.detach().clone()
    loss = mine.step(closure)
    assert loss.item() > 0
    assert calls == ["before", "closure", "after"]
    assert not torch.equal(layer.weight, before)
    mine.zero_grad()
    assert layer.weight.grad is None
    assert mine.step() is None


def test_an_empty_gradient_counts_as_a_step():
    a = parameter()
    mine = optim.SparseAdam([a])
    a.grad = random_gradient(0)
    before = a.detach().clone()
    mine.step()
    assert mine.state[a]["step"] == 1
    assert torch.equal(a, before)


def test_row_state_and_rules_for_those_who_step_themselves():
    a = parameter()
    mine = optim.RowwiseAdam([a], lr=0.25)
    first, second = mine.row_state(a)
    assert first.shape == (ROWS, DIM)
    assert second.shape == (ROWS,)
    assert mine.row_state(a)[0] is first
    rule = mine.next_rule(a)
    assert (rule.name, rule.step, rule.lr) == ("rowwise_adam", 1, 0.25)
    mine.param_groups[0]["lr"] = 0.5
    rule = mine.next_rule(a)
    assert (rule.step, rule.lr) == (2, 0.5)
    assert [t.shape for t in mine.row_state(a)] == list(map(torch.Size, rule.state_shapes(19, 6)))
    for ask in (mine.row_state, mine.next_rule):
        with pytest.raises(ValueError, match="a parameter of this optimizer"):
            ask(parameter())


def test_state_follows_a_table_that_is_cast():
    layer = nn.Embedding(ROWS, DIM, sparse=True)
    mine = optim.SparseAdam(layer.parameters())
    for cast in (torch.float32, torch.float64, torch.bfloat16):
        layer.to(cast)
        mine.zero_grad()
        layer(torch.tensor([1, 2])).sum().backward()
        mine.step()
        wide = torch.float64 if cast == torch.float64 else torch.float32
        assert {t.dtype for t in mine.row_state(layer.weight)} == {wide}


# --- clipping -------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm_type", [1.0, 2.0, float("inf")])
@pytest.mark.parametrize("max_norm", [0.5, 1e6])
def test_clipping_by_norm_takes_sparse_and_dense(norm_type, max_norm):
    a, b = parameter(), parameter(3, 4)
    a.grad, b.grad = random_gradient(40), torch.randn(3, 4)
    others = [twin(a), twin(b), parameter()]
    others[0].grad, others[1].grad = a.grad.to_dense(), b.grad.clone()
    expected = torch.nn.utils.clip_grad_norm_(others, max_norm, norm_type)
    got = optim.clip_grad_norm_(iter([a, b, parameter()]), max_norm, norm_type)
    torch.testing.assert_close(got, expected)
    assert a.grad.is_coalesced()
    torch.testing.assert_close(a.grad.to_dense(), others[0].grad)
    torch.testing.assert_close(b.grad, others[1].grad)


def test_clipping_by_value():
    a = parameter()
    a.grad = random_gradient(40)
    expected = a.grad.to_dense().clamp(-0.3, 0.3)
    optim.clip_grad_value_(a, 0.3)
    torch.testing.assert_close(a.grad.to_dense(), expected)


def test_clipping_of_nothing_and_of_nan():
    assert optim.clip_grad_norm_([parameter()], 1.0) == 0
    a = parameter()
    a.grad = random_gradient()
    a.grad._values()[0, 0] = float("nan")
    with pytest.raises(RuntimeError, match="non-finite"):
        optim.clip_grad_norm_(a, 1.0, error_if_nonfinite=True)


def test_torchs_clipping_still_needs_ours():
    """When this fails, torch clips sparse gradients itself: say so in the documentation."""
    a = parameter()
    a.grad = random_gradient()
    with pytest.raises(NotImplementedError):
        torch.nn.utils.clip_grad_norm_(a, 1.0)


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")], ids=str)
@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_a_gradient_that_is_not_finite_changes_nothing(kind, which, bad):
    options = {"momentum": 0.9} if kind is optim.SparseSGD else {}
    params = [parameter() for _ in range(3)]
    mine = kind(params, **options)
    for param in params:
        param.grad = random_gradient()
    mine.step()
    steps = [int(mine.state[p]["step"]) for p in params]
    before = [[p.detach().clone(), *(t.clone() for t in mine.row_state(p))] for p in params]
    for n, param in enumerate(params):
        param.grad = random_gradient()
        if n == which:
            param.grad._values()[-1, -1] = bad
    with pytest.raises(ValueError, match="finite"):
        mine.step()
    assert [int(mine.state[p]["step"]) for p in params] == steps
    for old, param in zip(before, params, strict=True):
        for x, y in zip(old, [param.detach(), *mine.row_state(param)], strict=True):
            assert torch.equal(x, y)


def test_large_finite_gradients_of_several_tables_are_taken():
    params = [parameter(), parameter()]
    for param in params:
        param.grad = sparse_gradient(torch.tensor([1, 2]), torch.full((2, DIM), 3e38))
    optim.SparseSGD(params, lr=1e-38).step()
    assert all(param.isfinite().all() for param in params)


@pytest.mark.parametrize("kind", [optim.SparseAdam, optim.RowwiseAdam], ids=lambda k: k.__name__)
def test_adam_refuses_dense_gradients(kind):
    a = parameter()
    a.grad = torch.randn(ROWS, DIM)
    before = a.detach().clone()
    with pytest.raises(RuntimeError, match=r"sparse=True.*torch\.optim\.Adam takes"):
        kind([a]).step()
    assert torch.equal(a, before)


BAD_SETTINGS = [
    *((kind, {"lr": lr}) for kind in CLASSES for lr in (-0.1, float("nan"), float("inf"))),
    *((kind, {"weight_decay": -1.0}) for kind in CLASSES),
    *((kind, {"eps": -1.0}) for kind in CLASSES[1:]),
    *((kind, {"betas": (1.0, 0.9)}) for kind in CLASSES[3:]),
    *((kind, {"betas": (0.9, -0.1)}) for kind in CLASSES[3:]),
    *((kind, {"initial_accumulator_value": -1.0}) for kind in CLASSES[1:3]),
    *((kind, {"lr_decay": -1.0}) for kind in CLASSES[1:3]),
    (optim.SparseSGD, {"momentum": -0.5}),
    (optim.SparseSGD, {"nesterov": True}),
    (optim.SparseSGD, {"nesterov": True, "momentum": 0.9, "dampening": 0.1}),
    (optim.SparseSGD, {"lr": torch.ones(2)}),
]


@pytest.mark.parametrize(
    ("kind", "options"), BAD_SETTINGS, ids=[f"{k.__name__}-{o}" for k, o in BAD_SETTINGS]
)
def test_settings_out_of_range_are_refused(kind, options):
    with pytest.raises(ValueError, match="expected"):
        kind([parameter()], **options)


def test_parameters_that_are_no_tables_are_refused():
    mine = optim.SparseSGD([parameter()])
    for bad in (
        torch.nn.Parameter(torch.tensor(1.0)),
        torch.nn.Parameter(torch.randn(2, 2, dtype=torch.complex64)),
        random_gradient().requires_grad_(),
    ):
        with pytest.raises(ValueError, match="SparseSGD: expected"):
            mine.add_param_group({"params": [bad]})
        assert len(mine.param_groups) == 1


def test_gradients_that_are_sparse_in_both_dimensions_are_refused():
    a = parameter()
    a.grad = torch.randn(ROWS, DIM).to_sparse()
    with pytest.raises(ValueError, match="sparse in the rows alone; got 2"):
        optim.SparseSGD([a]).step()


def test_rows_out_of_range_are_refused_before_anything_changes():
    a = parameter()
    before = a.detach().clone()
    a.grad = torch.sparse_coo_tensor(
        torch.tensor([[1, ROWS]]), torch.ones(2, DIM), (ROWS, DIM), check_invariants=False
    )
    mine = optim.SparseAdam([a])
    with pytest.raises(IndexError):
        mine.step()
    assert torch.equal(a, before)
    assert mine.state[a].get("step", 0) == 0


def bad_tables() -> dict[str, tuple[torch.nn.Parameter, type[Exception], str]]:
    """(a table with a gradient that cannot be stepped, the error, a part of its message)."""
    columns = torch.nn.Parameter(torch.randn(DIM, ROWS).t())
    blocks = torch.nn.Parameter(torch.randn(ROWS, 2, 3).transpose(1, 2))
    above, below = parameter(), parameter()
    for table, row in ((columns, 1), (blocks, 1), (above, ROWS), (below, -1)):
        table.grad = torch.sparse_coo_tensor(
            torch.tensor([[1, row]]),
            torch.ones(2, *table.shape[1:]),
            table.shape,
            check_invariants=False,
        )
    return {
        "strides": (columns, ValueError, "unit stride"),
        "strides of 3 dimensions": (blocks, ValueError, "rows are contiguous"),
        "a row above": (above, IndexError, f"in 0..{ROWS - 1}; got {ROWS}"),
        "a row below": (below, IndexError, "got -1"),
        "settings": (parameter(), ValueError, "lr"),
        "state": (parameter(), ValueError, "of shape"),
    }


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("bad", bad_tables())
def test_a_table_that_cannot_be_stepped_keeps_the_others(bad, which, kind):
    wrong, error, message = bad_tables()[bad]
    good = parameter()
    good.grad = random_gradient()
    tables = [good]
    tables.insert(1 - which, wrong)
    options = {"momentum": 0.9} if kind is optim.SparseSGD else {}
    mine = kind([{"params": [table], "lr": 0.1} for table in tables], **options)
    if wrong.grad is None:
        wrong.grad = random_gradient()
        if bad == "settings":
            mine.param_groups[1 - which]["lr"] = float("nan")
        else:
            mine.row_state(wrong)
            mine.state[wrong][kind._STATE[0][0]] = torch.zeros(ROWS + 1)
    before = [table.detach().clone() for table in tables]
    with pytest.raises(error, match=message):
        mine.step()
    for table, old in zip(tables, before, strict=True):
        assert torch.equal(table, old)
        assert mine.state[table].get("step", 0) == 0


def test_tables_of_rows_that_lie_apart_are_stepped():
    wide, flat = torch.randn(ROWS, 2 * DIM), torch.randn(2 * ROWS)
    a, b = torch.nn.Parameter(wide[:, :DIM]), torch.nn.Parameter(flat[::2])
    twins = [twin(a), twin(b)]
    for table in (a, b):
        table.grad = torch.ones_like(table)
    before = wide.clone(), flat.clone()
    optim.SparseSGD([a, b], lr=1.0).step()
    torch.testing.assert_close([a, b], [t - 1 for t in twins])
    assert torch.equal(wide[:, DIM:], before[0][:, DIM:])
    assert torch.equal(flat[1::2], before[1][1::2])


@pytest.mark.parametrize(("ours", "theirs", "options"), COUNTERPARTS, ids=NAMES)
def test_arguments_are_torchs(ours, theirs, options):
    """By position and by name; row-wise Adagrad has those of Adagrad."""
    positional = (inspect.Parameter.POSITIONAL_OR_KEYWORD,)
    wanted = inspect.signature(theirs).parameters
    for kind in (ours, optim.RowwiseAdagrad) if ours is optim.SparseAdagrad else (ours,):
        have = inspect.signature(kind).parameters
        assert set(wanted) <= set(have)
        assert [n for n, p in wanted.items() if p.kind in positional] == [
            n for n, p in have.items() if p.kind in positional
        ]
        for name in {"foreach", "fused"} & set(wanted):
            kind([parameter()], **{name: True}, **options)
        if "differentiable" in wanted:
            kind([parameter()], differentiable=False)
            with pytest.raises(ValueError, match="expected differentiable=False; got True"):
                kind([parameter()], differentiable=True)
            with pytest.raises(ValueError, match="expected differentiable=False; got True"):
                kind([{"params": [parameter()], "differentiable": True}])


def test_state_of_another_shape_is_refused():
    a = parameter()
    mine = optim.RowwiseAdagrad([a])
    mine.state[a]["sum"] = torch.zeros(ROWS, 1)  # torchrec's
    assert mine.row_state(a)[0].shape == (ROWS,)
    mine.state[a]["sum"] = torch.zeros(ROWS, DIM)
    with pytest.raises(ValueError, match=r"expected 'sum' of shape \[19\]; got \[19, 6\]"):
        mine.row_state(a)


def test_the_rules_know_the_optimizers():
    names = {kind([parameter()]).next_rule.__self__.__class__ for kind in CLASSES}
    assert len(names) == len(CLASSES)
    made = {kind([p := parameter()]).next_rule(p).name for kind in CLASSES}
    assert made == {"sgd", "adagrad", "rowwise_adagrad", "adam", "rowwise_adam"}
    assert all(ops.UpdateRule(name, 0.1).step == 1 for name in made)
