"""One exported policy against another, on recorded observations."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from klppo_compile.exit_codes import BadInputError
from klppo_compile.export.data import Rollout
from klppo_compile.export.evaluation import BATCH_ROWS, Progress, require_loss, stream
from klppo_compile.export.manifest import InputSpec, Manifest
from klppo_compile.export.runtime import OnnxFile
from klppo_compile.export.totals import Evaluation

Array = NDArray[Any]


def compare(
    old: OnnxFile,
    new: OnnxFile,
    rollout: Rollout,
    *,
    rows: tuple[int, int | None] = (0, None),
    batch_rows: int = BATCH_ROWS,
    progress: Progress = lambda rows: None,  # noqa: ARG005
) -> Evaluation:
    """Run two exported losses over the same observations: the old one's head is the new one's past.

    What the rollout records of its own policy is not read; ratios and KL are between the files.
    """
    matched = rollout.match(new.manifest, needed_inputs(old, new))
    links = {f"old_{name}": name for name in old.manifest.head}
    log_prob = new.manifest.input_of("log_prob")
    assert log_prob is not None
    links[log_prob.name] = "log_prob"

    def feed(arrays: dict[str, Array]) -> dict[str, Array]:
        found = old.run(_without_past(old.manifest, arrays), [*old.manifest.head, "log_prob"])
        past = {name: found[output] for name, output in links.items()}
        inputs = {spec.name: {**arrays, **past}[spec.name] for spec in new.manifest.inputs}
        return {s.name: inputs[s.name].astype(s.dtype, copy=False) for s in new.manifest.inputs}

    return stream(new, matched, {}, rows, batch_rows, progress, feed, old.sha256)


def needed_inputs(old: OnnxFile, new: OnnxFile) -> list[InputSpec]:
    """What two files read of a rollout, after files that don't fit together are refused."""
    for file in (old, new):
        require_loss(file)
        if file.manifest.settings["delay_actor"]:
            raise BadInputError(
                f"{file.path} has its own past policy (delay_actor); it has no place for another's."
            )
    if old.manifest.batch or new.manifest.batch:
        raise BadInputError("two files can be compared when their batch is dynamic; export so.")
    if old.manifest.family != new.manifest.family or old.manifest.head != new.manifest.head:
        raise BadInputError(
            f"two files can be compared when their policies are of one family; got"
            f" {old.manifest.family} {list(old.manifest.head)} and"
            f" {new.manifest.family} {list(new.manifest.head)}."
        )
    if not alike(*(file.manifest.settings["distribution"] for file in (old, new))):
        raise BadInputError(
            f"two files can be compared when they make one distribution of a head; {old.path} and"
            f" {new.path} have other constants, as a temperature or the bounds of an action. Export"
            " both with the same ones."
        )
    specs: dict[str, InputSpec] = {}
    for spec in (*old.manifest.inputs, *new.manifest.inputs):
        known = specs.setdefault(spec.name, spec)
        if known != spec:
            raise BadInputError(
                f"two files can be compared when they read the same arrays; {spec.name!r} is"
                f" {known.dtype} {list(known.shape)} in one and {spec.dtype} {list(spec.shape)} in"
                " the other."
            )
    return [spec for spec in specs.values() if spec.role not in {"old_head", "log_prob"}]


def alike(some: list[float], others: list[float]) -> bool:
    """Whether what `head_probe` says of two distributions is the same, rounding apart."""
    near = (abs(a - b) <= 1e-3 * max(1.0, abs(b)) for a, b in zip(some, others, strict=False))
    return len(some) == len(others) and all(near)


def _without_past(manifest: Manifest, arrays: Mapping[str, Array]) -> dict[str, Array]:
    """Inputs of the old file; what it is asked doesn't depend on its own past, which is neutral."""
    rows = next(iter(arrays.values())).shape[: manifest.batch_dims]
    found = {}
    for spec in manifest.inputs:
        if spec.name in arrays:
            found[spec.name] = arrays[spec.name]
        else:
            found[spec.name] = np.ones((*rows, *spec.shape), spec.dtype)
    return found
