"""How a head is read from its parameters alone, without building the distribution.

Building one normalises the logits, which costs the digits a small KL lives in, checks values, which
waits for the device, and is work.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from klppo_compile.distributions import FAMILIES
from klppo_compile.probing import depends_on_arguments_alone, untouched
from klppo_compile.recognise import KNOWN_ROOTS, Described, bernoulli_logits, categorical_logits

PARAMETERS = {"loc", "scale", "logits", "probs", "mask", "indices"}


@dataclass(frozen=True)
class Reading:
    """Reads a head from its parameters alone, and constants that go with the class."""

    read: Callable[[Mapping[str, Any]], Described]
    constants: Mapping[str, Any]
    traced: Mapping[str, Any]  # the same, as Dynamo can guard them

    def __call__(self, given: Mapping[str, Any]) -> Described:
        """The head of these parameters."""
        constants = self.traced if torch.compiler.is_compiling() else self.constants
        return self.read({**constants, **given})


def direct_reading(
    kind: Any, constants: Mapping[str, Any], names: tuple[str, ...]
) -> Reading | None:
    """Return how to read a head from its parameters, or None where only the distribution tells.

    Args:
        kind: the distribution's class, or a callable that builds one.
        constants: keyword arguments it gets beside its parameters.
        names: of its parameters.
    """
    if not constants and _is_class_with_constants(kind):
        kind, constants = kind.func, kind.keywords
    root, name = str(getattr(kind, "__module__", "")).split(".")[0], getattr(kind, "__name__", "")
    if isinstance(kind, type) and root in KNOWN_ROOTS:
        ours = name in _READINGS and set(names) <= PARAMETERS
        return Reading(_READINGS[name], constants, _for_dynamo(constants)) if ours else None
    # constants may change, and then what a callable does with them
    probed = None if constants else untouched(kind, names)
    return None if probed is None else Reading(probed, constants, constants)


def _for_dynamo(constants: Mapping[str, Any]) -> Mapping[str, Any]:
    """The constants with NumPy's bounds as tensors: Dynamo fails to guard arrays in a dict."""
    bounds = {name: _bound(x) for name, x in constants.items() if name in ("low", "high")}
    same = all(x is constants[name] for name, x in bounds.items())
    return constants if same else {**constants, **bounds}


def _is_class_with_constants(kind: Any) -> bool:
    """Whether it is a partial that is as good as its class and `distribution_kwargs`."""
    if not isinstance(kind, partial) or kind.args or not isinstance(kind.func, type):
        return False
    return _is_read_by_name(kind.func) and depends_on_arguments_alone(kind)


def _is_read_by_name(kind: type) -> bool:
    return kind.__name__ in _READINGS and kind.__module__.split(".")[0] in KNOWN_ROOTS


def _together(loc: Tensor, scale: Any) -> tuple[Tensor, Tensor]:
    """Location and scale in one shape; a number is one in the location's dtype, as torch's own."""
    if not isinstance(scale, Tensor):
        scale = torch.as_tensor(scale, dtype=loc.dtype, device=loc.device)
    loc, scale = torch.broadcast_tensors(loc, scale)
    return loc, scale


def _bound(bound: Any) -> Any:
    """NumPy's arrays as tensors over the same memory, its numbers as Python's.

    They keep their dtype, as with torchrl: it says how near to a bound an action is held.
    """
    if isinstance(bound, Tensor) or not hasattr(bound, "__array__"):
        return bound
    # Whatever the default device: not a copy.
    return torch.as_tensor(bound, device="cpu") if bound.ndim else float(bound)


def _where(loc: Tensor, bound: Any) -> Any:
    """A bound where the location is, as torchrl takes it."""
    bound = _bound(bound)
    return bound.to(loc.device) if isinstance(bound, Tensor) else bound


def _read_normal(given: Mapping[str, Any]) -> Described:
    loc, scale = _together(given["loc"], given["scale"])
    return Described(FAMILIES["normal"], (loc, scale), 0)


def _read_tanh_normal(given: Mapping[str, Any]) -> Described:
    """torchrl's TanhNormal; its constructor reads the bounds on the host."""
    loc, scale = given["loc"], given["scale"]
    low, high = (
        _where(loc, given.get(name, unit)) for name, unit in (("low", -1.0), ("high", 1.0))
    )
    if callable(scale) and not isinstance(scale, Tensor):
        scale = scale(loc)
    if given.get("tanh_loc", False):
        upscale = given.get("upscale", 5.0)
        loc = (loc / upscale).tanh() * upscale + (high - low) / 2 + low
        # with the default bounds torchrl leaves the centre out; (1 - -1) / 2 + -1 is 0 as well
    dims = given.get("event_dims")
    loc, scale = _together(loc, scale)
    return Described(
        FAMILIES["tanh_normal"],
        (loc, scale),
        min(1, loc.ndim) if dims is None else dims,
        centre=(high + low) / 2,
        half_width=(high - low) / 2,
        safe=given.get("safe_tanh", True),
    )


def _read_bernoulli(given: Mapping[str, Any]) -> Described:
    logits: Tensor | None = given.get("logits")
    if logits is None:
        logits = bernoulli_logits(given["probs"])
    return Described(FAMILIES["bernoulli"], (logits,), 0)


def _logits(given: Mapping[str, Any]) -> Tensor:
    logits, probs = given.get("logits"), given.get("probs")
    if logits is None:
        assert probs is not None
        return categorical_logits(probs)
    return logits  # type: ignore[no-any-return]


def _read_categorical(given: Mapping[str, Any]) -> Described:
    return Described(FAMILIES["categorical"], (_logits(given),), 0)


def _read_one_hot(given: Mapping[str, Any]) -> Described:
    return Described(FAMILIES["categorical"], (_logits(given),), 0, one_hot=True)


def _read_masked(given: Mapping[str, Any], one_hot: bool = False) -> Described:
    logits, mask, indices = _logits(given), given.get("mask"), given.get("indices")
    forbidden = given.get("neg_inf", -torch.inf)
    if mask is not None:
        masked = torch.where(mask, logits, forbidden)
        return Described(FAMILIES["categorical"], (masked,), 0, one_hot)
    assert indices is not None
    padding = given.get("padding_value")
    at = indices if padding is None else torch.where(indices == padding, 0, indices)
    chosen = logits.gather(-1, at)
    if padding is not None:
        chosen = torch.where(indices == padding, -torch.inf, chosen)
    actions = logits.shape[-1]
    return Described(FAMILIES["categorical"], (chosen,), 0, one_hot, indices, actions)


def _read_masked_one_hot(given: Mapping[str, Any]) -> Described:
    return _read_masked(given, one_hot=True)


_READINGS: dict[str, Callable[[Mapping[str, Any]], Described]] = {
    "Normal": _read_normal,
    "TanhNormal": _read_tanh_normal,
    "Bernoulli": _read_bernoulli,
    "Categorical": _read_categorical,
    "OneHotCategorical": _read_one_hot,
    "OneHotCategoricalStraightThrough": _read_one_hot,
    "MaskedCategorical": _read_masked,
    "MaskedOneHotCategorical": _read_masked_one_hot,
}
