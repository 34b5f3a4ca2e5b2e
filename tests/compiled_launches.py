"""Launches of Triton kernels, taken down and compiled to machine code, which needs no GPU."""

from __future__ import annotations

import subprocess
from pathlib import Path

import torch

TYPES = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.uint8: "*u8",
    torch.int16: "*i16",
    torch.int32: "*i32",
    torch.int64: "*i64",
    torch.float64: "*fp64",
    torch.bool: "*i1",
}


class Recorder:
    """In the place of a kernel: takes its launches down instead of running them."""

    def __init__(self, kernel, launches):
        self.kernel, self.launches = kernel, launches

    def __getitem__(self, grid):
        return lambda *arguments, **named: self.launches.append((self.kernel, arguments, named))


def build(launch, capability, folder, *, specialize=False):
    """(PTX, what cuobjdump says of the resources, bytes of shared memory) of one launch.
    specialize: integers that 16 divides are known to be, as they are to a launch."""
    from triton.backends import nvidia
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    kernel, arguments, named = launch
    options = {name: named[name] for name in ("num_warps", "num_stages") if name in named}
    given = dict(zip(kernel.arg_names, arguments, strict=False)) | named
    signature, constants, attributes = {}, {}, {}
    for i, parameter in enumerate(kernel.params):
        value = given[parameter.name]
        signature[parameter.name] = "constexpr"
        if parameter.is_constexpr or value is None:
            constants[parameter.name] = value
        elif isinstance(value, torch.Tensor):
            signature[parameter.name] = TYPES[value.dtype]
            if value.data_ptr() % 16 == 0:
                attributes[(i,)] = [["tt.divisibility", 16]]
        else:
            signature[parameter.name] = "fp32" if isinstance(value, float) else "i32"
            known = specialize and not parameter.do_not_specialize
            if known and isinstance(value, int) and value % 16 == 0:
                attributes[(i,)] = [["tt.divisibility", 16]]
    built = compile(
        ASTSource(kernel, signature, constants, attributes),
        target=GPUTarget("cuda", capability, 32),
        options=options,
    )
    binary = folder / "kernel.cubin"
    binary.write_bytes(built.asm["cubin"])
    tool = Path(nvidia.__file__).parent / "bin" / "cuobjdump"
    usage = subprocess.run(
        [str(tool), "--dump-resource-usage", str(binary)], capture_output=True, text=True
    ).stdout
    return built.asm["ptx"], usage, built.metadata.shared
