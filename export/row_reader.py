"""From the per-row outputs of a batch to totals: masks, rows that are no numbers, the sums."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from klppo_compile.exit_codes import BadInputError
from klppo_compile.export.manifest import Manifest
from klppo_compile.export.report import floor_of, lost_by_mean, own_statistics
from klppo_compile.export.statistics import Groups
from klppo_compile.export.totals import Totals

Array = NDArray[Any]
ROW_OUTPUTS = (
    "kl",
    "log_prob",
    "ratio",
    "entropy_rows",
    "critic_rows",
    "value",
    "valid",
    "value_valid",
)


class RowReader:
    """Takes the per-row outputs of batches into totals."""

    def __init__(self, manifest: Manifest, totals: Totals, scalars: Mapping[str, float]) -> None:
        self.manifest, self.totals, self.scalars = manifest, totals, scalars
        self.settings = {
            **manifest.settings,
            "batch_dims": manifest.batch_dims,
            "advantage_repeats": _repeats(manifest),
        }
        self.names = {spec.role: spec.name for spec in manifest.inputs}
        self.divisor = float(manifest.settings["advantage_divisor"])
        self.actions = _actions(manifest)

    def take(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array], first: int) -> None:
        """Take in one batch; `first` is the number of its first row."""
        totals = self.totals
        kl = outputs["kl"].squeeze(-1)
        shape = kl.shape
        dims = self.manifest.batch_dims
        count = math.prod(shape[:dims])
        row = first * math.prod(shape[1:dims]) + np.arange(count)
        row = np.repeat(row, math.prod(shape[dims:]))
        kl, ratio = kl.reshape(-1), outputs["ratio"].reshape(-1)
        valid = outputs.get("valid", np.ones(1, bool))
        valid = np.broadcast_to(valid.reshape(-1) if valid.size > 1 else valid, kl.shape)
        old = inputs[self.names["log_prob"]].reshape(-1)
        log_ratio = outputs["log_prob"].reshape(-1).astype(np.float64) - old
        advantage = _over(inputs[self.names["advantage"]], shape) / self.divisor
        usable = np.isfinite(kl) & np.isfinite(ratio) & np.isfinite(log_ratio + advantage)
        self._refuse_nan_inputs(inputs, row, valid & ~usable, shape)
        totals.rows += count
        totals.counted += int(valid.sum())
        totals.nonfinite += int((valid & ~usable).sum())
        keep = valid & usable
        entropy = outputs.get("entropy_rows")
        self._policy(
            kl[keep],
            ratio[keep],
            log_ratio[keep],
            advantage[keep],
            None if entropy is None else entropy.reshape(-1)[keep],
            row[keep],
        )
        self._by_group(ratio[keep], advantage[keep], shape, keep)
        if "value" in outputs:
            same = valid.size == outputs["value"].size
            self._critic(inputs, outputs, valid if same else None, first)

    def _policy(
        self,
        kl: Array,
        ratio: Array,
        log_ratio: Array,
        advantage: Array,
        entropy: Array | None,
        row: Array,
    ) -> None:
        totals = self.totals
        wide = ratio.astype(np.float64)
        totals.kl.add(float(kl.sum(dtype=np.float64)))
        totals.kl_histogram.update(kl)
        totals.kl_worst.update(kl, row)
        totals.kl_series.update(kl, row)
        totals.ratio.update(ratio)
        totals.ratio_sum.add(float(wide.sum()))
        totals.ratio_squares.add(float(np.square(wide).sum()))
        totals.ratio_histogram.update(ratio)
        totals.log_ratio.add(float(log_ratio.sum()))
        totals.advantage.update(advantage)
        if not own_statistics(self.settings):
            totals.weighted_advantage.add(float((wide * advantage).sum()))
        if entropy is not None:
            totals.entropy.update(entropy)

    def _by_group(
        self, ratio: Array, advantage: Array, shape: tuple[int, ...], keep: Array
    ) -> None:
        """Advantages whose dimensions have statistics of their own."""
        dims = own_statistics(self.settings)
        if not dims:
            return
        lead = shape[: self.manifest.batch_dims]
        sizes = [size if d in dims else 1 for d, size in enumerate(lead)]
        group = np.broadcast_to(np.arange(math.prod(sizes)).reshape(sizes), lead).reshape(-1)
        group = np.repeat(group, math.prod(shape[len(lead) :]))[keep]
        totals, masked = self.totals, bool(self.totals.masked)
        # Sequences are whole in a batch; a step of all sequences is not.
        groups = Groups() if 0 in dims else totals.advantage_groups
        groups.update(advantage, ratio.astype(np.float64), group)
        if 0 in dims:
            lost = lost_by_mean(masked, self.settings)
            totals.weighted_advantage.add(groups.standardised(lost, floor_of(masked)))

    def _critic(
        self,
        inputs: Mapping[str, Array],
        outputs: Mapping[str, Array],
        valid: Array | None,
        first: int,
    ) -> None:
        totals = self.totals
        value = outputs["value"].reshape(-1).astype(np.float64)
        target = inputs[self.names["value_target"]].reshape(-1).astype(np.float64)
        distance = outputs["critic_rows"].reshape(-1).astype(np.float64)
        given = outputs.get("value_valid")
        keep = np.ones(value.shape, bool)
        if given is not None:
            keep &= np.broadcast_to(given.reshape(-1), keep.shape)
        elif valid is not None:
            keep &= valid
        counts = keep.copy()
        keep &= np.isfinite(value + target + distance)
        bad = counts & ~keep
        count = outputs["value"].shape[0]
        row = np.repeat(np.arange(first, first + count), bad.size // count)
        self._refuse_nan_inputs(inputs, row, bad, outputs["value"].shape[:1])
        totals.value_nonfinite += int(bad.sum())
        totals.value_rows += int(keep.sum())
        totals.critic.add(float(distance[keep].sum()))
        totals.value_error.update((value - target)[keep])
        totals.value_target.update(target[keep])
        if "state_value" in self.names:
            old = inputs[self.names["state_value"]].reshape(-1).astype(np.float64)
            far = np.abs(value - old)[keep] > self.scalars["clip_value"]
            totals.value_clipped += int(far.sum())

    def _refuse_nan_inputs(
        self, inputs: Mapping[str, Array], row: Array, bad: Array, shape: tuple[int, ...]
    ) -> None:
        """Rows that were recorded wrong are an error of the data, not of the policy."""
        if not bad.any():
            return
        count = math.prod(shape[: self.manifest.batch_dims])
        inner = max(1, bad.size // count)
        rows = np.unique(np.flatnonzero(bad) // inner)
        for spec in self.manifest.inputs:
            x = inputs[spec.name].reshape(count, -1)[rows]
            if np.issubdtype(x.dtype, np.floating):
                # Minus infinity is how a logit says that an action is forbidden.
                infinite = np.isposinf(x) if spec.role == "old_head" else np.isinf(x)
                broken, what = np.isnan(x) | infinite, "be finite; {!r} has NaN or infinity"
            elif spec.role == "action" and self.actions:
                broken = (x < 0) | (x >= self.actions)
                what = f"have one of {self.actions} actions; {{!r}} has another number"
            else:
                continue
            at = np.flatnonzero(broken.any(-1))
            if at.size:
                raise BadInputError(
                    f"every row that counts must {what.format(spec.key)} in row"
                    f" {int(row[rows[at[0]] * inner])}. Drop such rows, or mask them."
                )


def _repeats(manifest: Manifest) -> int:
    """How many elements of a row one advantage is for: a loss per element has many, or one each."""
    kl = next(output for output in manifest.outputs if output.name == "kl")
    advantage = manifest.input_of("advantage")
    assert advantage is not None
    return max(1, math.prod(kl.shape) // max(1, math.prod(advantage.shape)))


def _actions(manifest: Manifest) -> int:
    """How many actions an action's number may name; 0 where it is no number of one."""
    sparse = any(s.role == "old_head" and s.dtype.startswith("int") for s in manifest.inputs)
    if manifest.family != "categorical" or sparse:
        return 0
    return next((x.shape[-1] for x in manifest.outputs if x.name in manifest.head and x.shape), 0)


def _over(x: Array, shape: tuple[int, ...]) -> Array:
    """An advantage `[*B, 1]` over the rows `[*P]` that it heads, flat, float64."""
    x = x.astype(np.float64)
    while x.ndim > len(shape) and x.shape[-1] == 1:
        x = x.squeeze(-1)
    x = x.reshape(*x.shape, *[1] * (len(shape) - x.ndim))
    return np.broadcast_to(x, shape).reshape(-1)
