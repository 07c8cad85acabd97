"""The numbers of a whole rollout, from its totals. No sum is made here."""

import math
from collections.abc import Mapping
from typing import Any

from klppo_compile.export.totals import Evaluation, Totals

PLAIN_FLOOR, MASKED_FLOOR = 1e-6, 1e-4
"""Least deviation that an advantage is divided by, as in `advantage.standardise`."""
QUANTILES = (0.5, 0.9, 0.99, 0.999)


def report(evaluation: Evaluation) -> dict[str, Any]:
    """The numbers of the whole, by name; None where a graph doesn't have them."""
    totals, settings, scalars = evaluation.totals, evaluation.settings, evaluation.scalars
    n = max(totals.counted - totals.nonfinite, 1)
    kl = totals.kl.value / n
    squares = totals.ratio_squares.value
    ess = totals.ratio_sum.value**2 / squares if squares > 0 else 0.0
    out: dict[str, Any] = {
        "rows": totals.rows,
        "rows_counted": totals.counted,
        "rows_nonfinite": totals.nonfinite + totals.value_nonfinite,
        "kl_mean": kl,
        "kl_max": totals.kl_worst.rows[0][1] if totals.kl_worst.rows else math.nan,
    }
    for q in QUANTILES:
        out[f"kl_p{100 * q:g}"] = totals.kl_histogram.quantile(q)
    out |= {
        "kl_approx": -totals.log_ratio.value / n,
        "ratio_mean": totals.ratio_sum.value / n,
        "ratio_std": math.sqrt(max(totals.ratio.variance, 0.0)) if totals.ratio.count else math.nan,
        "ratio_min": totals.ratio.low,
        "ratio_max": totals.ratio.high,
        "ratio_p1": totals.ratio_histogram.quantile(0.01),
        "ratio_p99": totals.ratio_histogram.quantile(0.99),
        "effective_sample_size": ess,
        "ess_fraction": ess / n,
    }
    objective = _objective(totals, settings, scalars, kl, n)
    if objective is not None:
        out["loss_objective"] = objective
    if totals.entropy.count:
        scale = n if settings["reduction"] == "sum" else 1
        out["entropy"] = totals.entropy.mean
        out["entropy_min"] = totals.entropy.low
        out["loss_entropy"] = -scalars["entropy_coeff"] * totals.entropy.mean * scale
    if totals.value_rows:
        out |= _critic_report(totals, settings, scalars)
    return out


def _objective(
    totals: Totals, settings: Mapping[str, Any], scalars: Mapping[str, float], kl: float, n: int
) -> float | None:
    """E[beta KL - ratio advantage]; a normalised advantage has the statistics of all rows."""
    weighted = totals.weighted_advantage.value / n
    if settings["normalize_advantage"]:
        if settings["normalize_advantage_exclude_dims"]:
            return None
        moments, masked = totals.advantage, bool(totals.masked)
        freedom = moments.count if masked else max(moments.count - 1, 1)
        floor = MASKED_FLOOR if masked else PLAIN_FLOOR
        deviation = max(math.sqrt(moments.squares / freedom), floor) if moments.count else 1.0
        weighted = (weighted - moments.mean * totals.ratio_sum.value / n) / deviation
    beta = scalars["beta"]
    mean = (beta * kl if beta > 0.0 else 0.0) - weighted
    return mean * n if settings["reduction"] == "sum" else mean


def _critic_report(
    totals: Totals, settings: Mapping[str, Any], scalars: Mapping[str, float]
) -> dict[str, float]:
    loss = scalars["critic_coeff"] * totals.critic.value
    target = totals.value_target.squares
    out = {
        "loss_critic": loss if settings["reduction"] == "sum" else loss / totals.value_rows,
        "value_error_mean": totals.value_error.mean,
        "value_error_std": math.sqrt(totals.value_error.variance),
        "explained_variance": 1.0 - totals.value_error.squares / target if target else -math.inf,
    }
    if "clip_value" in scalars:
        out["value_clip_fraction"] = totals.value_clipped / totals.value_rows
    return out


def to_json_number(x: Any) -> Any:
    """A number, or None where JSON has no such number."""
    return x if not isinstance(x, float) or math.isfinite(x) else None
