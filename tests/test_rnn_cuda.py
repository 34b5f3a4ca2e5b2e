"""The CUDA kernels of `rnn` against the reference in fp64.

Without a GPU the very same csrc/cuda/*.cu and module.cpp are compiled by the host's compiler
against tests/cuda_emulation, which runs one fiber per CUDA thread, and all blocks of a launch that
wait for each other at once; with one, the real module runs the same cases, marked `gpu`.
"""

from __future__ import annotations

import ctypes
import importlib.util
import sys
from functools import partial
from itertools import product
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from test_rnn import CELLS, assert_close, problem, run
from vecsmith.ops import _cuda_rnn as door
from vecsmith.reference import rnn as reference

HALVES = (torch.bfloat16, torch.float16)
ORDERS = ("forward", "reverse", "random")
WEIGHTS = ("w_ih", "w_hh", "b_ih", "b_hh")


@pytest.fixture(autouse=True)
def _room(monkeypatch):
    """A device for 16 blocks at once, and no plan of another one."""
    monkeypatch.setenv("VECSMITH_EMULATED_MULTIPROCESSORS", "8")
    door._plan.cache_clear()
    door._misfit.cache_clear()


class Layer(torch.autograd.Function):
    """The door, as a function that can be differentiated."""

    @staticmethod
    def forward(ctx, how, batch_sizes, *tensors):
        ctx.how, (cell, reverse, options) = how, how
        output, last_h, last_c, c, gates = door.forward(
            tensors[0], batch_sizes, *tensors[1:], cell, reverse, True, **options
        )
        ctx.save_for_backward(batch_sizes, *tensors, output, c, gates)
        ctx.set_materialize_grads(False)
        return output, last_h, last_c

    @staticmethod
    def backward(ctx, *grads):
        cell, reverse, options = ctx.how
        batch_sizes, input, *rest = ctx.saved_tensors
        made = door.backward(*grads, input, batch_sizes, *rest, cell, reverse, True, **options)
        assert [m.dtype for m in made] == [input.dtype] * 7
        given = ctx.needs_input_grad[2:]
        return None, None, *(m if n else None for m, n in zip(made, given, strict=True))


def layer(input, batch_sizes, h0, c0, w_ih, w_hh, b_ih, b_hh, *, cell, reverse=False, **options):
    how = (cell, reverse, options)
    results = Layer.apply(how, batch_sizes, input, h0, c0, w_ih, w_hh, b_ih, b_hh)
    return results if cell == "lstm" else (*results[:2], None)


def layer_problem(cell, sizes, hidden, dtype, bias=True):
    """As for the other backends; but with exact numbers where a rounding can change a derivative,
    at zero."""
    values = problem(cell, sizes, hidden, bias=bias, dtype=dtype)
    if cell != "rnn_relu":
        return values
    for name, v in values.items():
        if v is None:
            continue
        v.copy_(torch.randint(-2, 3, v.shape))
        if v.dim() == 2 and name in WEIGHTS:  # few, so that sums stay small
            v *= torch.rand(v.shape) < 1.5 / v.shape[1]
            v.clamp_(-1, 1)
    return values


def check(cell, sizes, hidden, dtype, reverse=False, device="cpu", bias=True, **options):
    values = layer_problem(cell, sizes, hidden, dtype, bias)
    if device != "cpu":
        values = {n: None if v is None else v.to(device) for n, v in values.items()}
    how = {"cell": cell, "reverse": reverse}
    exact = run(reference.rnn, values, sizes, torch.float64, **how)
    plain = run(reference.rnn, values, sizes, dtype, **how)
    ours = run(partial(layer, **options), values, sizes, dtype, **how)
    for found, theirs, right in zip(ours, plain, exact, strict=True):
        assert_close(found, theirs, right)
    return [*ours[0], *ours[1]]


# Steps' rows; hidden size; units of a block; groups. Of an LSTM the last ones fill the tiles of
# each kernel: 8, 12, 16 and 28 halves; others end in a block, a tile, or part of 32 that is not
# full.
CASES = {
    "one-step": ([1], 8, 8, 1),
    "even": ([3, 3, 3], 24, 8, 2),
    "uneven": ([5, 4, 4, 2, 1, 1], 16, 8, 3),
    "last-block-is-smaller": ([9] * 4, 40, 16, 1),
    "groups-of-rows": ([20, 20, 13], 48, 16, 4),
    "many-tiles": ([43, 30], 24, 24, 1),
    "12-halves": ([12, 5], 72, 24, 1),
    "16-halves": ([27, 27, 12], 64, 32, 1),
    "28-halves": ([17, 3], 56, 56, 1),
    "a-group-a-row": ([6, 6, 2], 16, 16, 6),
}


