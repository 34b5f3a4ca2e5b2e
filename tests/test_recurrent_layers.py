"""nn.LSTM, nn.GRU, nn.RNN and their cells against torch.nn's: the same arguments, numbers,
gradients, state_dict and behavior; and what torch has not: lengths, more options, ResidualRNN."""

from __future__ import annotations

import copy
import inspect
import io
import pickle

import numpy as np
import pytest
import torch
import torch.nn.utils.prune
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.utils.rnn import (
    PackedSequence,
    pack_padded_sequence,
    pack_sequence,
    pad_packed_sequence,
)

from vecsmith import nn
from vecsmith.reference.rnn import rnn

KINDS = ["LSTM", "GRU", "RNN"]
ALL = [*KINDS, "ResidualRNN"]
INPUT, HIDDEN = 4, 5
LENGTHS = [3, 6, 1, 6, 2]
pytestmark = pytest.mark.filterwarnings(  # torch's, of its own layers
    "ignore:LSTM with projections is not supported with oneDNN"
)


@pytest.fixture(autouse=True)
def _clean_compiler():
    torch._dynamo.reset()


def twins(kind: str, *args, **kwargs) -> tuple[torch.nn.Module, torch.nn.Module]:
    """(torch's layer, ours) from the same seed."""
    torch.manual_seed(3)
    theirs = getattr(torch.nn, kind)(*args, **kwargs)
    torch.manual_seed(3)
    return theirs, getattr(nn, kind)(*args, **kwargs)


def flat(result) -> list[Tensor]:
    """The tensors of a result, however they are nested."""
    if isinstance(result, PackedSequence):
        return [result.data]
    if isinstance(result, tuple):
        return [tensor for each in result for tensor in flat(each)]
    return [result]


def slope(results: list[Tensor]) -> Tensor:
    """A loss that tells every entry apart."""
    torch.manual_seed(11)
    return sum((r * torch.randn(r.shape, dtype=torch.float64).to(r.dtype)).sum() for r in results)


def close(ours: Tensor, theirs: Tensor) -> None:
    assert ours.dtype == theirs.dtype
    tight = theirs.dtype == torch.float64
    rtol, atol = (1e-10, 1e-12) if tight else (1e-4, 1e-5)
    torch.testing.assert_close(ours, theirs, rtol=rtol, atol=atol)


def agree(theirs, ours, *inputs, keywords: dict | None = None) -> None:
    """Outputs, states, and the gradients of inputs and parameters are the same. ``keywords``: for
    ours alone."""
    results = flat(theirs(*inputs)), flat(ours(*inputs, **(keywords or {})))
    for out, mine in zip(*results, strict=True):
        close(mine, out)
    leaves = [leaf for leaf in flat(inputs) if isinstance(leaf, Tensor) and leaf.requires_grad]
    grads = []
    for layer, outs in zip((theirs, ours), results, strict=True):
        wanted = [*leaves, *(p for p in layer.parameters() if p.requires_grad)]
        grads.append(torch.autograd.grad(slope(outs), wanted))
    for out, mine in zip(*grads, strict=True):
        close(mine, out)


def draw(*shape: int, dtype=torch.float32) -> Tensor:
    return torch.randn(*shape, dtype=dtype, requires_grad=True)


def first_states(layer, batch: int | None, dtype=torch.float32):
    """hx of random numbers for a layer of torch."""
    count = layer.num_layers * (1 + layer.bidirectional)
    shape = [count] if batch is None else [count, batch]
    h = draw(*shape, layer.proj_size or layer.hidden_size, dtype=dtype)
    lstm = isinstance(layer, torch.nn.LSTM | nn.LSTM)
    return (h, draw(*shape, layer.hidden_size, dtype=dtype)) if lstm else h


# --- construction ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_arguments_are_torchs(kind):
    base = list(inspect.signature(torch.nn.RNNBase).parameters.values())[1:]
    ours = list(inspect.signature(getattr(nn, kind)).parameters.values())
    expected = [(p.name, p.default) for p in base if kind == "LSTM" or p.name != "proj_size"]
    if kind == "RNN":
        expected.insert(3, ("nonlinearity", "tanh"))
    assert [(p.name, p.default) for p in ours[: len(expected)]] == expected
    assert all(p.kind == p.KEYWORD_ONLY for p in ours[len(expected) :])
    call = inspect.signature(getattr(nn, kind).forward).parameters
    assert list(call) == ["self", "input", "hx", "lengths"]


@pytest.mark.parametrize("kind", ["LSTMCell", "GRUCell", "RNNCell"])
def test_arguments_of_cells_are_torchs(kind):
    theirs = list(inspect.signature(getattr(torch.nn, kind)).parameters.values())
    ours = list(inspect.signature(getattr(nn, kind)).parameters.values())
    assert [(p.name, p.default) for p in ours[: len(theirs)]] == [
        (p.name, p.default) for p in theirs
    ]
    assert issubclass(getattr(nn, kind), getattr(torch.nn, kind))


OPTIONS = [
    ("LSTM", {}),
    ("LSTM", {"num_layers": 2, "bidirectional": True, "batch_first": True}),
    ("LSTM", {"proj_size": 3, "bias": False, "num_layers": 3, "dropout": 0.5}),
    ("GRU", {"num_layers": 2, "dtype": torch.float64, "device": "cpu"}),
    ("RNN", {"nonlinearity": "relu", "bidirectional": True}),
]


@pytest.mark.parametrize(("kind", "options"), OPTIONS, ids=str)
def test_the_same_numbers_from_the_same_seed(kind, options):
    theirs, ours = twins(kind, INPUT, HIDDEN, **options)
    for _ in range(2):
        assert list(ours.state_dict()) == list(theirs.state_dict())
        for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert torch.equal(mine, other)
        for layer in (theirs, ours):
            torch.manual_seed(4)
            layer.reset_parameters()
    assert repr(ours) == repr(theirs)
    assert isinstance(ours, torch.nn.RNNBase)
    names = "mode input_size num_layers bias batch_first dropout bidirectional proj_size"
    for name in names.split():
        assert getattr(ours, name) == getattr(theirs, name)
    assert len(ours.all_weights) == len(theirs.all_weights)
    assert getattr(ours, "nonlinearity", None) == getattr(theirs, "nonlinearity", None)
    ours.flatten_parameters()


