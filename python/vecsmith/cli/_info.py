"""``vecsmith info``: what is installed here, and what would be used."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
from typing import Annotated, Any

import typer


def describe() -> dict[str, Any]:
    """Versions, processor, threads and backends, as plain values."""
    import torch

    import vecsmith
    from vecsmith import ops
    from vecsmith.ops import _registry

    try:
        native = _registry.native()
        openmp = bool(native.openmp)
        isa = {"level": native.isa_level(), "available": list(native.isa_levels())}
    except (_registry.BackendUnavailable, AttributeError) as error:
        openmp = False
        isa = {"level": None, "available": [], "reason": str(error)}
    try:
        _registry.cuda_module()
        cuda_module = "built"
    except _registry.BackendUnavailable as error:
        cuda_module = str(error)
    devices = ["cpu", "cuda"]
    return {
        "vecsmith": vecsmith.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "machine": f"{platform.system()} {platform.machine()}",
        "isa": isa,
        "forced_isa": os.environ.get("VECSMITH_ISA"),
        "threads": torch.get_num_threads(),
        "processors": os.cpu_count(),
        "openmp": openmp,
        "cuda": {
            "available": torch.cuda.is_available(),
            "devices": [
                torch.cuda.get_device_name(i)
                for i in range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
            ],
            "module": cuda_module,
        },
        "triton": importlib.util.find_spec("triton") is not None,
        "backends": {device: ops.explain(device) for device in devices},
    }


def info(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show versions, the processor's level, threads, and which backend each operator would use."""
    facts = describe()
    if as_json:
        return print(json.dumps(facts, indent=2))
    isa, cuda = facts["isa"], facts["cuda"]
    forced = " (forced by VECSMITH_ISA)" if facts["forced_isa"] else ""
    level = f"{isa['level']}{forced}, of {', '.join(isa['available'])}"
    lines = {
        "vecsmith": facts["vecsmith"],
        "python": facts["python"],
        "torch": facts["torch"],
        "machine": facts["machine"],
        "processor level": level if isa["level"] else f"no native module: {isa['reason']}",
        "threads": f"{facts['threads']} of {facts['processors']} processors"
        + ("" if facts["openmp"] else "; the native module was built without OpenMP: it uses one"),
        "CUDA": ", ".join(cuda["devices"]) if cuda["available"] else "no device",
        "CUDA module": cuda["module"],
        "triton": "installed" if facts["triton"] else "not installed",
    }
    width = max(map(len, lines))
    for name, value in lines.items():
        print(f"{name:<{width}}  {value}")
    for device, rows in facts["backends"].items():
        print(f"\nbackends for {device} tensors")
        for row in rows:
            name = f"{row['operator']}: {row['backend']}"
            print(f"  {name:<{width + 10}}  {row['state']:<11}  {row['reason']}")
    return None
