"""What crosses a file boundary: every tensor is a field here, with its shape and meaning.

Shapes: `[*B]` the batch, `[*P]` the policy's rows (the batch, or more where a log-prob is per
    element or per token), D the event,
K softmax heads of one row, A actions.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

Text = Callable[..., Any]


@dataclass(frozen=True, eq=False)
class Factorised:
    """A family whose row is the sum of its elements. Every function is elementwise, in nats.

    Attributes:
        name: the family's name; its file's stem.
        distribution: the class in `torch.distributions` that it is.
        parameters: names of the head's parameters, each `[*P, D]`.
        log_prob: `(action, *new)`.
        kl: `(*old, *new)`, KL(old || new).
        entropy: `(*new)`.
        vjp: `(g_log_prob, g_kl, g_entropy, action, *old, *new)` to one gradient per parameter.
        squashed: the action is the tanh of the distribution's.
        correction: `(noise, *new)`, what the entropy adds at one draw of standard-normal noise, or
            None.
        correction_vjp: `(g, noise, *new)` to one gradient per parameter.
        backends: where the text can run.
    """

    name: str
    distribution: str
    parameters: tuple[str, ...]
    log_prob: Text
    kl: Text
    entropy: Text
    vjp: Text
    squashed: bool = False
    correction: Text | None = None
    correction_vjp: Text | None = None
    backends: tuple[str, ...] = ("torch", "triton", "onnx")


@dataclass(frozen=True, eq=False)
class Softmax:
    """A family over A actions: moments per action, closed once per row. In nats.

    Attributes:
        name, distribution, backends: as in `Factorised`.
        parameters: `("logits",)`, `[*P, K, A]`.
        fall: `(x, old, new)` per action, to the old less the new logit; x is the log of q.
        level: `(old_top, top, mean_fall)` per row, to the constant of the new logits.
        moments: `(q, p, r, u, y)` per action, to what is summed over actions beside q and p, and
            to psi(u) of a small u.
        close: `(picked, log_q, log_p, u, psi_u, y)` per row, to log-prob, KL, entropy and m.
        pulls: `(g_log_prob, g_entropy, entropy, m)` per row, to what its gradients share.
        vjp: `(g_log_prob, g_kl, g_entropy, *pulls, m, hit, old_log_p, log_p, u)` per action.
        vjp_of: the same where they are at hand: `(..., hit, q, p, log_p, u, psi_u)`.
    """

    name: str
    distribution: str
    parameters: tuple[str, ...]
    fall: Text
    level: Text
    moments: Text
    close: Text
    pulls: Text
    vjp: Text
    vjp_of: Text
    backends: tuple[str, ...] = ("torch", "triton", "onnx")


@dataclass(frozen=True, eq=False)
class Rows:
    """No family of ours: each row's log-prob, KL and entropy come ready, differentiable."""

    name: str = "rows"
    parameters: tuple[str, ...] = ("log_prob", "kl", "entropy")
    backends: tuple[str, ...] = ("torch",)


Family = Factorised | Softmax | Rows


@dataclass(frozen=True, eq=False)
class PolicyHead:
    """One action head: its family, the action taken, the old and the new policy's parameters.

    Attributes:
        family: whose text the head is computed with.
        action: `[*P, D]` factorised; `[*P, K]` integer softmax; None for rows. Carries no gradient.
        old: parameters of the behaviour (or proximal) policy, in the family's order: `[*P, D]` or
            `[*P, K, A]`; `()` for rows.
        new: parameters of the policy in training, same shapes; for rows log-prob, KL and entropy
            `[*P]`.
        log_volume: `[*P]` or `[]`, log of the volume of the action's unit, summed over D: the
            log-prob loses it and the entropy gains it.
        noise: `[S, ..., D]` draws (or nodes) of standard-normal noise for an entropy without closed
            form.
        weights: `[S]` their weights, which sum to 1.
        name: the head's name where an action is composite.
    """

    family: Family
    action: Tensor | None
    old: tuple[Tensor, ...]
    new: tuple[Tensor, ...]
    log_volume: Tensor | None = None
    noise: Tensor | None = None
    weights: Tensor | None = None
    name: str = "action"


class HeadRows(NamedTuple):
    """One head's rows; entropy [*P, D] or [*P, K] is not summed: often only its total counts."""

    log_prob: Tensor  # [*P]
    kl: Tensor  # [*P]
    entropy: Tensor  # [*P, ...]
    kept: tuple[Tensor, ...]  # what the backward of a softmax takes: [*P, K, 1] and [*P, K, A]