def test_more_options_do_not_change_what_torchs_parameters_are():
    theirs, _ = twins("LSTM", INPUT, HIDDEN, 2, bidirectional=True)
    torch.manual_seed(3)
    ours = nn.LSTM(
        *(INPUT, HIDDEN, 2),
        bidirectional=True,
        layer_norm=True,
        zoneout=(0.1, 0.2),
        weight_dropout=0.5,
        cell_clip=3,
    )
    for name, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value)
    assert "zoneout=(0.1, 0.2), weight_dropout=0.5, layer_norm=True, cell_clip=3.0" in repr(ours)
    assert "zoneout=0.1, reset_after=False" in repr(nn.GRU(3, 4, zoneout=0.1, reset_after=False))


@pytest.mark.parametrize("kind", KINDS)
def test_state_dict_both_ways(kind):
    theirs = getattr(torch.nn, kind)(INPUT, HIDDEN, 2, bidirectional=True)
    ours = getattr(nn, kind)(INPUT, HIDDEN, 2, bidirectional=True)
    ours.load_state_dict(theirs.state_dict())
    agree(theirs, ours, draw(6, 3, INPUT))
    ours.reset_parameters()
    file = io.BytesIO()
    torch.save(ours.state_dict(), file)
    file.seek(0)
    theirs.load_state_dict(torch.load(file, weights_only=True))
    agree(theirs, ours, draw(6, 3, INPUT))


def test_state_dict_of_options():
    """Parameters of an option are there only when the option is on."""
    plain = set(nn.LSTM(INPUT, HIDDEN, bidirectional=True).state_dict())
    layer = nn.LSTM(INPUT, HIDDEN, bidirectional=True, layer_norm=True, zoneout=0.1, cell_clip=1)
    more = {
        f"{name}_l0{end}": shape
        for name, shape in {
            "gain_ih": (20,),
            "gain_hh": (20,),
            "gain_c": (5,),
            "bias_c": (5,),
        }.items()
        for end in ("", "_reverse")
    }
    own = {k: tuple(v.shape) for k, v in layer.state_dict().items() if k not in plain}
    assert own == more
    assert all((layer.state_dict()[k] == k.startswith("gain")).all() for k in more)
    layer.reset_parameters()
    assert all((layer.state_dict()[k] == k.startswith("gain")).all() for k in more)
    other = nn.LSTM(INPUT, HIDDEN, bidirectional=True, layer_norm=True)
    other.load_state_dict(layer.state_dict())
    with pytest.raises(RuntimeError, match="Missing key"):
        other.load_state_dict(torch.nn.LSTM(INPUT, HIDDEN, bidirectional=True).state_dict())
    assert sorted(nn.GRU(INPUT, HIDDEN, layer_norm=True, bias=False).state_dict()) == [
        *("gain_hh_l0", "gain_ih_l0", "weight_hh_l0", "weight_ih_l0")
    ]
    assert sorted(nn.ResidualRNN(INPUT, HIDDEN).state_dict()) == [
        *("bias_hh_l0", "bias_ih_l0", "bias_out_l0"),
        *("weight_hh_l0", "weight_ih_l0", "weight_out_l0"),
    ]


# --- forward and gradients ------------------------------------------------------------------------


@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_layers_equal_torchs(data):
    kind = data.draw(st.sampled_from(KINDS))
    dtype = data.draw(st.sampled_from([torch.float32, torch.float64]))
    inputs, hidden = data.draw(st.integers(1, 7)), data.draw(st.integers(2, 9))
    options = {
        "num_layers": data.draw(st.integers(1, 3)),
        "bias": data.draw(st.booleans()),
        "batch_first": data.draw(st.booleans()),
        "bidirectional": data.draw(st.booleans()),
        "dtype": dtype,
    }
    if kind == "LSTM":
        options["proj_size"] = data.draw(st.integers(0, hidden - 1))
    if kind == "RNN":
        options["nonlinearity"] = data.draw(st.sampled_from(["tanh", "relu"]))
    theirs, ours = twins(kind, inputs, hidden, **options)
    batch = data.draw(st.none() | st.integers(1, 4))
    form = data.draw(st.sampled_from(["padded", "packed", "strided"]))
    if form == "packed":
        lengths = data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=5))
        rows = [torch.randn(n, inputs, dtype=dtype) for n in lengths]
        packed = pack_sequence(rows, enforce_sorted=False)
        x = PackedSequence(packed.data.requires_grad_(), *packed[1:])
        batch = len(lengths)
    else:
        steps = data.draw(st.integers(1, 6))
        shape = [steps] if batch is None else [steps, batch]
        if form == "strided":
            x = draw(inputs, *shape[::-1], dtype=dtype).permute(*range(len(shape), -1, -1))
        else:
            x = draw(*shape, inputs, dtype=dtype)
        if batch is not None and options["batch_first"]:
            x = x.transpose(0, 1)
    hx = first_states(theirs, batch, dtype) if data.draw(st.booleans()) else None
    agree(theirs, ours, x, hx)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_layout_of_the_output_is_torchs(kind, batch_first):
    theirs, ours = twins(kind, INPUT, HIDDEN, batch_first=batch_first, bidirectional=True)
    x = torch.randn(6, 3, INPUT)
    assert ours(x)[0].stride() == theirs(x)[0].stride()


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_dropout_between_layers(kind, packed):
    theirs, ours = twins(kind, INPUT, HIDDEN, 3, dropout=0.5, bidirectional=True)
    x = torch.randn(6, 5, INPUT)
    x = pack_padded_sequence(x, LENGTHS, enforce_sorted=False) if packed else x
    results = []
    for layer in (theirs, ours):
        torch.manual_seed(5)
        results.append(flat(layer(x)))
    for out, mine in zip(*results, strict=True):  # the same draw too
        close(mine, out)
    assert not torch.equal(flat(ours(x))[0], flat(ours(x))[0])
    agree(theirs.eval(), ours.eval(), x)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision(kind, dtype):
    _, ours = twins(kind, INPUT, HIDDEN, 2, bidirectional=True)
    x = torch.randn(6, 3, INPUT).to(dtype)
    ours = ours.to(dtype)
    exact = copy.deepcopy(ours).double()(x.double())
    out, state = ours(x)
    assert out.dtype == dtype
    for mine, other in zip(flat((out, state)), flat(exact), strict=True):
        assert mine.dtype == dtype
        assert (mine - other).abs().max() < 8 * torch.finfo(dtype).eps
    out.float().sum().backward()
    assert all(p.grad.dtype == dtype and p.grad.isfinite().all() for p in ours.parameters())


