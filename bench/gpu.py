"""All benchmarks of a GPU: ours in CUDA and in Triton against torch and what else is installed.

    python -m bench.gpu                        all operators, into bench/results/<gpu>/
    python -m bench.gpu --ops rnn skipgram     some of them
    TRITON_INTERPRET=1 python -m bench.gpu --rehearse
                                               tiny ones on the processor, which time nothing

A group's agreement with float64 is looked at before anything is timed. Beside the ratios each group
has the time that no program can do without on this device (bytes over the bandwidth of a copy, or
operations over the rate of a product, both measured in the same run) and how much of the time of
its fastest entry of ours that is. Where there is a CUDA kernel, the last word says whether it is
faster than the Triton kernel, and so whether it stays.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import torch

from . import (
    _gpu_factors,
    _gpu_group,
    _gpu_rnn,
    _gpu_search,
    _gpu_skipgram,
    _gpu_tables,
    gpu_roofline,
)
from ._runner import RESULTS, Group, ratio_table, run, spread, write

OPERATORS: dict[str, Callable[[str, bool], Sequence[Group]]] = {
    "roofline": gpu_roofline.groups,
    "skipgram": _gpu_skipgram.groups,
    "embedding_bag": _gpu_tables.groups,
    "rnn": _gpu_rnn.groups,
    "cosine_topk": _gpu_search.groups,
    "als_solve": _gpu_factors.als_groups,
    "factor_sgd": _gpu_factors.sgd_groups,
    "spmm": _gpu_factors.spmm_groups,
    "hals_sweep": _gpu_factors.sweep_groups,
}
_SECONDS = {"ms": 1e-3}


def groups(
    ops: Sequence[str] | None = None, device: str = "cuda", tiny: bool = False
) -> list[Group]:
    """The groups of some operators (None: of all). What a group works on is made when it is first
    asked for, and given up when another one's is.

    device: "cuda", or "cpu" with TRITON_INTERPRET=1. tiny: sizes for the interpreter, which say
    nothing about speed.

    Raises: ValueError for an operator that is not one.
    """
    unknown = [name for name in ops or () if name not in OPERATORS]
    if unknown:
        raise ValueError(f"expected operators of {', '.join(OPERATORS)}; got {', '.join(unknown)}")
    chosen = [make for name, make in OPERATORS.items() if ops is None or name in ops]
    return [group for make in chosen for group in make(device, tiny)]


def folder_name() -> str:
    """The folder of this GPU's results; VECSMITH_MACHINE overrides it."""
    text = os.environ.get("VECSMITH_MACHINE") or torch.cuda.get_device_name()
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def describe(record: dict[str, Any], group: Group, device: str, tiny: bool) -> list[str]:
    """Writes into a record what bounds it and the verdict on a .cu; lines that say so."""
    settings, lines = record["settings"], []
    if device.startswith("cuda"):
        properties = torch.cuda.get_device_properties(device)
        settings["device"] = {
            "name": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory": properties.total_memory,
            "cuda": torch.version.cuda,
        }
    if not isinstance(group, _gpu_group.GpuGroup):
        return lines
    if group.least is not None:
        found = gpu_roofline.ceilings(device, tiny)
        work = group.least()
        floor, what = work.floor(found)
        settings["work"] = vars(work).copy()
        settings["ceilings"] = {"bandwidth": found.bandwidth, **found.rates}
        settings["bound"], settings["floor_ms"] = what, float(f"{floor * 1e3:.4g}")
        fractions = {}
        for name, entry in record["entries"].items():
            value = entry["median"]
            rate = group.unit not in _SECONDS
            seconds = group.amount / value if rate else value * _SECONDS[group.unit]
            if not name.startswith("a copy"):
                fractions[name] = float(f"{floor / seconds:.3g}")
        settings["of_floor"] = fractions
        ours = {n: f for n, f in fractions.items() if n.startswith("vecsmith")}
        best = max(ours, key=lambda n: ours[n], default=None)
        if best is not None:
            lines.append(f"{ours[best]:.1%} of the floor ({floor * 1e3:.3g} ms: {what}), {best}")
    verdict = verdict_on(record, group)
    if verdict:
        settings["verdict"] = verdict
        lines.append(verdict)
    return lines


