"""The Triton kernels of `rnn`, forward and backward, against the reference in fp64.

Without a GPU they run in Triton's interpreter (`make test-triton`); with one on it.
"""

from __future__ import annotations

import pytest
import torch

from conftest import assert_close_to_reference, interpreted
from test_rnn import CELLS, NAMES, assert_close, problem
from vecsmith.ops import _rnn, _triton_rnn
from vecsmith.reference import rnn as reference

pytestmark = [pytest.mark.triton, *([] if interpreted() else [pytest.mark.gpu])]
DEVICE = "cpu" if interpreted() else "cuda"
LOW = {"fp16": torch.float16, "bf16": torch.bfloat16}
# Tiles have 16 rows; 33 rows are three, of which two end early.
SEQUENCES = {
    "one": ([1], 1),
    "even": ([3, 3, 3], 7),
    "uneven": ([5, 4, 4, 2, 1, 1], 33),
    "tiles": ([33, 20, 17, 16, 1], 70),
}


@pytest.fixture
def kernels():
    pytest.importorskip("triton", reason="Triton is not installed")
    from vecsmith.kernels import rnn

    return rnn


def run(function, values, sizes, dtype, device="cpu", wanted=(True, True, True), **how):
    """(results, gradients of what they are made of) in this dtype; wanted: results with one."""
    given = {n: v if v is None else v.to(device, dtype).requires_grad_() for n, v in values.items()}
    results = list(function(batch_sizes=torch.tensor(sizes), **given, **how))
    torch.manual_seed(5)
    pairs = [
        (r, torch.randn(r.shape, dtype=torch.float64).to(device, dtype))
        for r, keep in zip(results, wanted, strict=True)
        if r is not None and keep
    ]
    leaves = [v for v in given.values() if v is not None]
    grads = torch.autograd.grad(
        *([r for r, _ in pairs], leaves, [g for _, g in pairs]), materialize_grads=True
    )
    return [r.detach().cpu() for r in results if r is not None], [g.cpu() for g in grads]


def check(values, sizes, dtype, **how):
    exact = run(reference.rnn, values, sizes, torch.float64, **how)
    plain = run(reference.rnn, values, sizes, dtype, **how)
    ours = run(_triton_rnn.rnn, values, sizes, dtype, DEVICE, **how)
    for found, theirs, right in zip(ours, plain, exact, strict=True):
        assert all(f.dtype == dtype for f in found)
        if dtype == torch.float32:
            assert_close(found, theirs, right)
        else:
            for each in zip(found, theirs, right, strict=True):
                assert_close_to_reference(*each)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("case", SEQUENCES)
@pytest.mark.parametrize("cell", CELLS)
def test_forward_and_gradients(kernels, cell, case, reverse):
    sizes, hidden = SEQUENCES[case]
    values = problem(cell, sizes, hidden)
    check(values, sizes, torch.float32, cell=cell, reverse=reverse)


