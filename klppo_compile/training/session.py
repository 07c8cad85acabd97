"""A run in memory: everything that one iteration changes and that a resumed run needs back."""

import json
import math
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from klppo_compile.exit_codes import BadInputError
from klppo_compile.training.agent import build_agent
from klppo_compile.training.files import read_tensors, write_tensors
from klppo_compile.training.metrics import MetricsRow
from klppo_compile.training.rollout import Collector, RewardScaler, to_rollout
from klppo_compile.training.run_folder import RunConfig, load_state
from klppo_compile.training.update import Updater, build_loss

RECENT_EPISODES = 40
LAST_RATE = 0.1
"""Share of the learning rate that is left at the end: the last rollout still moves the policy."""


class Session:
    """Networks, optimiser, statistics and counters of a run; `iterate` moves them all on."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        settings = config.settings
        self.agent = build_agent(config.observation, config.action)
        self.loss = build_loss(self.agent, settings)
        self.updater = Updater(self.loss, settings)
        self.scaler = RewardScaler(settings.num_envs, settings.gamma)
        size = config.observation.size
        # Observations of the last rollout, which the normaliser takes in before the next one.
        self.pending = {"mean": torch.zeros(size), "var": torch.zeros(size)}
        self.iteration = 0
        self.seconds = 0.0
        self.best_return = -math.inf
        self.recent: deque[float] = deque(maxlen=RECENT_EPISODES)

    def iterate(self, collector: Collector) -> tuple[TensorDict, MetricsRow]:
        """Collect one rollout and improve on it; `seconds` is left to the caller."""
        settings = self.config.settings
        if self.iteration:
            # Between an update and the next rollout: the policies of one iteration, and the
            # checkpoint written after it, share their statistics.
            self.agent.normaliser.merge(**self.pending, count=settings.rollout_size)
        done = self.iteration / settings.iterations
        learning_rate = settings.learning_rate * (1 - (1 - LAST_RATE) * done)
        experience = collector.collect(settings.horizon)
        self.recent.extend(experience.episode_returns)
        rollout = to_rollout(self.agent, experience, self.scaler.scale(experience), settings)
        observation = rollout["observation"].reshape(settings.rollout_size, -1)
        self.pending = {"mean": observation.mean(0), "var": observation.var(0, correction=0)}
        result = self.updater.update(rollout, learning_rate)
        self.iteration += 1
        row = MetricsRow(
            step=self.iteration * settings.rollout_size,
            iteration=self.iteration,
            return_mean=sum(self.recent) / len(self.recent) if self.recent else math.nan,
            kl_mean=result.kl,
            beta=float(self.loss.beta),
            entropy=result.entropy,
            loss_objective=result.loss_objective,
            loss_critic=result.loss_critic,
            explained_variance=_explained_variance(rollout),
            learning_rate=learning_rate,
            seconds=self.seconds,
        )
        return rollout, row

    def state(self) -> dict[str, Tensor]:
        """Return a copy of the loss's state dict: what a checkpoint holds."""
        return {name: tensor.clone() for name, tensor in self.loss.state_dict().items()}

    def save(self, path: Path) -> None:
        """Write what `restore` needs, in one file, so that it can't disagree with itself."""
        tensors = {f"loss.{name}": tensor for name, tensor in self.loss.state_dict().items()}
        tensors |= {f"pending.{name}": tensor for name, tensor in self.pending.items()}
        tensors |= {f"reward.{name}": t for name, t in self.scaler.moments.state_dict().items()}
        for index, moments in self.updater.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": tensor for name, tensor in moments.items()}
        tensors["random.torch"] = torch.get_rng_state()
        counters = {
            "iteration": self.iteration,
            "seconds": self.seconds,
            "best_return": self.best_return if math.isfinite(self.best_return) else None,
            "recent": list(self.recent),
        }
        write_tensors(path, tensors, {"counters": json.dumps(counters, allow_nan=False)})

    def restore(self, path: Path) -> None:
        """Continue from a file that `save` wrote; the random state is torch's global one."""
        tensors, metadata = read_tensors(path)
        groups: dict[str, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            group, _, rest = name.partition(".")
            groups.setdefault(group, {})[rest] = tensor
        try:
            load_state(self.loss, groups["loss"], path)
            load_state(self.scaler.moments, groups["reward"], path)
            self._restore_optimizer(groups["optimizer"])
            size = torch.Size((self.config.observation.size,))
            _require_moments("pending", groups["pending"], {"mean": size, "var": size})
            self.pending = groups["pending"]
            self._restore_counters(json.loads(metadata["counters"]))
            torch.set_rng_state(groups["random"]["torch"])
        except (
            KeyError,
            TypeError,
            ValueError,
            RuntimeError,
            OverflowError,
            RecursionError,
        ) as error:
            if isinstance(error, BadInputError):
                raise
            raise BadInputError(
                f"{path} must be as klppo train wrote it; got {error!r}."
                " Resume an intact copy of the run folder."
            ) from error

    def _restore_counters(self, counters: Mapping[str, Any]) -> None:
        """Take the counters back, each in its range."""
        best, recent = counters["best_return"], counters["recent"]
        numbers = [counters["seconds"], 0.0 if best is None else best, *recent]
        finite = all(type(x) in (int, float) and math.isfinite(x) for x in numbers)
        iteration = counters["iteration"]
        if not finite or type(iteration) is not int or iteration < 1 or counters["seconds"] < 0:
            raise ValueError(f"counters {str(counters)[:200]}")
        self.iteration = iteration
        self.seconds = float(counters["seconds"])
        self.best_return = -math.inf if best is None else float(best)
        self.recent.extend(float(value) for value in recent)

    def _restore_optimizer(self, tensors: dict[str, Tensor]) -> None:
        """Give Adam its moments back; its settings come from the run's."""
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            number, _, moment = name.partition(".")
            state.setdefault(int(number), {})[moment] = tensor
        parameters = self.updater.parameters
        if sorted(state) != list(range(len(parameters))):
            raise ValueError(f"moments of {len(state)} of {len(parameters)} parameters")
        for index, parameter in enumerate(parameters):
            shape = parameter.shape
            shapes = {"step": torch.Size(()), "exp_avg": shape, "exp_avg_sq": shape}
            _require_moments(f"parameter {index}", state[index], shapes)
        groups = self.updater.optimizer.state_dict()["param_groups"]
        self.updater.optimizer.load_state_dict({"state": state, "param_groups": groups})


def _require_moments(
    of: str, moments: Mapping[str, Tensor], shapes: Mapping[str, torch.Size]
) -> None:
    """Refuse moments that no run can have: of another shape or type, not finite, negative."""
    found = {name: moment.shape for name, moment in moments.items()}
    if found != shapes:
        raise ValueError(f"moments {found} of {of}")
    for name, moment in moments.items():
        if moment.dtype != torch.float32 or not torch.isfinite(moment).all():
            raise ValueError(f"{name} of {of}, which must be finite numbers in float32")
        if name in ("step", "var", "exp_avg_sq") and (moment < 0).any():
            raise ValueError(f"{name} of {of}, which must not be negative")


def _explained_variance(rollout: TensorDict) -> float:
    """Return 1 - Var[target - value] / Var[target], nan for constant targets."""
    target, value = rollout["value_target"], rollout["state_value"]
    return float(1 - (target - value).var(correction=0) / target.var(correction=0))
