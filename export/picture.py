"""An evaluation as a picture: the KL over the rollout, and the histograms of KL and ratio."""

import io
from pathlib import Path
from typing import Any

import numpy as np

from klppo_compile.export.manifest import write_together
from klppo_compile.export.statistics import LogHistogram
from klppo_compile.export.totals import Evaluation


def draw(evaluation: Evaluation, path: Path, title: str) -> None:
    """Write a picture; the file's ending says in which format."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.6), layout="constrained")
    over, kl, ratio = figure.subplots(1, 3)
    means = evaluation.totals.kl_series.means()
    over.plot([row for row, _ in means], [mean for _, mean in means], marker=".")
    over.set(xlabel="row", ylabel="mean KL (nats)", title="KL over the rollout")
    _histogram(kl, evaluation.totals.kl_histogram, "KL(old || new) of a row (nats)")
    _histogram(ratio, evaluation.totals.ratio_histogram, "ratio of a row")
    ratio.axvline(1.0, color="black", linewidth=0.8)
    figure.suptitle(title)
    drawn = io.BytesIO()
    figure.savefig(drawn, format=path.suffix.lstrip(".").lower(), dpi=120)
    write_together([(path, drawn.getvalue())])


def _histogram(axes: Any, histogram: LogHistogram, label: str) -> None:
    counts, edges = histogram.counts[1:-1], histogram.edges()
    used = np.flatnonzero(counts)
    if used.size:
        first, last = int(used[0]), int(used[-1]) + 1
        axes.stairs(counts[first:last], edges[first : last + 1], fill=True)
        axes.set_xscale("log")
    axes.set(xlabel=label, ylabel="rows", title=f"{int(histogram.counts.sum()):,} rows")