@dataclass(frozen=True, eq=False)
class Minibatch:
    """What one loss is computed from.

    Attributes:
        policy: the action's heads; their log-probs, KLs and entropies are added up.
        old_log_prob: `[*P]` log-prob of the action under the behaviour policy.
        advantage: `[*P]`, or a shape that broadcasts to it without enlarging it.
        value: `[*V]` the critic's estimate, or None without a critic.
        value_target: `[*V]` what it should be.
        old_value: `[*V]` the estimate at collection time, for value clipping.
        mask: `[*P]` bool, True where a row counts; None where all do.
        value_mask: `[*V]` the same for the critic's rows.
        proximal_log_prob: `[*P]` log-prob under the proximal policy where that isn't the behaviour
            policy (kl_approx reads it).
    """

    policy: tuple[PolicyHead, ...]
    old_log_prob: Tensor
    advantage: Tensor
    value: Tensor | None = None
    value_target: Tensor | None = None
    old_value: Tensor | None = None
    mask: Tensor | None = None
    value_mask: Tensor | None = None
    proximal_log_prob: Tensor | None = None


class Critic(NamedTuple):
    """Of a `Minibatch` what the critic's loss is computed from."""

    value: Tensor | None
    value_target: Tensor | None
    old_value: Tensor | None
    value_mask: Tensor | None


@dataclass(frozen=True)
class LossConfig:
    """Hyper-parameters. As 0-d tensors on the data's device they move without a recompilation.

    Attributes:
        dtarg: the KL aimed at, in nats.
        increment: factor on beta where the KL is above 1.5 dtarg, >= 1.
        decrement: factor on beta where the KL is below dtarg / 1.5, in (0, 1].
        beta_min, beta_max: where beta is held; 0 stays 0.
        entropy_coeff: weight of the entropy bonus; one per head where heads have their own.
        critic_coeff: weight of the critic's loss.
        clip_value: radius of value clipping, or None.
        max_importance_ratio: cap on the ratio, gradient kept, or None.
        loss_critic_type: "l1", "l2" or "smooth_l1".
        reduction: "mean", "sum" or "none".
        entropy_bonus: whether the entropy and its loss are computed.
        explained_variance: whether the critic's explained variance is.
        effective_sample_size: whether the effective sample size is.
    """

    dtarg: float | Tensor = 0.01
    increment: float | Tensor = 2.0
    decrement: float | Tensor = 0.5
    beta_min: float | Tensor = 1e-6
    beta_max: float | Tensor = 1e6
    entropy_coeff: float | Tensor | tuple[float | Tensor, ...] = 0.01
    critic_coeff: float | Tensor = 1.0
    clip_value: float | Tensor | None = None
    max_importance_ratio: float | Tensor | None = None
    loss_critic_type: str = "smooth_l1"
    reduction: str = "mean"
    entropy_bonus: bool = True
    explained_variance: bool = True
    effective_sample_size: bool = True

    def __post_init__(self) -> None:
        for name, words in CHOICES.items():
            if getattr(self, name) not in words:
                raise ValueError(
                    f"{name} must be one of {', '.join(map(repr, words))}; "
                    f"got {getattr(self, name)!r}."
                )


CHOICES = {"loss_critic_type": ("l1", "l2", "smooth_l1"), "reduction": ("mean", "sum", "none")}


@dataclass(frozen=True, eq=False)
class LossOutput:
    """The losses, differentiable, and what is worth watching, detached.

    A loss is `[]` with reduction mean or sum, and rows with none.

    Attributes:
        loss_objective: `[]` or `[*P]`, beta KL - ratio advantage.
        loss_entropy: `[]` or `[*P]`, -entropy_coeff entropy; None without the bonus.
        loss_critic: `[]` or `[*V]`; None without a critic.
        kl: `[*P]` KL(old || new) per row, in nats.
        mean_kl: `[]` its mean over valid rows, which moves beta.
        kl_approx: `[]` mean of old (or proximal) log-prob - log-prob.
        entropy: `[]` mean over valid rows, in nats; None without the bonus.
        effective_sample_size: `[]` (sum of ratios)^2 / sum of squared ratios; None where not asked
            for.
        value_clip_fraction: `[]` share of values that clipping moved; None without clipping.
        explained_variance: `[1]` 1 - var(target - value) / var(target); None where not asked for.
        nonfinite: `[]` int64, rows whose inputs, KL or objective are not finite.
        next_beta: `[]` float32, beta after the adaptive rule.
        log_prob, ratio: `[*P]` of the action under the new policy, and the ratio that weighed its
            advantage.
    """

    loss_objective: Tensor
    loss_entropy: Tensor | None
    loss_critic: Tensor | None
    kl: Tensor
    mean_kl: Tensor
    kl_approx: Tensor
    entropy: Tensor | None
    effective_sample_size: Tensor | None
    value_clip_fraction: Tensor | None
    explained_variance: Tensor | None
    nonfinite: Tensor
    next_beta: Tensor
    log_prob: Tensor
    ratio: Tensor
