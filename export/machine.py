"""What this machine can do: versions, providers, devices, and what is missing for more."""

import importlib.util
import platform
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version

from klppo_compile import __version__
from klppo_compile.compiler import compiler_version, missing_cache
from klppo_compile.compiler import missing as missing_compiler
from klppo_compile.exit_codes import MissingRequirementError
from klppo_compile.export.runtime import (
    LIBRARIES,
    REPAIR,
    available_providers,
    has_driver,
    load_onnxruntime,
    open_session,
    runtimes,
)

PACKAGES = (
    "torch",
    "tensordict",
    "torchrl",
    "triton",
    "numpy",
    "onnx",
    "onnxscript",
    "onnxruntime-gpu",
    "onnxruntime",
    "gymnasium",
)

SMALLEST = bytes.fromhex(
    "080812003a370a100a017812017922084964656e746974791201675a0f0a0178120a0a0808011204"
    "0a020801620f0a0179120a0a08080112040a02080142040a001012"
)
"""An ONNX graph of one Identity; onnx, which could make one, may not be installed."""


@dataclass
class Machine:
    """Facts by name; problems, each with its repair; and what would bring more."""

    facts: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    more: list[str] = field(default_factory=list)


def examine() -> Machine:
    """Look at this machine; nothing is changed, and nothing that is missing is an error here."""
    found = Machine()
    found.facts["system"] = f"{platform.system()} {platform.machine()}"
    found.facts["python"] = platform.python_version()
    found.facts["klppo-compile"] = __version__
    for name in PACKAGES:
        try:
            found.facts[name] = version(name)
        except PackageNotFoundError:
            continue
    _torch(found)
    _onnxruntime(found)
    if not _installed("onnxscript"):
        found.more.append("klppo export needs onnxscript: pip install 'klppo-compile[export]'")
    return found


def _installed(name: str) -> bool:
    """Whether a module is there; it isn't loaded."""
    try:
        return importlib.util.find_spec(name) is not None
    except ImportError:
        return False


def _torch(found: Machine) -> None:
    if not _installed("torch"):
        found.facts["loss runs on"] = "nothing: no torch; evaluate, compare and merge work without"
        return
    import torch

    from klppo_compile.backends import choose
    from klppo_compile.distributions import FAMILIES
    from klppo_compile.records import Minibatch, PolicyHead

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    names = [torch.cuda.get_device_name(i) for i in range(count)]
    found.facts["GPUs"] = ", ".join(names) or "none that torch sees"
    # The choice that the loss makes, asked of the smallest minibatch.
    row, column = (torch.ones(shape, device="cuda" if count else "cpu") for shape in ((1,), (1, 1)))
    head = PolicyHead(FAMILIES["normal"], column, (column, column), (column, column))
    choice = choose(Minibatch((head,), row, row))
    found.facts["loss runs on"] = f"{choice.backend}: {choice.reason}"
    found.facts["C++ compiler"] = compiler_version() or "none that Inductor finds"
    found.more += [text for text in (missing_compiler(), missing_cache()) if text]
    if not count and has_driver():
        found.more.append("there is a driver, and a torch that doesn't see it; see pytorch.org")


def _onnxruntime(found: Machine) -> None:
    try:
        load_onnxruntime()
    except MissingRequirementError as error:
        (found.problems if runtimes() else found.more).append(str(error))
        return
    if len(runtimes()) > 1:
        found.problems.append(REPAIR)
    listed = available_providers()
    working = [name for name in listed if name == "cpu" or _opens(name)]
    found.facts["ONNX Runtime"] = f"runs on {', '.join(working)}; built for {', '.join(listed)}"
    found.more += [
        f"the provider {name} needs a driver and {LIBRARIES[name]}"
        for name in listed
        if name not in working
    ]


def _opens(provider: str) -> bool:
    """Whether a provider is active in a session: a build lists what it was made for."""
    if not has_driver():
        return False
    try:
        open_session(SMALLEST, provider, "the smallest graph")
    except MissingRequirementError:
        return False
    return True
