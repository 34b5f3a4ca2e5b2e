"""hals_sweep: every backend and level against the reference in float64, what a sweep promises,
threads, and what is refused."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import interpreted, placed
from vecsmith import ops
from vecsmith.reference import hals_sweep as reference

DIMS = [1, 2, 3, 4, 5, 7, 8, 9, 16, 33, 64, 66, 130]


def problem(m: int, k: int, dtype=torch.float64, seed: int = 0):
    """(factor, numerator, gram) of X ~ W H: the factor has zeros, and some want to be."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    h = draw(k, k + 9) * (draw(k, k + 9) < 0.7)
    x = draw(m, k + 9) * 3 * (draw(m, k + 9) < 0.5)
    w = (draw(m, k) - 0.3).clamp_min(0)
    return w.to(dtype), (x @ h.T).to(dtype), (h @ h.T).to(dtype)


def expected(w, n, g, l1=0.0):
    """(factor, violation) in float64, and the errors that are allowed: twice plain torch's."""
    exact, plain = w.double().clone(), w.clone()
    moved = reference.hals_sweep(exact, n.double(), g.double(), l1)
    plain_moved = reference.hals_sweep(plain, n, g, l1)
    eps = torch.finfo(w.dtype).eps
    # In float64 the reference has roundings of its own.
    least = 8 * eps * max(1.0, float(exact.abs().max()) if exact.numel() else 0.0)
    allowed = max(2 * float((plain.double() - exact).abs().max()), least) if w.numel() else 0.0
    return exact, moved, allowed, 2 * float((plain_moved - moved).abs()) + 64 * eps * float(moved)


def check(case, w, n, g, l1=0.0, **options):
    """Of one sweep, from the same start."""
    exact, moved, allowed, moved_allowed = expected(w, n, g, l1)
    found = placed(w.clone(memory_format=torch.preserve_format), case.device)
    parts = (t.to(case.device) for t in (n, g))
    violation = ops.hals_sweep(found, *parts, l1, backend=case.backend, **options)
    assert violation.dtype == torch.float64
    assert violation.shape == ()
    found, violation = found.cpu(), violation.cpu()
    assert float((found.double() - exact).abs().max()) <= allowed
    assert abs(float(violation - moved)) <= moved_allowed
    return found


@pytest.mark.parametrize("k", DIMS)
@pytest.mark.parametrize("l1", [0.0, 0.7])
def test_components(operator_case, k, l1):
    if operator_case.backend == "triton" and interpreted() and k not in (1, 5, 16, 33):
        pytest.skip("the interpreter is slow")
    check(operator_case, *problem(45, k, operator_case.dtype), l1)


@pytest.mark.parametrize("m", [1, 2, 7, 8, 15, 16, 17, 31, 32, 33, 63, 64, 65, 200])
def test_rows(operator_case, m):
    if operator_case.backend == "triton" and interpreted() and m not in (1, 17, 65):
        pytest.skip("the interpreter is slow")
    check(operator_case, *problem(m, 10, operator_case.dtype))


@pytest.mark.parametrize("of_factor", ["rows", "components", "apart"])
@pytest.mark.parametrize("of_numerator", ["rows", "components", "apart", "every second"])
def test_strides(operator_case, of_factor, of_numerator):
    w, n, g = (t.to(operator_case.device) for t in problem(37, 6, operator_case.dtype))

    def laid_out(t, kind):
        big = torch.full((2 * 37, 2 * 6 + 1), torch.nan, dtype=t.dtype, device=t.device)
        view = {
            "rows": big.new_empty(37, 6),
            "components": big.new_empty(6, 37).T,
            "apart": big[:37, 2:8],
            "every second": big[::2, 1::2],
        }[kind]
        return view.copy_(t), big

    wanted = w.clone()
    ops.hals_sweep(wanted, n, g, backend=operator_case.backend)
    factor, big = laid_out(w, of_factor)
    numerator, _ = laid_out(n, of_numerator)
    ops.hals_sweep(factor, numerator, g.T.contiguous().T, backend=operator_case.backend)
    if operator_case.backend == "native":
        assert torch.equal(factor, wanted)
    torch.testing.assert_close(factor, wanted)
    if of_factor == "apart":
        factor.fill_(torch.nan)
        assert big.isnan().all()