# --- lengths --------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=80)
@given(data=st.data())
def test_lengths_equal_torchs_packed_sequences(data):
    kind = data.draw(st.sampled_from(KINDS))
    batch_first = data.draw(st.booleans())
    options = {"num_layers": data.draw(st.integers(1, 2)), "batch_first": batch_first}
    options["bidirectional"] = data.draw(st.booleans())
    theirs, ours = twins(kind, INPUT, HIDDEN, **options, dtype=torch.float64)
    steps = data.draw(st.integers(1, 6))
    lengths = data.draw(st.lists(st.integers(1, steps), min_size=1, max_size=5))
    shape = (len(lengths), steps) if batch_first else (steps, len(lengths))
    x = draw(*shape, INPUT, dtype=torch.float64)
    hx = None
    if data.draw(st.booleans()):
        hx = first_states(theirs, len(lengths), torch.float64)
    form = data.draw(st.sampled_from(["list", "int64", "int32", "uint8"]))
    given_lengths = lengths if form == "list" else torch.tensor(lengths).to(getattr(torch, form))

    def of_torch(x, hx):
        packed = pack_padded_sequence(x, lengths, batch_first=batch_first, enforce_sorted=False)
        out, state = theirs(packed, hx)
        return pad_packed_sequence(out, batch_first=batch_first, total_length=steps)[0], state

    of_torch.parameters = theirs.parameters
    agree(of_torch, ours, x, hx, keywords={"lengths": given_lengths})


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("kind", ALL)
def test_lengths_equal_a_loop_over_rows(kind, batch_first):
    layer = getattr(nn, kind)(
        *(INPUT, HIDDEN, 2), bidirectional=True, batch_first=batch_first, dtype=torch.float64
    )
    padded = torch.randn(6, 5, INPUT, dtype=torch.float64)
    x = padded.transpose(0, 1) if batch_first else padded
    hx = first_states(layer, 5, torch.float64)
    out, state = layer(x, hx, lengths=torch.tensor(LENGTHS))
    out = out.transpose(0, 1) if batch_first else out
    states = flat((state,))
    for row, length in enumerate(LENGTHS):
        mine = tuple(h[:, row] for h in flat((hx,)))
        alone, last = layer(padded[:length, row], mine if kind == "LSTM" else mine[0])
        close(out[:length, row], alone)
        assert not out[length:, row].any()
        for state, other in zip(states, flat((last,)), strict=True):
            close(state[:, row], other)


def test_what_is_behind_the_end_is_not_seen():
    layer = nn.GRU(INPUT, HIDDEN, bidirectional=True)
    x = torch.randn(6, 5, INPUT)
    clean, clean_h = layer(x, lengths=LENGTHS)
    behind = torch.arange(6)[:, None] >= torch.tensor(LENGTHS)
    x[behind] = float("nan")
    x.requires_grad_()
    out, h = layer(x, lengths=LENGTHS)
    assert torch.equal(out, clean)
    assert torch.equal(h, clean_h)
    (out.sum() + h.sum()).backward()
    assert not x.grad[behind].any()
    assert x.grad[~behind].abs().sum(1).all()


def test_lengths_that_are_all_steps_are_none():
    layer = nn.LSTM(INPUT, HIDDEN)
    x = torch.randn(6, 3, INPUT)
    assert torch.equal(layer(x, lengths=[6, 6, 6])[0], layer(x)[0])
    short, _ = layer(x, lengths=list(np.array([2, 2, 2])))
    assert torch.equal(short[:2], layer(x[:2])[0])
    assert not short[2:].any()


# --- more options ---------------------------------------------------------------------------------


def plain(layer, x: Tensor, hx: Tensor | None = None, **more):
    """What the reference says of a layer with one direction and no lengths."""
    steps, batch, _ = x.shape
    h0 = torch.zeros(batch, layer.hidden_size, dtype=x.dtype) if hx is None else hx
    names = {"w_ih": "weight_ih", "w_hh": "weight_hh", "b_ih": "bias_ih", "b_hh": "bias_hh"}
    if isinstance(layer, nn.ResidualRNN):
        names |= {"w_out": "weight_out", "b_out": "bias_out"}
    weights = {ours: getattr(layer, f"{name}_l0") for ours, name in names.items()} | more
    sizes = torch.full((steps,), batch)
    c0 = h0 if isinstance(layer, nn.LSTM) else None
    out, *states = rnn(x.flatten(0, 1), sizes, h0, c0, **weights)
    return [out.view(steps, batch, -1), *(state[None] for state in states if state is not None)]


def same(layer, x: Tensor, expected: list[Tensor], **how) -> None:
    for mine, other in zip(flat(layer(x, **how)), expected, strict=True):
        close(mine, other)


def test_reset_before():
    layer = nn.GRU(INPUT, HIDDEN, reset_after=False, dtype=torch.float64)
    x = torch.randn(6, 3, INPUT, dtype=torch.float64)
    same(layer, x, plain(layer, x, cell="gru_reset_before"))
    cell = nn.GRUCell(INPUT, HIDDEN, reset_after=False, dtype=torch.float64)
    cell.load_state_dict({k.removesuffix("_l0"): v for k, v in layer.state_dict().items()})
    h = torch.zeros(3, HIDDEN, dtype=torch.float64)
    for step in x:
        h = cell(step, h)
    close(h, layer(x)[1][0])
    assert "reset_after=False" in repr(cell)


