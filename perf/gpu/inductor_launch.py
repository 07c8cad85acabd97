"""What a launch of one of Inductor's kernels costs, from machine code.

Inductor picks block sizes by timing them on the device: of its candidates the one with the fewest
instructions counts here, so that a ratio is the least it can be.
"""

import importlib.util
import math
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from klppo_compile.perf.gpu.inductor_code import Kernel
from klppo_compile.perf.gpu.inductor_device import described_device

if TYPE_CHECKING:
    from klppo_compile.kernels.machine_code import Cost

SMALL = 2**14  # elements of a launch up to which its candidates aren't compared


@dataclass(frozen=True)
class Launch:
    """One launch of a compiled kernel: over how many elements, in how many blocks.

    Attributes:
        instructions: that all its warps execute; a loop is over what is reduced.
    """

    cost: "Cost"
    elements: int
    blocks: int
    instructions: float


def cheapest(kernel: Kernel, chip: str) -> Launch:
    """Its launch with the candidate of the fewest instructions."""
    with described_device(chip):
        tuner = load(kernel)
        several = kernel.rows * kernel.reduced > SMALL
        candidates = tuner.configs if several else tuner.configs[:1]
        found = [(compiled(tuner, c, chip), dict(c.kwargs)) for c in candidates]
    launches = [launch_of(kernel, cost, sizes) for cost, sizes in found]
    return min(launches, key=lambda launch: launch.instructions)


def load(kernel: Kernel) -> Any:
    """Inductor's tuner of a kernel, with its candidates; the driver it asks for isn't there."""
    text = kernel.source.replace("triton_helpers.set_driver_to_gpu()", "")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.py"
        path.write_text(text, encoding="utf-8")
        spec = importlib.util.spec_from_file_location(kernel.name, path)
        assert spec is not None
        assert spec.loader is not None
        loaded = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(loaded)
        tuner = getattr(loaded, kernel.name)
        tuner.fn.src  # noqa: B018 - read while its file is there
        return tuner


def compiled(tuner: Any, candidate: Any, chip: str) -> "Cost":
    """One candidate's machine code, compiled as Inductor would."""
    import triton
    from triton.compiler import ASTSource

    from klppo_compile.kernels.machine_code import CHIPS, Cost, dump, from_sass

    meta = tuner._create_compile_meta(candidate)  # noqa: SLF001 - see inductor_code
    options = tuner._create_compile_options(candidate, meta)  # noqa: SLF001
    source = ASTSource(tuner.fn, meta["signature"], meta["constants"], meta["configs"][0])
    binary = triton.compile(source, target=CHIPS[chip].target, options=options)
    facts = {"shared": binary.metadata.shared, "warps": candidate.num_warps}
    return Cost(**facts, **from_sass(*dump(binary.asm["cubin"])))


def launch_of(kernel: Kernel, cost: "Cost", sizes: dict[str, int]) -> Launch:
    """A launch with blocks of these sizes."""
    from klppo_compile.kernels.compiled_cost import executed

    trips = math.ceil(kernel.reduced / sizes.get("R0_BLOCK", kernel.reduced))
    once = executed(cost, trips) if cost.loops else cost.instructions
    assert once is not None
    blocks = math.ceil(kernel.rows / sizes["XBLOCK"])
    return Launch(cost, kernel.rows * kernel.reduced, blocks, once * cost.warps * blocks)
