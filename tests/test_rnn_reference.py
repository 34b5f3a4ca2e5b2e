"""reference/rnn.py against torch's layers, and what torch has not against loops over single rows
that are written from the formulas; gradients against finite differences."""

from __future__ import annotations

from itertools import accumulate

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from vecsmith.reference.rnn import CELLS, EPSILON, rnn

LENGTHS = [7, 5, 5, 2, 1]  # not increasing
TORCHS = ["lstm", "lstm_projected", "gru", "rnn_tanh", "rnn_relu"]
INPUT, HIDDEN, PROJECTED = 4, 5, 3


def sizes_of(lengths: list[int]) -> Tensor:
    """batch_sizes of sorted lengths."""
    return torch.tensor([sum(length > t for length in lengths) for t in range(max(lengths))])


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def problem(cell: str, *, lengths=LENGTHS, bias=True, projected=0, norm=False, **more) -> dict:
    """Arguments of rnn, all random, with gradients."""
    wide, out = CELLS[cell] * HIDDEN, projected or HIDDEN
    arguments = {
        "input": draw(sum(lengths), INPUT),
        "batch_sizes": sizes_of(lengths),
        "h0": draw(len(lengths), out),
        "c0": draw(len(lengths), HIDDEN) if cell == "lstm" else None,
        "w_ih": draw(wide, INPUT),
        "w_hh": draw(wide, out),
        "b_ih": draw(wide) if bias else None,
        "b_hh": draw(wide) if bias else None,
        "cell": cell,
        **more,
    }
    if projected:
        arguments["w_hr"] = draw(projected, HIDDEN)
    if cell == "residual":
        arguments |= {"w_out": draw(HIDDEN, HIDDEN), "b_out": draw(HIDDEN) if bias else None}
    if norm:
        shapes = [wide, wide, HIDDEN, HIDDEN] if cell == "lstm" else [wide, wide]
        arguments["norm"] = tuple(draw(n) for n in shapes)
    return arguments


def leaves(arguments: dict) -> list[Tensor]:
    """The tensors that have gradients."""
    found = []
    for value in arguments.values():
        for each in value if isinstance(value, tuple) else (value,):
            if isinstance(each, Tensor) and each.requires_grad:
                found.append(each)
    return found


def slopes(results: tuple) -> Tensor:
    """A loss that tells every entry of every result apart."""
    torch.manual_seed(11)
    return sum((r * torch.randn_like(r)).sum() for r in results if r is not None)


def agree(results: tuple, expected: tuple, arguments: dict) -> None:
    """Results and the gradients of all arguments are the same."""
    for result, other in zip(results, expected, strict=True):
        assert (result is None) == (other is None)
        if result is not None:
            torch.testing.assert_close(result, other, rtol=1e-12, atol=1e-12)
    inputs = leaves(arguments)
    assert inputs
    ours = torch.autograd.grad(slopes(results), inputs)
    for grad, other in zip(ours, torch.autograd.grad(slopes(expected), inputs), strict=True):
        assert grad.abs().max() > 0
        torch.testing.assert_close(grad, other, rtol=1e-10, atol=1e-10)


# --- torch's layers -------------------------------------------------------------------------------


