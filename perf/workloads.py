"""The named workloads, each with the regime it stands for, and the data to run them on."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from tensordict import TensorDict
from tensordict.nn import (
    NormalParamExtractor,
    ProbabilisticTensorDictModule,
    ProbabilisticTensorDictSequential,
    TensorDictModule,
)
from torch import Tensor, distributions, nn

HIDDEN, OBSERVATION = 64, 17
REGIMES = {
    256: "a small minibatch: the fixed cost of a call decides",
    4096: "a usual minibatch: fixed cost and arithmetic weigh the same",
    8192: "the tokens of a language model's minibatch: memory decides",
    65536: "a whole rollout at once: arithmetic and memory decide",
    1048576: "many environments at once on a GPU: memory decides",
}
WIDTHS = {"normal": 6, "categorical": 18}


@dataclass(frozen=True)
class Workload:
    """A case to measure.

    Attributes:
        family: "normal" (6 dimensions, a MuJoCo walker's) or "categorical" (18 actions, Atari's).
        batch: rows.
        networks: whether 2 x 64 networks compute the heads; without them the heads are given.
        columns: dimensions of the action, or actions, where they are not the family's usual ones.
        dtype: of the heads' parameters.
        step: how far the new policy is from the old, in usual steps (a KL of about 0.01).
    """

    family: str
    batch: int
    networks: bool = False
    columns: int | None = None
    dtype: str = "float32"
    step: float = 1.0

    @property
    def name(self) -> str:
        """What the tables and files call it."""
        columns = f"-{self.columns}" if self.columns else ""
        dtype = "" if self.dtype == "float32" else f"-{self.dtype}"
        step = "" if self.step == 1.0 else f"-step{self.step:g}"
        head = f"{self.family}{columns}{dtype}{step}"
        return f"{head}/{'networks' if self.networks else 'heads'}/{self.batch}"

    @property
    def regime(self) -> str:
        """What the batch size, or the step, stands for."""
        if self.step != 1.0:
            return "another step: what a loss chooses may differ between neighbours"
        return REGIMES.get(self.batch, "a size to try things out")

    @property
    def width(self) -> int:
        """Dimensions of the action, or number of actions."""
        return self.columns or WIDTHS[self.family]


ON_CPU = (256, 4096, 65536)
WORKLOADS = (
    *(
        Workload(family, batch, networks)
        for networks in (False, True)
        for family in WIDTHS
        for batch in ON_CPU
    ),
    # As Gymnasium's classic tasks have it: short rows are laid out otherwise when compiled.
    Workload("categorical", 65536, columns=4),
    # A KL of 0.2: where the KL takes its series, and where not, is anyone's guess.
    Workload("categorical", 4096, step=5.0),
)


@dataclass(frozen=True, eq=False)
class Problem:
    """A workload with its data.

    Attributes:
        data: `[B]`, what a loss reads: old head parameters, action, log-prob, advantage, target;
            and what the actor and the critic read.
        actor, critic: from `data` to the new head parameters and the value.
        leaves: what is differentiated to: given heads and value, or the networks' parameters.
        old, new: parameters of the old and of the given new policy, `[B, width]`.
    """

    workload: Workload
    data: TensorDict
    actor: ProbabilisticTensorDictSequential
    critic: TensorDictModule
    leaves: tuple[Tensor, ...]
    old: tuple[Tensor, ...]
    new: tuple[Tensor, ...]

    @property
    def device(self) -> torch.device:
        """Where the data are."""
        return self.old[0].device

    @property
    def minimum_bytes(self) -> int:
        """Bytes of the loss if every input is read once and every output written once.

        Inputs are action, old and new parameters, log-prob, advantage, value and target; outputs
        the gradients of the new parameters and of the value, and the KL of each row.
        """
        rows = [self.data[name] for name in ("action", "action_log_prob", "advantage")]
        rows += [self.data["value_target"]] * 4  # target, value, its gradient, the KL
        return sum(x.nbytes for x in (*rows, *self.old, *self.new, *self.new))


class Given(nn.Module):
    """A network that passes on what it is given."""

    def forward(self, *x: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Return the arguments."""
        return x if len(x) > 1 else x[0]


def mlp(out: int) -> nn.Sequential:
    """Two hidden layers of 64 with tanh."""
    hidden = [nn.Linear(OBSERVATION, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, HIDDEN), nn.Tanh()]
    return nn.Sequential(*hidden, nn.Linear(HIDDEN, out))


def independent_normal(
    loc: Tensor, scale: Tensor
) -> "distributions.Independent[distributions.Normal]":
    """A diagonal Gaussian."""
    return distributions.Independent(distributions.Normal(loc, scale), 1)


