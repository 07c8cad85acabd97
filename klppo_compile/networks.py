"""The actor and the critic inside a loss: functional, target and shared parameters.

Names and state-dict keys are torchrl's, so that its checkpoints load and its target updaters work.
"""

import sys
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase, TensorDictParams
from tensordict.nn import TensorDictModuleBase
from torch import Tensor, nn

TARGET_PREFIX, PARAMS_SUFFIX = "target_", "_params"
BY_GAE = (
    "say by torchrl.objectives.value.GAE(value_network=critic, gamma=0.99, lmbda=0.95)(rollout), "
    "which also writes the value target"
)
NO_ESTIMATOR = f"it estimates no advantages. Compute the advantage before the call, {BY_GAE}."
ABSENT = {  # of torchrl's losses
    "make_value_estimator": NO_ESTIMATOR,
    "value_estimator": NO_ESTIMATOR,
    "loss_critic": "the actor and the critic run together. Call the loss, and take "
    'its "loss_critic".',
}


class NetworkLoss(TensorDictModuleBase):  # type: ignore[misc]  # tensordict ships no types
    """Holds `actor_network` and `critic_network`, functional or not."""

    actor_network: Any
    critic_network: Any
    _functional: bool
    separate_losses: bool
    delay_actor: bool

    def _hold_networks(self, actor: nn.Module, critic: nn.Module | None) -> None:
        """Take the networks in; what separate losses share is constant to the critic."""
        self._has_update_associated: dict[str, bool] = {}
        self._shared_with_critic: tuple[str, ...] = ()
        if self.separate_losses and critic is not None:
            # by name and held back at each run: a detached view would lose its storage in a copy
            ids = {id(p) for p in actor.parameters()}
            theirs = critic.named_parameters(remove_duplicate=False)
            self._shared_with_critic = tuple(name for name, p in theirs if id(p) in ids)
        if not self._functional:
            self.actor_network, self.actor_network_params = actor, None
            self.critic_network, self.critic_network_params = critic, None
            return
        self._make_functional("actor_network", actor)
        if self.delay_actor:
            self._make_target("actor_network")
        if critic is None:
            self.critic_network, self.critic_network_params = None, None
        else:
            self._make_functional("critic_network", critic)

    def _make_functional(self, name: str, module: nn.Module) -> None:
        setattr(self, name + PARAMS_SUFFIX, TensorDict.from_module(module, as_module=True))
        self.__dict__[name] = (
            module  # not a submodule: its parameters are listed once, in the params
        )
        self._has_update_associated[name] = True

    def _make_target(self, name: str) -> None:
        params = getattr(self, name + PARAMS_SUFFIX)
        copies = params.apply(lambda p: _as_buffer(p.data.clone()), filter_empty=False)
        setattr(
            self, TARGET_PREFIX + name + PARAMS_SUFFIX, TensorDictParams(copies, no_convert=True)
        )
        self._has_update_associated[name] = False

    @property
    def functional(self) -> bool:
        """Whether the networks' parameters live in the loss, apart from the modules."""
        return self._functional

    def __getattr__(self, name: str) -> Any:
        # a network without a target policy of its own is its own target, without gradient
        if name.startswith(TARGET_PREFIX) and name.endswith(PARAMS_SUFFIX):
            own = self.__dict__.get("_modules", {}).get(name)
            if own is not None:
                return own
            params = getattr(self, name.removeprefix(TARGET_PREFIX))
            return None if params is None else params.data
        try:
            return super().__getattr__(name)
        except AttributeError as error:
            if name not in ABSENT:
                raise
            raise AttributeError(f"KLPENPPOLoss has no {name}: {ABSENT[name]}") from error

    def __deepcopy__(self, memo: dict[int, Any]) -> "NetworkLoss":
        """Copy, with what the networks, the loss and each other share still shared.

        TensorDictParams alone would copy its parameters apart from those of the modules. What
        `compile` made is bound to the original and stays there, as with any module.
        """
        copied: NetworkLoss = self.__class__.__new__(self.__class__)
        memo[id(self)] = copied
        for params in self._modules.values():
            if isinstance(params, TensorDictParams):
                own = params.apply(lambda p: deepcopy(p, memo), filter_empty=False)
                memo[id(params)] = TensorDictParams(own, no_convert=True)
        state: Any = self.__getstate__()  # a module's: its __dict__ without what compile made
        copied.__dict__.update(deepcopy(state, memo))
        return copied

    def with_parameters(self, name: str, target: bool = False) -> AbstractContextManager[Any]:
        """The named network with the loss's parameters in it."""
        if not self._functional:
            return nullcontext()
        prefix = TARGET_PREFIX if target else ""
        params = getattr(self, prefix + name + PARAMS_SUFFIX)
        context: AbstractContextManager[Any] = params.to_module(
            getattr(self, name), preserve_module_state=False
        )
        return context

    def run_critic(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Run the critic once over what the actor left behind.

        With separate losses the shared trunk gets no gradient from it.
        """
        critic = self.critic_network
        assert critic is not None
        if self.separate_losses:
            tensordict = tensordict.detach()
        with self.with_parameters("critic_network"):
            if not self._shared_with_critic:
                out: TensorDictBase = critic(tensordict)
                return out
            own = dict(critic.named_parameters(remove_duplicate=False))
            still = {name: own[name].detach() for name in self._shared_with_critic}
            return torch.func.functional_call(critic, still, (tensordict,), tie_weights=False)

    def _warn_without_updater(self) -> None:
        if not all(self._has_update_associated.values()) and not torch.compiler.is_compiling():
            warnings.warn(
                "delay_actor=True keeps a proximal policy in target_actor_network_params, and "
                "nothing updates it: associate torchrl's SoftUpdate or HardUpdate with this loss, "
                "or update it yourself.",
                UserWarning,
                stacklevel=3,
            )

    def get_stateful_net(self, network_name: str, copy: bool | None = None) -> nn.Module:
        """Return the named network with its parameters in it; a copy, if the loss is functional.

        Raises:
            RuntimeError: a copy was asked for and the loss is not functional.
        """
        net: nn.Module = getattr(self, network_name)
        if not self._functional:
            if copy:
                raise RuntimeError("Cannot copy module in non-functional mode.")
            return net
        if copy is None or copy:
            net = deepcopy(net)
        getattr(self, network_name + PARAMS_SUFFIX).to_module(net, preserve_module_state=False)
        return net

    def from_stateful_net(self, network_name: str, stateful_net: nn.Module) -> None:
        """Copy a network's parameters into the named one.

        Raises:
            RuntimeError: their names differ.
        """
        if not self._functional:
            getattr(self, network_name).load_state_dict(stateful_net.state_dict())
            return
        theirs = TensorDict.from_module(stateful_net, as_module=True)
        ours = getattr(self, network_name + PARAMS_SUFFIX)
        left, right = set(ours.keys(True, True)), set(theirs.keys(True, True))
        if left != right:
            raise RuntimeError(
                f"The keys of params and provided module differ: {left - right} are in self.params "
                f"and not in the module, {right - left} are in the module but not in self.params."
            )
        ours.data.update_(theirs.data)

    def reset_parameters_recursive(self) -> None:
        """Reset the networks' parameters, and the target policy's."""
        for name in ("actor_network", "critic_network"):
            module = getattr(self, name)
            if module is None:
                continue
            for target in (False, True):
                if target and TARGET_PREFIX + name + PARAMS_SUFFIX not in self._modules:
                    continue
                with self.with_parameters(name, target):
                    module.reset_parameters_recursive()


def _as_buffer(p: Tensor) -> Any:
    return torch.nn.Buffer(p)


def recurrent_mode() -> Callable[[], AbstractContextManager[Any]]:
    """Return the context in which torchrl's recurrent modules, if loaded, read whole sequences."""
    rnn = sys.modules.get("torchrl.modules.tensordict_module.rnn")
    return nullcontext if rnn is None else partial(rnn.set_recurrent_mode, True)
