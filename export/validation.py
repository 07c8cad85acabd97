"""What a manifest must say to be believed: it may have been edited by hand. No torch, no onnx."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from klppo_compile.export.manifest import Manifest

GRAPHS = ("loss", "policy", "critic")
DTYPES = ("float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "bool")
ROLES = (
    "observation",
    "action",
    "log_prob",
    "old_head",
    "advantage",
    "value_target",
    "state_value",
    "mask",
)
SETTINGS = {
    "reduction": str,
    "loss_critic_type": str,
    "entropy_bonus": bool,
    "explained_variance": bool,
    "normalize_advantage": bool,
    "normalize_advantage_exclude_dims": list,
    "advantage_divisor": float,
    "delay_actor": bool,
    "distribution": list,
}
"""Of a loss graph, and their types."""
TEXTS = ("graph", "family", "dtype", "parameters_sha256")
ROW_OUTPUTS = ("kl", "log_prob", "ratio")
"""Outputs that every loss graph has."""


def require_sense(manifest: "Manifest") -> None:
    """Refuse a manifest whose values no export would write.

    Raises:
        ValueError: the first that is wrong, in words.
    """
    for name in TEXTS:
        _require(isinstance(getattr(manifest, name), str), name, getattr(manifest, name))
    _require(manifest.graph in GRAPHS, "graph", manifest.graph)
    for name in ("batch_dims", "batch", "opset"):
        _require(type(getattr(manifest, name)) is int, name, getattr(manifest, name))
    _require(manifest.batch_dims in {1, 2}, "batch_dims", manifest.batch_dims)
    _require(manifest.batch >= 0, "batch", manifest.batch)
    _require(_positive(manifest.tolerance), "tolerance", manifest.tolerance)
    _require(_texts(manifest.versions), "versions", manifest.versions)
    finite = all(math.isfinite(x) for x in manifest.scalars.values())
    _require(finite, "scalars", manifest.scalars)
    _require(bool(manifest.inputs), "inputs", manifest.inputs)
    for spec in manifest.inputs:
        named = isinstance(spec.name, str) and isinstance(spec.key, str)
        known = spec.dtype in DTYPES and spec.role in ROLES
        _require(named and known and min(spec.shape, default=0) >= 0, "inputs", spec)
    for output in manifest.outputs:
        typed = isinstance(output.name, str) and isinstance(output.rows, bool)
        _require(typed and min(output.shape, default=0) >= 0, "outputs", output)
    if manifest.graph == "loss":
        _require_loss(manifest)


def require_settings(settings: Any) -> None:
    """Refuse settings of a loss that no export would write.

    Raises:
        ValueError: the first that is wrong, in words.
    """
    _require(isinstance(settings, Mapping), "settings", settings)
    for name, kind in SETTINGS.items():
        _require(isinstance(settings.get(name), kind), f"settings.{name}", settings.get(name))
    dims = settings["normalize_advantage_exclude_dims"]
    _require(all(isinstance(d, int) for d in dims), "settings", dims)
    probe = settings["distribution"]
    _require(all(isinstance(x, float) and math.isfinite(x) for x in probe), "settings", probe)
    divisor = settings["advantage_divisor"]
    _require(_positive(divisor), "settings.advantage_divisor", divisor)


def _require_loss(manifest: "Manifest") -> None:
    settings = manifest.settings
    require_settings(settings)
    rows = {output.name for output in manifest.outputs if output.rows}
    _require(rows.issuperset(ROW_OUTPUTS), "outputs", sorted(rows))
    _require(bool(manifest.head) and rows.issuperset(manifest.head), "head", manifest.head)
    roles = {spec.role for spec in manifest.inputs}
    past = {spec.name for spec in manifest.inputs if spec.role == "old_head"}
    wanted = set() if settings["delay_actor"] else {f"old_{name}" for name in manifest.head}
    _require(past == wanted, "inputs of the past policy", sorted(past))
    needed = {"log_prob", "advantage"} | ({"value_target"} if "value" in rows else set())
    _require(roles >= needed, "roles", sorted(roles))
    scalars = {"beta"} | ({"entropy_coeff"} if settings["entropy_bonus"] else set())
    scalars |= {"critic_coeff"} if "value" in rows else set()
    scalars |= {"clip_value"} if "state_value" in roles else set()
    _require(manifest.scalars.keys() >= scalars, "scalars", sorted(manifest.scalars))


def _require(good: bool, name: str, found: Any) -> None:
    if not good:
        raise ValueError(f"{name} {str(found)[:80]!r}")


def _positive(x: Any) -> bool:
    return isinstance(x, int | float) and math.isfinite(x) and x > 0


def _texts(values: Any) -> bool:
    return isinstance(values, Mapping) and all(isinstance(x, str) for x in values.values())