def torchs(arguments: dict) -> tuple:
    """What torch's layer of one direction gives for a PackedSequence."""
    cell, sizes = arguments["cell"], arguments["batch_sizes"]
    options = {"bias": arguments["b_ih"] is not None, "dtype": torch.float64}
    if arguments.get("w_hr") is not None:
        options["proj_size"] = PROJECTED
    if cell.startswith("rnn"):
        options["nonlinearity"] = cell.removeprefix("rnn_")
    kind = "RNN" if cell.startswith("rnn") else cell.upper()
    layer = getattr(torch.nn, kind)(INPUT, HIDDEN, bidirectional=True, **options)
    # The direction that is not looked at has the same weights.
    weights = {
        f"{theirs}{suffix}": arguments[ours]
        for theirs, ours in {
            "weight_ih_l0": "w_ih",
            "weight_hh_l0": "w_hh",
            "bias_ih_l0": "b_ih",
            "bias_hh_l0": "b_hh",
            "weight_hr_l0": "w_hr",
        }.items()
        for suffix in ("", "_reverse")
        if arguments.get(ours) is not None
    }
    h0, c0 = arguments["h0"], arguments["c0"]
    hx = torch.stack([h0, h0])
    hx = hx if c0 is None else (hx, torch.stack([c0, c0]))
    packed = PackedSequence(arguments["input"], sizes)
    output, state = torch.func.functional_call(layer, weights, (packed, hx))
    h, c = state if isinstance(state, tuple) else (state, None)
    at = int(arguments.get("reverse", False))
    half = output.data.unflatten(-1, (2, -1))[:, at]
    return half, h[at], None if c is None else c[at]


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "plain"])
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("lengths", [LENGTHS, [6, 6, 6], [4], [1]], ids=str)
@pytest.mark.parametrize("name", TORCHS)
def test_torchs_cells(name, lengths, reverse, bias):
    cell, projected = name.removesuffix("_projected"), PROJECTED * name.endswith("_projected")
    arguments = problem(cell, lengths=lengths, projected=projected, bias=bias, reverse=reverse)
    agree(rnn(**arguments), torchs(arguments), arguments)


# --- loops over rows, from the formulas -----------------------------------------------------------


def normalized(v: Tensor, gain: Tensor) -> Tensor:
    centered = v - v.sum() / v.numel()
    return gain * centered / ((centered**2).sum() / v.numel() + EPSILON) ** 0.5


def s(v: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-v))


