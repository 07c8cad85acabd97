"""Which tensordict keys the loss reads and writes, and the names for them."""

from dataclasses import asdict, dataclass, fields
from typing import Any

from tensordict.nn import composite_lp_aggregate
from tensordict.utils import NestedKey

from klppo_compile.networks import NetworkLoss
from klppo_compile.policy import ActorHead

# what torchrl writes to say which rows are valid
AUTO_MASKS: tuple[NestedKey, ...] = (("collector", "mask"), "shifted_valid")


@dataclass
class AcceptedKeys:
    """Tensordict keys that `set_keys` can set, and their defaults."""

    advantage: NestedKey = "advantage"
    value_target: NestedKey = "value_target"
    value: NestedKey = "state_value"
    sample_log_prob: NestedKey | list[NestedKey] | None = None
    action: NestedKey | list[NestedKey] = "action"
    reward: NestedKey | list[NestedKey] = "reward"
    done: NestedKey | list[NestedKey] = "done"
    terminated: NestedKey | list[NestedKey] = "terminated"

    def __post_init__(self) -> None:
        if self.sample_log_prob is None:
            aggregate = composite_lp_aggregate(nowarn=True)
            self.sample_log_prob = "sample_log_prob" if aggregate else "action_log_prob"


def listed(key: Any) -> list[NestedKey]:
    """One key or several as a list."""
    return list(key) if isinstance(key, list) else [key]


def under_next(key: NestedKey) -> NestedKey:
    """The key in the next step's tensordict."""
    return ("next", *key) if isinstance(key, tuple) else ("next", key)


class KeyedLoss(NetworkLoss):
    """The keys of a loss over an actor and a critic."""

    _AcceptedKeys = AcceptedKeys
    default_keys = AcceptedKeys
    actor_head: ActorHead
    has_critic: bool
    entropy_bonus: bool
    log_explained_variance: bool
    clip_value: Any

    def _init_keys(self, deprecated: dict[str, NestedKey]) -> None:
        self._tensor_keys = AcceptedKeys()
        self._out_keys: list[str] | None = None
        self._selected: list[str] | None = None
        self._loss_mask_key: NestedKey | None = "auto"
        log_prob = getattr(self.actor_network, "log_prob_keys", None)
        action = getattr(self.actor_network, "dist_sample_keys", None)
        if log_prob and action:
            several = len(log_prob) > 1
            self.set_keys(
                sample_log_prob=list(log_prob) if several else log_prob[0],
                action=list(action) if several else action[0],
            )
        self.set_keys(**deprecated)

    @property
    def tensor_keys(self) -> AcceptedKeys:
        """The keys in use."""
        return self._tensor_keys

    def set_keys(self, **kwargs: Any) -> None:
        """Name the tensordict's keys; None stands for the default.

        Raises:
            ValueError: a name that is not one of `AcceptedKeys`.
        """
        accepted = [f.name for f in fields(AcceptedKeys)]
        for name, key in kwargs.items():
            if name not in accepted:
                raise ValueError(
                    f"{name} is not an accepted tensordict key. Accepted keys are: "
                    f"{', '.join(accepted)}."
                )
            value = asdict(AcceptedKeys())[name] if key is None else key
            if isinstance(value, list) and len(value) == 1:
                value = value[0]
            setattr(self._tensor_keys, name, value)
        self._in_keys = self._read_keys()

    @property
    def loss_mask_key(self) -> NestedKey | None:
        """Which entry marks the rows that count: "auto" (torchrl's two), a key, or None for all."""
        return self._loss_mask_key

    @loss_mask_key.setter
    def loss_mask_key(self, value: NestedKey | None) -> None:
        is_key = isinstance(value, str) or (
            isinstance(value, tuple) and bool(value) and all(isinstance(k, str) for k in value)
        )
        if value is not None and not is_key:
            raise ValueError(f"loss_mask_key must be 'auto', None or a NestedKey, got {value!r}.")
        self._loss_mask_key = value

    def mask_keys(self) -> tuple[NestedKey, ...]:
        """The entries that are looked for."""
        key = self._loss_mask_key
        if key is None:
            return ()
        return AUTO_MASKS if key == "auto" else (key,)

    def _read_keys(self) -> list[NestedKey]:
        """Keys that are read, torchrl's, in one order; the next step's are for an estimator."""
        keys, actor = self._tensor_keys, list(self.actor_network.in_keys)
        found = actor + [under_next(k) for k in actor]
        found += [] if self.critic_network is None else list(self.critic_network.in_keys)
        found += listed(keys.action) + listed(keys.sample_log_prob)
        for key in (keys.reward, keys.done, keys.terminated):
            found += [under_next(k) for k in listed(key)]
        return list(dict.fromkeys(found + self.actor_head.in_keys))

    @property
    def in_keys(self) -> list[NestedKey]:
        """Keys that are read; assignable, and named anew by `set_keys`."""
        return self._in_keys

    @in_keys.setter
    def in_keys(self, values: list[NestedKey]) -> None:
        self._in_keys = list(values)

    @property
    def dispatch_keys(self) -> list[NestedKey]:
        """Keyword arguments of a call: `in_keys`, and what a rollout with an advantage brings."""
        keys = self._tensor_keys
        more = [keys.advantage, keys.value_target, keys.value]
        return self.in_keys + [key for key in more if key not in self.in_keys]

    def _default_out_keys(self) -> list[str]:
        keys = ["loss_objective", "kl"]
        if self.entropy_bonus:
            keys += ["entropy", "loss_entropy"]
        if self.has_critic:
            keys.append("loss_critic")
            keys += [] if self.clip_value is None else ["value_clip_fraction"]
        return keys

    def all_out_keys(self) -> list[str]:
        """Every key that a forward writes."""
        keys = [*self._default_out_keys(), "kl_approx", "nonfinite"]
        if self.has_critic and self.log_explained_variance:
            keys.append("explained_variance")
        return keys

    @property
    def out_keys(self) -> list[str]:
        """Keys that a call with keyword arguments returns, in this order."""
        if self._selected is not None:
            return self._selected
        return self._default_out_keys() if self._out_keys is None else self._out_keys

    @out_keys.setter
    def out_keys(self, values: list[str]) -> None:
        self._out_keys = list(values)

    @property
    def out_keys_source(self) -> list[str]:
        """`out_keys` without a selection."""
        return self._default_out_keys() if self._out_keys is None else self._out_keys

    def select_out_keys(self, *out_keys: str) -> "KeyedLoss":
        """Write only these keys.

        Raises:
            ValueError: a key that the loss does not write.
        """
        unknown = [key for key in out_keys if key not in self.all_out_keys()]
        if unknown:
            raise ValueError(
                f"select_out_keys takes keys that the loss writes, "
                f"{', '.join(self.all_out_keys())}; got {', '.join(map(repr, unknown))}."
            )
        self._selected = list(out_keys)
        return self

    def reset_out_keys(self) -> "KeyedLoss":
        """Write every key again."""
        self._selected = None
        return self
