"""A callable that builds a distribution, called once on parameters made for it.

So it is seen whether it passes its parameters on untouched, and need not be called again.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from dis import get_instructions, hasjabs, hasjrel
from functools import partial
from inspect import getclosurevars
from types import BuiltinFunctionType, FunctionType, ModuleType, NoneType
from typing import Any

import torch
from torch import Tensor
from torch import distributions as td

from klppo_compile.distributions import FAMILIES
from klppo_compile.recognise import KNOWN_ROOTS, Described, describe
from klppo_compile.records import Softmax

# Many and few of everything, in more than one number of dimensions: what a callable takes out or
# away, or tells by the shape, shows in one of them.
PROBE_SHAPES = ((2, 3, 4), (3, 1, 5), (7, 4099), (2, 17, 33), (4, 1))
CONSTANTS = (int, float, str, NoneType, torch.dtype)
# what a distribution declares about itself as data
DECLARATIONS = ("arg_constraints", "support", "has_rsample", "has_enumerate_support")
# an import, or a function made inside: what they refer to is not seen from outside
REACHING_OUT = ("IMPORT_NAME", "MAKE_FUNCTION")
# a branch or a loop may go another way for other values, or without gradients
BRANCHES = {*hasjabs, *hasjrel}


@dataclass(frozen=True, eq=False)
class Untouched:
    """Reads what a callable was seen to pass on: the named parameters, in the probe's terms."""

    family: str
    sources: tuple[str, ...]
    event_dims: int
    one_hot: bool
    centre: float
    half_width: float
    safe: bool
    fewest_dims: int = 0

    def __call__(self, given: Mapping[str, Any]) -> Described:
        """The head of these parameters.

        Raises:
            ValueError: they have fewer dimensions than the callable was seen to take.
        """
        parameters = torch.broadcast_tensors(*[given[s] for s in self.sources])
        if parameters[0].ndim < self.fewest_dims:
            raise ValueError(
                f"The actor's distribution takes parameters of {self.fewest_dims} dimensions or "
                f"more; got {self.sources[0]!r} of shape {list(parameters[0].shape)}. Check its "
                "event dimensions."
            )
        return Described(
            FAMILIES[self.family],
            tuple(parameters),
            self.event_dims,
            self.one_hot,
            centre=self.centre,
            half_width=self.half_width,
            safe=self.safe,
        )


def untouched(kind: Any, names: tuple[str, ...]) -> Untouched | None:
    """How to read the head without `kind`, if it passes its parameters on untouched, else None.

    A Gaussian or Bernoulli must hold the very tensors it got; a softmax must hold their log-softmax
    to the bit, over a range in which a clamp or a temperature would show. A callable that could do
    otherwise the next time is not tried, nor does one serve that tells shapes apart. Two shapes at
    least must be of a kind that it takes.
    """
    if not depends_on_arguments_alone(kind):
        return None
    seen: list[Untouched | None] = []
    dims = []
    for shape in PROBE_SHAPES:
        with torch.inference_mode(False), torch.enable_grad():
            probe = _probe(names, shape)
            try:
                found = _made_of(probe, kind)
            except Exception:  # noqa: BLE001, S112 - whatever a foreign callable raises: it has no such shape
                continue
        if shape[-1] == 1 and found is not None and isinstance(found.family, Softmax):
            continue  # one action is all of the mass whatever its logit, and torchrl drops it
        seen.append(_in_terms_of_probe(found, probe))
        dims.append(len(shape))
    first = seen[0] if len(seen) > 1 else None
    if first is None or not all(x is not None and vars(x) == vars(first) for x in seen):
        return None
    return replace(first, fewest_dims=0 if 2 in dims else min(dims))


def _in_terms_of_probe(found: Described | None, probe: dict[str, Tensor]) -> Untouched | None:
    """How to read what was made of a probe, if its parameters were passed on."""
    names = tuple(probe)
    if found is None or found.indices is not None:
        return None
    if not all(x.requires_grad for x in found.parameters):
        return None  # it takes the gradient away
    if isinstance(found.family, Softmax):
        if names != ("logits",):
            return None
        raw = probe["logits"]
        same = torch.equal(found.parameters[0], raw - raw.logsumexp(-1, keepdim=True))
        return _in_terms_of(found, names) if same else None
    owner = {_place(p): name for name, p in probe.items()}
    sources = tuple(owner.get(_place(p), "") for p in found.parameters)
    told_apart = len(owner) == len(probe)  # fake tensors have no places
    return _in_terms_of(found, sources) if told_apart and all(sources) else None


