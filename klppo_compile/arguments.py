"""The constructor's arguments: two spellings, deprecated keys, ranges.

What is wrong is said before anything is built.
"""

import difflib
import math
import warnings
from collections.abc import Collection, Iterable, Mapping
from ctypes import c_float
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor

DEPRECATED_KEYS = {
    "advantage_key": "advantage",
    "value_target_key": "value_target",
    "value_key": "value",
}
CHOICES = {
    "loss_critic_type": ("l1", "l2", "smooth_l1"),
    "reduction": ("mean", "sum", "none"),
    "beta_update": ("forward", "manual"),
    "entropy_method": ("sample", "quadrature"),
    "backend": ("auto", "torch", "triton"),
}


def refuse_unknown(given: Iterable[str], valid: Iterable[str]) -> None:
    """Raise TypeError for a keyword that no argument has, naming the nearest that one has."""
    valid = sorted(valid)
    for name in given:
        near = difflib.get_close_matches(name, valid, n=1, cutoff=0.4)
        hint = f" Did you mean {near[0]!r}?" if near else f" Valid names: {', '.join(valid)}."
        raise TypeError(f"KLPENPPOLoss takes no argument {name!r}.{hint}")


def either(name: str, other: str, first: Any, second: Any) -> Any:
    """One of two spellings of an argument; both at once are a contradiction."""
    if first is not None and second is not None:
        raise TypeError(
            f"{name} and {other} are two spellings of one argument; got {name}={first!r} and "
            f"{other}={second!r}. Pass one of them."
        )
    return second if first is None else first


def deprecated_keys(given: Mapping[str, Any]) -> dict[str, Any]:
    """The keys that were named in the constructor, as `set_keys` takes them."""
    found = {old: key for old, key in given.items() if key is not None}
    for old, key in found.items():
        warnings.warn(
            f"{old} is deprecated; use loss.set_keys({DEPRECATED_KEYS[old]}={key!r}).",
            DeprecationWarning,
            stacklevel=4,
        )
    return {DEPRECATED_KEYS[old]: key for old, key in found.items()}


def of_python(value: Any) -> Any:
    """One of NumPy's numbers as Python's; what is none as it is."""
    numpys = isinstance(value, (np.generic, np.ndarray)) and value.shape == ()
    return value.item() if numpys and value.dtype.kind in "biuf" else value


def number(name: str, value: Any) -> float:
    """A finite real number from Python's or NumPy's, or a one-element tensor."""
    value = of_python(value)
    right_kind = isinstance(value, (int, float, Tensor)) and not isinstance(value, bool)
    if not right_kind or (isinstance(value, Tensor) and value.numel() != 1):
        raise ValueError(f"{name} must be a float or a scalar tensor, got {value!r}.")
    found = float(value)
    if not math.isfinite(found):
        raise ValueError(f"{name} must be finite, got {found}.")
    return found


def check_number(name: str, given: Any, bounds: tuple[float, float] = (1e-6, 1e6)) -> float:
    """A hyper-parameter in its range, as float32 holds it; `bounds` are beta's, held likewise."""
    found = number(name, given)
    value: float = c_float(found).value
    if not math.isfinite(value):
        raise ValueError(f"{name} must be finite in float32, got {found}.")
    if name == "increment" and value < 1.0:
        raise ValueError(f"increment should be >= 1.0 in KLPENPPOLoss, got {found:4.4f}")
    if name == "decrement" and value > 1.0:
        raise ValueError(f"decrement should be <= 1.0 in KLPENPPOLoss, got {found:4.4f}")
    if name in ("dtarg", "decrement", "clip_value", "max_importance_ratio", "beta_min", "beta_max"):
        if value <= 0.0:
            held = "" if found <= 0.0 else ", which is 0 in float32"
            raise ValueError(f"{name} must be > 0, got {found}{held}.")
    elif value < 0.0:
        raise ValueError(f"{name} must be >= 0, got {found}.")
    if name == "beta" and value != 0.0 and not bounds[0] <= value <= bounds[1]:
        raise ValueError(
            f"beta must be 0 (no penalty) or within [beta_min, beta_max] = [{bounds[0]:g}, "
            f"{bounds[1]:g}], got {found:g}. Widen the bounds or choose another beta."
        )
    return value


