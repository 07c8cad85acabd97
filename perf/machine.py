"""Which machine and which versions a measurement belongs to: only like is compared with like."""

import os
import platform
import re
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from klppo_compile import __version__
from klppo_compile.compiler import compiler_version
from klppo_compile.perf.revisions import UNKNOWN, commit_here


def cpu_model() -> str:
    """The processor's name as the system gives it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        text = info.read_text(encoding="utf-8")
        found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
        if found:
            return found[1].strip()
    return platform.processor() or platform.machine()


def machine() -> dict[str, Any]:
    """The machine class: processor, cores, instruction set, torch. No clock rates, which drift."""
    return {
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "isa": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
    }


def machine_class(described: dict[str, Any]) -> str:
    """The machine in one word, for names of files: `amd-epyc-2c-avx2-torch2.13.0`."""
    torch_version = str(described["torch"]).split("+")[0]
    text = f"{described['cpu']} {described['cores']}c {described['isa']} torch{torch_version}"
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-")


def commit() -> str:
    """The checkout's commit, as `commit_here` has it; of an installed package, its version."""
    found = commit_here(Path(__file__).resolve().parents[1])
    return f"v{__version__}" if found == UNKNOWN else found


def run_header(command: str) -> dict[str, Any]:
    """When, what and where: the head of a document of rows."""
    versions = {name: version(name) for name in ("tensordict", "torchrl")}
    versions |= {"python": platform.python_version(), "arch": platform.machine()}
    if compiler := compiler_version():
        versions["compiler"] = compiler
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "version": __version__,
        "command": command,
        "threads": torch.get_num_threads(),
        "machine": machine() | versions,
    }


def result_name(header: dict[str, Any]) -> str:
    """The name of a document: date, commit, machine class."""
    return f"{header['date'][:10]}-{header['commit']}-{machine_class(header['machine'])}.json"
