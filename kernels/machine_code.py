"""What a compiled kernel costs, read from its machine code. No GPU is needed."""

import collections
import re
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget


class Chip(NamedTuple):
    """A target, and the rates of the data-centre part that it is."""

    target: GPUTarget
    units: int  # multiprocessors
    clock: float  # Hz
    bandwidth: float  # bytes per second of its memory


CHIPS = {
    "sm_80": Chip(GPUTarget("cuda", 80, 32), 108, 1.41e9, 2.04e12),
    "sm_90": Chip(GPUTarget("cuda", 90, 32), 132, 1.755e9, 3.35e12),
    "sm_100": Chip(GPUTarget("cuda", 100, 32), 148, 1.85e9, 8.0e12),
    "gfx942": Chip(GPUTarget("hip", "gfx942", 64), 304, 2.1e9, 5.3e12),
}


class CompileOnly:
    """Enough of a Triton driver to compile for a chip that isn't there."""

    chip = CHIPS["sm_90"]

    def get_current_target(self) -> GPUTarget:
        """The chip's."""
        return self.chip.target

    def get_current_device(self) -> str:
        """A name per chip: Triton keeps compiled kernels by device."""
        return f"{self.chip.target.backend}{self.chip.target.arch}"

    def get_current_stream(self, *_: Any) -> int:
        """The default one."""
        return 0

    def get_active_torch_device(self) -> torch.device:
        """Where tensors lie."""
        return torch.device("cpu")


DRIVER = CompileOnly()


@dataclass(frozen=True)
class Cost:
    """One kernel's machine code; how many loads and stores a thread has, by their width in bits."""

    registers: int
    spills: int
    stack: int
    shared: int
    instructions: int
    warps: int
    loops: tuple[int, ...]  # instructions of each loop's body
    loads: dict[int, int]
    stores: dict[int, int]

    def occupancy(self, chip: Chip) -> float:
        """Share of the chip's warps that registers leave room for."""
        if chip.target.backend == "hip":
            return min(8, 512 // (-(-max(self.registers, 1) // 8) * 8)) / 8
        per_warp = -(-self.registers * 32 // 256) * 256
        return min(64, 65536 // per_warp // self.warps * self.warps) / 64


def compile_for(chip: str, kernel: Any, args: Iterable[Any], **options: Any) -> Cost:
    """Compile and read the code; tensors in `args` stand for their dtype and alignment."""
    DRIVER.chip = CHIPS[chip]
    triton.runtime.driver.set_active(DRIVER)
    compiled = kernel.warmup(*args, grid=(1,), **options)
    facts = {"shared": compiled.metadata.shared, "warps": options["num_warps"]}
    if "cubin" in compiled.asm:
        return Cost(**facts, **from_sass(*dump(compiled.asm["cubin"])))
    return Cost(**facts, **from_amdgcn(compiled.asm["amdgcn"]))


def dump(cubin: bytes) -> tuple[str, str]:
    """Resource usage and SASS, by the disassembler that Triton ships."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()

        def run(flag: str) -> str:
            return subprocess.run(  # noqa: S603 (a disassembler on a file written here)
                [tool, flag, file.name], check=True, capture_output=True, text=True
            ).stdout

        return run("-res-usage"), run("-sass")


def from_sass(usage: str, sass: str) -> dict[str, Any]:
    """Counts from NVIDIA's assembly."""
    line = r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P[T\d]+\s+)?([A-Z][A-Z0-9_.]+)([^;]*);"
    code = [
        (int(at, 16), op, rest)
        for at, op, rest in re.findall(line, sass, re.MULTILINE)
        if op != "NOP"
    ]
    ops = collections.Counter(op for _, op, _ in code)

    def widths(name: str) -> dict[int, int]:
        out: collections.Counter[int] = collections.Counter()
        for op, n in ops.items():
            if op.split(".")[0] == name:
                bits = [int(b) for b in re.findall(r"\.U?(8|16|64|128)\b", op)]
                out[bits[0] if bits else 32] += n
        return dict(sorted(out.items()))

    loops = []
    for at, op, rest in code:
        target = re.search(r"0x([0-9a-f]+)", rest)
        # A jump to itself ends the program.
        if op.startswith("BRA") and target and int(target[1], 16) < at:
            loops.append(sum(int(target[1], 16) <= x <= at for x, _, _ in code))
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert found, usage
    return {
        "registers": int(found[1]),
        "stack": int(found[2]),
        "spills": sum(n for op, n in ops.items() if op.split(".")[0] in {"LDL", "STL"}),
        "instructions": len(code),
        "loops": tuple(loops),
        "loads": widths("LDG"),
        "stores": widths("STG"),
    }


def from_amdgcn(text: str) -> dict[str, Any]:
    """Counts from AMD's assembly."""

    def fact(pattern: str) -> int:
        found = re.search(pattern, text)
        assert found, pattern
        return int(found[1])

    ops = collections.Counter(re.findall(r"^\s+([a-z]+_[a-z0-9_]+)\b", text, re.MULTILINE))
    bits = {"ubyte": 8, "sbyte": 8, "byte": 8, "ushort": 16, "short": 16, "dword": 32}
    bits |= {"dwordx2": 64, "dwordx3": 96, "dwordx4": 128}

    def widths(kind: str) -> dict[int, int]:
        out: collections.Counter[int] = collections.Counter()
        for op, n in ops.items():
            found = re.fullmatch(rf"(?:global|buffer|flat)_{kind}_(\w+?)(?:_d16(?:_hi)?)?", op)
            if found:
                out[bits.get(found[1], 32)] += n
        return dict(sorted(out.items()))

    return {
        "registers": fact(r"\.vgpr_count:\s+(\d+)"),
        "stack": fact(r"\.private_segment_fixed_size:\s+(\d+)"),
        "spills": fact(r"\.vgpr_spill_count:\s+(\d+)"),
        "instructions": sum(ops.values()),
        "loops": (),
        "loads": widths("load"),
        "stores": widths("store"),
    }
