"""What a CUDA graph can capture, without a GPU.

The rules of a capture (capture_rules.py) hold for the three steps, which run in Triton's
interpreter (`make test-triton`); and numbers that live on the device give what numbers of the host
give. With a GPU the same steps are captured by test_cuda_graphs.py.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
import capture_rules
from capture_rules import CaptureBroken, CaptureRules
from skipgram_problems import MODES, call, copies, pairs_problem, problem
from vecsmith import nn, ops, optim
from vecsmith.ops import UpdateRule, _checks, _cuda_skipgram, _embedding_bag

interpreted = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1",
    reason="in Triton's interpreter: `make test-triton`",
)


def counted(number: int) -> torch.Tensor:
    return torch.tensor(number, dtype=torch.int64)


def placed(options: dict) -> dict:
    """With the place in the training in tensors."""
    names = ("seed", "epoch", "first_position", "words_before")
    numbers = {name: counted(options[name]) for name in names}
    rates = {n: torch.tensor(options[n], dtype=torch.float64) for n in ("alpha", "min_alpha")}
    return {**options, **numbers, **rates}


@pytest.fixture
def triton_everywhere(monkeypatch):
    """Layers take the Triton kernels, as on a GPU."""
    pytest.importorskip("triton", reason="Triton is not installed")
    monkeypatch.setattr(_embedding_bag, "_choose", lambda tensor, backend: "triton")
    rnn = sys.modules["vecsmith.ops.rnn"]
    monkeypatch.setattr(rnn, "_choose", lambda *arguments: "triton")


# --- The rules themselves. ------------------------------------------------------------------------

A, MASK = torch.arange(6.0), torch.tensor([True, False, True, False, True, False])
BROKEN = {
    "item": lambda: A[0].item(),
    "float": lambda: float(A.sum()),
    "bool": lambda: bool((A > 0).all()),
    "tolist": lambda: A.tolist(),
    "cpu": lambda: A.cpu(),
    "to-cpu": lambda: A.to("cpu"),
    "numpy": lambda: A.numpy(),
    "nonzero": lambda: A.nonzero(),
    "where": lambda: torch.where(A > 0),
    "unique": lambda: torch.unique(A),
    "masked_select": lambda: A.masked_select(MASK),
    "mask": lambda: A[MASK],
    "set-mask": lambda: A.clone().__setitem__(MASK, A[:3]),
    "list-of-indices": lambda: A[[0, -1]],
    "repeat_interleave": lambda: A.repeat_interleave(MASK.long()),
    "equal": lambda: torch.equal(A, A),
    "from-a-list": lambda: torch.tensor([1.0], device=A.device),
    "new_tensor": lambda: A.new_tensor([1.0]),
    "to-the-device": lambda: torch.zeros(3).to(A.device),
    "both": lambda: A + torch.zeros(6),
    "copy_": lambda: A.clone().copy_(torch.zeros(6)),
}


@pytest.mark.parametrize("case", BROKEN)
def test_the_rules_find(case):
    with pytest.raises(CaptureBroken), CaptureRules({}):
        BROKEN[case]()


def test_the_rules_allow():
    with CaptureRules({}) as rules:
        host = torch.tensor([3, 4], device="cpu")
        assert host.tolist() == [3, 4]
        assert int(host.cumsum(0)[-1]) == 7
        assert int(host[None].T.sum()) == 7
        made = torch.zeros(6, device=A.device)
        (made + A).index_select(0, torch.arange(2, device=A.device)).sum()
        A.repeat_interleave(MASK.long(), output_size=3)
        rules.asleep = True
        assert float(A.sum()) == 15


# --- The skip-gram chunk. -------------------------------------------------------------------------


@pytest.mark.triton
@interpreted
@pytest.mark.parametrize(
    ("mode", "sample"), [("sg-window-ns", True), ("sg-pair-both", False), ("cbow-sum-hs", True)]
)
def test_skipgram_chunk(monkeypatch, poisoned_allocation, mode, sample):
    """The chunks of a captured step, two replays' worth, are those of an eager call, bit for bit,
    whatever lies around the sentences; and their launches do not depend on what is in them."""
    settings = {"negative": 2, **MODES[mode], "sample": sample, "skip": 2}
    settings |= {"vocabulary": 9, "dim": 4, "window": 2, "lengths": (4, 0, 1, 2)}
    tables, rest, options = problem(**settings)
    options |= {"first_position": 2**33, "words_total": 2**34}
    ours, eager = copies(tables), copies(tables)
    expected = [  # the first also finds out how long the paths of a tree are
        call(eager, rest, {**options, "first_position": 2**33 + 50 * n}, backend="triton")
        for n in range(2)
    ]
    changing = placed(options)
    recorded = []
    for n in range(2):
        with capture_rules.capturing(monkeypatch) as launches:
            found = call(ours, rest, changing, backend="triton")
            changing["first_position"].add_(50)
        torch.testing.assert_close(found, expected[n], rtol=1e-12, atol=0)
        recorded.append(launches)
    assert all(torch.equal(a, b) for a, b in zip(ours, eager, strict=True) if a is not None)
    assert not torch.equal(expected[0], expected[1])  # other negatives
    # The same sizes with other words, sentences and survivors.
    _, (tokens, offsets, *others), _ = problem(**settings, seed=2)
    offsets = offsets.clone()
    offsets[2:] = offsets[1]  # a single sentence
    with capture_rules.capturing(monkeypatch) as launches:
        call(ours, (tokens, offsets, *others[:2], *rest[4:]), changing, backend="triton")
    assert launches == recorded[0] == recorded[1]
    assert [name for name, *_ in launches][-1] == "_train_text"


@pytest.mark.triton
@interpreted
def test_skipgram_of_no_sentence(monkeypatch):
    tables, (tokens, _, *others), options = problem(lengths=(3,), dim=4)
    for offsets in (torch.tensor([0, 0, 0]), torch.tensor([5])):
        ours = copies(tables)
        changing = placed(options)
        with capture_rules.capturing(monkeypatch):
            rest = (tokens, offsets, *others)
            found = call(ours, rest, changing, backend="triton")
        assert found.tolist() == [0, 0]
        assert all(torch.equal(a, b) for a, b in zip(ours[:2], tables[:2], strict=True))


@pytest.mark.triton
@interpreted
def test_skipgram_pairs(monkeypatch):
    tables, rest = pairs_problem(count=9, dim=4)
    ours, eager, rate = copies(tables), copies(tables), torch.tensor(0.05, dtype=torch.float64)
    for alpha in (0.05, 0.02):
        rate.fill_(alpha)
        expected = ops.skipgram_pairs(*eager, *rest, alpha=alpha, backend="triton")
        with capture_rules.capturing(monkeypatch):
            found = ops.skipgram_pairs(*ours, *rest, alpha=rate, backend="triton")
        assert torch.equal(found, expected)
    assert all(torch.equal(a, b) for a, b in zip(ours, eager, strict=True))


@pytest.mark.parametrize("mode", ["sg-window-ns", "sg-pair-both", "cbow-sum-both"])
@pytest.mark.parametrize("blocks", [1, 5, None])
def test_skipgram_kernels_of_cuda(emulated, poisoned_allocation, mode, blocks):
    """csrc/cuda with the number of survivors and the place on the device."""
    from vecsmith.kernels._survivors import Place

    tables, rest, options = problem(**MODES[mode], skip=4, seed=3)
    eager, ours = copies(tables), copies(tables)
    run = _cuda_skipgram.skipgram
    expected = run(*eager, *rest, **options, module=emulated, blocks=blocks and 1)
    names = ("seed", "epoch", "first_position", "words_before")
    place = Place(
        torch.tensor([options[name] for name in names]),
        torch.tensor([options["alpha"], options["min_alpha"]], dtype=torch.float64),
    )
    nothing = dict.fromkeys((*names, "alpha", "min_alpha"), 0)
    found = run(*ours, *rest, **{**options, **nothing}, place=place, module=emulated, blocks=blocks)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)
    for a, b in zip(ours, eager, strict=True):
        if a is not None and blocks == 1:
            assert torch.equal(a, b)
        elif a is not None:  # cut elsewhere, in another order of sums
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_skipgram_pairs_of_cuda(emulated):
    tables, rest = pairs_problem()
    ours, eager = copies(tables), copies(tables)
    run = _cuda_skipgram.skipgram_pairs
    expected = run(*eager, *rest, alpha=0.05, sync_every=0, module=emulated, blocks=1)
    rates = torch.tensor([0.05], dtype=torch.float64)
    found = run(*ours, *rest, alpha=0.0, rates=rates, sync_every=0, module=emulated, blocks=1)
    assert torch.equal(found, expected)
    assert all(torch.equal(a, b) for a, b in zip(ours, eager, strict=True))


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_numbers_in_tensors_on_the_cpu(backend):
    """They are read there, and checked."""
    tables, rest, options = problem()
    ours, eager = copies(tables), copies(tables)
    expected = call(eager, rest, options, backend=backend)
    assert torch.equal(call(ours, rest, placed(options), backend=backend), expected)
    assert all(torch.equal(a, b) for a, b in zip(ours[:2], eager[:2], strict=True))
    pairs, given = pairs_problem()
    ours, eager = copies(pairs), copies(pairs)
    rate = torch.tensor(0.05, dtype=torch.float64)
    expected = ops.skipgram_pairs(*eager, *given, alpha=0.05, backend=backend)
    assert torch.equal(ops.skipgram_pairs(*ours, *given, alpha=rate, backend=backend), expected)
    assert all(torch.equal(a, b) for a, b in zip(ours, eager, strict=True))
    for wrong in ({"epoch": counted(-1)}, {"alpha": torch.tensor(float("nan"))}):
        with pytest.raises(ValueError, match=r"expected (epoch in|alpha to be finite)"):
            call(tables, rest, {**options, **wrong}, backend=backend)


NOT_NUMBERS = {
    "of-floats": (
        {"seed": torch.tensor(1.0)},
        TypeError,
        r"seed to be torch.int64; got torch.floa",
    ),
    "of-two": ({"epoch": torch.tensor([1, 2])}, ValueError, r"epoch of 1 element; got \[2\]"),
    "of-ints": ({"alpha": counted(1)}, TypeError, "alpha to be torch.float64 or torch.float32"),
    "elsewhere": ({"first_position": counted(1).to("meta")}, ValueError, "on cpu; got it on meta"),
    "no-end": (
        {"words_before": counted(1), "words_total": None},
        ValueError,
        "expected words_total beside words_before or first_position",
    ),
}


@pytest.mark.parametrize("case", NOT_NUMBERS)
def test_tensors_that_are_no_numbers(case):
    change, error, message = NOT_NUMBERS[case]
    tables, rest, options = problem()
    with pytest.raises(error, match=message):
        call(tables, rest, {**options, **change})


# --- The table step. ------------------------------------------------------------------------------

RULES = {
    "sgd": (optim.SparseSGD, {"lr": 0.1, "weight_decay": 0.1}),
    "momentum": (optim.SparseSGD, {"lr": 0.1, "momentum": 0.9, "dampening": 0.3}),
    "adagrad": (optim.SparseAdagrad, {"lr": 0.1, "lr_decay": 0.1}),
    "rowwise_adagrad": (optim.RowwiseAdagrad, {"lr": 0.1}),
    "adam": (optim.SparseAdam, {"lr": 0.01}),
    "rowwise_adam": (optim.RowwiseAdam, {"lr": 0.01, "betas": (0.8, 0.95)}),
}


def batches(number: int, rows: int = 40):
    g = torch.Generator().manual_seed(5)
    made = []
    for _ in range(number):
        indices = torch.randint(rows, (30,), generator=g)
        offsets = torch.tensor([0, *sorted(torch.randint(31, (6,), generator=g).tolist())])
        made.append((indices, offsets, torch.randn(7, 12, generator=g)))
    return made


def bag(rule: str, mode: str, **more):
    torch.manual_seed(1)
    layer = nn.EmbeddingBag(40, 12, mode=mode)
    kind, settings = RULES[rule]
    optim.apply_optimizer_in_backward(kind, layer.parameters(), {**settings, **more})
    return layer, layer.weight._in_backward_optimizers[0]


def step(layer, batch) -> None:
    indices, offsets, grad = batch
    layer(indices, offsets).backward(grad)


@pytest.mark.triton
@interpreted
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_table_step(monkeypatch, triton_everywhere, rule, mode):
    """Look-up, backward and the optimizer in it, captured: bit for bit the eager steps, with the
    count of steps and a learning rate that changes; and launches that do not depend on indices."""
    layer, optimizer = bag(rule, mode)
    lr = torch.tensor(RULES[rule][1]["lr"], dtype=torch.float64)
    ours, captured = bag(rule, mode, capturable=True, lr=lr)
    first, *others = batches(4)
    step(layer, first)
    step(ours, first)
    recorded = []
    for n, batch in enumerate(others):
        lr.mul_(0.9)
        optimizer.param_groups[0]["lr"] = float(lr)
        step(layer, batch)
        with capture_rules.capturing(monkeypatch) as launches:
            step(ours, batch)
        recorded.append(launches)
        assert torch.equal(ours.weight, layer.weight), n
    for name, value in optimizer.state[layer.weight].items():
        assert torch.equal(
            torch.as_tensor(captured.state[ours.weight][name]).float(),
            torch.as_tensor(value).float(),
        ), name
    assert recorded[0] == recorded[1] == recorded[2]
    assert any(launch[0] == "_update" for launch in recorded[0])


@pytest.mark.triton
@interpreted
def test_several_look_ups_and_a_dense_gradient(monkeypatch, triton_everywhere):
    torch.manual_seed(2)
    tables = [nn.Embedding(20, 8) for _ in range(2)]
    tables[1].load_state_dict(tables[0].state_dict())
    for table, capturable in zip(tables, (False, True), strict=True):
        options = {"lr": 0.1, "capturable": capturable}
        optim.apply_optimizer_in_backward(optim.SparseAdagrad, table.parameters(), options)
    a, b, grad = torch.randint(20, (5,)), torch.randint(20, (3, 2)), torch.randn(8)

    def several(table):
        ((table(a) * grad).sum() + (table(b) * grad).sum()).backward()

    for table in tables:
        several(table)
    several(tables[0])
    with capture_rules.capturing(monkeypatch):
        several(tables[1])
    assert torch.equal(tables[0].weight, tables[1].weight)

    # Pooled, with padding, of several dtypes of indices.
    bags = [nn.EmbeddingBag(20, 8, mode="max", padding_idx=4) for _ in range(2)]
    bags[1].load_state_dict(bags[0].state_dict())
    offsets = torch.tensor([0, 2, 2])

    def pooled(layer):
        ((layer(a, offsets) * grad).sum() + (layer(b.int()) * grad).sum()).backward()

    for layer, capturable in zip(bags, (False, True), strict=True):
        options = {"lr": 0.1, "capturable": capturable}
        optim.apply_optimizer_in_backward(optim.SparseAdam, layer.parameters(), options)
        for _ in range(2):
            pooled(layer)
    a[:2], b[0] = 4, 4
    pooled(bags[0])
    with capture_rules.capturing(monkeypatch):
        pooled(bags[1])
    assert torch.equal(bags[0].weight, bags[1].weight)

    dense = nn.EmbeddingBag(20, 8, mode="mean", padding_idx=3)
    ones = torch.ones(3, 8)
    dense(b).backward(ones)
    expected, dense.weight.grad = dense.weight.grad, None
    with capture_rules.capturing(monkeypatch):
        dense(b).backward(ones)
    assert torch.equal(dense.weight.grad, expected)


@pytest.mark.triton
@interpreted
def test_gradients_that_are_not_finite_change_nothing(monkeypatch, triton_everywhere):
    layer, optimizer = bag("adam", "sum", capturable=True)
    first, second, _ = batches(3)
    step(layer, first)
    before = layer.weight.detach().clone()
    state = {name: value.clone() for name, value in optimizer.state[layer.weight].items()}
    for wrong in (float("nan"), float("inf")):
        second[2][3, 4] = wrong
        with capture_rules.capturing(monkeypatch):
            step(layer, second)
        assert torch.equal(layer.weight, before)
        for name, value in optimizer.state[layer.weight].items():
            assert torch.equal(value, state[name]), name
    with pytest.raises(ValueError, match="finite"):
        step(layer, second)


@pytest.mark.triton
@interpreted
@pytest.mark.parametrize(
    ("indices", "offsets"), [([5, 40], [0]), ([5, -1], [0]), ([5, 6], [1]), ([5, 6], [0, 2, 1])]
)
def test_contents_are_checked_on_the_device(monkeypatch, triton_everywhere, indices, offsets):
    layer, _ = bag("sgd", "sum")
    given = torch.tensor(indices), torch.tensor(offsets)
    with (
        pytest.raises(RuntimeError, match=r"expected (indices in 0\.\.39|offsets that begin)"),
        capture_rules.capturing(monkeypatch),
    ):
        layer(*given)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("in_backward", [True, False])
def test_capturable_steps_are_the_same_on_the_cpu(rule, in_backward):
    kind, settings = RULES[rule]
    found = []
    for capturable in (False, True):
        torch.manual_seed(3)
        layer = nn.EmbeddingBag(40, 12, mode="sum", sparse=not in_backward)
        more = {"capturable": capturable}
        if capturable:
            more["lr"] = torch.tensor(settings["lr"], dtype=torch.float64)
        if in_backward:
            optim.apply_optimizer_in_backward(kind, layer.parameters(), {**settings, **more})
            optimizer = layer.weight._in_backward_optimizers[0]
        else:
            optimizer = kind(layer.parameters(), **{**settings, **more})
        for batch in batches(3):
            step(layer, batch)
            if not in_backward:
                optimizer.step()
                optimizer.zero_grad()
        state = optimizer.state[layer.weight]
        if "step" in state:
            assert int(state["step"]) == 3
            assert isinstance(state["step"], torch.Tensor) or not capturable
        found.append((layer, optimizer))
    assert torch.equal(found[0][0].weight, found[1][0].weight)
    # A state_dict goes either way.
    for (layer, _), (_, optimizer) in (found, found[::-1]):
        other = kind(layer.parameters(), **settings)
        other.load_state_dict(optimizer.state_dict())
        assert other.param_groups[0]["capturable"] == optimizer.param_groups[0]["capturable"]
        step(layer, batches(1)[0])


@pytest.mark.parametrize("name", ["sgd", "adagrad", "rowwise_adagrad", "adam", "rowwise_adam"])
@pytest.mark.parametrize("steps", [1, 2, 1000])
def test_rates_on_the_device(name, steps):
    """Those of the host, in float32."""
    settings = {"lr_decay": 0.01} if "adagrad" in name else {}
    settings |= {"momentum": 0.9, "dampening": 0.4} if name == "sgd" else {}
    rule = UpdateRule(name, 0.3, step=steps, **settings)
    there = UpdateRule(
        name, torch.tensor(0.3, dtype=torch.float64), step=torch.tensor(steps - 1.0), **settings
    )
    found = there.rate_on_device(torch.device("cpu"))
    torch.testing.assert_close(found, torch.tensor(rule.rate()), rtol=6e-8, atol=0)
    assert there.settled() == rule


def test_the_update_counts_once_it_is_taken():
    """A step that raises does not count; rates and counts that are no numbers are refused."""
    weight, indices = torch.randn(5, 4), torch.tensor([0, 2])
    steps = torch.zeros(())
    state = [torch.zeros(5, 4), torch.zeros(5, 4)]
    rule = UpdateRule("adam", 0.1, step=steps)
    with pytest.raises(ValueError, match="finite"):
        ops.embedding_bag_update(
            *(weight, state, indices, torch.full((2, 4), float("nan"))), rule=rule, mode="none"
        )
    assert steps == 0
    ops.embedding_bag_update(weight, state, indices, torch.ones(2, 4), rule=rule, mode="none")
    assert steps == 1
    for wrong, error in ((torch.tensor(1), TypeError), (torch.zeros(2), ValueError)):
        with pytest.raises(error, match=r"expected rule\.lr"):
            ops.embedding_bag_update(
                *(weight, [], indices, torch.ones(2, 4)), rule=UpdateRule("sgd", wrong), mode="none"
            )


# --- The LSTM step. -------------------------------------------------------------------------------


@pytest.mark.triton
@interpreted
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}])
def test_recurrent_step(monkeypatch, triton_everywhere, kind, options):
    torch.manual_seed(4)
    layer = kind(6, 8, **options)
    ways = layer.num_layers * (1 + layer.bidirectional)

    def forward_backward(x):
        for parameter in layer.parameters():
            parameter.grad = None
        output, last = layer(x)
        (output * output).sum().add(last[0].sum()).backward()
        return [output.detach(), *(p.grad for p in layer.parameters())]

    recorded = []
    for seed in (1, 2):
        x = torch.randn(5, 3, 6, generator=torch.Generator().manual_seed(seed))
        expected = forward_backward(x)
        with capture_rules.capturing(monkeypatch) as launches:
            found = forward_backward(x)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
        recorded.append(launches)
    assert recorded[0] == recorded[1]
    assert len(recorded[0]) == 2 * ways


# --- Wrong use. -----------------------------------------------------------------------------------


def test_wrong_use_is_refused(monkeypatch, tmp_path):
    tables, rest, options = problem()
    adam = optim.SparseAdam([counted_steps := torch.nn.Parameter(torch.randn(4, 2))])
    fresh = optim.SparseAdam([torch.nn.Parameter(torch.randn(4, 2))], capturable=True)
    table = nn.CachedTable(30, 4, cache_rows=8)
    sparse = nn.EmbeddingBag(40, 12, mode="sum", sparse=True)
    indices, offsets, grad = batches(1)[0]
    out = sparse(indices, offsets)
    lstm = nn.LSTM(3, 4)
    uneven = torch.nn.utils.rnn.pack_sequence([torch.randn(3, 3), torch.randn(2, 3)])
    cases = [
        (lambda: call(tables, rest, options), "seed, epoch or first_position to be a tensor"),
        (lambda: call(tables, rest, placed(options), backend="reference"), "the cuda or the trit"),
        (lambda: adam.next_rule(counted_steps), "expected capturable=True while"),
        (lambda: fresh.row_state(fresh.param_groups[0]["params"][0]), "state of a table to be"),
        (lambda: out.backward(grad), "no sparse gradient"),
        (lambda: table.embedding(indices % 30), "CachedTable: expected a table all of whose rows"),
        (lambda: table.prefetch(indices % 30), "CachedTable: expected a table all of whose rows"),
        (lambda: lstm(torch.randn(3, 2, 3), lengths=[3, 2]), "LSTM: expected no lengths"),
        (lambda: lstm(uneven), "rnn: expected sequences of one length"),
    ]
    before = copies(tables)
    monkeypatch.setattr(_checks, "is_capturing", lambda tensor: True)
    monkeypatch.setattr(_embedding_bag, "_choose", lambda tensor, backend: "reference")
    for wrong, message in cases:
        with pytest.raises(RuntimeError, match=message) as caught:
            wrong()
        assert "while a CUDA graph is captured" in str(caught.value), message
    assert all(torch.equal(a, b) for a, b in zip(tables[:2], before[:2], strict=True))
    table.close()


def test_work_follows_the_stream_of_the_gradient(monkeypatch):
    """Streams stand in for a GPU's: what is stepped on another one waits."""

    class Stream:
        def __init__(self):
            self.waited = []

        def wait_stream(self, other):
            self.waited.append(other)

    one, other = Stream(), Stream()
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: other)
    layer = nn.Embedding(4, 2)
    step = optim.sparse.RowStep(
        optim.SparseSGD(layer.parameters()), layer.weight, torch.ones(1, 2), torch.tensor([1])
    )
    step.follow()
    step.stream = other
    step.follow()
    assert other.waited == []
    step.stream = one
    step.follow()
    assert other.waited == [one]