def test_residual():
    layer = nn.ResidualRNN(INPUT, HIDDEN, dtype=torch.float64)
    x = torch.randn(6, 3, INPUT, dtype=torch.float64)
    hx = torch.randn(1, 3, HIDDEN, dtype=torch.float64)
    same(layer, x, plain(layer, x, hx[0], cell="residual"), hx=hx)
    bound = 1 / HIDDEN**0.5
    for parameter in layer.parameters():
        assert 0 < parameter.abs().max() <= bound
    bare = nn.ResidualRNN(INPUT, HIDDEN, bias=False, dtype=torch.float64)
    out, _ = bare(torch.zeros(2, 1, INPUT, dtype=torch.float64))
    assert not out.any()


@pytest.mark.parametrize("kind", ALL)
def test_layer_norm(kind):
    layer = getattr(nn, kind)(INPUT, HIDDEN, layer_norm=True, dtype=torch.float64)
    gains = {name: p for name, p in layer.named_parameters() if "gain" in name or "bias_c" in name}
    assert len(gains) == (4 if kind == "LSTM" else 2)
    with torch.no_grad():
        for parameter in gains.values():
            parameter.uniform_(-1, 1)
    x = torch.randn(6, 3, INPUT, dtype=torch.float64)
    cells = {"LSTM": "lstm", "GRU": "gru", "RNN": "rnn_tanh", "ResidualRNN": "residual"}
    names = ["gain_ih_l0", "gain_hh_l0", "gain_c_l0", "bias_c_l0"]
    norm = tuple(gains[name] for name in names if name in gains)
    same(layer, x, plain(layer, x, cell=cells[kind], norm=norm))
    slope(flat(layer(x))).backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in layer.parameters())


def test_cell_clip():
    layer = nn.LSTM(INPUT, HIDDEN, cell_clip=0.1, dtype=torch.float64)
    x = torch.randn(6, 3, INPUT, dtype=torch.float64)
    same(layer, x, plain(layer, x, cell="lstm", clip=0.1))
    assert layer(x)[1][1].abs().max() == 0.1


@pytest.mark.parametrize("kind", ALL)
def test_zoneout(kind):
    layer = getattr(nn, kind)(INPUT, HIDDEN, zoneout=0.3, dtype=torch.float64)
    x = torch.randn(6, 3, INPUT, dtype=torch.float64)
    cells = {"LSTM": "lstm", "GRU": "gru", "RNN": "rnn_tanh", "ResidualRNN": "residual"}
    layer.eval()
    same(layer, x, plain(layer, x, cell=cells[kind], zoneout=(0.3, 0.3)))
    layer.train()
    wide = getattr(nn, kind)(INPUT, 400, zoneout=0.3)
    hx = torch.randn(1, 3, 400)
    first, _ = wide(torch.randn(1, 3, INPUT), (hx, hx) if kind == "LSTM" else hx)
    kept = (first == hx).double().mean()
    assert 0.25 < kept < 0.35
    torch.manual_seed(1)
    one = layer(x)[0]
    torch.manual_seed(1)
    assert torch.equal(layer(x)[0], one)
    assert not torch.equal(layer(x)[0], one)


def test_zoneout_of_one_state():
    layer = nn.LSTM(INPUT, 400, zoneout=(0.0, 1.0))
    hx = torch.randn(1, 2, 400), torch.randn(1, 2, 400)
    _, (h, c) = layer(torch.randn(3, 2, INPUT), hx)
    assert torch.equal(c, hx[1])
    assert not (h == hx[0]).any()


def test_weight_dropout():
    layer = nn.RNN(INPUT, 50, weight_dropout=0.5, nonlinearity="relu", bias=False)
    with torch.no_grad():
        layer.weight_hh_l0.fill_(1)
    h0 = torch.ones(1, 2, 50)
    x = torch.zeros(2, 2, INPUT)
    out, _ = layer(x, h0)
    sums = out[0, 0]  # twice the number of weights that are left in a row
    assert torch.equal(out[0, 1], sums)  # one mask for all sequences
    assert set((sums % 2).tolist()) == {0}
    assert 40 < sums.mean() < 60
    out.sum().backward()
    gone = layer.weight_hh_l0.grad == 0
    torch.testing.assert_close(2 * (~gone).sum(1).float(), sums)  # and the same for all steps
    layer.eval()
    assert torch.equal(layer(x, h0)[0][0], torch.full((2, 50), 50.0))


@pytest.mark.parametrize("kind", ALL)
def test_options_go_with_lengths_and_layers(kind):
    more = {"cell_clip": 0.5, "proj_size": 3} if kind == "LSTM" else {}
    layer = getattr(nn, kind)(
        *(INPUT, HIDDEN, 2),
        dropout=0.1,
        bidirectional=True,
        batch_first=True,
        zoneout=0.1,
        weight_dropout=0.1,
        layer_norm=True,
        **more,
    )
    x = draw(5, 6, INPUT)
    out, state = layer(x, lengths=LENGTHS)
    assert out.shape == (5, 6, 2 * (layer.proj_size or HIDDEN))
    slope([out, *flat((state,))]).backward()
    grads = [x.grad, *(p.grad for p in layer.parameters())]
    assert all(g.isfinite().all() and g.abs().max() > 0 for g in grads)


# --- modules like every other ---------------------------------------------------------------------


@pytest.mark.parametrize("kind", ALL)
def test_copies_pickles_and_casts(kind):
    layer = getattr(nn, kind)(INPUT, HIDDEN, 2, layer_norm=True)
    x = torch.randn(6, 3, INPUT)
    expected = layer(x)[0]
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert type(twin) is type(layer)
        assert torch.equal(twin(x)[0], expected)
        with torch.no_grad():
            twin.weight_hh_l0.zero_()
        assert torch.equal(layer(x)[0], expected)
        assert not torch.equal(twin(x)[0], expected)
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False)(x)[0], expected)
    doubled = layer.to(torch.float64)
    assert doubled is layer
    assert layer(x.double())[0].dtype == torch.float64
    torch.testing.assert_close(layer(x.double())[0].float(), expected)
    layer.share_memory()
    layer.requires_grad_(False)
    assert not layer(x.double())[0].requires_grad