@pytest.mark.parametrize(("m", "k"), [(0, 3), (3, 0), (0, 0)])
def test_nothing(operator_case, m, k):
    place = {"dtype": operator_case.dtype, "device": operator_case.device}
    w, g = (torch.zeros(*shape, **place) for shape in ((m, k), (k, k)))
    assert float(ops.hals_sweep(w, w.clone(), g, backend=operator_case.backend)) == 0


def test_a_component_of_zeros_stays(operator_case):
    w, n, g = problem(20, 6, operator_case.dtype)
    g[2], g[:, 2], n[:, 2] = 0, 0, 0
    found = check(operator_case, w, n, g)
    assert torch.equal(found[:, 2], w[:, 2])
    assert not torch.equal(found[:, 3], w[:, 3])


def test_nan_stays_nan(operator_case):
    w, n, g = (t.to(operator_case.device) for t in problem(20, 6, operator_case.dtype))
    n[4, 1] = torch.nan
    violation = ops.hals_sweep(w, n, g, backend=operator_case.backend)
    assert violation.isnan()
    assert w[4, 1:].isnan().all()
    assert w[:4].isfinite().all()
    assert w[5:].isfinite().all()


@pytest.mark.cases(backend="native")
def test_bits_do_not_depend_on_threads(operator_case):
    w, n, g = problem(1000, 19, operator_case.dtype)
    found = []
    for threads in (1, 2, 3, 16):
        out = w.clone()
        found.append((out, ops.hals_sweep(out, n, g, 0.1, num_threads=threads)))
    for out, moved in found[1:]:
        assert torch.equal(out, found[0][0])
        assert torch.equal(moved, found[0][1])


@pytest.mark.cases(backend=("native", "reference"), dtype=torch.float64)
def test_sweeps_go_down_to_the_optimum(operator_case):
    """No sweep raises the loss, and what they come to satisfies the conditions of Karush, Kuhn and
    Tucker: the gradient is zero where W > 0, and not negative where W = 0."""
    (w, n, g), l1 = problem(30, 7), 0.3

    def loss():
        return float(0.5 * ((w @ g) * w).sum() - (w * n).sum() + l1 * w.sum())

    losses, violations = [loss()], []
    for _ in range(400):
        violations.append(float(ops.hals_sweep(w, n, g, l1, backend=operator_case.backend)))
        losses.append(loss())
    assert all(b <= a + 1e-9 * abs(a) for a, b in itertools.pairwise(losses))
    assert violations[-1] < 1e-6 * violations[0]
    gradient = w @ g - n + l1
    assert float(gradient.min()) > -1e-5
    assert float((gradient * w).abs().max()) < 1e-4
    assert (w == 0).any()


def test_the_reference_is_each_coordinate_by_itself():
    w, n, g = problem(3, 4)
    found = w.clone()
    moved = reference.hals_sweep(found, n, g, 0.2)
    total = 0.0
    for i in range(3):
        for t in range(4):
            best = w[i, t] + (n[i, t] - 0.2 - sum(g[t, s] * w[i, s] for s in range(4))) / g[t, t]
            best = max(float(best), 0.0)
            total += abs(best - float(w[i, t])) * float(g[t, t])
            w[i, t] = best
    torch.testing.assert_close(found, w)
    assert float(moved) == pytest.approx(total)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 150), st.integers(1, 70), st.floats(0, 2), st.integers(0, 99))
def test_any_shape(m, k, l1, seed):
    w, n, g = problem(m, k, seed=seed)
    wanted = w.clone()
    moved = reference.hals_sweep(wanted, n, g, l1)
    found = ops.hals_sweep(w, n, g, l1)
    np.testing.assert_allclose(w, wanted, rtol=1e-9, atol=1e-9)
    assert float(found) == pytest.approx(float(moved), rel=1e-9)


