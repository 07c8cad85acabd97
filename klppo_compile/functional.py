"""The algorithm on one page: heads and samples to losses, metrics and the next beta.

No TensorDict, no state.
"""

import math

import torch
from torch import Tensor

from klppo_compile import backends, eager, nodes, penalty, well_formed
from klppo_compile.passes import constant
from klppo_compile.records import LossConfig, LossOutput, Minibatch


def klpen_ppo_loss(
    minibatch: Minibatch,
    beta: Tensor | float,
    config: LossConfig | None = None,
    backend: str = "auto",
) -> LossOutput:
    """Compute the KL-penalty PPO loss, its entropy and critic terms, and the next beta.

    The objective is E[beta KL(old || new) - ratio advantage] (Schulman et al. 2017, section 4,
    https://arxiv.org/abs/1707.06347). Value and gradient use one `beta`; the returned `next_beta`
    is the caller's to store.

    Args:
        minibatch: the action's heads and the samples; see `Minibatch` for shapes.
        beta: `[]` multiplier of the KL penalty.
        config: hyper-parameters; the defaults are torchrl's.
        backend: "auto", "torch" or "triton"; see `backends.choose`.

    Returns:
        `LossOutput`; losses are differentiable in every head's new parameters and in the value,
        twice not at all.

    Raises:
        ValueError: shapes, dtypes or devices that don't belong together, a word that is no choice,
            a backend that can't serve.
        TypeError: a field that is no tensor.
    """
    config = config or LossConfig()
    well_formed.minibatch(minibatch, config)
    well_formed.numbers(beta, config, len(minibatch.policy))
    return loss_of_checked(minibatch, beta, config, backend)


def loss_of_checked(
    minibatch: Minibatch, beta: Tensor | float, config: LossConfig, backend: str
) -> LossOutput:
    """`klpen_ppo_loss` for a caller that knows the shapes."""
    static = eager.Static(
        reduction=config.reduction,
        loss_critic_type=config.loss_critic_type,
        clipped=config.clip_value is not None and minibatch.value is not None,
        entropy_bonus=config.entropy_bonus,
        explained_variance=config.explained_variance and minibatch.value is not None,
        effective_sample_size=config.effective_sample_size,
    )
    if backends.choose(minibatch, backend).backend == "triton":
        out = backends.triton_loss(minibatch, numbers(minibatch, beta, config), static)
    else:
        out = torch_loss(minibatch, numbers(minibatch, beta, config), static)
    return LossOutput(**{name: out.get(name) for name in LossOutput.__dataclass_fields__})  # type: ignore[arg-type]


def torch_loss(
    minibatch: Minibatch, numbers: tuple[Tensor | float, ...], static: eager.Static
) -> dict[str, Tensor]:
    """The torch text's losses and metrics by name, and the next beta."""
    device = minibatch.old_log_prob.device
    *used, dtarg, increment, decrement, low, high = (scalar(x, device) for x in numbers)
    held = [
        snapshot(x) if isinstance(given, Tensor) else x
        for x, given in zip(used, numbers, strict=False)
    ]
    out = nodes.loss(minibatch, held, static)
    valid = eager.count(minibatch.mask, out["log_prob"])
    next_beta = penalty.adaptive(
        held[0], out["mean_kl"], valid, dtarg, increment, decrement, low, high
    )
    return out | {"next_beta": next_beta}


def numbers(
    minibatch: Minibatch, beta: Tensor | float, config: LossConfig
) -> tuple[Tensor | float, ...]:
    """What may move between calls: beta, coefficients (the entropy's per head), beta's rule."""
    cap = config.max_importance_ratio
    log_cap = math.inf if cap is None else cap.log() if isinstance(cap, Tensor) else math.log(cap)
    coeff = config.entropy_coeff
    coeffs = coeff if isinstance(coeff, tuple) else (coeff,) * len(minibatch.policy)
    radius = math.inf if config.clip_value is None else config.clip_value
    rule = (config.dtarg, config.increment, config.decrement, config.beta_min, config.beta_max)
    return (beta, config.critic_coeff, radius, log_cap, *coeffs, *rule)


def scalar(x: Tensor | float, device: torch.device) -> Tensor:
    """[] float32, made on the device: a copy from the host would wait for it."""
    if isinstance(x, Tensor):
        if x.ndim == 0 and x.dtype == torch.float32 and x.device == device and not x.requires_grad:
            return x
        return x.detach().reshape(()).to(device, torch.float32)
    if device.type == "cpu" and not torch.compiler.is_compiling() and math.isinf(x):
        return constant(x, torch.float32)  # what is left out: no caps, no radius
    return torch.full((), x, dtype=torch.float32, device=device)


def snapshot(x: Tensor) -> Tensor:
    """A copy [] that a later write to the original does not reach; backward reads it.

    The partitioner recomputes a clone in the backward graph, from a buffer that has changed by
    then; a reduction of this size it keeps (pytorch/pytorch#197039).
    """
    return x.expand(16).amax(0) if torch.compiler.is_compiling() else x.clone()