KINDS: dict[str, Callable[..., distributions.Distribution]] = {
    "normal": independent_normal,
    "categorical": distributions.Categorical,
}
PARAMETERS = {"normal": ("loc", "scale"), "categorical": ("logits",)}


def problem(
    workload: Workload, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> Problem:
    """The workload's data and networks, the same at every call but for the dtype they are cast to.

    The new policy is the workload's step from the old. In float64 the heads keep the values that
    they have in the workload's own dtype.
    """
    torch.manual_seed(0)
    with torch.device(device):
        return _problem(workload, dtype)


def _problem(workload: Workload, dtype: torch.dtype) -> Problem:
    names, data = PARAMETERS[workload.family], TensorDict(batch_size=[workload.batch])
    body: nn.Module
    critic: nn.Module
    if workload.networks:
        data["observation"] = torch.randn(workload.batch, OBSERVATION)
        body, critic = policy_network(workload), mlp(1)
        policy_keys, critic_keys = ["observation"], ["observation"]
    else:
        data.update(given_heads(workload))
        body, critic = Given(), Given()
        policy_keys, critic_keys = [f"given_{name}" for name in names], ["given_value"]
    with torch.no_grad():
        new = body(*[data[key] for key in policy_keys])
        value = critic(*[data[key] for key in critic_keys])
    own = getattr(torch, workload.dtype)
    new = tuple(x.to(own) for x in (new if isinstance(new, tuple) else (new,)))
    old = tuple(x.to(own) for x in nearby(workload, tuple(x.float() for x in new)))
    exact = tuple(x.float() for x in old)
    data.update(dict(zip(names, old, strict=True)) | samples(workload.family, exact, value))
    if not workload.networks:
        data.update(dict(zip(policy_keys, new, strict=True)))
    data = data.apply(lambda x: cast(x, dtype))
    body, critic = body.to(dtype), critic.to(dtype)
    leaves = [x.requires_grad_() for key, x in data.items() if key.startswith("given_")]
    return Problem(
        workload,
        data,
        policy(workload.family, body, policy_keys),
        TensorDictModule(critic, critic_keys, ["state_value"]),
        (*leaves, *body.parameters(), *critic.parameters()),
        tuple(data[name] for name in names),
        tuple(cast(x, dtype) for x in new),
    )


def cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    """`x` in `dtype`; integers stay, and so do heads of 16 bits unless they are to be doubled."""
    stays = not x.is_floating_point() or (x.element_size() == 2 and dtype != torch.float64)
    return x if stays else x.to(dtype)


def policy(family: str, body: nn.Module, keys: list[str]) -> ProbabilisticTensorDictSequential:
    """An actor that draws from the head `body` computes."""
    names = list(PARAMETERS[family])
    head = ProbabilisticTensorDictModule(
        in_keys=names, out_keys=["action"], distribution_class=KINDS[family], return_log_prob=True
    )
    return ProbabilisticTensorDictSequential(TensorDictModule(body, keys, names), head)


def policy_network(workload: Workload) -> nn.Module:
    """Observations `[*B, 17]` to loc and scale, or to logits."""
    if workload.family == "categorical":
        return mlp(workload.width)
    return nn.Sequential(*mlp(2 * workload.width), NormalParamExtractor())


def given_heads(workload: Workload) -> dict[str, Tensor]:
    """Head parameters `[B, width]` and values `[B, 1]`, in the place of the networks'."""
    size = (workload.batch, workload.width)
    value = {"given_value": torch.randn(workload.batch, 1)}
    if workload.family == "categorical":
        return {"given_logits": torch.randn(size)} | value
    return {"given_loc": torch.randn(size), "given_scale": torch.rand(size) * 0.5 + 0.3} | value


def nearby(workload: Workload, new: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Parameters of a policy at the workload's step: a KL of about 0.01 where that is 1."""
    step = workload.step
    if workload.family == "categorical":
        return (new[0] + 0.15 * step * torch.randn_like(new[0]),)
    loc, scale = new
    shift, stretch = torch.randn_like(loc), 1 + 0.03 * step * torch.randn_like(scale)
    return loc + 0.05 * step * scale * shift, scale * stretch


def samples(family: str, old: tuple[Tensor, ...], value: Tensor) -> dict[str, Tensor]:
    """Actions of the old policy, their log-probs `[B]`, advantages and targets `[B, 1]`."""
    policy = KINDS[family](**dict(zip(PARAMETERS[family], old, strict=True)))
    action = policy.sample()
    return {
        "action": action,
        "action_log_prob": policy.log_prob(action),
        "advantage": torch.randn_like(value),
        "value_target": value + torch.randn_like(value),
    }
