"""The door to the hot paths: the registry, the choice of a backend, what torch is told about the
operators, tables, and the ISA level that a user forces.
"""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from skipgram_problems import copies, pairs_problem, problem
from vecsmith import _native, ops
from vecsmith.ops import _registry

SKIPGRAM = ops.registry()["skipgram"]


# --- The registry. --------------------------------------------------------------------------------


def test_the_registry_is_a_copy():
    before = list(ops.registry())
    ops.registry().clear()
    assert list(ops.registry()) == before


def test_a_backend_by_name():
    assert SKIPGRAM.backend("native").device == "cpu"
    with pytest.raises(ValueError, match="one of 'native', 'cuda', 'triton', 'reference'; got 'c'"):
        SKIPGRAM.backend("c")


def test_every_function_of_an_operator_is_registered_with_torch():
    for operator in ops.registry().values():
        for name in operator.functions:
            assert getattr(torch.ops.vecsmith, name).default.is_view is False
            assert callable(getattr(ops, name))


# --- choose: a pure function. ---------------------------------------------------------------------


@pytest.fixture
def machine(monkeypatch):
    """A machine on which everything is built and nothing is interpreted."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(_registry, "cuda_module", lambda: None)
    return monkeypatch


def lacks(message):
    def load():
        raise ops.BackendUnavailable(message)

    return load


@pytest.mark.parametrize(
    ("device", "dtype", "deterministic", "expected"),
    [
        ("cpu", torch.float32, False, "native"),
        ("cpu", torch.float32, True, "native"),
        ("cuda", torch.float32, False, "cuda"),
    ],
)
def test_choose_by_device(machine, device, dtype, deterministic, expected):
    chosen = ops.choose(SKIPGRAM, device, dtype, deterministic=deterministic)
    assert chosen == expected


@pytest.mark.parametrize(
    ("device", "dtype", "deterministic"),
    [
        ("cpu", torch.float64, False),  # the native kernels are fp32
        ("mps", torch.float32, False),
        ("cuda", torch.float32, True),
    ],
)
def test_choose_the_reference_with_one_warning(machine, device, dtype, deterministic):
    _registry._warn_reference.cache_clear()
    with pytest.warns(UserWarning, match=f"no fast backend for {device} tensors here .*slow"):
        chosen = ops.choose(SKIPGRAM, device, dtype, deterministic=deterministic)
    assert chosen == "reference"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ops.choose(SKIPGRAM, device, dtype, deterministic=deterministic)


def test_choose_triton_where_cuda_was_not_built(machine):
    machine.setattr(_registry, "cuda_module", lacks("no nvcc"))
    assert ops.choose(SKIPGRAM, "cuda", torch.float32) == "triton"


def test_choose_is_forced(machine):
    for device, backend in [("cpu", "native"), ("cuda", "cuda"), ("cuda", "triton")]:
        assert ops.choose(SKIPGRAM, device, torch.float32, backend) == backend
    for device in ("cpu", "cuda", "mps"):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert ops.choose(SKIPGRAM, device, torch.float64, "reference") == "reference"


@pytest.mark.parametrize(
    ("device", "dtype", "backend", "deterministic", "why"),
    [
        ("cpu", torch.float32, "cuda", False, "cuda: it takes cuda tensors, not cpu tensors"),
        ("cpu", torch.float32, "triton", False, "triton: it takes cuda tensors, not cpu tensors"),
        ("cuda", torch.float32, "native", False, "native: it takes cpu tensors, not cuda tensors"),
        ("cpu", torch.float64, "native", False, "tables are torch.float32, not torch.float64"),
        ("cuda", torch.float32, "cuda", True, "unordered, and torch.use_deterministic_algorithms"),
        ("cuda", torch.float32, "triton", True, "unordered, and torch.use_deterministic_"),
        ("cpu", torch.float16, "reference", False, "float32, torch.float64, not torch.float16"),
        ("cpu", torch.int32, None, False, "no backend for cpu tensors of torch.int32: native: "),
    ],
)
def test_choose_refuses(machine, device, dtype, backend, deterministic, why):
    with pytest.raises(ops.BackendUnavailable, match=why) as refusal:
        ops.choose(SKIPGRAM, device, dtype, backend, deterministic=deterministic)
    assert str(refusal.value).startswith("vecsmith.ops.skipgram: no backend for")
    assert isinstance(refusal.value, RuntimeError)


def test_choose_says_what_is_not_built(machine):
    machine.setattr(_registry, "cuda_module", lacks("vecsmith._cuda cannot be loaded"))
    with pytest.raises(ops.BackendUnavailable, match="_cuda cannot be loaded"):
        ops.choose(SKIPGRAM, "cuda", torch.float32, "cuda")
    machine.setattr(_registry, "native", lacks("vecsmith._native cannot be loaded"))
    with pytest.raises(ops.BackendUnavailable, match="_native cannot be loaded"):
        ops.choose(SKIPGRAM, "cpu", torch.float32, "native")
    with pytest.raises(ValueError, match="got 'fast'"):
        ops.choose(SKIPGRAM, "cpu", torch.float32, "fast")


def test_an_interpreted_triton_takes_cpu_tensors(machine):
    machine.setenv("TRITON_INTERPRET", "1")
    assert ops.choose(SKIPGRAM, "cpu", torch.float32, "triton") == "triton"
    assert ops.choose(SKIPGRAM, "cpu", torch.float32) == "native"


def test_explain(machine):
    machine.setattr(torch.cuda, "is_available", lambda: False)

    def explained(device):
        rows = ops.explain(device)
        assert {row["operator"] for row in rows} == set(ops.registry())
        return {row["backend"]: row for row in rows if row["operator"] == "skipgram"}

    rows = explained("cpu")
    assert list(rows) == ["native", "cuda", "triton", "reference"]
    assert rows["native"]["state"] == "chosen"
    assert rows["cuda"]["state"] == rows["triton"]["state"] == "unavailable"
    assert rows["cuda"]["reason"] == "it takes cuda tensors, not cpu tensors"
    assert rows["reference"] == {
        "operator": "skipgram",
        "backend": "reference",
        "state": "available",
        "reason": "on request",
    }
    rows = explained("cuda")
    assert rows["cuda"]["reason"] == "no CUDA device"
    machine.setattr(torch.cuda, "is_available", lambda: True)
    rows = explained("cuda")
    assert [rows[n]["state"] for n in rows] == ["unavailable", "chosen", "available", "available"]


# --- What torch is told. --------------------------------------------------------------------------

TEXT_NAMES = ("tokens", "offsets", "keep", "alias", "path_offsets", "path_nodes", "path_codes")


def text_call(**fields):
    """Tables, and a function of tables that calls the public function."""
    tables, rest, options = problem(lengths=(9, 4), dim=6, **fields)
    tensors = dict(zip(TEXT_NAMES, rest, strict=True))
    tokens, offsets = tensors.pop("tokens"), tensors.pop("offsets")

    def function(input_table, output_table, tree_table=None):
        return ops.skipgram(
            input_table,
            output_table,
            tokens,
            offsets,
            tree_table=tree_table,
            num_threads=1,
            **tensors,
            **options,
        )

    return [t for t in tables if t is not None], function


def pairs_call(**fields):
    tables, rest = pairs_problem(dim=6, count=12, **fields)

    def function(input_table, output_table):
        return ops.skipgram_pairs(input_table, output_table, *rest, num_threads=1)

    return list(tables), function


def raw_text_arguments(**fields):
    """What the registered operator itself takes, in its order."""
    tables, rest, o = problem(lengths=(9, 4), dim=6, **fields)
    names = (
        *("window", "negative", "cbow", "cbow_mean", "shrink_windows", "shared_negatives", "alpha"),
        *(
            "min_alpha",
            "words_before",
            "words_total",
            "seed",
            "epoch",
            "first_position",
            "sync_every",
        ),
    )
    o["seed"] = 12345
    return (*tables, *rest, *(o[name] for name in names), True, 1, "")


CALLS = {
    "text": (text_call, {}),
    "text-tree": (text_call, {"hs": True}),
    "text-sync_every": (text_call, {"sync_every": 8, "shared_negatives": "pair"}),
    "text-cbow": (text_call, {"cbow": True}),
    "pairs": (pairs_call, {}),
}
calls = pytest.mark.parametrize("name", CALLS)


@pytest.mark.parametrize(
    "fields", [{}, {"hs": True}, {"hs": True, "negative": 0}, {"sync_every": 8}]
)
def test_opcheck_of_skipgram(fields):
    result = torch.library.opcheck(
        torch.ops.vecsmith.skipgram.default, raw_text_arguments(**fields)
    )
    assert set(result.values()) == {"SUCCESS"}
    assert len(result) == 4


def test_opcheck_of_skipgram_pairs():
    tables, rest = pairs_problem(dim=6, count=12)
    result = torch.library.opcheck(
        torch.ops.vecsmith.skipgram_pairs.default, (*tables, *rest, 0.05, 0, True, 1, "")
    )
    assert set(result.values()) == {"SUCCESS"}


@calls
def test_compiled_is_eager(name):
    """One graph, and the same bits: also where the graph reads what the operator has changed."""
    make, fields = CALLS[name]
    tables, function = make(**fields)

    def program(*tables):
        loss = function(*tables)
        return loss, tables[0].sum(), tables[1] * 2

    torch._dynamo.reset()
    eager, compiled = copies(tables), copies(tables)
    expected = program(*eager)
    result = torch.compile(program, fullgraph=True, backend="aot_eager")(*compiled)
    for a, b in zip([*eager, *expected], [*compiled, *result], strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(compiled[0], tables[0])


def test_compiled_by_inductor():
    tables, function = text_call(hs=True)
    torch._dynamo.reset()
    eager, compiled = copies(tables), copies(tables)
    expected = function(*eager)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's own compiler
        result = torch.compile(function, fullgraph=True)(*compiled)
    for a, b in zip([*eager, expected], [*compiled, result], strict=True):
        assert torch.equal(a, b)


@calls
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_versions_are_bumped(name, backend):
    """So that autograd refuses a backward pass through values that have been changed."""
    make, fields = CALLS[name]
    tables, _ = make(**fields)
    before = [t._version for t in tables]
    if name == "pairs":
        _, rest = pairs_problem(dim=6, count=12)
        ops.skipgram_pairs(*tables, *rest, backend=backend)
    else:
        _, rest, options = problem(lengths=(9, 4), dim=6, **fields)
        tensors = dict(zip(TEXT_NAMES, rest, strict=True))
        tree = tables[2] if len(tables) > 2 else None
        ops.skipgram(*tables[:2], tree_table=tree, **tensors, **options, backend=backend)
    for table, version in zip(tables, before, strict=True):
        assert table._version > version


def test_a_backward_pass_through_a_changed_table_is_refused():
    tables, function = text_call()
    table = torch.nn.Parameter(tables[0])
    squares = (table**2).sum()
    function(table, tables[1])
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        squares.backward()


@calls
def test_parameters_are_trained(name):
    make, fields = CALLS[name]
    tables, function = make(**fields)
    plain = copies(tables)
    expected = function(*plain)
    parameters = [torch.nn.Parameter(t) for t in copies(tables)]
    result = function(*parameters)
    assert torch.equal(result, expected)
    assert not result.requires_grad
    for ours, theirs in zip(parameters, plain, strict=True):
        assert torch.equal(ours, theirs)
        assert ours.requires_grad
        assert ours.is_leaf
        assert ours.grad is None


@calls
def test_fake_tensors(name):
    """Shape, dtype and device, by the public functions, with nothing computed."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    mode = FakeTensorMode()

    def fake(value):
        return mode.from_tensor(value) if isinstance(value, torch.Tensor) else value

    if name == "pairs":
        tables, rest = pairs_problem(dim=6)
        with mode:
            result = ops.skipgram_pairs(*map(fake, tables), *map(fake, rest))
    else:
        tables, rest, options = problem(dim=6, **CALLS[name][1])
        tensors = {n: fake(t) for n, t in zip(TEXT_NAMES, rest, strict=True)}
        a, b, tree = map(fake, tables)
        with mode:
            result = ops.skipgram(a, b, tree_table=tree, **tensors, **options)
    assert result.shape == (2,)
    assert result.dtype == torch.float64
    assert result.device.type == "cpu"
    assert type(result).__name__ == "FakeTensor"