def _place(x: Tensor) -> tuple[Any, ...]:
    return x.data_ptr(), x.shape, x.stride()


def _in_terms_of(found: Described, sources: tuple[str, ...]) -> Untouched | None:
    if isinstance(found.centre, Tensor) or isinstance(found.half_width, Tensor):
        return None
    return Untouched(
        found.family.name,
        sources,
        found.event_dims,
        found.one_hot,
        found.centre,
        found.half_width,
        found.safe,
    )


def _probe(names: tuple[str, ...], shape: tuple[int, ...]) -> dict[str, Tensor]:
    # On the CPU whatever the default device: meta tensors have no places to tell them by.
    generator = torch.Generator("cpu").manual_seed(0)
    options: dict[str, Any] = {"generator": generator, "device": "cpu"}
    probe = {name: torch.rand(shape, **options) * 0.8 + 0.1 for name in names}
    if names == ("logits",):
        wide = torch.randn(shape, **options)
        if shape[-1] > 1:
            flat = wide.view(-1, shape[-1])
            flat[0, 0], flat[-1, 1], flat[1, 2], flat[2, 3] = 1e3, -1e3, 40.0, -torch.inf
        probe["logits"] = wide
    return {name: x.requires_grad_() for name, x in probe.items()}


def _made_of(probe: dict[str, Tensor], kind: Any) -> Described | None:
    """What a callable makes of a probe; None also where it writes into it."""
    before = [x._version for x in probe.values()]  # noqa: SLF001 - what counts writes in place
    found = describe(kind(**probe))
    return found if before == [x._version for x in probe.values()] else None  # noqa: SLF001


# ---- what could change a callable's mind


def depends_on_arguments_alone(kind: Any) -> bool:
    """Whether nothing that may change later, say an annealed temperature, can reach a callable.

    It must refer to nothing but torch's, torchrl's and tensordict's classes, functions and modules,
    and to functions and classes of distributions that refer to nothing else themselves.
    """
    if isinstance(kind, BuiltinFunctionType):
        return True
    if isinstance(kind, partial):
        constants = (*kind.args, *kind.keywords.values())
        return depends_on_arguments_alone(kind.func) and _all_constant(constants)
    if isinstance(kind, ModuleType | FunctionType | type) and _root(kind) in KNOWN_ROOTS:
        return True
    if isinstance(kind, type):
        return issubclass(kind, td.Distribution) and _closed_class(kind)
    return isinstance(kind, FunctionType) and _closed(kind)


def _root(x: Any) -> str:
    home = x.__name__ if isinstance(x, ModuleType) else x.__module__
    return str(home).split(".")[0]


def _all_constant(values: Any) -> bool:
    return all(isinstance(x, CONSTANTS) for x in values)


def _closed_class(kind: type) -> bool:
    known = (*KNOWN_ROOTS, "builtins", "typing")
    theirs = [k for k in kind.__mro__ if _root(k) not in known]
    found = [(name, x) for k in theirs for name, x in vars(k).items() if name not in DECLARATIONS]
    methods = [x for _, x in found if isinstance(x, FunctionType)]
    data = [n for n, x in found if not isinstance(x, FunctionType) and not n.startswith("__")]
    return not data and all(map(_closed, methods))


def _closed(function: FunctionType) -> bool:
    steps = list(get_instructions(function))
    if any(i.opname in REACHING_OUT or i.opcode in BRANCHES for i in steps):
        return False
    found = getclosurevars(function)
    reached = [x for name, x in found.nonlocals.items() if name != "__class__"]  # super()'s
    reached += found.globals.values()
    defaults = (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values())
    return (
        function not in reached
        and _all_constant(defaults)
        and all(map(depends_on_arguments_alone, reached))
    )