def verdict_on(record: dict[str, Any], group: _gpu_group.GpuGroup) -> str | None:
    """A .cu that is not faster than Triton is to be deleted: what this group says about it."""
    if group.verdict is None:
        return None
    source, what = group.verdict
    for ratio in record.get("ratios", ()):
        if ratio["what"] == what:
            says = f"{source} is {ratio['median']:.2f} times as fast as Triton here"
            if ratio["q1"] > 1:
                return f"{says}: it earns its place"
            if ratio["q3"] < 1:
                return f"{says}: by this group it is to be deleted"
            return f"{says}, which is within the spread: it does not earn its place by this group"
    return None


def measure(
    group: Group, rounds: int, device: str, tiny: bool, *, check_only: bool = False
) -> dict[str, Any]:
    """A group's record, printed in short. Raises what its own code raises."""
    print(f"== {group.title}", flush=True)
    if check_only:
        checks = group.check()
        record: dict[str, Any] = {
            "name": group.name,
            "agreement": [{"what": c.what, "passed": c.passed} for c in checks],
        }
        if checks and all(check.passed for check in checks):
            record["ratios"] = []
    else:
        record = run(group, 1 if tiny else rounds, warmup=not tiny, quiet=True)
    for check in record["agreement"]:
        print(f"   {'agrees' if check['passed'] else 'DISAGREES'}: {check['what']}")
    if check_only or tiny:
        return record
    for name, entry in record["entries"].items():
        found = spread(entry["samples"])
        print(f"   {name:<40} {found['median']:>12.4g} {group.unit}")
    for name, why in record.get("failed", {}).items():
        print(f"   FAILED: {name}: {why}")
    if record.get("ratios"):
        print("   " + ratio_table(record["ratios"]).replace("\n", "\n   "))
    for line in describe(record, group, device, tiny):
        print(f"   {line}")
    sys.stdout.flush()
    return record


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    options = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    options.add_argument("--ops", nargs="+", choices=OPERATORS, help="some operators")
    options.add_argument("--rounds", type=int, default=3, help="how often each entry is run")
    options.add_argument("--seconds", type=float, help="no group is begun after so long")
    options.add_argument("--no-write", action="store_true", help="write no results")
    options.add_argument("--json", action="store_true", help="print the records at the end")
    options.add_argument("--tiny", action="store_true", help="sizes that say nothing about speed")
    options.add_argument("--check", action="store_true", help="agreement alone; times nothing")
    options.add_argument(
        "--rehearse", action="store_true", help="tiny, on the processor, in Triton's interpreter"
    )
    return options.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    given = parsed(arguments)
    device, tiny = "cuda", given.tiny or given.rehearse
    if given.rehearse:
        if os.environ.get("TRITON_INTERPRET") != "1":
            print("--rehearse needs TRITON_INTERPRET=1 in the environment", file=sys.stderr)
            return 2
        device = "cpu"
    elif not torch.cuda.is_available():
        print("bench.gpu needs a CUDA device, and torch sees none", file=sys.stderr)
        return 2
    started = time.monotonic()
    records: list[dict[str, Any]] = []
    failed: dict[str, str] = {}
    late: list[str] = []
    for group in groups(given.ops, device, tiny):
        if given.seconds is not None and time.monotonic() - started > given.seconds:
            late.append(group.name)
            continue
        try:
            record = measure(group, given.rounds, device, tiny, check_only=given.check)
        except Exception as error:
            traceback.print_exc()
            failed[group.name] = f"{type(error).__name__}: {error}".splitlines()[0]
            print(f"   FAILED: {failed[group.name]}", flush=True)
            continue
        records.append(record)
        if not (given.no_write or given.check or tiny) and "ratios" in record:
            write(record, RESULTS / folder_name())
    _gpu_group.release()
    if given.json:
        print(json.dumps(records, indent=1))
    red = [record["name"] for record in records if "ratios" not in record]
    red += [record["name"] for record in records if record.get("failed")]
    print(f"{len(records)} groups in {time.monotonic() - started:.0f} s", flush=True)
    for what, names in (("disagree or failed in part", red), ("not begun in time", late)):
        if names:
            print(f"{len(names)} {what}: {', '.join(names)}")
    for name, why in failed.items():
        print(f"failed: {name}: {why}")
    return 1 if red or late or failed else 0


if __name__ == "__main__":
    sys.exit(main())
