"""Beta, its rule's numbers and the coefficients: float32 buffers that move in place.

So they move without a recompilation, keep their address for CUDA graphs, and survive a cast of the
networks.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from klppo_compile import arguments, penalty
from klppo_compile.functional import scalar
from klppo_compile.keys import KeyedLoss
from klppo_compile.recomputation import in_backward

QUADRATURE_NODES = 64
BETA_NUMBERS = ("dtarg", "increment", "decrement", "beta_min", "beta_max")
COEFFICIENTS = ("entropy_coeff", "critic_coeff", "clip_value", "max_importance_ratio")
OPTIONAL = ("critic_coeff", "clip_value", "max_importance_ratio")  # None leaves their terms out
WORDS = ("beta_update", "entropy_method")
SCALARS = ("beta", *BETA_NUMBERS, *COEFFICIENTS)


class ScheduledLoss(KeyedLoss):
    """A loss whose numbers may be scheduled: assigned, adapted, reset, saved and loaded."""

    beta: Tensor
    beta_update: str
    entropy_method: str

    def _register_scalars(
        self, numbers: dict[str, float | None], device: torch.device | str | None
    ) -> None:
        """Every number is a float32 buffer: it moves in place and without a recompilation.

        Raises:
            ValueError: networks or numbers on the meta device.
        """
        if device is None:
            first = next(self.parameters(), None)
            device = torch.get_default_device() if first is None else first.device
        self._refuse_meta(torch.device(device))
        for name in (*COEFFICIENTS, "beta", *BETA_NUMBERS):
            value = numbers[name]
            if value is None:
                object.__setattr__(self, name, None)
                continue
            tensor = torch.tensor(value, dtype=torch.float32, device=device)
            self.register_buffer(name, tensor, persistent=name not in BETA_NUMBERS)
        self._beta_init = float(numbers["beta"])  # type: ignore[arg-type]
        self.has_critic = self.critic_network is not None and numbers["critic_coeff"] is not None
        self._register_nodes()

    def _refuse_meta(self, device: torch.device) -> None:
        held = [(n, x.device) for n, x in (*self.named_parameters(), *self.named_buffers())]
        found = next((n for n, where in (*held, ("device", device)) if where.type == "meta"), None)
        if found is not None:
            raise ValueError(
                "a loss needs networks that are initialised, for to_empty() would leave its own "
                f"numbers without values; {found} is on the meta device. Initialise the networks "
                "first, with to_empty() and load_state_dict(), and then make the loss."
            )

    def _register_nodes(self) -> None:
        """The entropy's nodes beside beta, or none where it is sampled."""
        nodes, weights = np.polynomial.hermite_e.hermegauss(QUADRATURE_NODES)
        quadrature = self.entropy_method == "quadrature"
        for name, x in (("_nodes", nodes), ("_node_weights", weights / weights.sum())):
            buffer = torch.tensor(x, device=self.beta.device) if quadrature else None
            self.register_buffer(name, buffer, persistent=False)

    def __setattr__(self, name: str, value: Any) -> None:
        """Beta and the coefficients take a number in place: `loss.entropy_coeff = 0.003`.

        A method or a rule takes one of its words, and holds from the next call on.
        """
        if name in WORDS:
            arguments.check_choice(name, value)
        buffers = self.__dict__.get("_buffers", {})
        if name not in SCALARS or buffers.get(name) is None:
            if name in SCALARS and buffers:
                self._refuse_absent(name, value)
            super().__setattr__(name, value)
            if name == "entropy_method" and "_nodes" in buffers:
                self._register_nodes()
            return
        if isinstance(value, nn.Parameter) or value is None:
            raise TypeError(
                f"{name} is a number that schedules may set; got {value!r}. Pass a float."
            )
        bounds = {n: float(buffers.get(n, d)) for n, d in (("beta_min", 1e-6), ("beta_max", 1e6))}
        number = arguments.check_number(name, value, (bounds["beta_min"], bounds["beta_max"]))
        bounds[name] = number
        arguments.check_order(bounds["beta_min"], bounds["beta_max"])
        with torch.no_grad():
            buffers[name].fill_(number)

    def _refuse_absent(self, name: str, value: Any) -> None:
        if value is not None and "_tensor_keys" in self.__dict__:
            raise ValueError(
                f"{name} was None when the loss was built, so its term is not part of the graph; "
                f"got {value!r}. Pass {name} to the constructor."
            )

    def reset(self) -> None:
        """Set beta back to its initial value."""
        with torch.no_grad():
            self.beta.fill_(self._beta_init)

    def update_beta(self, kl: Tensor | float) -> None:
        """Move beta by the adaptive rule for a mean KL `[]` in nats, say of a whole epoch.

        For `beta_update="manual"`. A KL that is not finite leaves beta alone. No host sync.

        Raises:
            ValueError: a KL of more than one number.
        """
        if isinstance(kl, Tensor) and kl.numel() != 1:
            raise ValueError(
                f"update_beta takes a mean KL, one number; got shape {list(kl.shape)}. Pass its "
                "mean."
            )
        kl = scalar(kl, self.beta.device)
        numbers = (getattr(self, name) for name in BETA_NUMBERS)
        self.store_beta(penalty.adaptive(self.beta, kl, torch.ones_like(kl), *numbers))

    def store_beta(self, value: Tensor) -> None:
        """Write beta in place, apart from any graph."""
        self.beta.detach().copy_(value.detach())

    def moves_beta(self) -> bool:
        """Whether a call now moves beta: in training, with grad, and not again in a backward."""
        if not (self.training and self.beta_update == "forward" and torch.is_grad_enabled()):
            return False
        return torch.compiler.is_compiling() or not in_backward()

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Numbers keep their precision whatever the networks are cast to."""
        names = (*SCALARS, "_nodes", "_node_weights")
        before = {name: self._buffers.get(name) for name in names}
        out = super()._apply(fn, recurse)
        for name, kept in before.items():
            cast = self._buffers.get(name)
            if kept is not None and cast is not None and cast.dtype != kept.dtype:
                self._buffers[name] = kept.to(cast.device)
        return out

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        """Load torchrl's checkpoints too, with or without an estimator's.

        A beta out of bounds, which torchrl has none of, is taken as the nearest that is in them.

        Raises:
            RuntimeError: a number that no loss can have; at once, for torch would go on to the
                networks.
        """
        for key in [k for k in state_dict if k.startswith(prefix + "_value_estimator.")]:
            del state_dict[key]
        bounds = (float(self.beta_min), float(self.beta_max))
        for name in ("beta", *COEFFICIENTS):
            found = state_dict.get(prefix + name)
            if found is None:
                continue
            try:
                if name == "beta":
                    found = state_dict[prefix + name] = arguments.beta_within(found, bounds)
                arguments.check_number(name, found, bounds)
            except ValueError as error:
                raise RuntimeError(f"this state dict can't be loaded: {error}") from error
        super()._load_from_state_dict(state_dict, prefix, *args)