# --- torch. ---------------------------------------------------------------------------------------


def test_opcheck():
    torch.library.opcheck(torch.ops.vecsmith.hals_sweep.default, (*problem(12, 5), 0.1, "", 1))


def test_compile():
    w, n, g = problem(12, 5)
    wanted = w.clone()
    moved = ops.hals_sweep(wanted, n, g)
    compiled = torch.compile(ops.hals_sweep, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(w, n, g), moved)
    assert torch.equal(w, wanted)


def test_the_version_counts():
    w, n, g = problem(5, 3)
    before = w._version
    ops.hals_sweep(w, n, g)
    assert w._version == before + 1


# --- What is refused. -----------------------------------------------------------------------------

W, N, G = problem(6, 4, torch.float32)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((W.numpy(), N, G), TypeError, "expected factor to be a torch.Tensor; got ndarray"),
        ((W, None, G), TypeError, "expected numerator to be a torch.Tensor; got NoneType"),
        ((W, N, [[1.0]]), TypeError, "expected gram to be a torch.Tensor; got list"),
        ((W, N.to_sparse(), G), TypeError, "expected numerator to be a strided tensor"),
        ((W.half(), N.half(), G.half()), TypeError, "expected factor of float32 or float64"),
        ((W.long(), N, G), TypeError, "expected factor of float32 or float64; got torch.int64"),
        ((W[0], N, G), ValueError, r"expected factor of shape \[m, k\]; got \[4\]"),
        ((W, N[:5], G), ValueError, r"expected numerator of shape \[6, 4\]; got \[5, 4\]"),
        ((W, N, G[:3]), ValueError, r"expected gram of shape \[4, 4\]; got \[3, 4\]"),
        ((W, N.double(), G), TypeError, "expected numerator to be torch.float32 on cpu"),
        ((W, N, G.to("meta")), TypeError, "expected gram to be torch.float32 on cpu; got .* meta"),
        ((W[:1].expand(6, 4), N, G), ValueError, "expected factor with rows or components one"),
        ((W[::2, ::2], N[::2, ::2], G[::2, ::2]), ValueError, "expected factor with rows or comp"),
        ((W, W, G), ValueError, "numerator shares memory with factor"),
        ((W[:4], N[:4], W[2:]), ValueError, "gram shares memory with factor"),
        ((W, N, G, "1"), TypeError, "expected l1 to be a number; got str"),
        ((W, N, G, True), TypeError, "expected l1 to be a number; got bool"),
        ((W, N, G, -0.5), ValueError, "expected l1 to be finite and >= 0; got -0.5"),
        ((W, N, G, float("nan")), ValueError, "expected l1 to be finite and >= 0; got nan"),
    ],
)
def test_refused(arguments, error, message):
    before = W.clone()
    with pytest.raises(error, match=rf"^hals_sweep: .*{message}"):
        ops.hals_sweep(*arguments)
    assert torch.equal(W, before)


def test_refused_options():
    with pytest.raises(ValueError, match=r"^hals_sweep: expected num_threads in 1\.\.4096; got 0"):
        ops.hals_sweep(W.clone(), N, G, num_threads=0)
    with pytest.raises(ValueError, match=r"^hals_sweep: expected backend to be one of"):
        ops.hals_sweep(W.clone(), N, G, backend="cuda")
    with pytest.raises(ops.BackendUnavailable, match="it takes cuda tensors, not cpu tensors"):
        ops.hals_sweep(W.clone(), N, G, backend="triton")


def test_a_gradient_that_would_be_lost():
    for which in range(3):
        parts = [t.clone() for t in (W, N, G)]
        parts[which].requires_grad_()
        with pytest.raises(RuntimeError, match="expected tensors that require no gradient"):
            ops.hals_sweep(*parts)
        with torch.no_grad():
            ops.hals_sweep(*parts)
