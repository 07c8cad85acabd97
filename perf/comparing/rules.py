"""Rows of two runs against each other: three kinds of metric, three rules.

Exact: any change is an event, and one for the worse fails unless it was accepted with a reason.
Counted: fails above +0.5 %. Timed: two runs that were not interleaved prove nothing, so a slowdown
that shows is a case for `klppo bench ab`, never a verdict, and one below some 30 % doesn't show. Of
what is timed only our speed over torchrl eager is compared.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from statistics import NormalDist

from klppo_compile.perf.comparing.accepting import Accepted, decision_on
from klppo_compile.perf.comparing.findings import Finding, Verdict
from klppo_compile.perf.measure import ENOUGH
from klppo_compile.perf.rows import Row

COUNTED_MARGIN, TIMED_MARGIN = 0.005, 0.01
OURS, PEERS = "our", "torchrl"
"""Begin of our names; and of theirs who are measured beside us: told of, not judged."""
YARDSTICKS = ("networks alone", "copy of the minimum bytes", "byte floor")
"""Begin of the names of what we are measured against: it moves with the machine and with torch."""
RATIOS = ("speed over torchrl eager",)
"""Timed metrics that two runs can be compared by, for torchrl was measured within each."""
LAUNCH_SPREAD = 0.07
"""Standard deviation of the logarithm of such a ratio between launches: of `quick`'s ratios 0.02 to
0.12, over six launches on two shared cores."""
CHIPS = ("sm_80", "sm_90", "sm_100", "gfx942")
"""Providers of kernels that were compiled for a GPU and not run."""
NODES = "ONNX nodes"
"""How many there are of all types."""
BY_TYPE = f"{NODES}, "
"""Begin of the names of counts that are 0 where they are absent beside that."""
FAULTS = (Verdict.REGRESSION, Verdict.UNDECIDED)
"""Verdicts that let no comparison pass."""
Z99 = NormalDist().inv_cdf(0.995)


def compare_rows(
    base: Sequence[Row], new: Sequence[Row], accepted: Iterable[Accepted] = ()
) -> list[Finding]:
    """Judge every metric of the workloads and providers that both sides have.

    What one side lacks of them is named: gone, it can't be told; added, there is nothing to compare
    with. Absolute times are not compared: they drift by more than any change that matters.
    """
    decisions = list(accepted)
    before, after = ({key_of(r): r for r in rows} for rows in comparable(base, new))
    common = {key[:2] for key in before} & {key[:2] for key in after}
    return [
        judge(side_of(key, before, after), side_of(key, after, before), decisions)
        for key in dict.fromkeys((*before, *after))
        if key[:2] in common
    ]


Key = tuple[str, str, str]


def key_of(row: Row) -> Key:
    """Workload, provider and metric: a run measures each once."""
    return row.workload, row.provider, row.metric


def side_of(key: Key, side: Mapping[Key, Row], other: Mapping[Key, Row]) -> Row | None:
    """One side's row. A type of node is absent where there are none, if nodes were counted."""
    workload, provider, metric = key
    if key in side or not metric.startswith(BY_TYPE):
        return side.get(key)
    total = side.get((workload, provider, NODES))
    return total and replace(other[key], value=0.0, low=0.0, high=0.0)


