"""The benchmarks of a GPU: every group agrees with float64 and every entry runs, on tiny tables in
Triton's interpreter (on a GPU where there is one); what is said of floors and of CUDA kernels; and
that they need no package but torch, triton and NumPy."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys

import pytest
import torch
from bench import _gpu_group, gpu, gpu_roofline
from bench._runner import Check, Group, Ratio

from conftest import ROOT, interpreted

DEVICE = "cpu" if interpreted() else "cuda"


# --- every group ----------------------------------------------------------------------------------


@pytest.mark.triton
@pytest.mark.parametrize(
    "operator",
    [pytest.param(o, marks=[] if interpreted() else [pytest.mark.gpu]) for o in gpu.OPERATORS],
)
def test_every_group_agrees_and_every_entry_runs(operator, monkeypatch):
    from vecsmith.kernels import cosine_topk

    # Its first pass also where there is little to search.
    monkeypatch.setattr(cosine_topk, "_FEW_ROWS", 0)
    monkeypatch.setattr(cosine_topk, "_FEW_QUERIES", 0)
    made = gpu.groups([operator], DEVICE, tiny=True)
    assert made
    for group in made:
        checks = group.check()
        assert checks
        assert all(check.passed for check in checks), checks
        for name, entry in group.entries.items():
            value = entry()
            assert math.isfinite(value), (group.name, name)
            assert value > 0, (group.name, name)
        for ratio in group.ratios:
            assert ratio.ours.startswith("vecsmith"), ratio
        if isinstance(group, _gpu_group.GpuGroup):
            work = group.least()
            assert work.bytes > 0 or work.operations > 0
    _gpu_group.release()


@pytest.mark.triton
def test_a_wrong_kernel_is_seen(monkeypatch):
    """The checks can fail: a sum that is off by a thousandth."""
    from vecsmith.kernels import spmm

    right = spmm.spmm
    monkeypatch.setattr(spmm, "spmm", lambda *given: right(*given) * 1.001)
    (group,) = gpu.groups(["spmm"], DEVICE, tiny=True)
    assert [check.passed for check in group.check()] == [False, True]
    _gpu_group.release()


def test_all_names_are_different_and_bars_are_those_of_the_house():
    made = gpu.groups(device="cpu")
    names = [group.name for group in made]
    assert len(set(names)) == len(names)
    bars = {ratio.what: ratio.bar for group in made for ratio in group.ratios if ratio.bar}
    whats = " ".join(bars)
    assert all(bars[f"skipgram {name}: CUDA against Triton"] == 1 for name in ("d128", "d300"))
    assert bars["uniform: of the bandwidth of a copy"] == 0.85
    assert bars["uniform: update, of the bandwidth of a copy"] == 0.70
    assert bars["uniform: step, vecsmith / torch"] == 5
    assert bars["v131072_d768_q8192_k10: vecsmith / torch, bfloat16"] == 2
    assert bars["v131072_d768_q8192_k10: vecsmith / torch, float32"] == 8
    for hidden in (512, 1024):
        for kind in ("lstm", "gru"):
            assert bars[f"{kind}_h{hidden}_b64_t512: vecsmith / torch"] == 2
    assert whats.count("lengths: vecsmith / torch, packed") == 2
    # Whose systems torch would solve sixteen at a time, for minutes.
    (large,) = (group for group in made if group.name.endswith("_f1024"))
    assert list(large.entries) == ["vecsmith, cholesky", "vecsmith, conjugate gradients"]
    with pytest.raises(ValueError, match=r"expected operators of roofline, .*; got word2vec"):
        gpu.groups(["rnn", "word2vec"])


# --- floors, verdicts, records --------------------------------------------------------------------


def test_the_floor_is_the_larger_of_both():
    found = gpu_roofline.Ceilings(1e12, {"bf16": 1e15, "fp32": 5e13})
    seconds, what = _gpu_group.Work(bytes=2e12, operations=1e15).floor(found)
    assert (seconds, what) == (2.0, "bytes at the bandwidth of a copy")
    seconds, what = _gpu_group.Work(2e12, 5e14, "fp32").floor(found)
    assert (seconds, what) == (10.0, "operations at the rate of a fp32 product")


def made_up(unit: str = "ms", **more) -> _gpu_group.GpuGroup:
    values = {"vecsmith, cuda": 2.0, "vecsmith, triton": 4.0, "torch": 8.0, "a copy": 0.5}
    return _gpu_group.GpuGroup(
        name="gpu_made_up",
        title="Made up",
        unit=unit,
        higher_is_better=unit != "ms",
        entries={name: lambda value=value: value for name, value in values.items()},
        check=lambda: [Check("right", True)],
        ratios=[Ratio("CUDA against Triton", "vecsmith, cuda", "vecsmith, triton", 1.0)],
        verdict=("made_up.cu", "CUDA against Triton"),
        **more,
    )


@pytest.fixture
def known_ceilings(monkeypatch):
    found = gpu_roofline.Ceilings(1e12, {"bf16": 1e15, "fp32": 5e13})
    monkeypatch.setattr(gpu_roofline, "ceilings", lambda device, tiny=False: found)


@pytest.mark.parametrize(("unit", "amount"), [("ms", 1.0), ("words/s", 2e-3)])
def test_a_record_says_what_part_of_the_floor_is_reached(known_ceilings, capsys, unit, amount):
    """A millisecond of bytes, in two; or two words in a thousandth of ..., by the second."""
    group = made_up(unit, least=lambda: _gpu_group.Work(bytes=1e9), amount=amount)
    settings = gpu.measure(group, 2, "cpu", False)["settings"]
    assert settings["floor_ms"] == 1.0
    assert settings["bound"] == "bytes at the bandwidth of a copy"
    expected = {"ms": (0.5, 0.25, 0.125), "words/s": (1.0, 2.0, 4.0)}[unit]
    names = ("vecsmith, cuda", "vecsmith, triton", "torch")
    assert settings["of_floor"] == dict(zip(names, expected, strict=True))
    assert "of the floor (1 ms: bytes" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("ratio", "words"),
    [
        ((1.8, 1.7, 1.9), "is 1.80 times as fast as Triton here: it earns its place"),
        ((0.7, 0.6, 0.8), "by this group it is to be deleted"),
        ((1.05, 0.9, 1.2), "within the spread: it does not earn its place"),
    ],
)
def test_the_verdict_on_a_cuda_kernel(ratio, words):
    median, q1, q3 = ratio
    record = {"ratios": [{"what": "CUDA against Triton", "median": median, "q1": q1, "q3": q3}]}
    assert words in gpu.verdict_on(record, made_up())
    assert gpu.verdict_on({"ratios": []}, made_up()) is None


def test_results_are_named_after_the_gpu(monkeypatch):
    monkeypatch.delenv("VECSMITH_MACHINE", raising=False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    assert gpu.folder_name() == "nvidia-h200"
    monkeypatch.setenv("VECSMITH_MACHINE", "My Card (2)")
    assert gpu.folder_name() == "my-card-2"


@pytest.fixture
def as_on_a_gpu(monkeypatch, tmp_path, known_ceilings):
    """Groups that are made up, where there is said to be a device."""
    monkeypatch.setenv("VECSMITH_MACHINE", "made up")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "made up")
    properties = type("Properties", (), {"name": "made up", "major": 9, "minor": 0})
    properties.multi_processor_count, properties.total_memory = 2, 1 << 30
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(gpu, "RESULTS", tmp_path)

    def use(*made: Group) -> None:
        monkeypatch.setattr(gpu, "groups", lambda *given: list(made))

    return use


def test_records_are_written_and_a_group_that_fails_costs_itself_alone(
    as_on_a_gpu, tmp_path, capsys
):
    def broken() -> list[Check]:
        raise RuntimeError("no such kernel")

    bad, red, good = made_up(), made_up(), made_up()
    bad.name, bad.check = "gpu_bad", broken
    red.name, red.check = "gpu_red", lambda: [Check("wrong", False)]
    as_on_a_gpu(bad, red, good)
    assert gpu.main([]) == 1
    (path,) = (tmp_path / "made-up").glob("*.json")
    record = json.loads(path.read_text())
    assert record["name"] == "gpu_made_up"
    assert record["settings"]["device"]["capability"] == "9.0"
    assert record["settings"]["verdict"].startswith("made_up.cu is 2.00 times as fast")
    said = capsys.readouterr().out
    assert "no such kernel" in said
    assert "gpu_red" in said.splitlines()[-2] or "gpu_red" in said.splitlines()[-1]
    as_on_a_gpu(good)
    assert gpu.main(["--no-write"]) == 0


def test_groups_that_are_not_begun_in_time_are_named(as_on_a_gpu, capsys):
    as_on_a_gpu(made_up())
    assert gpu.main(["--seconds", "-1", "--no-write"]) == 1
    assert "1 not begun in time: gpu_made_up" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_device_it_says_so(monkeypatch, capsys):
    assert gpu.main([]) == 2
    assert "needs a CUDA device" in capsys.readouterr().err
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert gpu.main(["--rehearse"]) == 2
    assert "needs TRITON_INTERPRET=1" in capsys.readouterr().err


# --- what is needed -------------------------------------------------------------------------------

# On a machine with torch, triton and NumPy alone.
_BARE = """
import sys
ABSENT = set(sys.argv[1].split(","))
class Without:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, *rest):
        return None if name.partition(".")[0] in ABSENT else self.finder.find_spec(name, *rest)
    def __getattr__(self, name):
        return getattr(self.finder, name)
sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
import torch
from vecsmith import nn, ops, optim
layer = nn.LSTM(3, 4)
layer(torch.randn(2, 5, 3))[0].sum().backward()
bag = nn.EmbeddingBag(9, 4, mode="sum", sparse=True)
bag(torch.tensor([[1, 2]])).sum().backward()
optim.SparseAdam(bag.parameters()).step()
from bench import gpu
for group in gpu.groups(sys.argv[2:], device="cpu", tiny=True):
    assert all(check.passed for check in group.check()), group.name
print(sorted(ABSENT & {name.partition(".")[0] for name in sys.modules}))
"""
_NOT_NEEDED = "pyarrow,sklearn,typer,rich,tokenizers,tqdm,safetensors,scipy,pandas,matplotlib"
_NOT_NEEDED += ",gensim,hypothesis,pytest,pytest_benchmark,faiss,implicit,zstandard"


def test_torch_triton_and_numpy_are_enough():
    pytest.importorskip("triton", reason="Triton is not installed")
    operators = ("roofline", "embedding_bag", "spmm", "hals_sweep")
    done = subprocess.run(
        [sys.executable, "-c", _BARE, _NOT_NEEDED, *operators],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