def row_step(a: dict, x: Tensor, h: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """(h', c') of one row, vectors all."""
    cell, size, norm = a["cell"], HIDDEN, a.get("norm")
    zero = x.new_zeros(())
    b_ih, b_hh = (zero if a[name] is None else a[name] for name in ("b_ih", "b_hh"))

    def part(v, n):
        return v[n * size : (n + 1) * size]

    def product(matrix, vector, gain):
        result = (matrix * vector[None]).sum(1)
        return result if norm is None else normalized(result, gain)

    i = product(a["w_ih"], x, norm and norm[0]) + b_ih
    if cell == "gru_reset_before":
        b_hh = b_hh.expand(3 * size)
        gains = (None, None) if norm is None else (norm[1][: 2 * size], norm[1][2 * size :])
        first = product(a["w_hh"][: 2 * size], h, gains[0]) + b_hh[: 2 * size]
        r, z = s(part(i, 0) + part(first, 0)), s(part(i, 1) + part(first, 1))
        second = product(a["w_hh"][2 * size :], r * h, gains[1]) + b_hh[2 * size :]
        return z * h + (1 - z) * torch.tanh(part(i, 2) + second), None
    if cell == "residual":
        inner = torch.tanh(i + product(a["w_hh"], torch.tanh(h), norm and norm[1]) + b_hh)
        moved = (a["w_out"] * inner[None]).sum(1)
        return h + moved + (zero if a["b_out"] is None else a["b_out"]), None
    j = product(a["w_hh"], h, norm and norm[1]) + b_hh
    if cell == "gru":
        r, z = s(part(i, 0) + part(j, 0)), s(part(i, 1) + part(j, 1))
        return z * h + (1 - z) * torch.tanh(part(i, 2) + r * part(j, 2)), None
    if cell == "lstm":
        assert c is not None
        gate_i, gate_f, gate_o = (s(part(i + j, n)) for n in (0, 1, 3))
        c = gate_f * c + gate_i * torch.tanh(part(i + j, 2))
        if a.get("clip") is not None:
            c = torch.minimum(torch.maximum(c, zero - a["clip"]), zero + a["clip"])
        seen = c if norm is None else normalized(c, norm[2]) + norm[3]
        h = gate_o * torch.tanh(seen)
        return (h if a.get("w_hr") is None else (a["w_hr"] * h[None]).sum(1)), c
    return torch.tanh(i + j) if cell == "rnn_tanh" else torch.maximum(i + j, zero), None


def by_row(a: dict) -> tuple:
    """What rnn gives, one sequence after the other."""
    sizes = a["batch_sizes"].tolist()
    starts = [0, *accumulate(sizes)]
    z_h, z_c = a.get("zoneout", (0.0, 0.0))
    keep_h, keep_c = a.get("keep", (None, None))
    output, last_h, last_c = {}, [], []
    for b in range(sizes[0]):
        places = [starts[t] + b for t in range(len(sizes)) if sizes[t] > b]
        h, c = a["h0"][b], None if a["c0"] is None else a["c0"][b]
        for n in reversed(places) if a.get("reverse") else places:
            new_h, new_c = row_step(a, a["input"][n], h, c)
            k = 1 - z_h if keep_h is None else keep_h[n]
            h = k * new_h + (1 - k) * h
            if new_c is not None:
                k = 1 - z_c if keep_c is None else keep_c[n]
                c = k * new_c + (1 - k) * c
            output[n] = h
        last_h.append(h)
        last_c.append(c)
    rows = torch.stack([output[n] for n in range(sum(sizes))])
    return rows, torch.stack(last_h), None if a["c0"] is None else torch.stack(last_c)


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("norm", [False, True], ids=["plain", "norm"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "plain"])
@pytest.mark.parametrize("cell", CELLS)
def test_every_cell_is_its_formula(cell, bias, norm, reverse):
    arguments = problem(cell, bias=bias, norm=norm, reverse=reverse)
    agree(rnn(**arguments), by_row(arguments), arguments)


def masks(lengths: list[int], *widths: int) -> tuple:
    return tuple(
        (torch.rand(sum(lengths), width) < 0.6).double() if width else None for width in widths
    )


@pytest.mark.parametrize("cell", CELLS)
def test_zoneout_in_training(cell):
    keep = masks(LENGTHS, HIDDEN, HIDDEN if cell == "lstm" else 0)
    arguments = problem(cell, keep=keep, zoneout=(0.4, 0.4), reverse=True)
    agree(rnn(**arguments), by_row(arguments), arguments)


@pytest.mark.parametrize("cell", CELLS)
def test_zoneout_in_expectation(cell):
    arguments = problem(cell, zoneout=(0.3, 0.1))
    agree(rnn(**arguments), by_row(arguments), arguments)


def test_zoneout_of_one_state():
    """A mask for h alone; c is mixed in expectation."""
    arguments = problem("lstm", keep=masks(LENGTHS, HIDDEN, 0), zoneout=(0.0, 0.2))
    agree(rnn(**arguments), by_row(arguments), arguments)
    arguments = problem("lstm", keep=masks(LENGTHS, 0, HIDDEN), zoneout=(0.2, 0.0))
    agree(rnn(**arguments), by_row(arguments), arguments)


def test_a_mask_of_zeros_keeps_the_first_state():
    keep = (torch.zeros(sum(LENGTHS), HIDDEN, dtype=torch.float64),) * 2
    arguments = problem("lstm", keep=keep)
    output, h, c = rnn(**arguments)
    assert torch.equal(h, arguments["h0"])
    assert torch.equal(c, arguments["c0"])
    assert torch.equal(output[: len(LENGTHS)], arguments["h0"])


def test_clip():
    arguments = problem("lstm", clip=0.3)
    arguments["c0"].data.mul_(4)
    output, h, c = rnn(**arguments)
    agree((output, h, c), by_row(arguments), arguments)
    assert c.abs().max() == 0.3
    assert (c.abs() < 0.3).any()


def test_all_options_together():
    arguments = problem(
        "lstm",
        projected=PROJECTED,
        norm=True,
        clip=0.5,
        keep=masks(LENGTHS, PROJECTED, HIDDEN),
        reverse=True,
    )
    agree(rnn(**arguments), by_row(arguments), arguments)


# --- the layout -----------------------------------------------------------------------------------


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
def test_a_row_does_not_see_the_others(reverse):
    sequences = [torch.randn(length, INPUT, dtype=torch.float64) for length in LENGTHS]
    packed = pack_sequence(sequences)
    arguments = problem("gru", reverse=reverse)
    arguments |= {"input": packed.data, "batch_sizes": packed.batch_sizes}
    output, h, _ = rnn(**arguments)
    starts = [0, *accumulate(packed.batch_sizes.tolist())]
    for b, sequence in enumerate(sequences):
        alone = arguments | {
            "input": sequence,
            "batch_sizes": torch.ones(len(sequence), dtype=torch.int64),
            "h0": arguments["h0"][b : b + 1],
        }
        mine, last, _ = rnn(**alone)
        torch.testing.assert_close(output[[starts[t] + b for t in range(len(sequence))]], mine)
        torch.testing.assert_close(h[b : b + 1], last)
        torch.testing.assert_close(last[0], mine[0 if reverse else -1])


def test_no_steps():
    arguments = problem("gru")
    arguments |= {"input": draw(0, INPUT), "batch_sizes": torch.zeros(0, dtype=torch.int64)}
    output, h, c = rnn(**arguments)
    assert output.shape == (0, HIDDEN)
    assert torch.equal(h, arguments["h0"])
    assert c is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_it_computes_in_the_dtype_of_the_input(cell, dtype):
    def cast(value):
        if isinstance(value, tuple):
            return tuple(cast(each) for each in value)
        floating = isinstance(value, Tensor) and value.is_floating_point()
        return value.detach().to(dtype) if floating else value

    arguments = problem(cell, norm=True)
    with torch.no_grad():
        exact = rnn(**arguments)[0]
        output, h, _ = rnn(**{name: cast(value) for name, value in arguments.items()})
    assert output.dtype == h.dtype == dtype
    assert (output.double() - exact).abs().max() < 30 * torch.finfo(dtype).eps * exact.abs().max()


def test_nan_stays_in_its_row():
    arguments = problem("lstm")
    with torch.no_grad():
        arguments["input"][len(LENGTHS) + 1, 0] = float("nan")  # step 1 of row 1
        output, h, _ = rnn(**arguments)
    assert h.isnan().all(1).tolist() == [False, True, False, False, False]
    assert not output[: len(LENGTHS)].isnan().any()


# --- finite differences ---------------------------------------------------------------------------


@pytest.mark.parametrize("second", [False, True], ids=["gradcheck", "gradgradcheck"])
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("norm", [False, True], ids=["plain", "norm"])
@pytest.mark.parametrize("cell", CELLS)
def test_gradients(cell, norm, reverse, second, monkeypatch):
    monkeypatch.setattr(f"{__name__}.HIDDEN", 2)
    monkeypatch.setattr(f"{__name__}.INPUT", 2)
    arguments = problem(
        cell,
        lengths=[3, 1],
        norm=norm,
        reverse=reverse,
        zoneout=(0.1, 0.2),
        projected=1 if cell == "lstm" and norm else 0,
        clip=5.0 if cell == "lstm" else None,
    )
    names = [name for name, value in arguments.items() if isinstance(value, Tensor | tuple)]
    given = leaves(arguments)

    def of(*tensors):
        left = iter(tensors)
        values = dict(arguments)
        for name in names:
            value = values[name]
            if isinstance(value, Tensor) and value.requires_grad:
                values[name] = next(left)
            elif isinstance(value, tuple) and isinstance(value[0], Tensor):
                values[name] = tuple(next(left) for _ in value)
        return [result for result in rnn(**values) if result is not None]

    check = gradgradcheck if second else gradcheck
    assert check(of, given, fast_mode=True)


def test_forward_mode_and_vmap():
    arguments = problem("lstm")
    fixed = {k: v for k, v in arguments.items() if k not in ("input", "cell")}
    x = arguments["input"].detach()

    def of(input):
        return rnn(input, **fixed, cell="lstm")[0]

    direction = torch.randn_like(x)
    _, tangent = torch.func.jvp(of, (x,), (direction,))
    step = 1e-6
    difference = (of(x + step * direction) - of(x - step * direction)) / (2 * step)
    torch.testing.assert_close(tangent, difference, rtol=1e-6, atol=1e-8)
    batch = torch.stack([x, 2 * x])
    torch.testing.assert_close(torch.vmap(of)(batch), torch.stack([of(x), of(2 * x)]))