@pytest.mark.parametrize("dtype", LOW.values(), ids=LOW)
@pytest.mark.parametrize("cell", CELLS)
def test_low_precision(kernels, cell, dtype):
    """Two blocks of units, and three of what they are sums of."""
    for sizes, hidden, reverse in (([20, 3], 130, True), ([2] * 5, 40, False)):
        values = problem(cell, sizes, hidden, dtype=dtype)
        if cell == "rnn_relu":  # no sum near zero, where a rounding chooses the derivative
            values["b_ih"] = torch.tensor([3.0, -3.0]).double().repeat(hidden // 2)
            values["w_ih"] *= 0.25
            values["w_hh"] *= 0.25
        check(values, sizes, dtype, cell=cell, reverse=reverse)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("given", ["none", "b_ih", "b_hh"])
def test_biases_that_are_left_out(kernels, cell, given):
    values = problem(cell, [4, 3], 9)
    values |= {n: None for n in ("b_ih", "b_hh") if n != given}
    check(values, [4, 3], torch.float32, cell=cell)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("cell", ["lstm", "gru", "gru_reset_before"])
def test_results_without_a_gradient(kernels, cell, reverse):
    sizes = [3, 2, 1]
    values = problem(cell, sizes, 5)
    for wanted in ((True, False, False), (False, True, False), (False, False, True)):
        if cell == "lstm" or not wanted[2]:
            check(values, sizes, torch.float32, cell=cell, reverse=reverse, wanted=wanted)


def test_many_units(kernels):
    """In five blocks, sums in nine."""
    values = problem("lstm", [2, 1], 260)
    check(values, [2, 1], torch.float32, cell="lstm")


@pytest.mark.parametrize("cell", CELLS)
def test_strided_tensors_and_a_part_of_the_gradients(kernels, cell):
    sizes = [4, 4, 2]
    values = problem(cell, sizes, 6)
    given = {
        n: v if v is None else v.float().to(DEVICE).requires_grad_(n in ("h0", "w_hh"))
        for n, v in values.items()
    }
    strided = {
        n: v if v is None else torch.stack([v.detach(), -v.detach()], -1)[..., 0]
        for n, v in given.items()
    }
    assert not strided["input"].is_contiguous()
    for name in ("h0", "w_hh"):
        strided[name].requires_grad_()
    found = []
    for values in (given, strided):
        out, last, _ = _triton_rnn.rnn(batch_sizes=torch.tensor(sizes), cell=cell, **values)
        grad = torch.ones(1, 1, device=DEVICE).expand(out.shape)  # no stride at all
        torch.autograd.backward([out, last], [grad, torch.ones_like(last)])
        found.append([out.detach(), last.detach(), values["h0"].grad, values["w_hh"].grad])
        assert values["w_ih"].grad is None
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("cell", CELLS)
def test_without_gradients_the_same_bits(kernels, cell):
    """In one step and in several, with what backward needs kept and not kept."""
    sizes = [18, 17, 3]
    given = [None if v is None else v.float().to(DEVICE) for v in problem(cell, sizes, 20).values()]
    runs = [
        kernels.rnn(given[0], torch.tensor(sizes), *given[1:], cell=cell, reverse=False, save=save)
        for save in (False, True)
    ]
    assert all(kept is None for kept in runs[0][3:])
    for a, b in zip(runs[0][:3], runs[1][:3], strict=True):
        assert (a is None and b is None) or torch.equal(a, b)


@pytest.mark.parametrize("cell", CELLS)
def test_a_row_of_nan_stays_alone(kernels, cell):
    sizes = [18, 18, 2]
    values = {
        n: None if v is None else v.float().to(DEVICE) for n, v in problem(cell, sizes, 20).items()
    }
    values["input"][18 + 17] = float("nan")
    values["input"].requires_grad_()
    out, last, _ = _triton_rnn.rnn(batch_sizes=torch.tensor(sizes), cell=cell, **values)
    wrong = torch.zeros(38, dtype=torch.bool)
    wrong[18 + 17] = True
    assert torch.equal(out.isnan().any(1).cpu(), wrong)
    assert out[18 + 17].isnan().all()
    assert torch.equal(last.isnan().any(1).cpu(), torch.arange(18) == 17)
    (grad,) = torch.autograd.grad(out.sum(), values["input"])
    twins = {n: v if v is None else v.detach().cpu() for n, v in values.items()}
    twins["input"].requires_grad_()
    right, *_ = reference.rnn(batch_sizes=torch.tensor(sizes), cell=cell, **twins)
    (expected,) = torch.autograd.grad(right.sum(), twins["input"])
    assert torch.equal(grad.isnan().cpu(), expected.isnan())


def test_a_tile_has_the_steps_of_its_first_row(kernels):
    sizes = torch.tensor([40, 33, 32, 16, 1])
    lengths = kernels._steps_of(sizes, 16, torch.device("cpu"))
    assert lengths.tiles == 3
    assert lengths.steps[:3].tolist() == [5, 3, 2]
    assert lengths.sizes[:9].tolist() == [0, 0, 40, 33, 32, 16, 1, 0, 0]
    assert lengths.starts[2:7].tolist() == [0, 40, 73, 105, 121]


@pytest.mark.parametrize("sizes", [[3, 3], [4, 2, 1]], ids=str)
@pytest.mark.parametrize("reverse", [False, True])
def test_the_state_before_each_step(kernels, sizes, reverse):
    count, batch = sum(sizes), sizes[0]
    output, h0 = torch.arange(count).float()[:, None], -torch.arange(1, batch + 1).float()[:, None]
    expected, starts = [], [0, *torch.tensor(sizes).cumsum(0).tolist()]
    for t, size in enumerate(sizes):
        before = t + 1 if reverse else t - 1
        there = sizes[before] if 0 <= before < len(sizes) else 0
        expected += [starts[before] + b if b < there else -1 - b for b in range(size)]
    found = kernels._previous(output, h0, torch.tensor(sizes), reverse)
    assert found[:, 0].tolist() == expected


def test_wide_batches_take_wider_tiles_and_little_memory_fewer_units(kernels, monkeypatch):
    device, bf16 = torch.device("cpu"), torch.bfloat16
    narrow = kernels._shape("lstm", bf16, 64, 512, device)
    assert (narrow["BLOCK_B"], narrow["BLOCK_H"]) == (16, 128)
    wide = kernels._shape("lstm", bf16, 5000, 512, device)
    assert (wide["BLOCK_B"], wide["BLOCK_H"]) == (32, 64)
    monkeypatch.setattr(kernels, "_device", lambda _: (108, 99 << 10))
    assert kernels._shape("lstm", bf16, 64, 512, device)["BLOCK_H"] == 64


@pytest.mark.parametrize("cell", CELLS)
def test_wider_tiles(kernels, monkeypatch, cell):
    """Those of 32 rows, in reverse."""
    monkeypatch.setattr(kernels, "_device", lambda _: (1, 227 << 10))
    sizes = [45, 33, 2]
    check(problem(cell, sizes, 37), sizes, torch.float32, cell=cell, reverse=True)


@pytest.mark.parametrize("save", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_the_fakes_say_what_comes(kernels, cell, save):
    values = problem(cell, [3, 2], 5)
    given = [None if values[n] is None else values[n].half().to(DEVICE) for n in NAMES]
    arguments = (given[0], torch.tensor([3, 2]), *given[1:], cell, False, 0, _rnn.TRITON, save)
    found, fake = _triton_rnn._forward(*arguments), _rnn._forward_fake(*arguments)
    for a, b in zip(found, fake, strict=True):
        assert (a.shape, a.dtype, a.stride()) == (b.shape, b.dtype, b.stride())
    if save:
        output, last_h, last_c, c, gates = found
        grads = (output, last_h, last_c if cell == "lstm" else None)
        for needs in ((False, True), (True, False), (True, True)):
            given = (*grads, *arguments[:8], output, c, gates, cell, False, 0, _rnn.TRITON, *needs)
            found = _triton_rnn._backward(*given)
            fake = _rnn._backward_fake(*given)
            for a, b in zip(found, fake, strict=True):
                assert (a.shape, a.dtype, a.stride()) == (b.shape, b.dtype, b.stride())
                assert a.untyped_storage().nbytes() == a.numel() * a.itemsize


def test_the_operators_have_these_kernels_on_a_gpu():
    for name in ("rnn", "rnn_backward"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"vecsmith::{name}", "CUDA")


def test_autocast_changes_nothing(kernels):
    """Whoever wants the layer in another dtype casts what it is given."""
    sizes = [4, 2]
    values = problem("gru", sizes, 5)
    quiet = run(_triton_rnn.rnn, values, sizes, torch.float32, DEVICE, cell="gru")
    with torch.autocast(DEVICE, torch.bfloat16):
        loud = run(_triton_rnn.rnn, values, sizes, torch.float32, DEVICE, cell="gru")
    for a, b in zip((*quiet[0], *quiet[1]), (*loud[0], *loud[1]), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("wrong", [[2, 3], [4, 2], [2, 2], [2, 4, -1], []], ids=str)
def test_batch_sizes_that_kernels_must_not_follow(kernels, wrong):
    values = problem("lstm", [3, 2], 5)
    given = [None if v is None else v.float().to(DEVICE) for v in values.values()]
    with pytest.raises(ValueError, match="expected batch_sizes"):
        _triton_rnn.rnn(given[0], torch.tensor(wrong, dtype=torch.int64), *given[1:], cell="lstm")
    sizes = torch.tensor([3, 2])
    given[0].requires_grad_()
    out, _, _ = _triton_rnn.rnn(given[0], sizes, *given[1:], cell="lstm")
    if len(wrong) == 2:
        sizes.data.copy_(torch.tensor(wrong))
        with pytest.raises(ValueError, match="expected batch_sizes"):
            out.sum().backward()


# --- What needs a GPU: the registered operator with its CUDA kernels. -----------------------------


@pytest.mark.gpu
def test_the_registered_operator():
    values = problem("gru", [3, 2], 5)
    given = [None if values[n] is None else values[n].float().cuda() for n in NAMES]
    given = [None if v is None else v.requires_grad_() for v in given]
    arguments = (given[0], torch.tensor([3, 2]), *given[1:], "gru", False, 0, _rnn.TRITON, True)
    torch.library.opcheck(torch.ops.vecsmith.rnn.default, arguments)


@pytest.mark.gpu
def test_compiles_without_a_graph_break():
    sizes = torch.tensor([3, 3, 2])
    values = problem("lstm", [3, 3, 2], 8, dtype=torch.bfloat16)
    values = {n: v.bfloat16().cuda() for n, v in values.items() if v is not None}

    def call(**given):
        return _triton_rnn.rnn(batch_sizes=sizes, cell="lstm", **given)[0].sum()

    leaves = {n: v.clone().requires_grad_() for n, v in values.items()}
    twins = {n: v.clone().requires_grad_() for n, v in values.items()}
    torch.compile(call, backend="aot_eager", fullgraph=True)(**leaves).backward()
    call(**twins).backward()
    for name, leaf in leaves.items():
        torch.testing.assert_close(leaf.grad, twins[name].grad)


@pytest.mark.gpu
@pytest.mark.parametrize("cell", CELLS)
def test_second_derivatives(cell):
    sizes = [3, 2, 1]
    values = problem(cell, sizes, 4)

    def penalty(function, dtype, device):
        given = {
            n: v if v is None else v.to(device, dtype).requires_grad_() for n, v in values.items()
        }
        out, last, _ = function(batch_sizes=torch.tensor(sizes), cell=cell, **given)
        (first,) = torch.autograd.grad(
            (out**2).sum() + (last**3).sum(), given["input"], create_graph=True
        )
        leaves = [v for v in given.values() if v is not None]
        return torch.autograd.grad((first**2).sum(), leaves, materialize_grads=True)

    ours = penalty(_triton_rnn.rnn, torch.float32, "cuda")
    right = penalty(reference.rnn, torch.float64, "cpu")
    for a, b in zip(ours, right, strict=True):
        torch.testing.assert_close(a.cpu().double(), b, rtol=1e-4, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("cell", CELLS)
def test_many_steps_and_rows_the_same_bits_each_time(kernels, cell):
    """Threads of a program that did not wait for one another would differ now and then."""
    sizes = sorted(torch.randint(1, 200, (60,)).tolist(), reverse=True)
    given = [v if v is None else v.bfloat16().cuda() for v in problem(cell, sizes, 512).values()]
    runs = []
    for _ in range(5):
        made = kernels.rnn(
            given[0], torch.tensor(sizes), *given[1:], cell=cell, reverse=True, save=True
        )
        out, last_h, last_c, cells, gates = made
        back = kernels.rnn_backward(
            *(out, last_h, last_c, given[0], torch.tensor(sizes), *given[1:5], out, cells, gates),
            cell=cell,
            reverse=True,
            needs_input=True,
        )
        runs.append([t for t in (*made, *back) if t is not None])
    for other in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], other, strict=True))


@pytest.mark.gpu
def test_rows_past_32_bits(kernels):
    """Gates past 2^31 elements: the last rows are what they are by themselves."""
    hidden, batch = 256, 2**31 // (3 * 256) + 100
    free, _ = torch.cuda.mem_get_info()
    if free < 20 << 30:
        pytest.skip("less than 20 GB of GPU memory")
    values = problem("gru", [50], hidden, inputs=4)
    last = [v if v is None else v.half().cuda() for v in values.values()]
    x, h0 = torch.zeros(batch, 4).half().cuda(), torch.zeros(batch, hidden).half().cuda()
    x[-50:], h0[-50:] = last[0], last[1]
    out, *_ = kernels.rnn(
        x, torch.tensor([batch]), h0, *last[2:], cell="gru", reverse=False, save=False
    )
    alone, *_ = kernels.rnn(*last[:1], torch.tensor([50]), *last[1:], cell="gru", reverse=False,
                            save=False)  # fmt: skip
    torch.testing.assert_close(out[-50:], alone)