def test_meta_tensors():
    tables, rest = pairs_problem(dim=6)
    result = ops.skipgram_pairs(*(t.to("meta") for t in tables), *(t.to("meta") for t in rest))
    assert result.device.type == "meta"
    assert result.shape == (2,)


# --- Tables. --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "dim", "stride"), [(5, 1, 16), (5, 16, 16), (3, 17, 32), (1, 100, 112), (0, 300, 304)]
)
def test_empty_table(rows, dim, stride):
    table = ops.empty_table(rows, dim)
    assert table.shape == (rows, dim)
    assert table.dtype == torch.float32
    assert not rows or table.stride() == (stride, 1)
    assert all(table[i].data_ptr() % 64 == 0 for i in range(rows))
    table.fill_(3.0)
    assert table.sum() == 3 * rows * dim
    torch.nn.Parameter(table)


@pytest.mark.parametrize(("rows", "dim"), [(-1, 5), (5, 0), (5, -2)])
def test_empty_table_refuses(rows, dim):
    with pytest.raises(ValueError, match=rf"rows >= 0 and dim >= 1; got rows={rows}, dim={dim}"):
        ops.empty_table(rows, dim)


def test_empty_table_on_another_device():
    table = ops.empty_table(4, 20, device="meta")
    assert table.device.type == "meta"
    assert table.stride() == (32, 1)


