"""Checking a file again, later and elsewhere: its bytes, its graph, its numbers."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from klppo_compile.exit_codes import FailedError, MissingRequirementError
from klppo_compile.export.data import Matched, open_rollout
from klppo_compile.export.evaluation import padded, stream
from klppo_compile.export.runtime import OnnxFile, open_file

if TYPE_CHECKING:
    from klppo_compile.export.parity import Parity

Arrays = dict[str, NDArray[Any]]
ROWS = 4096
"""Rows of the data that go through, where there is no target to make cases from."""
ALONE = 5
"""Of them, rows that also go through alone."""


@dataclass(frozen=True)
class Checked:
    """What a check found.

    Attributes:
        file: that was checked.
        against: what it was compared with, in words.
        errors: of each output, relative to the larger of 1 and the value.
        tolerance: that was asked for.
        notes: what was not checked, and why.
        problem: why the check failed; empty where it didn't.
    """

    file: OnnxFile
    against: str
    errors: dict[str, float]
    tolerance: float
    notes: tuple[str, ...]
    problem: str


def check_file(
    path: Path,
    data: Path,
    *,
    target: str | None = None,
    checkpoint: str | None = None,
    provider: str = "auto",
    tolerance: float | None = None,
) -> Checked:
    """Check a file against the loss it was made from, or, without one, against itself.

    Raises:
        FailedError: its graph is not one that runs everywhere, or is of other parameters.
    """
    file = open_file(path, provider)
    tolerance = file.manifest.tolerance if tolerance is None else tolerance
    notes = [file.doubt] if file.doubt else []
    notes += _structure(path, file)
    with open_rollout(data) as rollout:
        matched = rollout.match(file.manifest)
        _refuse_nan(file, matched)
        errors = {} if target is not None else _against_itself(file, matched)
    if target is None:
        notes.append("not compared with PyTorch; give --target for that")
        against = "itself row by row, on the CPU"
        problem = _problem(path, errors, tolerance, against)
    else:
        parity = _against_target(file, data, target, checkpoint, tolerance)
        errors, against, problem = parity.errors(), target, parity.problem()
    return Checked(file, against, errors, tolerance, tuple(notes), problem)


def _problem(path: Path, errors: Mapping[str, float], tolerance: float, against: str) -> str:
    name = max(errors, key=lambda key: errors[key])
    if errors[name] <= tolerance:
        return ""
    return (
        f"{path} must agree with {against} within {tolerance:g}; its {name} is"
        f" {errors[name]:.2g} off."
    )


def _refuse_nan(file: OnnxFile, matched: Matched) -> None:
    """Rows that were recorded wrong are an error of the data: named as `klppo evaluate` does."""
    if file.manifest.graph == "loss":
        units = max(1, min(matched.units, ROWS // matched.inner))
        stream(file, matched, {}, (0, units), ROWS, lambda rows: None)  # noqa: ARG005 - a progress bar's


def _structure(path: Path, file: OnnxFile) -> list[str]:
    try:
        import onnx

        from klppo_compile.export.structure import check_structure, lint, lint_shapes
    except ImportError:
        return ["the graph's structure was not checked: onnx is not installed"]
    proto = onnx.load_model_from_string(path.read_bytes())
    check_structure(proto)
    problems = [*lint(proto), *lint_shapes(proto, file.manifest)]
    if problems:
        raise FailedError(f"the graph must pass the lint; {problems[0]}.")
    return []


def _against_target(
    file: OnnxFile, data: Path, target: str, checkpoint: str | None, tolerance: float
) -> "Parity":
    try:
        import torch

        from klppo_compile.export.description import parameters_hash
        from klppo_compile.export.exporting import session_runner
        from klppo_compile.export.parity import check
        from klppo_compile.export.preparation import prepare
        from klppo_compile.export.target import resolve
    except ModuleNotFoundError as error:
        raise MissingRequirementError(
            f"--target needs {error.name}; without it, leave --target out."
        ) from error
    found = resolve(target, checkpoint, data)
    manifest = file.manifest
    if parameters_hash(found.loss) != manifest.parameters_sha256:
        raise FailedError(
            f"{file.path} must be of the target's parameters; {target} has others. Name the"
            " checkpoint it was exported from with --checkpoint."
        )
    assert found.example is not None
    example = found.example.reshape(-1) if manifest.batch_dims == 1 else found.example
    for spec in manifest.inputs:
        key = tuple(spec.key.split("."))
        if (x := example.get(key, None)) is not None:
            # As `Matched.read` gives it to the file: what is narrower, widened.
            example.set(key, x.to(getattr(torch, spec.dtype)))
    prepared = prepare(found.loss, example, manifest.graph)
    names = [entry.name for entry in prepared.reference.entries]
    if names != [spec.name for spec in manifest.inputs]:
        raise FailedError(f"{file.path} must have the target's inputs {names}; it has others.")
    runner = session_runner(file.session, manifest)
    return check(prepared.reference, prepared.example, runner, tolerance, manifest.batch)


def _against_itself(file: OnnxFile, matched: Matched) -> dict[str, float]:
    """The whole batch on this provider, against single rows and the CPU."""
    units = max(1, min(matched.units, ROWS // matched.inner))
    arrays = matched.read(0, units)
    if file.manifest.batch:
        arrays = {name: x[: file.manifest.batch] for name, x in arrays.items()}
    count = next(iter(arrays.values())).shape[0]
    inputs, real = padded(file.manifest, arrays)
    whole = file.run(inputs)
    # A masked row of a loss may be anything; `_refuse_nan` has seen the others.
    loss = file.manifest.graph == "loss"
    for output in file.manifest.outputs:
        if not (loss and output.rows):
            _require_numbers(file, output.name, whole[output.name])
    errors: dict[str, float] = {}
    _take(errors, open_file(file.path, "cpu").run(inputs), whole)
    # A row's own numbers depend on no other row; a loss that is not reduced may, by its advantage.
    rows = [s.name for s in file.manifest.outputs if s.rows and not s.name.startswith("loss_")]
    for at in np.linspace(0, count - 1, min(ALONE, count)).astype(int):
        one, place = padded(file.manifest, {name: x[at : at + 1] for name, x in arrays.items()})
        alone = {name: x[place] for name, x in file.run(one, rows).items()}
        _take(errors, alone, {name: whole[name][real][at : at + 1] for name in rows})
    return errors


def _require_numbers(file: OnnxFile, name: str, x: NDArray[Any]) -> None:
    if np.isnan(x.astype(np.float64)).any():
        raise FailedError(
            f"{file.path} must give numbers for this data; its {name} has NaN. Look for NaN in the"
            " data."
        )


def _take(errors: dict[str, float], got: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    for name, x in got.items():
        a, b = x.astype(np.float64), wanted[name].astype(np.float64)
        same = (a == b) | (np.isnan(a) & np.isnan(b))
        with np.errstate(invalid="ignore"):
            error = np.where(same, 0.0, np.abs(a - b) / np.maximum(1.0, np.abs(b)))
        # What only one of them can't say is infinitely far.
        error[np.isnan(error)] = np.inf
        errors[name] = max(errors.get(name, 0.0), float(error.max(initial=0.0)))
