"""What ONNX Runtime's errors mean: its classes are private, so it is told by their words."""

import re
from collections.abc import Iterable

from klppo_compile.exit_codes import BadInputError, CannotError, RefusalError

UNIMPLEMENTED = re.compile(r"NOT_IMPLEMENTED : .*? implementation for (\w+)")
FAILED_NODE = re.compile(r"while running (\w+) node\. Name:'.*?' Status Message: ([^\n]+)")
MEMORY = re.compile(r"allocat|bad_alloc|out of memory", re.IGNORECASE)
DEVICE = re.compile(r"\b(CU|HIP|ROC|MI)[A-Z_]* (failure|error)|TensorRT|driver")


def of_loading(error: Exception, origin: str) -> RefusalError:
    """Why a file can't be loaded."""
    text = str(error)
    if "xternal" in text and "data" in text:
        return BadInputError(
            f"{origin} must hold its own weights; it names other files, which are not read."
        )
    if found := UNIMPLEMENTED.search(text):
        return CannotError(
            f"{origin} must be of operators that the installed ONNX Runtime has; it has no"
            f" implementation of {found[1]} in the types that are asked for. Update it, or run"
            " pip install onnxruntime of the version that the file was exported with."
        )
    return BadInputError(
        f"{origin} must be an ONNX file that ONNX Runtime can load; got {_first_line(text)}."
        " Export the loss again."
    )


def of_a_fresh_graph(error: Exception, types: Iterable[str]) -> RefusalError:
    """Why a graph that was made just now can't be loaded.

    Args:
        error: of ONNX Runtime.
        types: of floating point that the graph computes in besides float32.
    """
    fix = "Or write it as a package of torch, with --format pt2"
    if found := UNIMPLEMENTED.search(str(error)):
        odd = " or ".join(types)
        where = f"{odd}, which a network computes in" if odd else "the types of the network"
        return CannotError(
            "a graph must be of operators that ONNX Runtime has; it has no implementation of"
            f" {found[1]} in {where}. Convert the network to float32, with .float(). {fix}."
        )
    return CannotError(
        f"a graph must be one that ONNX Runtime can load; got {_first_line(str(error))}. Export"
        f" another network. {fix}."
    )


def of_running(error: Exception, origin: str) -> RefusalError | None:
    """Why a file can't be run over these data; None where neither they nor memory are the reason.

    That the inputs' shapes and types fit was seen before: what a node fails for is their values.
    """
    found = FAILED_NODE.search(str(error))
    if found is None:
        return None
    operator, said = found.groups()
    if MEMORY.search(said):
        return CannotError(
            f"rows that go through {origin} at once must fit in memory; these don't. Take fewer,"
            " with --batch-rows."
        )
    if DEVICE.search(said):
        return None
    return BadInputError(
        f"the data must be values that the networks of {origin} take; ONNX Runtime says of its"
        f" {operator}: {said.strip().rstrip('.')}. Mend such rows, or leave them out with --rows."
    )


def _first_line(text: str) -> str:
    return (text.splitlines() or ["no reason"])[0].rstrip(".")