# --- A level that the user forces. ----------------------------------------------------------------

TRAIN = """
import torch
from vecsmith import ops
table = lambda: torch.ones(3, 4)
pairs = torch.zeros(2, dtype=torch.int64)
ops.skipgram_pairs(table(), table(), pairs, pairs, torch.ones(2, 1, dtype=torch.int64))
from vecsmith import _native
print(_native.isa_level())
"""


def run_at(level, code=TRAIN):
    environment = {**os.environ, "VECSMITH_ISA": level}
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
    )


def test_a_forced_level():
    done = run_at("base")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "base"


def test_no_forced_level():
    done = run_at("")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == _native.isa_levels()[-1]


def test_an_unknown_level():
    """Neither another level nor the slow reference is taken instead."""
    done = run_at("avx1024")
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert "unknown ISA level 'avx1024': expected base, avx2, avx512, avx512_bf16 or amx" in last


def test_an_unknown_level_on_the_command_line():
    environment = {**os.environ, "VECSMITH_ISA": "avx1024"}
    done = subprocess.run(
        [sys.executable, "-m", "vecsmith", "info"],
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: VECSMITH_ISA: unknown ISA level 'avx1024'")


@pytest.mark.skipif(len(_native.isa_levels()) == 5, reason="every level is supported here")
def test_a_level_that_is_not_supported_here():
    level = next(
        n for n in ("amx", "avx512_bf16", "avx512", "avx2") if n not in _native.isa_levels()
    )
    done = run_at(level)
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert f"ISA level '{level}' is not supported by this processor and operating system" in last


def test_levels_in_one_process():
    before = _native.isa_level()
    try:
        for level in _native.isa_levels():
            _native.set_isa_level(level)
            assert _native.isa_level() == level
        with pytest.raises(ValueError, match="unknown ISA level 'sse'"):
            _native.set_isa_level("sse")
        assert _native.isa_level() == level
    finally:
        _native.set_isa_level(before)
