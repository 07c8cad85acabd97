"""The C++ compiler that Inductor calls, which whatever is compiled for a CPU needs."""

import subprocess

from klppo_compile.exit_codes import MissingRequirementError


def compiler() -> str | None:
    """The one that Inductor takes, by its own search, which compiles nothing; None without one."""
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        return get_cpp_compiler()
    except (RuntimeError, OSError):  # torch's own refusal; a name that can't be run
        return None


def missing() -> str:
    """What this machine lacks for compiling, in words; "" where nothing."""
    if compiler() is not None:
        return ""
    from torch._inductor import config

    asked = config.cpp.cxx if isinstance(config.cpp.cxx, tuple | list) else [config.cpp.cxx]
    names = " or ".join(name for name in asked if name)
    return (
        "the compiled loss is built by a C++ compiler, and Inductor finds none that runs as"
        f" {names}: apt install g++, or name yours in the variable CXX"
    )


def require_compiler() -> None:
    """Refuse where nothing can be compiled: found late, it looks like a defect.

    Raises:
        MissingRequirementError: there is no C++ compiler.
    """
    if lacks := missing():
        raise MissingRequirementError(lacks)


def compiler_version() -> str:
    """The compiler in its own words; "" without one."""
    path = compiler()
    if path is None:
        return ""
    done = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)  # noqa: S603  asks for its version
    return (done.stdout.splitlines() or [""])[0]
