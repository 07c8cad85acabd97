"""The rows of `metrics.csv`: one per iteration, the fields are the columns."""

import csv
import math
from collections.abc import Iterable
from dataclasses import asdict, astuple, dataclass, fields
from pathlib import Path

from klppo_compile.exit_codes import BadInputError
from klppo_compile.training.files import replacing, writing


@dataclass(frozen=True)
class MetricsRow:
    """What one iteration did; losses, KL and entropy are means over its last pass."""

    step: int
    """Environment steps so far."""
    iteration: int
    """Rollouts so far, this one included."""
    return_mean: float
    """Mean undiscounted return of the latest episodes; nan until one has ended."""
    kl_mean: float
    """KL(old || new), in nats."""
    beta: float
    """The coefficient that the next iteration starts from."""
    entropy: float
    """In nats."""
    loss_objective: float
    loss_critic: float
    explained_variance: float
    """Of the value targets by the values, over the rollout, before the update."""
    learning_rate: float
    seconds: float
    """Wall time so far, earlier parts of a resumed run included."""


COLUMNS = tuple(field.name for field in fields(MetricsRow))


def write_metrics(path: Path, rows: Iterable[MetricsRow]) -> None:
    """Write the whole table at once."""
    with replacing(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows(astuple(row) for row in rows)


def append_metrics(path: Path, row: MetricsRow) -> None:
    """Add a row to a table, for whoever follows the file."""
    with writing(path), path.open("a", newline="") as file:
        csv.DictWriter(file, COLUMNS).writerow(asdict(row))


def read_metrics(path: Path, iterations: int) -> list[MetricsRow]:
    """Read the first `iterations` rows; a run that was killed may have written more."""
    try:
        with path.open(newline="") as file:
            reader = csv.reader(file)
            header = tuple(next(reader, ()))
            if header != COLUMNS:
                raise ValueError(f"columns {header}")
            rows = [
                MetricsRow(int(cells[0]), int(cells[1]), *map(float, cells[2:]))
                for cells, _ in zip(reader, range(iterations), strict=False)
            ]
        if [row.iteration for row in rows] != list(range(1, iterations + 1)):
            raise ValueError(f"{len(rows)} of {iterations} rows")
        if not all(math.isfinite(x) for row in rows for x in (row.kl_mean, row.beta, row.seconds)):
            raise ValueError("numbers that are not finite")
    except (OSError, TypeError, ValueError, IndexError, OverflowError, csv.Error) as error:
        raise BadInputError(
            f"{path} must hold one row for each of the {iterations} iterations of its run;"
            f" got {error}. Resume an intact copy of the run folder."
        ) from error
    return rows
