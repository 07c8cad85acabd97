"""`curves.png`: return, KL against its target band, and beta, over the run."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import EngFormatter

from klppo_compile.penalty import BAND
from klppo_compile.training.files import replacing
from klppo_compile.training.metrics import MetricsRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BLUE, ORANGE, GREY = "#1f5fa8", "#c8641e", "#5b6770"


def draw_curves(path: Path, rows: Sequence[MetricsRow], *, title: str, dtarg: float) -> None:
    """Draw the three curves over environment steps, as a PNG."""
    style: dict[Any, Any] = {
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": GREY,
        "axes.labelcolor": GREY,
        "xtick.color": GREY,
        "ytick.color": GREY,
    }
    with mpl.rc_context(style):
        # A figure without pyplot: no window system, no global state.
        figure = Figure(figsize=(8, 8), layout=ConstrainedLayoutEngine(w_pad=0.15, h_pad=0.1))
        top, middle, bottom = figure.subplots(3, sharex=True, height_ratios=(3, 2, 1.4))
        steps = [row.step for row in rows]
        _draw_return(top, steps, [row.return_mean for row in rows])
        _draw_kl(middle, steps, [row.kl_mean for row in rows], dtarg)
        _draw_beta(bottom, steps, [row.beta for row in rows])
        figure.suptitle(title, x=0.02, ha="left", fontsize=13, fontweight="bold")
        bottom.set_xlabel("environment steps")
        bottom.xaxis.set_major_formatter(EngFormatter(sep=""))
        for axes in (top, middle, bottom):
            axes.grid(axis="y", color="#e4e7ea", linewidth=0.8)
            axes.set_axisbelow(True)
        figure.align_ylabels()
        with replacing(path) as temporary:
            figure.savefig(temporary, format="png", dpi=120)


def _draw_return(axes: "Axes", steps: Sequence[int], returns: Sequence[float]) -> None:
    axes.plot(steps, returns, color=BLUE, linewidth=2, **_marker(steps))
    _headline(axes, "Return", "mean of the latest 40 episodes, sampled actions")


def _draw_kl(axes: "Axes", steps: Sequence[int], kl: Sequence[float], dtarg: float) -> None:
    axes.axhspan(dtarg / BAND, dtarg * BAND, color=ORANGE, alpha=0.18, linewidth=0)
    axes.axhline(dtarg, color=ORANGE, linewidth=1)
    axes.plot(steps, kl, color=BLUE, linewidth=1.2, **_marker(steps))
    axes.set_yscale("log")
    # The end of an annealed run, where nothing moves any more, must not flatten the rest.
    axes.set_ylim(bottom=max(dtarg / 1000, min((k for k in kl if k > 0), default=dtarg) / 2))
    if max(kl) <= dtarg * BAND:
        axes.set_ylim(top=dtarg * 4)
    _headline(axes, "KL(old ‖ new)", f"nats, per iteration; shaded: the band around {dtarg:g}")


def _draw_beta(axes: "Axes", steps: Sequence[int], beta: Sequence[float]) -> None:
    axes.plot(steps, beta, color=BLUE, linewidth=1.5, drawstyle="steps-post", **_marker(steps))
    axes.set_yscale("log")
    _headline(axes, "Beta", "weight of the KL penalty: up above the band, down below it")


def _headline(axes: "Axes", name: str, meaning: str) -> None:
    axes.set_title(name, loc="left", fontsize=11, fontweight="bold", color="#1b2127")
    axes.set_title(meaning, loc="right", fontsize=9, color=GREY)


def _marker(steps: Sequence[int]) -> Any:
    """One point makes no line: show it."""
    return {"marker": "o"} if len(steps) == 1 else {}
