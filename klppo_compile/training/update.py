"""The update: passes of minibatches over one rollout, then one move of beta."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from tensordict import TensorDict
from torch import Tensor, nn

from klppo_compile.compiling import compile_loss
from klppo_compile.exit_codes import CannotError
from klppo_compile.loss import KLPENPPOLoss
from klppo_compile.training.agent import Agent
from klppo_compile.training.settings import TrainSettings

MAX_GRAD_NORM = 0.5
REPORTED = ("loss_objective", "loss_critic", "entropy")


@dataclass(frozen=True)
class UpdateResult:
    """Means over the last pass of an update, before each optimiser step."""

    kl: float
    """KL(old || new), in nats."""
    loss_objective: float
    loss_critic: float
    entropy: float


def build_loss(agent: Agent, settings: TrainSettings) -> KLPENPPOLoss:
    """Return the loss of a run: beta moves once per iteration, and never out of reach.

    Moved by every minibatch, beta is halved by the first ones, whose KL is nearly zero whatever
    the step size; left free to fall, it no longer holds the policy when it has to.
    """
    return KLPENPPOLoss(
        agent.actor,
        agent.critic,
        dtarg=settings.dtarg,
        beta=1.0,
        beta_min=1e-3,
        beta_max=1e3,
        beta_update="manual",
        entropy_coef=settings.entropy_coef,
        critic_coef=0.5,
        loss_critic_type="l2",
        functional=False,
    )


class Updater:
    """Improves the networks on one rollout after another."""

    def __init__(self, loss: KLPENPPOLoss, settings: TrainSettings) -> None:
        self.loss = loss
        self.settings = settings
        self.parameters: list[nn.Parameter] = list(loss.parameters())
        self.optimizer = torch.optim.Adam(
            self.parameters, lr=settings.learning_rate, eps=1e-5, fused=True
        )
        self.run: Callable[[TensorDict], TensorDict] = (
            compile_loss(loss) if settings.compile else loss
        )

    def update(self, rollout: TensorDict, learning_rate: float) -> UpdateResult:
        """Make all passes over `rollout` `[N]` at one learning rate, then move beta."""
        self.optimizer.param_groups[0]["lr"] = learning_rate
        sums: dict[str, Tensor] = {}
        for _ in range(self.settings.epochs):
            shuffled = rollout[torch.randperm(rollout.shape[0])]
            minibatches = shuffled.split(self.settings.minibatch_size)
            sums = {name: torch.zeros(()) for name in ("kl", *REPORTED)}
            for minibatch in minibatches:
                outputs = self._step(minibatch)
                for name in sums:
                    sums[name] += outputs[name].detach().mean()
        means = {name: total / len(minibatches) for name, total in sums.items()}
        self.loss.update_beta(means["kl"])
        result = UpdateResult(**{name: float(mean) for name, mean in means.items()})
        if not all(torch.isfinite(mean) for mean in means.values()):
            raise CannotError(
                f"the loss must stay finite; got {result}. Start again with a lower learning rate."
            )
        return result

    def _step(self, minibatch: TensorDict) -> TensorDict:
        outputs = self.run(minibatch)
        total = outputs["loss_objective"] + outputs["loss_entropy"] + outputs["loss_critic"]
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        nn.utils.clip_grad_norm_(self.parameters, MAX_GRAD_NORM)
        self.optimizer.step()
        return outputs
