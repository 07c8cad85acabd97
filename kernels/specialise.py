"""The same source text with other globals.

Formulas are bound to Triton's vocabulary, templates to a family's formulas.
"""

import functools
import inspect
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import triton
import triton.language as tl

from klppo_compile.kernels import vocabulary

Function = Callable[..., Any]


@dataclass(frozen=True)
class Free:
    """A function that a template names and `specialise` binds: a family's or the critic's."""

    name: str

    def __call__(self, *_: Any) -> Any:
        """Only a specialised copy of the template can call it."""
        raise TypeError(
            f"{self.name} is bound by specialise(template, bindings); the template does not run."
        )


@functools.cache
def device_function(function: types.FunctionType) -> Any:
    """`function`, same text, for Triton: the vocabulary is bound, other functions likewise."""
    function = inspect.unwrap(function)  # the text itself, where eager mode takes an operator
    names = [name for name in function.__code__.co_names if name in function.__globals__]
    return _jit(function, {name: _bind(name, function.__globals__[name]) for name in names})


def specialise(template: Any, bindings: Mapping[str, Any]) -> Any:
    """A kernel: the template's text, its `Free` names bound, the parts that it names likewise."""
    return _jit(template, _scope(template, bindings), do_not_specialize=("N", "G", "STEPS", "HEAD"))


def _scope(template: types.FunctionType, bindings: Mapping[str, Any]) -> dict[str, Any]:
    scope = dict(template.__globals__)
    for name in template.__code__.co_names:
        value = scope.get(name)
        if isinstance(value, Free):
            # A family without this formula never reaches the line that names it.
            bound = bindings.get(name)
            scope[name] = None if bound is None else device_function(bound)
        elif isinstance(value, types.FunctionType):
            ours = value.__module__.startswith("klppo_compile.kernels.")
            scope[name] = _jit(value, _scope(value, bindings)) if ours else device_function(value)
    return scope


def _bind(name: str, value: Any) -> Any:
    if name in vocabulary.__all__:
        return getattr(vocabulary, name)
    return device_function(value) if callable(value) else tl.constexpr(value)


def _jit(function: types.FunctionType, scope: Mapping[str, Any], **options: Any) -> Any:
    if function.__code__.co_flags & inspect.CO_VARARGS:
        raise TypeError(
            f"what Triton compiles must name its parameters; {function.__name__} takes any number "
            "by *, which Triton can't before 3.8. Name each."
        )
    # FunctionType starts bare: tl.constexpr parameters are annotations, and defaults count.
    # Triton evaluates annotations: Tensor is its own.
    globals_ = {**scope, "tl": tl, "Tensor": tl.tensor, "__name__": function.__module__}
    if triton.knobs.runtime.interpret:
        # Triton 3.8 interprets a constant times a tensor as a constant.
        globals_ |= {k: v.value for k, v in scope.items() if isinstance(v, tl.constexpr)}
    copy = types.FunctionType(function.__code__, globals_, function.__name__, function.__defaults__)
    copy.__annotations__ = function.__annotations__
    return triton.jit(copy, **options)
