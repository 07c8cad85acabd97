"""`KLPENPPOLoss`: keys in, `klpen_ppo_loss`, keys out. It owns beta and the coefficients.

Drop-in for torchrl.objectives.KLPENPPOLoss (https://docs.pytorch.org/rl), which it neither imports
nor needs.
"""

from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import InteractionType, dispatch, set_interaction_type
from torch import Tensor, nn

from klppo_compile import any_size, arguments
from klppo_compile.coefficients import BETA_NUMBERS, OPTIONAL, ScheduledLoss
from klppo_compile.functional import loss_of_checked
from klppo_compile.inputs import read_minibatch
from klppo_compile.networks import recurrent_mode
from klppo_compile.peer import register_as_loss_module
from klppo_compile.policy import ActorHead, Sampling
from klppo_compile.recomputation import UsedBetas
from klppo_compile.records import LossConfig, LossOutput


@register_as_loss_module
class KLPENPPOLoss(ScheduledLoss):
    """PPO with an adaptive KL penalty, as one graph: E[beta KL(old || new) - ratio advantage].

    Schulman et al. 2017, section 4, https://arxiv.org/abs/1707.06347.

    Constructor, keys, outputs and state dict are torchrl 0.14's. The forward reads a tensordict of
    shape `[*B]` with the actor's and critic's inputs, `action`, `action_log_prob`, the behaviour
    policy's distribution parameters, `advantage` `[*B, 1]`, `value_target` `[*B, 1]` and, with
    `clip_value`, `state_value`. It returns `loss_objective`, `loss_entropy`, `loss_critic` (each
    `[]`, or rows with reduction "none") and, detached: `kl` `[*B, 1]`, `kl_approx`, `entropy`,
    `explained_variance` `[1]`, `value_clip_fraction` and `nonfinite`, the count of rows whose
    inputs, KL or objective are not finite. All are in nats.

    Beta moves after everything else, when grad is enabled and the module trains: up where the mean
    KL of the valid rows exceeds 1.5 dtarg, down where it is below dtarg / 1.5. Value and gradient
    of one call use one beta.

    Args:
        actor_network: policy, with exactly one probabilistic module; `actor=` is another name.
        critic_network: value network; `critic=` is another name.
        dtarg: KL aimed at, in nats. Default 0.01.
        beta: initial multiplier of the KL penalty; 0 switches the penalty off for good. Default
            1.0.
        increment: factor on beta where the KL is too large, >= 1. Default 2.
        decrement: factor on beta where it is too small, in (0, 1]. Default 0.5.
        samples_mc_kl: samples per row where no closed-form KL exists. Default 1.
        entropy_bonus: whether an entropy bonus is part of the loss. Default True.
        samples_mc_entropy: samples per row where the entropy has no closed form. Default 1.
        entropy_coeff, entropy_coef: weight of the entropy bonus, two spellings. Default 0.01.
        log_explained_variance: whether the critic's explained variance is computed. Default True.
        critic_coeff, critic_coef: weight of the critic's loss, two spellings; 0 leaves it out.
            Default 1.0.
        loss_critic_type: "l1", "l2" or "smooth_l1". Default "smooth_l1".
        normalize_advantage: whether the advantage is standardised over the valid rows. Default
            False.
        normalize_advantage_exclude_dims: dimensions with statistics of their own. Default ().
        advantage_norm: a torchrl ValueNorm whose `scale()` divides the advantage. Default None.
        gamma: refused; set it on the value estimator.
        separate_losses: whether the critic's loss leaves shared parameters alone. Default False.
        reduction: "mean", "sum" or "none". Default None, which is "mean".
        clip_value: radius of value clipping. Default None, no clipping.
        delay_actor: whether the KL is to a slowly updated copy of the policy; needs `functional`.
            Default False.
        max_importance_ratio: cap on the importance ratio, gradient kept. Default None, no cap.
        device: of the buffers. Default the first parameter's.
        advantage_key, value_target_key, value_key: deprecated, see `set_keys`.
        functional: whether the loss holds the networks' parameters apart from the modules. Default
            True.
        beta_min, beta_max: where beta is held. Default 1e-6 and 1e6.
        beta_update: "forward" moves beta in every training call, "manual" only in `update_beta`.
            Default "forward".
        entropy_method: "sample" or "quadrature" (64 Gauss-Hermite nodes, 4e-6) where TanhNormal's
            entropy has no closed form.
        backend: "auto", "torch" or "triton". Default "auto".

    Raises:
        TypeError: a keyword that no argument has, both spellings of one, no actor, `gamma`.
        ValueError: a number out of range or not finite, an unknown word, arguments that exclude
            each other, networks on the meta device.

    Examples:
        >>> loss = KLPENPPOLoss(actor, critic, dtarg=0.02)
        >>> out = loss(rollout)
        >>> (out["loss_objective"] + out["loss_entropy"] + out["loss_critic"]).backward()
    """

    def __init__(
        self,
        actor_network: nn.Module | None = None,
        critic_network: nn.Module | None = None,
        *,
        dtarg: float = 0.01,
        beta: float = 1.0,
        increment: float = 2,
        decrement: float = 0.5,
        samples_mc_kl: int = 1,
        entropy_bonus: bool = True,
        samples_mc_entropy: int = 1,
        entropy_coeff: float | None = None,
        critic_coeff: float | None = None,
        loss_critic_type: str = "smooth_l1",
        normalize_advantage: bool = False,
        normalize_advantage_exclude_dims: tuple[int, ...] = (),
        advantage_norm: Any = None,
        gamma: float | None = None,
        separate_losses: bool = False,
        reduction: str | None = None,
        clip_value: float | None = None,
        delay_actor: bool = False,
        max_importance_ratio: float | None = None,
        device: torch.device | str | None = None,
        log_explained_variance: bool = True,
        functional: bool = True,
        actor: nn.Module | None = None,
        critic: nn.Module | None = None,
        entropy_coef: float | None = None,
        critic_coef: float | None = None,
        advantage_key: Any = None,
        value_target_key: Any = None,
        value_key: Any = None,
        beta_min: float = 1e-6,
        beta_max: float = 1e6,
        beta_update: str = "forward",
        entropy_method: str = "sample",
        backend: str = "auto",
        **unknown: Any,
    ) -> None:
        arguments.refuse_unknown(unknown, KLPENPPOLoss.__init__.__kwdefaults__ or ())
        actor_network = actor_network if actor is None else actor
        critic_network = critic_network if critic is None else critic
        entropy_coeff = arguments.either(
            "entropy_coef", "entropy_coeff", entropy_coef, entropy_coeff
        )
        critic_coeff = arguments.either("critic_coef", "critic_coeff", critic_coef, critic_coeff)
        critic_coeff = arguments.critic_coefficient(actor_network, critic_network, critic_coeff)
        arguments.refuse_contradictions(
            gamma, normalize_advantage, advantage_norm, delay_actor, functional
        )
        arguments.check_kinds(critic_network, advantage_norm)
        numbers = {
            "dtarg": dtarg,
            "increment": increment,
            "decrement": decrement,
            "beta_min": beta_min,
            "beta_max": beta_max,
            "beta": beta,
            "entropy_coeff": arguments.entropy_coefficient(entropy_coeff),
            "critic_coeff": critic_coeff,
            "clip_value": clip_value,
            "max_importance_ratio": max_importance_ratio,
        }
        checked = arguments.check_numbers(numbers, optional=OPTIONAL)
        super().__init__()
        self._functional, self.separate_losses = functional, separate_losses
        self.delay_actor, self.entropy_bonus = delay_actor, entropy_bonus
        self.reduction = arguments.check_choice("reduction", reduction or "mean")
        self.loss_critic_type = arguments.check_choice("loss_critic_type", loss_critic_type)
        self.beta_update, self.entropy_method = beta_update, entropy_method
        self.backend = arguments.check_choice("backend", backend)
        self.samples_mc_kl = arguments.check_samples("samples_mc_kl", samples_mc_kl)
        self.samples_mc_entropy = arguments.check_samples("samples_mc_entropy", samples_mc_entropy)
        self.log_explained_variance = log_explained_variance
        self.normalize_advantage, self.advantage_norm = normalize_advantage, advantage_norm
        self.normalize_advantage_exclude_dims = normalize_advantage_exclude_dims
        self.actor_head = ActorHead(actor_network)  # type: ignore[arg-type]
        self._hold_networks(actor_network, critic_network)  # type: ignore[arg-type]
        self.used_betas = UsedBetas()
        self._register_scalars(checked, device)
        self.recurrent = recurrent_mode()
        self._init_keys(
            arguments.deprecated_keys(
                {
                    "advantage_key": advantage_key,
                    "value_target_key": value_target_key,
                    "value_key": value_key,
                }
            )
        )

    @dispatch(source="dispatch_keys")
    def forward(self, tensordict: TensorDictBase) -> TensorDict:
        """Compute the losses and metrics of a minibatch, then move beta.

        Args:
            tensordict: `[*B]`, with the entries that the class names. It is not changed.

        Returns:
            A tensordict without batch dimensions. The keys that start with "loss" are to be summed
            and differentiated.

        Raises:
            KeyError: an entry is missing; all that are get named.
            ValueError: shapes that don't belong together.
            RuntimeError: data that carry a gradient, or no advantage.
        """
        if torch.compiler.is_compiling():
            return self.run(tensordict, self.moves_beta(), self.beta)
        return self.run(tensordict, self.moves_beta(), self.used_betas.of(tensordict, self.beta))

    def compile(self, *args: Any, **options: Any) -> None:
        """`torch.nn.Module.compile`; Inductor's code for a CPU serves batches of any size."""
        super().compile(*args, **any_size.preferred(options, self.beta.device))

    def run(self, tensordict: TensorDictBase, move_beta: bool, beta: Tensor) -> TensorDict:
        """`forward`, told whether beta moves, and the beta to use."""
        self._warn_without_updater()
        with set_interaction_type(InteractionType.DETERMINISTIC), self.recurrent():
            batch, dtype = read_minibatch(self, tensordict)
            out = loss_of_checked(batch, beta, self.config(), self.backend)
        written = self._write(out, dtype)
        if move_beta:
            self.store_beta(out.next_beta)
        return written

    def config(self) -> LossConfig:
        """The hyper-parameters as `klpen_ppo_loss` takes them."""
        number = self._buffers  # an attribute that is a buffer is found last, nine times a call
        return LossConfig(
            **{name: number[name] for name in BETA_NUMBERS},
            entropy_coeff=number["entropy_coeff"],
            critic_coeff=number["critic_coeff"] if self.has_critic else 0.0,
            clip_value=number.get("clip_value"),
            max_importance_ratio=number.get("max_importance_ratio"),
            loss_critic_type=self.loss_critic_type,
            reduction=self.reduction,
            entropy_bonus=self.entropy_bonus,
            explained_variance=self.log_explained_variance,
            effective_sample_size=False,  # no key of the output
        )

    def sampling(self) -> Sampling:
        """How what has no closed form is estimated."""
        return Sampling(
            self.samples_mc_kl, self.samples_mc_entropy, self._nodes, self._node_weights
        )

    def _write(self, out: LossOutput, dtype: torch.dtype) -> TensorDict:
        found = {"kl": out.kl.unsqueeze(-1), "nonfinite": out.nonfinite}
        for name in self.all_out_keys():
            if name not in found:
                found[name] = getattr(out, name)
        chosen = {
            name: x if x.dtype == dtype or not x.is_floating_point() else x.to(dtype)
            for name, x in found.items()
            if self._selected is None or name in self._selected
        }
        return TensorDict(chosen)
