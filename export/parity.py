"""Whether a file computes what the loss computes: its outputs against eager float32, case by case.

An error is |file - eager| relative to the larger of 1 and |eager|.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from klppo_compile import penalty
from klppo_compile.exit_codes import FailedError
from klppo_compile.export.capture import traceable
from klppo_compile.export.cases import BRANCHES, Case, CaseMaker
from klppo_compile.export.graph import Graph, in_float32
from klppo_compile.export.report import to_json_number
from klppo_compile.functional import klpen_ppo_loss
from klppo_compile.inputs import read_minibatch

Arrays = dict[str, Tensor]
Numbers = NDArray[Any]
Runner = Callable[[Mapping[str, Numbers], Mapping[str, float]], dict[str, Numbers]]

TOLERANCE = {"float32": 1e-5, "float16": 2e-2}
"""Asked for by default, by the dtype of the networks."""


@dataclass(frozen=True)
class Worst:
    """Where an output is furthest from eager."""

    error: float = 0.0
    case: str = ""
    row: tuple[int, ...] = ()
    file: float = 0.0
    eager: float = 0.0


@dataclass
class Parity:
    """What a check found."""

    tolerance: float
    delayed: bool = False
    """Whether the KL is to a delayed copy of the actor, not to what the data hold."""
    worst: dict[str, Worst] = field(default_factory=dict)
    cases: list[str] = field(default_factory=list)
    branches: set[str] = field(default_factory=set)
    near_threshold: list[str] = field(default_factory=list)
    without_kl: list[str] = field(default_factory=list)
    """Cases whose mean KL is no number."""
    largest_kl: float = 0.0
    smallest_beta: float = float("inf")
    seen: dict[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def needed(self) -> float:
        """The smallest tolerance that would pass."""
        return max((worst.error for worst in self.worst.values()), default=0.0)

    def errors(self) -> dict[str, float]:
        """The largest error of each output."""
        return {name: worst.error for name, worst in self.worst.items()}

    def require(self) -> "Parity":
        """Raise unless every output is within the tolerance and the cases meant something."""
        problem = self.problem()
        if problem:
            errors = {name: to_json_number(x) for name, x in self.errors().items()}
            report = {"tolerance": self.tolerance, "errors": errors, "cases": self.cases}
            raise FailedError(problem, report)
        return self

    def problem(self) -> str:
        """Why the check failed; empty where it didn't."""
        name, worst = max(self.worst.items(), key=lambda item: item[1].error)
        if not worst.error <= self.tolerance:
            row = f" at row {list(worst.row)}" if worst.row else ""
            return (
                f"the file must compute what the loss computes, within {self.tolerance:g}; its"
                f" {name}{row} is {worst.file:.9g} where eager gives {worst.eager:.9g}"
                f" ({worst.case}). The smallest tolerance that would pass is {self.needed:.2g}."
            )
        return self._emptiness() if "beta_next" in self.worst else ""

    def _emptiness(self) -> str:
        """Why the cases prove nothing; empty where they do."""
        fixed = [
            name
            for name in ("loss_objective", "kl", "ratio", "log_prob", "loss_critic")
            if name in self.seen and self.seen[name][0] == self.seen[name][1]
        ]
        empty, fix = "", "Give an example (--data) of more rows, which differ"
        meant = self.largest_kl > 0.0 and self.branches == set(BRANCHES)
        if self.without_kl and not meant:
            empty = f"the KL is no number ({self.without_kl[0]})"
            fix = "Give an example (--data) near which the networks give numbers"
        elif not self.largest_kl > 0.0:
            empty = "every KL of the cases is 0"
            if self.delayed:
                empty += ", for the actor is equal to its delayed copy (delay_actor=True)"
                fix = "Give a loss whose actor has moved since; other data change nothing"
        elif not self.smallest_beta > 0.0:
            empty = "beta is 0 in a case"
        elif not meant:
            empty = f"beta was only {' and '.join(sorted(self.branches))}"
        elif fixed:
            empty = f"{fixed[0]} is the same in every case"
        return empty and (
            f"a check must be able to fail; here {empty}, so it would prove nothing. {fix}."
        )