@pytest.mark.parametrize("kind", KINDS)
def test_meta_device(kind):
    layer = getattr(nn, kind)(INPUT, HIDDEN, 2, bidirectional=True, device="meta", layer_norm=True)
    out, _ = layer(torch.zeros(6, 3, INPUT, device="meta"))
    assert out.is_meta
    assert out.shape == (6, 3, 2 * HIDDEN)
    layer.to_empty(device="cpu")
    layer.reset_parameters()
    assert layer(torch.zeros(6, 3, INPUT))[0].isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_frozen_weights(kind):
    theirs, ours = twins(kind, INPUT, HIDDEN, 2)
    for layer in (theirs, ours):
        layer.weight_hh_l0.requires_grad_(False)
        layer.bias_ih_l1.requires_grad_(False)
    agree(theirs, ours, torch.randn(6, 3, INPUT))
    x = torch.randn(6, 3, INPUT)
    with torch.no_grad():
        assert not ours(x)[0].requires_grad
    with torch.inference_mode():
        close(ours(x)[0], theirs(x)[0])
    close(ours(x)[0], theirs(x)[0])


@pytest.mark.parametrize("kind", ["LSTM", "RNN"])
def test_autocast(kind):
    theirs, ours = twins(kind, INPUT, HIDDEN, 2, bidirectional=True)
    x = draw(6, 3, INPUT)
    hx = first_states(theirs, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        results = [flat(layer(x, hx)) for layer in (theirs, ours)]
        assert flat(ours(x.bfloat16(), hx))[0].dtype == torch.bfloat16
    for out, mine in zip(*results, strict=True):
        assert mine.dtype == out.dtype == torch.bfloat16
        torch.testing.assert_close(mine, out, rtol=0, atol=0.02)
    slope(results[1]).backward()
    assert all(p.grad.dtype == torch.float32 for p in (x, *ours.parameters()))


def test_autocast_of_what_torch_leaves_in_float32():
    """A GRU and the cells on the CPU: ours are of autocast's dtype everywhere, as on a GPU."""
    x = torch.randn(6, 3, INPUT)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert nn.GRU(INPUT, HIDDEN)(x)[0].dtype == torch.bfloat16
        assert nn.GRUCell(INPUT, HIDDEN)(x[0]).dtype == torch.bfloat16
        assert nn.LSTMCell(INPUT, HIDDEN)(x[0])[1].dtype == torch.bfloat16
        double = nn.GRU(INPUT, HIDDEN, dtype=torch.float64)
        assert double(x.double())[0].dtype == torch.float64
        assert nn.GRU(INPUT, HIDDEN)(x, lengths=[6, 2, 1])[0].dtype == torch.bfloat16


def test_other_tensors_in_the_place_of_parameters():
    theirs, ours = twins("LSTM", INPUT, HIDDEN)
    x = torch.randn(6, 3, INPUT)
    other = {name: torch.randn_like(p) for name, p in theirs.named_parameters()}
    expected = torch.func.functional_call(theirs, other, (x,))[0]
    close(torch.func.functional_call(ours, other, (x,))[0], expected)
    for layer in (theirs, ours):
        torch.nn.utils.parametrizations.weight_norm(layer, "weight_hh_l0")
    close(ours(x)[0], theirs(x)[0])
    theirs, ours = twins("GRU", INPUT, HIDDEN)
    for layer in (theirs, ours):
        torch.nn.utils.prune.l1_unstructured(layer, "weight_hh_l0", 0.5)
    assert (ours.weight_hh_l0 == 0).sum() >= 30
    close(ours(x)[0], theirs(x)[0])


def test_torchs_optimizers_train_it():
    theirs, ours = twins("GRU", INPUT, HIDDEN, 2)
    for layer in (theirs, ours):
        torch.manual_seed(5)
        optimizer = torch.optim.Adam(layer.parameters(), lr=0.05)
        for _ in range(5):
            optimizer.zero_grad()
            layer(torch.randn(6, 3, INPUT))[0].square().sum().backward()
            optimizer.step()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", ALL)
def test_second_derivatives(kind):
    layer = getattr(nn, kind)(2, 3, bidirectional=True, batch_first=True, dtype=torch.float64)
    x = draw(2, 3, 2, dtype=torch.float64)

    def of(x, *weights):
        names = [name for name, _ in layer.named_parameters()]
        values = dict(zip(names, weights, strict=True))
        how = {"lengths": [3, 2]}
        return tuple(flat(torch.func.functional_call(layer, values, (x,), how)))

    inputs = (x, *layer.parameters())
    assert torch.autograd.gradcheck(of, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(of, inputs, fast_mode=True)


def test_gradient_penalty_in_float32():
    theirs, ours = twins("LSTM", INPUT, HIDDEN)
    penalties = []
    for layer in (theirs, ours):
        x = torch.linspace(-1, 1, 6 * 3 * INPUT).view(6, 3, INPUT).requires_grad_()
        (slope_of_x,) = torch.autograd.grad(layer(x)[0].square().sum(), x, create_graph=True)
        slope_of_x.square().sum().backward()
        penalties.append([x.grad, *(p.grad for p in layer.parameters())])
    for out, mine in zip(*penalties, strict=True):
        torch.testing.assert_close(mine, out, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", ALL)
def test_functorch(kind):
    layer = getattr(nn, kind)(INPUT, HIDDEN, dtype=torch.float64)
    x = torch.randn(2, 6, 3, INPUT, dtype=torch.float64)
    expected = torch.stack([layer(each)[0] for each in x])
    close(torch.vmap(lambda x: layer(x)[0])(x), expected)
    params = {name: p.detach() for name, p in layer.named_parameters()}

    def loss(params, x):
        return torch.func.functional_call(layer, params, (x,))[0].square().sum()

    each = torch.vmap(torch.func.grad(loss), (None, 0))(params, x)
    for n in range(2):
        grads = torch.autograd.grad(layer(x[n])[0].square().sum(), layer.parameters())
        for name, grad in zip(params, grads, strict=True):
            close(each[name][n], grad)
    _, tangent = torch.func.jvp(lambda x: layer(x)[0], (x[0],), (x[1],))
    step = 1e-6
    difference = (layer(x[0] + step * x[1])[0] - layer(x[0] - step * x[1])[0]) / (2 * step)
    torch.testing.assert_close(tangent, difference, rtol=1e-6, atol=1e-8)


# --- torch.compile --------------------------------------------------------------------------------


def operators(graphs: list) -> list[str]:
    return [str(node.target) for graph in graphs for node in graph.graph.nodes]


@pytest.mark.parametrize("kind", KINDS)
def test_compiles_in_one_graph_without_a_loop(kind):
    theirs, ours = twins(kind, INPUT, HIDDEN, 2, bidirectional=True, batch_first=True)
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    compiled = torch.compile(ours, fullgraph=True, backend=backend)
    x = draw(3, 50, INPUT)
    results = flat(theirs(x)), flat(compiled(x))
    for out, mine in zip(*results, strict=True):
        close(mine, out)
    theirs_x = torch.autograd.grad(slope(results[0]), x, retain_graph=True)[0]
    close(torch.autograd.grad(slope(results[1]), x, retain_graph=True)[0], theirs_x)
    assert len(graphs) == 1
    assert len(operators(graphs)) < 120


def test_compiles_with_states_and_packed_sequences():
    layer = nn.LSTM(INPUT, HIDDEN, 2, bidirectional=True, dropout=0.5).eval()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x, hx = torch.randn(6, 5, INPUT), first_states(layer, 5)
    for out, mine in zip(flat(layer(x, hx)), flat(compiled(x, hx)), strict=True):
        close(mine, out)
    packed = pack_padded_sequence(x, LENGTHS, enforce_sorted=False)
    for out, mine in zip(flat(layer(packed, hx)), flat(compiled(packed, hx)), strict=True):
        close(mine, out)


def test_compiles_with_options():
    layer = nn.LSTM(INPUT, HIDDEN, layer_norm=True, cell_clip=1.0, zoneout=0.1).eval()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 3, INPUT)
    for out, mine in zip(flat(layer(x)), flat(compiled(x)), strict=True):
        close(mine, out)


@pytest.mark.parametrize("batch_first", [False, True])
def test_compiles_with_lengths(batch_first):
    layer = nn.GRU(INPUT, HIDDEN, 2, bidirectional=True, batch_first=batch_first)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = torch.randn(*((5, 6) if batch_first else (6, 5)), INPUT)
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        for lengths in (LENGTHS, [1, 2, 3, 4, 5]):
            lengths = torch.tensor(lengths)
            expected = layer(x, lengths=lengths)
            for out, mine in zip(flat(expected), flat(compiled(x, lengths=lengths)), strict=True):
                close(mine, out)


def test_a_loop_of_cells_compiles():
    cell = nn.LSTMCell(INPUT, HIDDEN)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def decode(x, state):
        for step in x:
            state = cell(step, state)
        return state

    x, state = torch.randn(3, 2, INPUT), (torch.zeros(2, HIDDEN), torch.zeros(2, HIDDEN))
    expected = state
    for step in x:
        expected = cell(step, expected)
    for out, mine in zip(expected, decode(x, state), strict=True):
        close(mine, out)


@pytest.mark.filterwarnings(
    "ignore:.*torch.jit.trace.* is deprecated", "ignore::torch.jit.TracerWarning"
)
def test_traces_and_exports():
    layer = nn.GRU(INPUT, HIDDEN, 2, bidirectional=True)
    traced = torch.jit.trace(layer, torch.randn(6, 3, INPUT), check_trace=False)
    x = torch.randn(9, 2, INPUT)  # of other sizes than those it has seen
    for out, mine in zip(flat(layer(x)), flat(traced(x)), strict=True):
        close(mine, out)
    exported = torch.export.export(layer, (x,)).module()
    for out, mine in zip(flat(layer(x)), flat(exported(x)), strict=True):
        close(mine, out)


# --- cells ----------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_cells_equal_torchs(data):
    kind = data.draw(st.sampled_from(["LSTMCell", "GRUCell", "RNNCell"]))
    dtype = data.draw(st.sampled_from([torch.float32, torch.float64]))
    options = {"bias": data.draw(st.booleans()), "dtype": dtype}
    if kind == "RNNCell":
        options["nonlinearity"] = data.draw(st.sampled_from(["tanh", "relu"]))
    theirs, ours = twins(kind, INPUT, HIDDEN, **options)
    assert repr(ours) == repr(theirs)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    batch = data.draw(st.none() | st.integers(0, 4))
    lead = [] if batch is None else [batch]
    x, h = draw(*lead, INPUT, dtype=dtype), draw(*lead, HIDDEN, dtype=dtype)
    hx = None
    if data.draw(st.booleans()):
        hx = (h, draw(*lead, HIDDEN, dtype=dtype)) if kind == "LSTMCell" else h
    if not options["bias"] or hx is not None:
        agree(theirs, ours, x, hx)
    for out, mine in zip(flat(theirs(x, hx)), flat(ours(x, hx)), strict=True):
        close(mine, out)


def test_a_cell_is_a_step_of_its_layer():
    layer, cell = nn.LSTM(INPUT, HIDDEN), nn.LSTMCell(INPUT, HIDDEN)
    cell.load_state_dict({k.removesuffix("_l0"): v for k, v in layer.state_dict().items()})
    x, state = torch.randn(6, 3, INPUT), None
    out, last = layer(x)
    for step, expected in zip(x, out, strict=True):
        state = cell(step, state)
        close(state[0], expected)
    close(state[1], last[1][0])


# --- empty and bad input --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ALL)
def test_no_sequences(kind):
    layer = getattr(nn, kind)(INPUT, HIDDEN, 2, bidirectional=True, batch_first=True)
    x = draw(0, 6, INPUT)
    out, state = layer(x, lengths=[])
    assert out.shape == (0, 6, 2 * HIDDEN)
    assert all(h.shape == (4, 0, HIDDEN) for h in flat((state,)))
    out.sum().backward()
    assert x.grad.shape == x.shape
    assert all(not p.grad.any() for p in layer.parameters())
    if kind != "ResidualRNN":
        theirs = getattr(torch.nn, kind)(INPUT, HIDDEN, 2, bidirectional=True, batch_first=True)
        assert theirs(x)[0].shape == out.shape


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("kind", KINDS)
def test_nan_and_infinity_go_where_torchs_go(kind, value):
    theirs, ours = twins(kind, INPUT, HIDDEN, bidirectional=True)
    x = torch.randn(6, 3, INPUT)
    x[2, 1, 0] = value
    for out, mine in zip(flat(theirs(x)), flat(ours(x)), strict=True):
        torch.testing.assert_close(mine, out, equal_nan=True)


X = torch.zeros(6, 3, INPUT)
H = torch.zeros(1, 3, HIDDEN)
BAD_INPUTS = [  # input, hx (each state), message
    (X[0, 0], None, "expected input to be 2-D or 3-D; got 1-D"),
    (X[None], None, "expected input to be 2-D or 3-D; got 4-D"),
    (X[..., :3], None, r"input_size 4 along its last dimension; got \[6, 3, 3\]"),
    (X.double(), None, r"expected input of torch.float32, as the weights; got torch.float64"),
    (X.long(), None, r"expected input of torch.float32, as the weights; got torch.int64"),
    (X.to("meta"), None, "expected input on cpu, as the weights; got it on meta"),
    (X[:0], None, "at least one step"),
    (X, H[0], "to be 3-D for batched 3-D input; got 2-D"),
    (X[:, 0], H, "to be 2-D for unbatched 2-D input; got 3-D"),
    (X, H[:, :2], r"of shape \[1, 3, 5\]; got \[1, 2, 5\]"),
    (X, H[..., :4], r"of shape \[1, 3, 5\]; got \[1, 3, 4\]"),
    (X, H.expand(2, 3, 5), r"of shape \[1, 3, 5\]; got \[2, 3, 5\]"),
    (X, H.double(), "of torch.float32, as the input; got torch.float64"),
    (X, H.to("meta"), "on cpu, as the input; got it on meta"),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("x", "h", "message"), BAD_INPUTS, ids=[str(n) for n in range(len(BAD_INPUTS))]
)
def test_bad_input_is_refused_with_torchs_errors(kind, x, h, message):
    theirs, ours = twins(kind, INPUT, HIDDEN)
    hx = (h, h) if h is not None and kind == "LSTM" else h
    with pytest.raises(Exception) as error:
        theirs(x, hx)
    with pytest.raises(type(error.value), match=message) as mine:
        ours(x, hx)
    assert str(mine.value).startswith(f"{kind}: expected ")


def test_what_is_no_tensor_is_refused():
    lstm, gru = nn.LSTM(INPUT, HIDDEN), nn.GRU(INPUT, HIDDEN)
    for layer in (lstm, gru):
        with pytest.raises(TypeError, match=r"input to be a torch\.Tensor or a Packed.*; got list"):
            layer([1.0])
    for hx in (H, (H,), (H, None), [H, H, H]):
        with pytest.raises(TypeError, match="a tuple of two tensors"):
            lstm(X, hx)
    with pytest.raises(TypeError, match=r"hx to be a torch\.Tensor; got tuple"):
        gru(X, (H,))
    packed = pack_padded_sequence(X, [6, 5, 1])
    with pytest.raises(RuntimeError, match=r"hx of shape \[1, 3, 5\]; got \[1, 2, 5\]"):
        gru(packed, H[:, :2])
    with pytest.raises(RuntimeError, match="packed data to be 2-D"):
        gru(PackedSequence(X, torch.tensor([6])))


BAD_LENGTHS = [
    ([6, 0, 1], ValueError, r"lengths in 1\.\.6, the steps of the input; got 0"),
    ([6, -1, 1], ValueError, r"lengths in 1\.\.6, the steps of the input; got -1"),
    ([6, 7, 1], ValueError, r"lengths in 1\.\.6, the steps of the input; got 7"),
    (torch.tensor([6, 2**40, 1]), ValueError, "got 1099511627776"),
    ([6, 1], ValueError, r"lengths of shape \[3\], one for each sequence; got \[2\]"),
    (torch.tensor([[6, 1, 1]]), ValueError, r"lengths of shape \[3\].*; got \[1, 3\]"),
    (torch.tensor(6), ValueError, r"lengths of shape \[3\].*; got \[\]"),
    (torch.tensor([6.0, 1, 1]), TypeError, "integer tensor; got torch.float32"),
    (torch.tensor([True, True, True]), TypeError, "integer tensor; got torch.bool"),
    ([6, 1.0, 1], TypeError, r"lengths to be integers; got \[6, 1\.0, 1\]"),
    ([6, True, 1], TypeError, "lengths to be integers"),
    ("611", TypeError, "integer tensor or a list; got str"),
    (6, TypeError, "integer tensor or a list; got int"),
    (
        torch.tensor([6, 1, 1], device="meta"),
        ValueError,
        "on the CPU or on cpu.* on meta",
    ),
]


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize(
    ("lengths", "error", "message"), BAD_LENGTHS, ids=[str(n) for n in range(len(BAD_LENGTHS))]
)
def test_bad_lengths_are_refused(kind, lengths, error, message):
    layer = getattr(nn, kind)(INPUT, HIDDEN)
    with pytest.raises(error, match=f"^{kind}: expected .*{message}"):
        layer(X, lengths=lengths)


def test_lengths_where_they_do_not_belong():
    layer = nn.RNN(INPUT, HIDDEN)
    with pytest.raises(ValueError, match="no lengths with unbatched"):
        layer(X[:, 0], lengths=[6])
    with pytest.raises(ValueError, match="no lengths beside a PackedSequence"):
        layer(pack_padded_sequence(X, [6, 5, 1]), lengths=[6, 5, 1])


BAD_ARGUMENTS = [
    ("LSTM", {"zoneout": 1.5}, ValueError, r"zoneout in \[0, 1\]; got 1.5"),
    ("LSTM", {"zoneout": (0.1, -0.1)}, ValueError, r"zoneout in \[0, 1\]; got -0.1"),
    ("LSTM", {"zoneout": (0.1,)}, ValueError, r"a float or a pair \(h, c\)"),
    ("GRU", {"zoneout": (0.1, 0.1)}, ValueError, "zoneout to be a float"),
    ("GRU", {"zoneout": "much"}, TypeError, "zoneout to be a float; got str"),
    ("RNN", {"weight_dropout": -0.5}, ValueError, r"weight_dropout in \[0, 1\]"),
    ("RNN", {"weight_dropout": float("nan")}, ValueError, r"weight_dropout in \[0, 1\]"),
    ("RNN", {"weight_dropout": True}, TypeError, "weight_dropout to be a float"),
    ("RNN", {"nonlinearity": "gelu"}, ValueError, "'tanh' or 'relu'; got 'gelu'"),
    ("LSTM", {"layer_norm": 1}, TypeError, "layer_norm to be a bool; got int"),
    ("LSTM", {"cell_clip": 0}, ValueError, "cell_clip > 0 and finite; got 0"),
    ("LSTM", {"cell_clip": float("inf")}, ValueError, "cell_clip > 0 and finite; got inf"),
    ("LSTM", {"cell_clip": "1"}, TypeError, "cell_clip to be a float"),
    ("GRU", {"reset_after": None}, TypeError, "reset_after to be a bool"),
    ("GRU", {"cell_clip": 1.0}, TypeError, "cell_clip"),
    ("GRU", {"proj_size": 2}, TypeError, "proj_size"),
    # torch's own.
    ("LSTM", {"proj_size": 5}, ValueError, "proj_size has to be smaller"),
    ("LSTM", {"num_layers": 0}, ValueError, "num_layers must be greater than zero"),
    ("LSTM", {"dropout": 2}, ValueError, "dropout should be a number"),
    ("ResidualRNN", {"bias": None}, TypeError, "bias should be of type bool"),
]


@pytest.mark.parametrize(
    ("kind", "options", "error", "message"), BAD_ARGUMENTS, ids=[str(b[:2]) for b in BAD_ARGUMENTS]
)
def test_arguments_that_do_not_fit_are_refused(kind, options, error, message):
    with pytest.raises(error, match=message):
        getattr(nn, kind)(INPUT, HIDDEN, **options)


def test_dropout_of_one_layer_warns_as_torchs():
    with pytest.warns(UserWarning, match="num_layers greater than 1"):
        nn.LSTM(INPUT, HIDDEN, dropout=0.5)


BAD_STEPS = [
    (X, None, "input to be 1-D or 2-D; got 3-D"),
    (X[0], H, "hx to be 1-D or 2-D; got 3-D"),
    (X[0, :, :3], None, "input_size 4"),
    (X[0], H[0, :2], r"of shape \[3, 5\]; got \[2, 5\]"),
    (X[0], H[0, 0], r"of shape \[3, 5\]; got \[5\]"),
    (X[0, 0], H[0, :1], r"of shape \[5\]; got \[1, 5\]"),
    (X[0], H[0, :, :4], r"of shape \[3, 5\]; got \[3, 4\]"),
    (X[0], H[0].double(), "of torch.float32, as the input; got torch.float64"),
]


@pytest.mark.parametrize("kind", ["LSTMCell", "GRUCell", "RNNCell"])
@pytest.mark.parametrize(
    ("x", "h", "message"), BAD_STEPS, ids=[str(n) for n in range(len(BAD_STEPS))]
)
def test_bad_steps_are_refused_with_torchs_errors(kind, x, h, message):
    theirs, ours = twins(kind, INPUT, HIDDEN)
    hx = (h, h) if h is not None and kind == "LSTMCell" else h
    with pytest.raises(Exception) as error:
        theirs(x, hx)
    with pytest.raises(type(error.value), match=f"^{kind}: expected .*{message}"):
        ours(x, hx)
    with pytest.raises(TypeError, match=r"input to be a torch\.Tensor; got list"):
        ours([1.0])


def test_a_cell_of_another_nonlinearity():
    cell = nn.RNNCell(INPUT, HIDDEN, nonlinearity="gelu")  # torch refuses it when it is called, too
    with pytest.raises(RuntimeError, match="'tanh' or 'relu'; got 'gelu'"):
        cell(X[0])


# --- single steps that go straight to the processor -----------------------------------------------


def _cells():
    return [(nn.LSTMCell(5, 7), True), (nn.GRUCell(5, 7), False), (nn.RNNCell(5, 7), False)]


def test_a_quick_step_is_the_slow_one():
    for cell, has_cell in _cells():
        x, h, c = torch.randn(3, 5), torch.randn(3, 7), torch.randn(3, 7)
        hx = (h, c) if has_cell else h
        slow = cell(x, hx)
        with torch.no_grad():
            quick = cell(x, hx)
        pairs = zip(slow, quick, strict=True) if has_cell else [(slow, quick)]
        assert all(torch.equal(a, b) for a, b in pairs)


def test_a_quick_step_does_not_look_at_the_default_device():
    for cell, has_cell in _cells():
        x, h = torch.randn(3, 5), torch.randn(3, 7)
        with torch.no_grad(), torch.device("meta"):
            found = cell(x, (h, h) if has_cell else h)
        assert (found[0] if has_cell else found).device.type == "cpu"


def test_a_quick_step_keeps_tangents():
    cell, x, h = nn.GRUCell(5, 7), torch.randn(3, 5), torch.randn(3, 7)
    with torch.no_grad(), forward_ad.dual_level():
        found = cell(forward_ad.make_dual(x, torch.ones_like(x)), h)
        assert forward_ad.unpack_dual(found).tangent is not None


def test_a_step_refuses_what_has_no_memory():
    cell, x, h = nn.GRUCell(5, 7), torch.randn(3, 5), torch.randn(3, 7)
    x.untyped_storage().resize_(0)
    with torch.no_grad(), pytest.raises(RuntimeError, match="storage was freed"):
        cell(x, h)


def test_a_quick_step_refuses_states_in_one_tensor():
    cell, x = nn.LSTMCell(5, 7), torch.randn(3, 5)
    with torch.no_grad(), pytest.raises(TypeError, match="tuple of two tensors"):
        cell(x, torch.zeros(2, 3, 7))