def beta_within(beta: Tensor, bounds: tuple[float, float]) -> Tensor:
    """A checkpoint's beta moved into its bounds, with a warning; what is no beta is left."""
    low, high = bounds
    value = number("beta", beta)
    if value <= 0.0 or low <= value <= high:
        return beta
    warnings.warn(
        f"beta {value:g} of the state dict is outside [beta_min, beta_max] = [{low:g}, {high:g}]; "
        "the nearest in them is taken. Widen the bounds to keep it.",
        UserWarning,
        stacklevel=2,
    )
    return torch.as_tensor(value, dtype=torch.float32).clamp(low, high)


def check_numbers(given: Mapping[str, Any], optional: Collection[str]) -> dict[str, float | None]:
    """All hyper-parameters in their ranges; those that are optional may be None."""
    low, high = (check_number(name, given[name]) for name in ("beta_min", "beta_max"))
    check_order(low, high)
    return {
        name: None if x is None and name in optional else check_number(name, x, (low, high))
        for name, x in given.items()
    }


def check_choice(name: str, value: str) -> str:
    """One of an argument's words."""
    if value not in CHOICES[name]:
        words = ", ".join(map(repr, CHOICES[name]))
        raise ValueError(f"{name} must be one of {words}; got {value!r}.")
    return value


def check_samples(name: str, value: Any) -> int:
    """A number of Monte-Carlo samples."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise ValueError(f"{name} must be an int >= 1, got {value!r}.")
    return int(value)


def entropy_coefficient(value: Any) -> float:
    """The entropy's coefficient; one per head needs an action of several heads."""
    if value is None:
        return 0.01
    if isinstance(value, Mapping):
        raise TypeError(
            "entropy_coeff as a mapping gives each head of a composite action its own; this "
            f"actor's action has one head. Got {dict(value)!r}; pass a number."
        )
    value = of_python(value)
    if isinstance(value, bool) or not isinstance(value, (int, float, Tensor)):
        raise TypeError(f"entropy_coeff must be a float or a Mapping[str, float], got {value!r}.")
    return check_number("entropy_coeff", value)


def critic_coefficient(actor: Any, critic: Any, value: Any) -> Any:
    """The critic's coefficient: 1 by default with a critic, None where its loss is left out."""
    if value is None and critic is not None:
        value = 1.0
    if not isinstance(value, Tensor) and value in (None, 0):
        value = None
    if actor is None or (critic is None and value is not None):
        raise TypeError("Missing positional arguments actor_network or critic_network.")
    return value


def refuse_contradictions(
    gamma: Any,
    normalize_advantage: bool,
    advantage_norm: Any,
    delay_actor: bool,
    functional: bool,
) -> None:
    """Raise for arguments that can't be together."""
    if gamma is not None:
        raise TypeError(
            "gamma is not an argument of the loss: set it on the value estimator that computes the "
            "advantage."
        )
    if normalize_advantage and advantage_norm is not None:
        raise ValueError(
            "normalize_advantage=True and advantage_norm are mutually exclusive: pass either the "
            "mean/std standardization flag or a ValueNorm instance, not both."
        )
    if delay_actor and not functional:
        raise ValueError(
            "delay_actor=True requires functional=True: the proximal policy is held in "
            "target_actor_network_params, which only exists for functionalized modules."
        )


def check_kinds(critic: Any, advantage_norm: Any) -> None:
    """Raise TypeError for objects that lack what the loss asks of them."""
    if critic is not None and not hasattr(critic, "in_keys"):
        raise TypeError(
            "critic_network must be a tensordict module, which names what it reads and writes; got "
            f"{type(critic).__name__}. Wrap it: TensorDictModule(critic, in_keys=['observation'], "
            "out_keys=['state_value'])."
        )
    if advantage_norm is not None and not callable(getattr(advantage_norm, "scale", None)):
        raise TypeError(
            "advantage_norm must have a scale(), as torchrl's ValueNorm has; got "
            f"{advantage_norm!r}."
        )


def check_order(beta_min: float, beta_max: float) -> None:
    """Raise for bounds that leave beta no room."""
    if beta_min > beta_max:
        raise ValueError(f"beta_min must not exceed beta_max; got {beta_min} and {beta_max}.")