class Reference:
    """The loss in eager float32, by the graph's names."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph

    def run(self, arrays: Arrays, scalars: Mapping[str, float]) -> Arrays:
        """Outputs of the graph's text; the losses and metrics are the loss's own forward's."""
        outputs = self.draft(arrays, scalars)
        if self.graph.kind == "loss":
            with traceable():
                outputs |= self._forward(arrays, self._numbers(scalars))
        return outputs

    def draft(self, arrays: Arrays, scalars: Mapping[str, float]) -> Arrays:
        """Outputs of the graph's text alone: what cases are made with."""
        numbers = self._numbers(scalars).values()
        with traceable():
            found = self.graph(*[arrays[e.name] for e in self.graph.entries], *numbers)
        return dict(zip(self.graph.names, found, strict=True))

    def _numbers(self, scalars: Mapping[str, float]) -> Arrays:
        numbers = {name: x.clone() for name, x in self.graph.scalars().items()}
        return numbers | {name: torch.tensor(value) for name, value in scalars.items()}

    def _forward(self, arrays: Arrays, numbers: Mapping[str, Tensor]) -> Arrays:
        loss = self.graph.loss
        kept = {name: getattr(loss, name).clone() for name in numbers}
        first = next(iter(arrays.values()))
        rollout = TensorDict({}, batch_size=first.shape[: self.graph.batch_dims])
        for entry in self.graph.entries:
            rollout.set(entry.key, arrays[entry.name])
        try:
            for name, value in numbers.items():
                getattr(loss, name).copy_(value)
            batch = in_float32(read_minibatch(loss, rollout)[0])
            out = klpen_ppo_loss(batch, loss.beta, loss.config(), backend="torch")
        finally:
            for name, value in kept.items():
                getattr(loss, name).copy_(value)
        fields = {name: x for name, x in vars(out).items() if isinstance(x, Tensor)}
        fields["kl"] = out.kl.unsqueeze(-1)
        fields["beta_next"] = fields.pop("next_beta")
        return fields


def check(
    graph: Graph, example: TensorDictBase, runner: Runner, tolerance: float, batch: int = 0
) -> Parity:
    """Run every case through the file and through eager, and compare."""
    reference = Reference(graph)
    parity = Parity(tolerance, delayed=graph.loss.delay_actor)
    for case in CaseMaker(graph, example, reference.draft, batch).cases():
        wanted = reference.run(case.arrays, case.scalars)
        arrays = {name: x.numpy() for name, x in case.arrays.items()}
        compare(parity, case, wanted, runner(arrays, case.scalars), graph)
    return parity


def compare(
    parity: Parity, case: Case, wanted: Arrays, got: Mapping[str, Numbers], graph: Graph
) -> None:
    """Take one case into the result."""
    parity.cases.append(case.name)
    near = False
    if graph.kind == "loss":
        beta = case.scalars.get("beta", float(graph.loss.beta))
        near = _note_beta(parity, case, wanted, beta, graph)
    for name, tensor in wanted.items():
        eager, file = tensor.numpy(), got[name]
        if eager.size and np.isfinite(eager).any():
            finite = eager[np.isfinite(eager)]
            low, high = parity.seen.get(name, (np.inf, -np.inf))
            parity.seen[name] = (min(low, float(finite.min())), max(high, float(finite.max())))
        worst = _worst(file, eager, case.name)
        if name == "beta_next" and worst.error > 0.0:
            if near:
                parity.near_threshold.append(case.name)
                continue
            worst = Worst(np.inf, case.name, (), worst.file, worst.eager)
        kept = parity.worst.setdefault(name, worst)
        parity.worst[name] = worst if worst.error > kept.error else kept


def _note_beta(parity: Parity, case: Case, wanted: Arrays, beta: float, graph: Graph) -> bool:
    """Remember what beta did; whether the KL is so near a threshold that either is right."""
    kl = float(wanted["mean_kl"])
    dtarg = case.scalars.get("dtarg", float(graph.loss.dtarg))
    after = float(wanted["beta_next"])
    branch = "raised" if after > beta else "lowered" if after < beta else "kept"
    # A KL that is no number keeps beta too, which is not the branch meant.
    if kl > 0.0:
        parity.branches.add(branch)
    if np.isnan(kl):
        parity.without_kl.append(case.name)
    parity.largest_kl = max(parity.largest_kl, kl if np.isfinite(kl) else 0.0)
    if case.scalars:
        parity.smallest_beta = min(parity.smallest_beta, beta)
    edges = (penalty.BAND * dtarg, dtarg / penalty.BAND)
    return any(abs(kl - edge) <= parity.tolerance * edge for edge in edges)


def _worst(file: Numbers, eager: Numbers, case: str) -> Worst:
    """The element that is furthest off; what only one of them can't say is infinitely far."""
    if file.shape != eager.shape:
        return Worst(np.inf, f"{case}: shape {file.shape}, eager {eager.shape}")
    if eager.size == 0:
        return Worst()
    a, b = file.astype(np.float64), eager.astype(np.float64)
    with np.errstate(invalid="ignore"):
        error = np.abs(a - b) / np.maximum(1.0, np.abs(b))
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    error = np.where(same, 0.0, np.where(np.isfinite(error), error, np.inf))
    at = np.unravel_index(int(error.argmax()), error.shape)
    row = tuple(int(i) for i in at)
    return Worst(float(error[at]), case, row, float(a[at]), float(b[at]))