@pytest.mark.parametrize("reverse", [False, True], ids=["", "reverse"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("cell", CELLS)
def test_forward_and_gradients(emulated, monkeypatch, cell, case, reverse):
    sizes, hidden, units, groups = CASES[case]
    at = len(cell) + list(CASES).index(case) + reverse
    monkeypatch.setenv("VECSMITH_EMULATED_ORDER", ORDERS[at % 3])
    cut = (units, groups, at % 2, 1)
    check(cell, sizes, hidden, HALVES[at // 2 % 2], reverse, module=emulated, cut=cut)


# As above, and how many blocks share sums. In some a block has no part of k, or no units.
SHARED = {
    "one-step": ([1], 8, 8, 1, 2),
    "even": ([3, 3, 3], 24, 8, 2, 2),
    "uneven": ([5, 4, 4, 2, 1, 1], 40, 8, 2, 4),
    "many-tiles": ([43, 30], 72, 8, 1, 4),
    "16-halves": ([27, 27, 12], 64, 16, 2, 2),
}


@pytest.mark.parametrize("reverse", [False, True], ids=["", "reverse"])
@pytest.mark.parametrize("case", SHARED)
@pytest.mark.parametrize("cell", CELLS)
def test_blocks_that_share_sums(emulated, monkeypatch, cell, case, reverse):
    sizes, hidden, units, groups, split = SHARED[case]
    at = len(cell) + list(SHARED).index(case) + reverse
    monkeypatch.setenv("VECSMITH_EMULATED_ORDER", ORDERS[at % 3])
    cut = (units, groups, 0, split)
    check(cell, sizes, hidden, HALVES[at % 2], reverse, module=emulated, cut=cut)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_a_cut_of_the_plans_choice(emulated, cell, dtype):
    check(cell, [11, 11, 7], 48, dtype, module=emulated)


@pytest.mark.parametrize("cell", CELLS)
def test_without_biases(emulated, cell):
    check(cell, [4, 2], 16, torch.bfloat16, bias=False, module=emulated, cut=(8, 2, 0, 1))


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_sums_longer_than_what_is_read_ahead(emulated, cell):
    """More than four parts of 32 to each of eight warps, backward; forward more than one."""
    check(cell, [3, 2], 368, torch.bfloat16, module=emulated, cut=(48, 1, 0, 1))


@pytest.mark.parametrize("cell", CELLS)
def test_schedules_and_cuts_give_the_same_bits(emulated, monkeypatch, cell):
    """Between two barriers anybody may run ahead, and sums have one order, but for that of as many
    blocks as share them."""
    sizes, results = [21, 21, 9], {1: [], 2: []}
    cuts = ((8, 3, 0, 1), (8, 2, 1, 1), (24, 5, 0, 1), (32, 1, 1, 1), (8, 2, 0, 2), (16, 1, 0, 2))
    for order, cut in product(ORDERS, cuts):
        monkeypatch.setenv("VECSMITH_EMULATED_ORDER", order)
        torch.manual_seed(0)
        made = check(cell, sizes, 32, torch.bfloat16, module=emulated, cut=cut)
        results[cut[3]].append(made)
    for same in results.values():
        for other in same[1:]:
            assert all(torch.equal(a, b) for a, b in zip(same[0], other, strict=True))


@pytest.mark.parametrize(
    ("cell", "split", "shared"),
    [
        *product(["lstm", "gru_reset_before"], [1], [13_000, 10_000, 8_800]),
        *product(["lstm"], [2], [18_000, 13_000]),
    ],
)
def test_rows_and_sums_that_do_not_fit_at_once(emulated, monkeypatch, cell, split, shared):
    """Rows go in more than one pass, and sums are put together a tile at a time."""
    monkeypatch.setenv("VECSMITH_EMULATED_SHARED", str(shared))
    plans = []
    for backward in (False, True):
        plans.append(
            emulated.plan_rnn(
                cell=cell, dtype="bfloat16", hidden=32, batch=60, backward=backward, units=8,
                groups=1, cluster=0, split=split, device=0,
            )
        )  # fmt: skip
    assert all(plan["shared_bytes"] <= shared for plan in plans)
    assert max(plan["passes"] for plan in plans) > 1 or min(plan["round"] for plan in plans) < 4
    for reverse in (False, True):
        sizes = [60, 41, 41, 3]
        check(cell, sizes, 32, torch.float16, reverse, module=emulated, cut=(8, 1, 0, split))


@pytest.mark.parametrize("cell", CELLS)
def test_what_is_kept_is_what_the_native_operator_keeps(emulated, cell):
    sizes = torch.tensor([4, 3, 3])
    values = layer_problem(cell, [4, 3, 3], 16, torch.bfloat16)
    half = [None if v is None else v.bfloat16() for v in values.values()]
    single = [None if v is None else v.float() for v in values.values()]
    kept = door.forward(half[0], sizes, *half[1:], cell, False, True, module=emulated)
    arguments = (single[0], sizes, *single[1:], cell, False, 1, 0, True)
    right = torch.ops.vecsmith.rnn(*arguments)
    for found, other in zip(kept, right, strict=True):
        assert found.shape == other.shape
        torch.testing.assert_close(found.float(), other, rtol=0.02, atol=0.02)
    assert kept[3].dtype == torch.float32
    quiet = door.forward(half[0], sizes, *half[1:], cell, False, False, module=emulated)
    assert all(torch.equal(a, b) for a, b in zip(kept[:3], quiet[:3], strict=True))
    assert quiet[3].numel() == quiet[4].numel() == 0


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_gradients_of_some_results_only(emulated, cell):
    sizes = [4, 2, 2]
    values = layer_problem(cell, sizes, 16, torch.bfloat16)

    def gradients(function, dtype, which, **options):
        given = {n: v if v is None else v.to(dtype).requires_grad_() for n, v in values.items()}
        results = function(batch_sizes=torch.tensor(sizes), cell=cell, **given, **options)
        leaves = [v for v in given.values() if v is not None]
        return torch.autograd.grad(results[which].sum(), leaves, allow_unused=True)

    for which in range(3 if cell == "lstm" else 2):
        made = [
            gradients(layer, torch.bfloat16, which, module=emulated),
            gradients(reference.rnn, torch.bfloat16, which),
            gradients(reference.rnn, torch.float64, which),
        ]
        assert_close(*([torch.zeros(()) if g is None else g for g in each] for each in made))


def test_transposed_strided_and_misaligned_tensors(emulated):
    values = layer_problem("gru", [6, 6], 16, torch.bfloat16)
    given = {n: v if v is None else v.bfloat16() for n, v in values.items()}
    changed = dict(given)
    changed["w_hh"] = given["w_hh"].t().contiguous().t()
    changed["h0"] = torch.zeros(6, 40).bfloat16()[:, 3:19].copy_(given["h0"])
    changed["b_hh"] = torch.zeros(49).bfloat16()[1:].copy_(given["b_hh"])
    changed["input"] = given["input"].repeat(1, 2)[:, : given["input"].shape[1]]
    results = []
    for each in (given, changed):
        leaves = {n: v for n, v in each.items() if v is not None}
        leaves = {n: v.detach().requires_grad_() for n, v in leaves.items()}
        how = {"cell": "gru", "module": emulated}
        out, last, _ = layer(batch_sizes=torch.tensor([6, 6]), c0=None, **leaves, **how)
        grad = torch.linspace(-1, 1, 2 * out.numel()).bfloat16().view(12, 32)[:, ::2]
        made = torch.autograd.grad([out, last], list(leaves.values()), [grad, grad[:6] + 1])
        results.append([out, last, *made])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn_tanh", "rnn_relu"])
def test_nan_and_infinity_go_where_the_references_go(emulated, cell):
    values = {
        n: None if v is None else v.float()
        for n, v in layer_problem(cell, [4] * 5, 16, torch.bfloat16).items()
    }
    values["input"][5, 1], values["input"][10, 2], values["input"][3, 0] = (
        float("nan"),
        float("inf"),
        float("-inf"),
    )
    sizes = torch.full((5,), 4)
    right = reference.rnn(batch_sizes=sizes, cell=cell, **values)[0]
    half = {n: None if v is None else v.bfloat16() for n, v in values.items()}
    with torch.no_grad():
        ours = layer(batch_sizes=sizes, cell=cell, module=emulated, **half)[0]
    torch.testing.assert_close(ours.float(), right, equal_nan=True, rtol=0.05, atol=0.05)


# --- What is refused. -----------------------------------------------------------------------------


def refusal(emulated, cell="lstm", dtype=torch.bfloat16, hidden=16, batch=4):
    return door.refusal(cell, dtype, hidden, batch, torch.device("cpu"), emulated)


def test_what_it_takes_and_what_not(emulated, monkeypatch):
    for cell in CELLS:
        assert refusal(emulated, cell=cell) is None
    assert "cell 'residual'" in refusal(emulated, cell="residual")
    assert "float32" in refusal(emulated, dtype=torch.float32)
    assert "no rows" in refusal(emulated, batch=0)
    assert "multiple of 8, at most 65536, got 12" in refusal(emulated, hidden=12)
    assert "got 0" in refusal(emulated, hidden=0)
    assert "got hidden_size 4096, 134217728 bytes of weights" in refusal(emulated, hidden=4096)
    assert "131072" in refusal(emulated, hidden=1 << 17)
    monkeypatch.setenv("VECSMITH_EMULATED_MULTIPROCESSORS", "132")
    door._plan.cache_clear()
    door._misfit.cache_clear()
    for cell, hidden in (("lstm", 512), ("lstm", 1024), ("gru", 2048), ("rnn_tanh", 2048)):
        assert refusal(emulated, cell=cell, hidden=hidden, batch=64) is None
    assert "232448 bytes in each of 132" in refusal(emulated, hidden=2048)


def test_one_without_a_module():
    if importlib.util.find_spec("vecsmith._cuda") is not None:
        pytest.skip("built with the CUDA module")
    words = door.refusal("lstm", torch.bfloat16, 16, 4, torch.device("cpu"))
    assert words is not None
    assert "_cuda" in words


def test_bad_input_is_refused(emulated):
    values = layer_problem("lstm", [3, 2], 16, torch.bfloat16)
    half = {n: None if v is None else v.bfloat16() for n, v in values.items()}
    call = partial(layer, cell="lstm", module=emulated)
    call(batch_sizes=torch.tensor([3, 2]), **half)
    for sizes in ([3, 3], [2, 3], [], [5]):
        with pytest.raises(ValueError, match=r"expected batch_sizes that begin with 3"):
            call(batch_sizes=torch.tensor(sizes, dtype=torch.int64), **half)
    single = {n: None if v is None else v.float() for n, v in values.items()}
    with pytest.raises(ValueError, match=r"bfloat16 or float16, got torch\.float32"):
        call(batch_sizes=torch.tensor([3, 2]), **single)
    # 2 blocks of 8 units, and 9 groups: no room for 18 at once.
    with pytest.raises(ValueError, match="room for 18 blocks at once, got 16"):
        check("lstm", [9], 16, torch.bfloat16, module=emulated, cut=(8, 9, 0, 1))
    for cut, words in (
        ((12, 0, -1, 0), "units to be a multiple of 8"),
        ((0, -1, -1, 0), "groups >= 0"),
        ((0, 0, 0, 3), "1, 2, 4 or 8 blocks that share sums, got 3"),
        ((8, 4, 1, 1), "to fit"),
    ):
        with pytest.raises(ValueError, match=words):
            check("lstm", [9], 64, torch.bfloat16, module=emulated, cut=cut)


def test_the_module_says_which_argument_is_wrong(emulated):
    good = {
        "cell": "rnn_tanh", "dtype": "bfloat16", "hidden": 8, "batch": 1, "units": 8, "groups": 1,
        "cluster": -1, "split": 0, "starts": 0, "steps": 1, "reverse": False, "device": 0,
        "stream": 0, "c0": 0, "c": 0, "gates": 0, "last_c": 0, "scaled": 0, "bias": 0,
    }  # fmt: skip
    tensors = {n: torch.zeros(64, 8).bfloat16() for n in ("x", "weight", "h0", "output", "last_h")}
    tensors["counters"] = torch.zeros(32, dtype=torch.int32)
    good |= {n: t.data_ptr() for n, t in tensors.items()}
    emulated.rnn(**good)
    for changed, error, words in (
        ({"cell": "cell"}, ValueError, "expected cell 'lstm', 'gru'"),
        ({"dtype": "float32"}, ValueError, "'float16' or 'bfloat16', got 'float32'"),
        ({"steps": 0}, ValueError, "steps >= 1"),
        ({"x": 0}, ValueError, "expected x, got null"),
        ({"cell": "lstm"}, ValueError, "expected c0, got null"),
        ({"cell": "gru_reset_before"}, ValueError, "expected scaled, got null"),
        ({"output": good["output"] + 2}, ValueError, "16-byte aligned output"),
        ({"batch": 0}, ValueError, "1 to 2.30 sequences"),
        ({"more": 1}, KeyError, "arguments"),
    ):
        with pytest.raises(error, match=words):
            emulated.rnn(**{**good, **changed})
    with pytest.raises(KeyError, match="missing argument: weight"):
        emulated.rnn(**{n: v for n, v in good.items() if n != "weight"})


# --- The emulation itself. ------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_the_emulated_matrix_unit(emulated, dtype):
    """Places of the elements as the PTX manual writes them for mma.m16n8k16."""
    a, b = torch.randn(16, 16).to(dtype), torch.randn(16, 8).to(dtype)
    registers = torch.zeros(32, 12, dtype=dtype)
    for lane in range(32):
        group, thread = lane >> 2, lane % 4
        for i in range(8):
            row = group if i < 2 or 4 <= i < 6 else group + 8
            column = thread * 2 + (i & 1) + (8 if i >= 4 else 0)
            registers[lane, i] = a[row, column]
        for i in range(4):
            row = thread * 2 + (i & 1) + (8 if i >= 2 else 0)
            registers[lane, 8 + i] = b[row, group]
    sums = torch.zeros(32, 4)
    library = ctypes.CDLL(emulated.__file__)
    addresses = [ctypes.c_void_p(t.data_ptr()) for t in (registers, sums)]
    assert library.emulation_multiply(*addresses, int(dtype == torch.float16)) == 0
    found = torch.zeros(16, 8)
    for lane in range(32):
        group, thread = lane >> 2, lane % 4
        for i in range(4):
            found[group if i < 2 else group + 8, thread * 2 + (i & 1)] = sums[lane, i]
    torch.testing.assert_close(found, a.float() @ b.float())


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_the_emulated_roundings(emulated, dtype):
    everything = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype).float()
    drawn = torch.randn(20000) * 10.0 ** torch.randint(-9, 6, (20000,))
    between = (everything[:-1].double() + everything[1:].double()).div(2).float()
    values = torch.cat([everything, drawn, between])
    bits, back = torch.zeros(len(values), dtype=torch.int16), torch.zeros(len(values))
    library = ctypes.CDLL(emulated.__file__)
    addresses = [ctypes.c_void_p(t.data_ptr()) for t in (values, bits, back)]
    count = ctypes.c_longlong(len(values))
    library.emulation_round(*addresses, count, int(dtype == torch.float16))
    right = values.to(dtype)
    number = ~right.isnan()
    assert torch.equal(bits[number], right.view(torch.int16)[number])
    assert torch.equal(back[number], right.float()[number])
    assert back[~number].isnan().all()


@pytest.mark.parametrize("order", ORDERS)
def test_blocks_that_wait_for_each_other(emulated, monkeypatch, order):
    monkeypatch.setenv("VECSMITH_EMULATED_ORDER", order)
    library = ctypes.CDLL(emulated.__file__)
    library.emulation_grid.restype = ctypes.c_char_p
    values = torch.zeros(2, 5)
    address = ctypes.c_void_p(values.data_ptr())
    assert library.emulation_grid(address, 5, -1, 1) is None
    assert values.tolist() == [[0, 1, 2, 3, 4], [1, 102, 203, 304, 400]]
    # One that does not arrive, and a launch whose blocks are not there at once.
    for missing, cooperative in ((3, 1), (-1, 0)):
        words = library.emulation_grid(address, 5, missing, cooperative)
        assert words == b"divergent: not every block reached a barrier of the grid"
    assert library.emulation_grid(address, 17, -1, 1) == b"refused"
    assert library.emulation_grid(address, 5, -1, 1) is None


# --- On a GPU. ------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("reverse", [False, True], ids=["", "reverse"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("cell", CELLS)
def test_gpu_forward_and_gradients(cell, case, reverse):
    sizes, hidden, units, groups = CASES[case]
    for dtype in HALVES:
        check(cell, sizes, hidden, dtype, reverse, "cuda", cut=(units, groups, 0, 1))
        check(cell, sizes, hidden, dtype, reverse, "cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("case", SHARED)
@pytest.mark.parametrize("cell", CELLS)
def test_gpu_blocks_that_share_sums(cell, case):
    if torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("needs clusters of blocks")
    sizes, hidden, units, groups, split = SHARED[case]
    check(cell, sizes, hidden, torch.bfloat16, False, "cuda", cut=(units, groups, 0, split))


@pytest.mark.gpu
@pytest.mark.parametrize("sizes", [[64] * 20, [*range(64, 0, -1)]], ids=["even", "uneven"])
@pytest.mark.parametrize("hidden", [512, 1024])
@pytest.mark.parametrize("cell", CELLS)
def test_gpu_wide_layers(cell, hidden, sizes):
    """Whole chips of blocks; and the same bits in every run."""
    runs = []
    for _ in range(3):
        torch.manual_seed(0)
        runs.append(check(cell, sizes, hidden, torch.bfloat16, cell == "gru", "cuda"))
    for other in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], other, strict=True))