def comparable(base: Sequence[Row], new: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """Of both sides what two runs can be compared by, in the eyes of one side at least.

    Where the other says that it is of another kind, that is told.
    """
    keys = {key_of(row) for row in (*base, *new) if compared(row)}
    before, after = ([row for row in rows if key_of(row) in keys] for rows in (base, new))
    return before, after


def compared(row: Row) -> bool:
    """Whether two runs can be compared by this row."""
    return row.kind != "timed" or (row.metric in RATIOS and row.provider.startswith(OURS))


def judge(base: Row | None, new: Row | None, accepted: list[Accepted]) -> Finding:
    """One metric, by the rule of its kind; one side may lack it."""
    return told_of_peers(ruled(base, new, accepted))


def told_of_peers(found: Finding) -> Finding:
    """A finding as it is; what is a fault is only told where it is a peer's."""
    if not found.provider.startswith(PEERS) or found.verdict not in FAULTS:
        return found
    reason = f"{PEERS}'s own: told, not judged; {found.reason}"
    return replace(found, verdict=Verdict.ACCEPTED, reason=reason)


def ruled(base: Row | None, new: Row | None, accepted: list[Accepted]) -> Finding:
    """What the rule of its kind says of a metric, whoever it is of."""
    row = new or base
    assert row is not None
    if base is None:
        return finding(row, None, row.value, Verdict.SAME, "new: nothing to compare with")
    if new is None:
        reason = "the new side does not measure it any more"
        return finding(row, row.value, None, Verdict.UNDECIDED, reason)
    other = [
        f"{name} is {was or 'none'} and {now or 'none'}"
        for name in ("unit", "kind", "better")
        if (was := getattr(base, name)) != (now := getattr(new, name))
    ]
    if other:
        reason = f"the sides don't measure the same: {', '.join(other)}"
        return replace(
            finding(row, base.value, new.value, Verdict.UNDECIDED, reason),
            change=math.nan,
            low=math.nan,
            high=math.nan,
        )
    rules = {"exact": exact, "counted": counted, "timed": timed}
    found = rules[row.kind](base, new)
    if found.kind != "exact" or found.verdict is not Verdict.REGRESSION:
        return found
    decision = decision_on(accepted, row, base.value, new.value)
    if decision is None:
        return found
    return replace(found, verdict=Verdict.ACCEPTED, reason=f"accepted: {decision.reason}")


def exact(base: Row, new: Row) -> Finding:
    """Any change is an event."""
    if base.value == new.value:
        return finding(new, base.value, new.value, Verdict.SAME, "exactly the same")
    verdict, word = (
        (Verdict.REGRESSION, "worse") if loss_of(base, new) > 0 else (Verdict.IMPROVEMENT, "better")
    )
    step = new.value - base.value
    return finding(new, base.value, new.value, verdict, f"exact: {step:+,g} is {word}")


def counted(base: Row, new: Row) -> Finding:
    """More than 0.5 % is a change: five times the spread of counting the same again."""
    change = loss_of(base, new)
    verdict, word = Verdict.SAME, "within"
    if change > COUNTED_MARGIN:
        verdict, word = Verdict.REGRESSION, "above"
    elif change < -COUNTED_MARGIN:
        verdict, word = Verdict.IMPROVEMENT, "below"
    margin = f"{COUNTED_MARGIN:.1%}"
    limit = {"within": f"±{margin}", "above": f"+{margin}", "below": f"−{margin}"}[word]
    return finding(new, base.value, new.value, verdict, f"counted: {word} {limit}")


def timed(base: Row, new: Row) -> Finding:
    """A ratio's change with its interval: that of each median, and of launches, together.

    A slowdown beyond doubt is undecided all the same, for there is no fresh confirmation.
    """
    few = min(base.samples, new.samples)
    if few < ENOUGH:
        reason = f"an interval needs {ENOUGH} samples; one side has {few}"
        return finding(new, base.value, new.value, Verdict.UNDECIDED, reason)
    sign = 1 if new.better == "lower" else -1
    change = sign * (math.log(new.value) - math.log(base.value))
    reach = reach_of(base, new)
    verdict = Verdict.SAME
    reason = f"no change beyond ±{grown(reach):.1%}, the least that two runs apart can show"
    if change - reach > math.log1p(TIMED_MARGIN):
        verdict = Verdict.UNDECIDED
        reason = "slower, but runs apart confirm nothing: ask `klppo bench ab`"
    elif change + reach < -math.log1p(TIMED_MARGIN):
        verdict, reason = Verdict.IMPROVEMENT, "faster by more than two runs apart differ"
    bounds = sorted(grown(sign * change + x) for x in (-reach, reach))
    return replace(
        finding(new, base.value, new.value, verdict, reason), low=bounds[0], high=bounds[1]
    )


def reach_of(base: Row, new: Row) -> float:
    """How far apart a ratio of two runs may be and say nothing, as a logarithm."""
    parts = [(math.log(row.high) - math.log(row.low)) / 2 for row in (base, new)]
    # Of several launches the interval is theirs already.
    parts += [Z99 * LAUNCH_SPREAD for row in (base, new) if row.launches == 1]
    return math.hypot(*parts)


def most_hidden(base: Iterable[Row], new: Iterable[Row]) -> float | None:
    """The slowdown up to which a compared ratio doesn't show; None where none has an interval."""
    before, after = (
        {key_of(r): r for r in rows if r.kind == "timed" and r.samples >= ENOUGH and compared(r)}
        for rows in (base, new)
    )
    reaches = [reach_of(before[key], after[key]) for key in before if key in after]
    return grown(max(reaches) + math.log1p(TIMED_MARGIN)) if reaches else None


def grown(logarithm: float) -> float:
    """The change that a logarithm of a ratio stands for; huge where no float holds it."""
    return math.expm1(min(logarithm, 700.0))


def loss_of(base: Row, new: Row) -> float:
    """How much worse the new value is, as a part of the base: above 0 is worse."""
    step = new.value - base.value if new.better == "lower" else base.value - new.value
    return step / abs(base.value) if base.value else math.copysign(math.inf, step) if step else 0.0


def finding(
    row: Row, base: float | None, new: float | None, verdict: Verdict, reason: str
) -> Finding:
    """A finding whose change has no noise; no ratio to 0 or to nothing."""
    change = new / base - 1 if base and new is not None else math.nan
    return Finding(
        row.workload,
        row.provider,
        row.metric,
        row.kind,
        row.unit,
        base,
        new,
        change,
        change,
        change,
        verdict,
        reason,
    )
