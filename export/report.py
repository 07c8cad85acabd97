"""The numbers of a whole rollout, from its totals. No sum is made here."""

import math
from collections.abc import Mapping
from typing import Any

from klppo_compile.export.statistics import Sum
from klppo_compile.export.totals import Evaluation, Totals

PLAIN_FLOOR, MASKED_FLOOR = 1e-6, 1e-4
"""Least deviation that an advantage is divided by, as in `advantage.standardise`."""
QUANTILES = (0.5, 0.9, 0.99, 0.999)


def own_statistics(settings: Mapping[str, Any]) -> tuple[int, ...]:
    """The batch dimensions along which an advantage is standardised apart from the others.

    Of an advantage `[*B, 1]`; where its last dimension is excluded too, nothing is left to
    standardise over a row, which then stays as it is.
    """
    if not settings["normalize_advantage"]:
        return ()
    dims = settings["batch_dims"]
    kept = {d % (dims + 1) for d in settings["normalize_advantage_exclude_dims"]}
    return () if len(kept) > dims else tuple(sorted(kept - {dims}))


def standardises(settings: Mapping[str, Any]) -> bool:
    """Whether anything of an advantage is standardised."""
    dims = settings["batch_dims"] + 1
    kept = {d % dims for d in settings["normalize_advantage_exclude_dims"]}
    return bool(settings["normalize_advantage"]) and len(kept) < dims


def floor_of(masked: bool) -> float:
    """Least deviation that an advantage is divided by."""
    return MASKED_FLOOR if masked else PLAIN_FLOOR


def lost_by_mean(masked: bool, settings: Mapping[str, Any]) -> int:
    """Degrees of freedom that a mean takes, where an advantage counts for several elements."""
    return 0 if masked else settings["advantage_repeats"]


def report(evaluation: Evaluation) -> dict[str, Any]:
    """The numbers of the whole, by name; a mean of no rows is NaN, which passes no gate."""
    totals, settings, scalars = evaluation.totals, evaluation.settings, evaluation.scalars
    n = totals.counted - totals.nonfinite
    kl = _mean(totals.kl, n)
    squares = totals.ratio_squares.value
    ess = totals.ratio_sum.value**2 / squares if squares > 0 else math.nan
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
        "kl_approx": -_mean(totals.log_ratio, n),
        "ratio_mean": _mean(totals.ratio_sum, n),
        "ratio_std": math.sqrt(totals.ratio.variance),
        "ratio_min": totals.ratio.low if n else math.nan,
        "ratio_max": totals.ratio.high if n else math.nan,
        "ratio_p1": totals.ratio_histogram.quantile(0.01),
        "ratio_p99": totals.ratio_histogram.quantile(0.99),
        "effective_sample_size": ess,
        "ess_fraction": ess / n if n else math.nan,
        "loss_objective": _objective(totals, settings, scalars, kl, n),
    }
    if totals.entropy.count:
        scale = n if settings["reduction"] == "sum" else 1
        out["entropy"] = totals.entropy.mean
        out["entropy_min"] = totals.entropy.low
        # 0 added, for a coefficient of 0 would print as -0.
        out["loss_entropy"] = 0.0 - scalars["entropy_coeff"] * totals.entropy.mean * scale
    if totals.value_rows:
        out |= _critic_report(totals, settings, scalars)
    return out


def _mean(total: Sum, n: int) -> float:
    return total.value / n if n else math.nan


def _objective(
    totals: Totals, settings: Mapping[str, Any], scalars: Mapping[str, float], kl: float, n: int
) -> float:
    """E[beta KL - ratio advantage]; a normalised advantage has the statistics of all rows."""
    if not n:
        return math.nan
    weighted, masked = totals.weighted_advantage.value / n, bool(totals.masked)
    lost = lost_by_mean(masked, settings)
    own = own_statistics(settings)
    if own and 0 not in own:
        weighted = totals.advantage_groups.standardised(lost, floor_of(masked)) / n
    elif not own and standardises(settings) and totals.rows > 1:
        moments = totals.advantage
        freedom = max(moments.count - lost, 1)
        deviation = max(math.sqrt(moments.squares / freedom), floor_of(masked))
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
