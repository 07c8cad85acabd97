"""An evaluation as a picture: the KL over the rollout, and the histograms of KL and ratio."""

from pathlib import Path
from typing import Any

import numpy as np

from klppo_compile.exit_codes import BadInputError, MissingRequirementError
from klppo_compile.export.manifest import require_writable
from klppo_compile.export.statistics import LogHistogram
from klppo_compile.export.totals import Evaluation


def draw(evaluation: Evaluation, path: Path, title: str) -> None:
    """Write a picture; the file's ending says in which format."""
    require_writable(path)
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingRequirementError(
            "--picture needs matplotlib. Run pip install matplotlib."
        ) from error

    figure = Figure(figsize=(11, 3.6), layout="constrained")
    kinds = FigureCanvasAgg(figure).get_supported_filetypes()
    if path.suffix.lstrip(".").lower() not in kinds:
        raise BadInputError(
            f"a picture is one of {', '.join(kinds)}, by its ending; got {path.name}."
        )
    over, kl, ratio = figure.subplots(1, 3)
    means = evaluation.totals.kl_series.means()
    over.plot([row for row, _ in means], [mean for _, mean in means], marker=".")
    over.set(xlabel="row", ylabel="mean KL (nats)", title="KL over the rollout")
    _histogram(kl, evaluation.totals.kl_histogram, "KL(old || new) of a row (nats)")
    _histogram(ratio, evaluation.totals.ratio_histogram, "ratio of a row")
    ratio.axvline(1.0, color="black", linewidth=0.8)
    figure.suptitle(title)
    figure.savefig(path, dpi=120)


def _histogram(axes: Any, histogram: LogHistogram, label: str) -> None:
    counts, edges = histogram.counts[1:-1], histogram.edges()
    used = np.flatnonzero(counts)
    if used.size:
        first, last = int(used[0]), int(used[-1]) + 1
        axes.stairs(counts[first:last], edges[first : last + 1], fill=True)
        axes.set_xscale("log")
    axes.set(xlabel=label, ylabel="rows", title=f"{int(histogram.counts.sum()):,} rows")
