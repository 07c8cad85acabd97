"""The kernels' own tests on the device, as a subprocess: no speed where one is red."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

from klppo_compile.exit_codes import CannotError, FailedError, MissingRequirementError

DEVICE = "KLPPO_TEST_DEVICE"  # read by tests/conftest.py
WORKERS = 8
INTERPRETED = "tests/test_kernels.py::test_two_launches_agree_bit_by_bit"


def checkout(given: Path | None) -> Path:
    """The folder that holds `tests/`: what is given, this file's own checkout, or where we are.

    Raises:
        CannotError: there is none.
    """
    for folder in [given] if given else [Path(__file__).resolve().parents[2], Path.cwd()]:
        if (folder / "tests" / "test_kernels.py").is_file():
            return folder
    raise CannotError(
        "The kernel tests run from a checkout; there is no tests/test_kernels.py here. Clone the"
        " repository and say --checkout FOLDER, or --no-tests to measure untested kernels."
    )


def run_tests(folder: Path, device: str, seconds: float) -> str:
    """Run the kernel tests on a device, and return pytest's last line.

    Raises:
        MissingRequirementError: pytest is not installed.
        FailedError: a test is red; the text ends in pytest's output.
        CannotError: they take longer than `seconds`.
    """
    if importlib.util.find_spec("pytest") is None:
        raise MissingRequirementError(
            "The kernel tests need pytest: pip install 'klppo-compile[test]', or say --no-tests."
        )
    command = [sys.executable, "-m", "pytest", "-q", "--no-header", *arguments(folder, device)]
    environment = os.environ | {DEVICE: device, "TRITON_INTERPRET": "1" if device == "cpu" else "0"}
    try:
        done = subprocess.run(  # noqa: S603 - this interpreter, on this checkout's tests
            command,
            check=False,
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=seconds,
        )
    except subprocess.TimeoutExpired as error:
        raise CannotError(
            f"The kernel tests took longer than their share of the time, {seconds:.0f} s. Give"
            " more --minutes, or run them yourself and say --no-tests."
        ) from error
    lines = done.stdout.strip().splitlines() or [""]
    if done.returncode:
        tail = "\n".join(lines[-30:] + done.stderr.strip().splitlines()[-5:])
        raise FailedError(f"The kernel tests must pass before anything is timed:\n{tail}")
    return lines[-1].strip("= ")


def arguments(folder: Path, device: str) -> list[str]:
    """Which tests, and in how many processes: compiling takes most of their time.

    The tests of the report compile for other machines; they say nothing about this one. The
    interpreter takes one test, to go through the motions.
    """
    if device == "cpu":
        return [INTERPRETED]
    names = sorted(path.name for path in (folder / "tests").glob("test_kernels*.py"))
    found = [f"tests/{name}" for name in names if name != "test_kernels_report.py"]
    workers = min(WORKERS, os.cpu_count() or 1)
    parallel = importlib.util.find_spec("xdist") is not None and workers > 1
    return [*found, *(("-n", str(workers)) if parallel else ())]
