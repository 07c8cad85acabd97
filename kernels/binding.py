"""Kernels, built on demand: one set per family and critic distance."""

import functools
from typing import Any

from klppo_compile.kernels import factorised, minibatch, samples, softmax, streaming
from klppo_compile.kernels.specialise import specialise
from klppo_compile.objective import DISTANCES
from klppo_compile.records import Family, Softmax


@functools.cache
def kernels(family: Family, critic: str) -> dict[str, Any]:
    """Every kernel of a family, by role."""
    bindings = {name: text for name, text in vars(family).items() if callable(text)}
    bindings["distance"], bindings["slope_of"] = DISTANCES[critic]
    templates = {
        "forward": factorised.factorised_forward,
        "backward": factorised.factorised_backward,
        "critic_forward": samples.critic_forward,
        "critic_backward": samples.critic_backward,
        "fold": minibatch.fold,
        "finalize": minibatch.finalize,
    }
    if isinstance(family, Softmax):
        templates |= {
            "forward": softmax.softmax_forward,
            "streaming": streaming.streaming_softmax,
            "again": streaming.streaming_again,
            "close": streaming.streaming_close,
            "backward": softmax.softmax_backward,
        }
    return {role: specialise(template, bindings) for role, template in templates.items()}
