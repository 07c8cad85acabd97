"""Exact metrics kept beside the compiler's caches: what was counted of a text isn't counted again.

They are the same in every run, so that text, versions and workload tell them.
"""

import hashlib
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from torch._inductor.runtime.cache_dir_utils import cache_dir

from klppo_compile.perf.exact.metrics import measure_exact
from klppo_compile.perf.rows import Row, read_document, write_document
from klppo_compile.perf.workloads import Workload

COUNTED_WITH = ("torch", "tensordict", "torchrl", "onnx", "onnxscript", "triton")
"""Packages whose code runs in what is counted, or counts it."""


def counted(workload: Workload, place: Path, parts: Sequence[str]) -> list[Row]:
    """`measure_exact` of the package in a folder; kept, or counted and then kept.

    Raises:
        FailedError: the loss's answer is wrong.
        CannotError: a measuring process died.
    """
    path = Path(cache_dir()) / "klppo-ab" / "exact" / f"{digest(workload, place, parts)}.json"
    if path.exists():
        try:
            return read_document(path)[1]
        except (ValueError, KeyError, TypeError):
            path.unlink()  # cut short, or another version's
    rows = measure_exact([workload], place, None, parts=parts)
    write_document(path, {"workload": workload.name}, rows)
    return rows


def version_of(package: str) -> str:
    """The version of a package, "" where it isn't installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def digest(workload: Workload, place: Path, parts: Sequence[str]) -> str:
    """A digest of all that the counts depend on."""
    versions = (platform.python_version(), platform.machine(), *map(version_of, COUNTED_WITH))
    found = hashlib.sha256(repr((workload.name, tuple(parts), versions)).encode())
    for path in sorted(place.rglob("*")):
        if path.is_file() and path.suffix != ".pyc":
            found.update(path.relative_to(place).as_posix().encode() + b"\0" + path.read_bytes())
    return found.hexdigest()[:24]
