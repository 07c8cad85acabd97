"""What Inductor needs of a machine to compile for its CPU: a C++ compiler, a folder to cache in."""

import os
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


def missing_cache() -> str:
    """Why Inductor can't write to its cache, in words; "" where it can."""
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    try:
        folder = cache_dir()  # which makes it
        problem = "" if os.access(folder, os.W_OK) else f"{folder} is not writable"
    except OSError as error:
        problem = f"{error.filename}: {error.strerror}"
    return problem and (
        f"Inductor must be able to write to its cache; got {problem}. Name a folder of yours in the"
        " variable TORCHINDUCTOR_CACHE_DIR"
    )


def require_compiler(otherwise: str = "") -> None:
    """Refuse where nothing can be compiled: found late, it looks like a defect.

    `otherwise` ends the sentence with what else would do.

    Raises:
        MissingRequirementError: there is no C++ compiler, or no cache that can be written.
    """
    if lacks := missing() or missing_cache():
        raise MissingRequirementError(lacks + otherwise)


def compiler_version() -> str:
    """The compiler in its own words; "" without one."""
    path = compiler()
    if path is None:
        return ""
    done = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)  # noqa: S603  asks for its version
    return (done.stdout.splitlines() or [""])[0]
