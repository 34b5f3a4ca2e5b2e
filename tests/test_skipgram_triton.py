"""The Triton kernels of `skipgram` against the reference in fp64.

Without a GPU they run in Triton's interpreter, which must be chosen before Triton is imported: this
file runs itself once as a program in a process of its own, and every case below reports what became
of it there. With a GPU the same cases run a second time on it, marked `gpu`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import traceback
from functools import partial
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from skipgram_problems import alias_of, copies, pairs_problem, problem
from vecsmith.reference import skipgram as reference

SYNC_REFUSED = (
    "expected sync_every=0 on a GPU; got sync_every={}; deterministic mode runs on the CPU"
)


def same(ours, theirs, start, what: str) -> None:
    """Equal to fp32 tolerance: 1e-5 of the largest value, and 1e-4 of the largest *change*."""
    ours, theirs = ours.double().cpu(), theirs.double()
    error = (ours - theirs).abs().max()
    change = (theirs - start.double()).abs().max()
    scale = theirs.abs().max()
    limit = min(1e-5 * float(scale), max(1e-4 * float(change), 2e-7 * float(scale)))
    assert torch.isfinite(ours).all(), f"{what}: not finite"
    assert float(error) <= limit, f"{what}: error {error:.3g} > {limit:.3g} (change {change:.3g})"


def check_text(device="cpu", operator=None, **settings) -> None:
    """The operator and the reference (tables in fp64) on the same problem."""
    call = settings.pop("call", {})
    tables, rest, options = problem(**settings)
    exact = copies(tables, torch.float64)
    expected = reference.skipgram(*exact, *rest, **options)
    if operator is None:
        from vecsmith.kernels.skipgram import skipgram as operator
    ours = copies(tables, device=device)
    moved = [None if t is None else t.to(device) for t in rest]
    result = operator(*ours, *moved, **options, **call)
    for name, a, b, start in zip(("input", "output", "tree"), ours, exact, tables, strict=True):
        if a is not None:
            same(a, b, start, name)
    assert result.dtype == torch.float64
    assert result.shape == (2,)
    torch.testing.assert_close(result.cpu(), expected, rtol=2e-6, atol=1e-5)


@torch.inference_mode()
def check_inference(**settings) -> None:
    """Tensors of inference mode, which have no versions."""
    check_text(**settings)


def check_pairs(device="cpu", operator=None, call=None, **settings) -> None:
    tables, rest = pairs_problem(**settings)
    exact = copies(tables, torch.float64)
    expected = reference.skipgram_pairs(*exact, *rest, alpha=0.05, sync_every=0)
    if operator is None:
        from vecsmith.kernels.skipgram import skipgram_pairs as operator
    ours = copies(tables, device=device)
    moved = [t.to(device) for t in rest]
    result = operator(*ours, *moved, alpha=0.05, sync_every=0, **(call or {}))
    for name, a, b, start in zip(("input", "output"), ours, exact, tables, strict=True):
        same(a, b, start, name)
    torch.testing.assert_close(result.cpu(), expected, rtol=2e-6, atol=1e-5)


def check_draws(device="cpu") -> None:
    """Every draw, bit for bit, at counters up to the ends of 64 bits."""
    from vecsmith.kernels import _survivors
    from vecsmith.kernels import skipgram as kernels

    import triton_draws

    g = torch.Generator().manual_seed(7)
    wild = torch.randint(-(2**63), 2**63 - 1, (500,), generator=g)
    edges = torch.tensor([0, 1, 2, -1, -2, 2**31, 2**32 - 1, 2**63 - 1, -(2**63)])
    counters = torch.cat([edges, torch.arange(100), wild])
    for seed, epoch, stream in [(1, 0, 0), (-5, 7, 1), (2**64 - 1, 2**40, 2), (0, 0, 2)]:
        key = reference.stream_key(seed, epoch, stream)
        assert _survivors.stream_key(seed, epoch, stream) == key
        out = torch.empty_like(counters, device=device)
        grid = (-(-counters.numel() // 256),)
        triton_draws.draws[grid](counters.to(device), out, key, counters.numel(), BLOCK=256)
        assert torch.equal(out.cpu(), reference.draw(key, counters))

    positions = torch.cat([torch.arange(12), 2**40 + torch.arange(12)])
    key = reference.stream_key(3, 1, reference.STREAM_WINDOW)
    for window, shrink in [(1, True), (5, True), (1000, True), (5, False)]:
        out = torch.empty_like(positions, device=device)
        triton_draws.windows[(24,)](positions.to(device), out, key, window, SHRINK=shrink)
        assert torch.equal(out.cpu(), reference.window_sizes(positions, window, shrink, 3, 1))

    key = reference.stream_key(3, 1, reference.STREAM_NEGATIVE)
    # At power 6 the first word is 98 in 100: where it is the positive, the last redraws matter.
    for vocabulary, negative, block, power, common in [
        (1, 3, 4, 2, 1), (2, 5, 8, 2, 2), (50, 7, 8, 2, 3), (1000, 1, 2, 2, 3), (2, 31, 32, 6, 1)
    ]:  # fmt: skip
        alias = alias_of(1.0 / torch.arange(1, vocabulary + 1).double() ** power)
        positives = torch.randint(common, (24,), generator=g)
        out = torch.empty(24, block, dtype=torch.int64, device=device)
        triton_draws.negatives[(24,)](
            positions.to(device), positives.to(device), alias.to(device), out, key, vocabulary,
            negative, BLOCK=block,
        )  # fmt: skip
        expected = reference.negatives_for(positives, positions, negative, alias, 3, 1)
        assert torch.equal(out[:, 0].cpu(), positives)
        assert torch.equal(out[:, 1 : 1 + negative].cpu(), expected)
        assert (out[:, 1 + negative :] == -1).all()

    tokens = torch.randint(9, (5000,), generator=g, dtype=torch.int32)
    keep = torch.rand(9, generator=g)
    for start, first_position in [(0, 0), (17, 2**40 + 3)]:
        mask = torch.empty(5000 - start, dtype=torch.bool, device=device)
        key = reference.stream_key(11, 2, reference.STREAM_SUBSAMPLE)
        kernels._mark_survivors[(-(-(5000 - start) // 1024),)](
            tokens.to(device), keep.to(device), mask.view(torch.int8), key, start, 5000 - start,
            first_position, BLOCK=1024,
        )  # fmt: skip
        positions = first_position + torch.arange(start, 5000)
        expected = reference.keep_mask(tokens[start:], positions, keep, 11, 2)
        assert torch.equal(mask.cpu(), expected)
        assert 0 < int(expected.sum()) < expected.numel()


def check_sync_every(device="cpu") -> None:
    """Deterministic mode is refused in one sentence, and nothing is changed."""
    from vecsmith.kernels.skipgram import skipgram, skipgram_pairs

    tables, rest, options = problem(sync_every=8)
    ours = copies(tables, device=device)
    with pytest.raises(RuntimeError, match=SYNC_REFUSED.format(8)):
        skipgram(*ours, *[None if t is None else t.to(device) for t in rest], **options)
    assert torch.equal(ours[0].cpu(), tables[0])
    tables, rest = pairs_problem()
    with pytest.raises(RuntimeError, match=SYNC_REFUSED.format(1)):
        skipgram_pairs(*tables, *rest, alpha=0.1, sync_every=1)


def check_nothing(device="cpu") -> None:
    """No sentences, empty ones, one-word ones, and keep = 0: the tables stay as they are."""
    from vecsmith.kernels.skipgram import skipgram, skipgram_pairs

    for lengths, keep in [((), None), ((0, 0), None), ((1, 1, 0, 1), None), ((9,), 0.0)]:
        tables, rest, options = problem(lengths=lengths, sample=keep is not None)
        if keep is not None:
            rest[2].fill_(keep)
        ours = copies(tables, device=device)
        result = skipgram(*ours, *[None if t is None else t.to(device) for t in rest], **options)
        assert result.tolist() == [0.0, 0.0]
        assert torch.equal(ours[0].cpu(), tables[0])
        assert torch.equal(ours[1].cpu(), tables[1])
    tables, rest = pairs_problem(count=0)
    ours = copies(tables, device=device)
    result = skipgram_pairs(*ours, *[t.to(device) for t in rest], alpha=0.1, sync_every=0)
    assert result.tolist() == [0.0, 0.0]
    assert torch.equal(ours[0].cpu(), tables[0])


def check_no_loss(device="cpu") -> None:
    """compute_loss=False trains the same bits and counts the same terms."""
    from vecsmith.kernels.skipgram import skipgram

    tables, rest, options = problem(hs=True)
    moved = [None if t is None else t.to(device) for t in rest]
    a, b = copies(tables, device=device), copies(tables, device=device)
    full = skipgram(*a, *moved, **options, programs=1)
    result = skipgram(*b, *moved, **options, programs=1, compute_loss=False)
    assert result.tolist() == [0.0, float(full[1])]
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


# Every mode with every other setting at least once, rather than the full product.
CASES = {
    "draws": check_draws,
    "sync_every": check_sync_every,
    "nothing-to-do": check_nothing,
    "no-loss": check_no_loss,
    "sg-ns-window-d1": partial(check_text, dim=1),
    "sg-ns-window-d7-fixed": partial(check_text, dim=7, shrink_windows=False, window=2),
    "sg-ns-window-d64-strided": partial(check_text, dim=64, strided=True, window=5),
    "sg-ns-window-d100-k1": partial(check_text, dim=100, negative=1, sample=False),
    "sg-ns-window-d130-k12": partial(check_text, dim=130, negative=12, window=1),
    "sg-ns-window-long": partial(check_text, lengths=(90, 40), window=4, alpha=0.025),
    "sg-hs-d7": partial(check_text, dim=7, hs=True, negative=0),
    "sg-hs-d100-strided": partial(check_text, dim=100, hs=True, negative=0, strided=True),
    "sg-both-d64": partial(check_text, dim=64, hs=True, shrink_windows=False),
    "sg-ns-pair-d7": partial(check_text, dim=7, shared_negatives="pair"),
    "sg-ns-pair-d130-fixed": partial(
        check_text,
        dim=130,
        shared_negatives="pair",
        shrink_windows=False,
        window=2,
        lengths=(12, 5),
    ),
    "sg-hs-pair-d64": partial(
        check_text, dim=64, shared_negatives="pair", hs=True, negative=0, lengths=(12, 5)
    ),
    "sg-both-pair-d1": partial(
        check_text, dim=1, shared_negatives="pair", hs=True, lengths=(12, 5), strided=True
    ),
    "cbow-ns-mean-d100": partial(check_text, dim=100, cbow=True),
    "cbow-ns-sum-d7-fixed": partial(
        check_text, dim=7, cbow=True, cbow_mean=False, shrink_windows=False
    ),
    "cbow-hs-sum-d130": partial(
        check_text, dim=130, cbow=True, cbow_mean=False, hs=True, negative=0
    ),
    "cbow-hs-mean-d1": partial(check_text, dim=1, cbow=True, hs=True, negative=0),
    "cbow-both-mean-d64-pair": partial(
        check_text, dim=64, cbow=True, hs=True, shared_negatives="pair", strided=True
    ),
    "one-word-vocabulary": partial(check_text, vocabulary=1, lengths=(5, 3)),
    "one-word-vocabulary-hs": partial(check_text, vocabulary=1, hs=True, lengths=(5, 3)),
    "negatives-hard-to-find": partial(check_text, vocabulary=3, rare=0.015, lengths=(12,)),
    "two-word-vocabulary": partial(check_text, vocabulary=2, hs=True, window=5),
    "two-word-vocabulary-tree": partial(
        check_text, vocabulary=2, cbow=True, hs=True, negative=0, lengths=(9,)
    ),
    "two-word-vocabulary-pair": partial(
        check_text, vocabulary=2, shared_negatives="pair", lengths=(12,)
    ),
    "far-position": partial(check_text, first_position=2**33 + 5, skip=11),
    "sg-ns-pair-repeats": partial(
        check_text,
        vocabulary=3,
        shared_negatives="pair",
        window=4,
        negative=9,
        alpha=0.1,
        lengths=(14,),
        sample=False,
    ),
    "inference-hs": partial(check_inference, dim=4, hs=True, lengths=(5,)),
    "three-programs": partial(check_text, dim=7, call={"programs": 3}),
    "pairs-d7": partial(check_pairs, dim=7, strided=True),
    "pairs-d130-k0": partial(check_pairs, dim=130, negative=0),
    "pairs-tiny": partial(check_pairs, dim=1, vocabulary=1, outputs=1, count=9),
}
# On a GPU programs run at once, and only one of them is the reference's order.
SEQUENTIAL = {"call": {"programs": 1}}


def run_as_program(path: str) -> None:
    """Every case in this process (the interpreter's); writes {case: [seconds, error or null]}.
    What torch.empty gives is poisoned: a slot that is read before it is written shows."""
    empty = torch.empty

    def poisoned(*args, **kwargs):
        tensor = empty(*args, **kwargs)
        return tensor.fill_(float("nan") if tensor.is_floating_point() else 99)

    torch.empty = poisoned
    torch.set_num_threads(1)  # nothing here is big enough for two
    results = {}
    for name, case in CASES.items():
        began = time.perf_counter()
        try:
            case()
            error = None
        except Exception:
            error = traceback.format_exc()
        results[name] = [round(time.perf_counter() - began, 2), error]
    with open(path, "w") as file:
        json.dump(results, file)


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory):
    pytest.importorskip("triton", reason="Triton is not installed")
    path = tmp_path_factory.mktemp("triton") / "results.json"
    done = subprocess.run(
        [sys.executable, __file__, str(path)],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(path.read_text())


@pytest.mark.parametrize("case", CASES)
def test_interpreter(interpreted, case):
    _, error = interpreted[case]
    assert error is None, error


ARGUMENTS = {
    **dict.fromkeys(("inputs", "outputs", "tree", "rates", "keep"), "*fp32"),
    **dict.fromkeys(("words", "alias", "path_nodes", "tokens"), "*i32"),
    **dict.fromkeys(("positions", "first", "last", "path_offsets"), "*i64"),
    **dict.fromkeys(("centers", "contexts", "negatives"), "*i64"),
    **dict.fromkeys(("key", "window_key", "negative_key"), "i64"),
    **dict.fromkeys(("live", "keys", "place"), "*i64"),
    "path_codes": "*u8",
    "mask": "*i8",
    "losses": "*fp64",
    "device_rate": "*fp64",
    "rate": "fp32",
}
MODES = {"SHRINK": True, "MEAN": True, "LOSS": True, "PATH_BLOCK": 1, "WINDOW_BLOCK": 16}
MODES |= {"NEGATIVE": True, "NEGATIVE_BLOCK": 8, "TREE": False, "PAIR": False, "CBOW": False}
GRAPH = MODES  # whose numbers are on the device
MODES = MODES | {"live": None, "keys": None}
COMPILED = {
    "window-80": ("_train_text", 80, MODES),
    "window-90": ("_train_text", 90, MODES),
    "window-100": ("_train_text", 100, MODES),
    "tree-90": ("_train_text", 90, {**MODES, "TREE": True, "PATH_BLOCK": 32}),
    "pair-90": ("_train_text", 90, {**MODES, "PAIR": True}),
    "cbow-90": ("_train_text", 90, {**MODES, "CBOW": True}),
    "pair-tree-90": ("_train_text", 90, {**MODES, "PAIR": True, "TREE": True, "PATH_BLOCK": 32}),
    "pairs-90": ("_train_pairs", 90, {"LOSS": True, "NEGATIVE_BLOCK": 8, "device_rate": None}),
    "survivors-90": ("_mark_survivors", 90, {"BLOCK": 1024, "keys": None, "place": None}),
    "window-in-a-graph-90": ("_train_text", 90, GRAPH),
    "pair-tree-in-a-graph-90": (
        *("_train_text", 90),
        {**GRAPH, "PAIR": True, "TREE": True, "PATH_BLOCK": 32},
    ),
    "pairs-in-a-graph-90": ("_train_pairs", 90, {"LOSS": True, "NEGATIVE_BLOCK": 8}),
    "survivors-in-a-graph-90": ("_mark_survivors", 90, {"BLOCK": 1024}),
    "keys-90": ("_stream_keys", 90, {}),
}


@pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter takes the compiler's place"
)
@pytest.mark.parametrize("case", COMPILED)
def test_compiles_without_a_gpu(case, monkeypatch, tmp_path):
    """To machine code, for dim 128, with no registers spilled to memory."""
    pytest.importorskip("triton", reason="Triton is not installed")
    from triton.backends import nvidia
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile
    from vecsmith.kernels import skipgram as kernels

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    name, capability, constants = COMPILED[case]
    kernel = getattr(kernels, name)
    warps = 4
    if name.startswith("_train"):
        inputs = constants["WINDOW_BLOCK"] if name == "_train_text" else 1
        if constants.get("CBOW") or (constants.get("PAIR") and not constants["TREE"]):
            inputs = 1
        outputs = max(constants["NEGATIVE_BLOCK"], constants.get("PATH_BLOCK", 1))
        constants = {**constants, **kernels._shape(128, inputs, outputs)}
        warps = constants.pop("num_warps")
    signature = {n: ARGUMENTS.get(n, "i32") for n in kernel.arg_names}
    signature |= dict.fromkeys(constants, "constexpr")
    built = compile(
        ASTSource(kernel, signature, constants),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": warps},
    )
    binary = tmp_path / "kernel.cubin"
    binary.write_bytes(built.asm["cubin"])
    tool = Path(nvidia.__file__).parent / "bin" / "cuobjdump"
    usage = subprocess.run(
        [str(tool), "--dump-resource-usage", str(binary)], capture_output=True, text=True
    ).stdout
    assert "STACK:0 " in usage, usage


@pytest.mark.gpu
@pytest.mark.parametrize("case", CASES)
def test_gpu(case):
    check = CASES[case]
    call = SEQUENTIAL if isinstance(check, partial) else {}
    check(device="cuda", **call)


@pytest.mark.gpu
def test_gpu_many_programs_learn_as_much():
    """Hogwild: updates race, so the loss of a second pass is compared, not the bits."""
    from vecsmith.kernels.skipgram import skipgram

    tables, rest, options = problem(vocabulary=500, dim=64, lengths=(400,) * 20, alpha=0.025)
    moved = [None if t is None else t.cuda() for t in rest]
    losses = []
    for programs in (1, None):
        ours = copies(tables, device="cuda")
        for epoch in range(3):
            loss = skipgram(*ours, *moved, **{**options, "epoch": epoch}, programs=programs)
        losses.append(float(loss[0] / loss[1]))
    assert losses[1] == pytest.approx(losses[0], rel=0.03)


if __name__ == "__main__":
    run_as_program(sys.argv[1])
