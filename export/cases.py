"""Minibatches that a check can't pass by accident.

Policies that differ, every branch of the beta rule, every size, and the edges. They are made from
rows of the example: whole rows are drawn again, so that actions stay legal, and only what may be
any number is disturbed. A row that a mask of the example leaves out may hold anything, and never
counts in a case either.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from tensordict import TensorDictBase
from torch import Tensor

from klppo_compile.export.graph import Entry, Graph, joined

SIZES = (1, 2, 7, 256, 4096)
TIMES = (1, 3)
"""Lengths of the second batch dimension, where there is one."""
NATS = (0.003, 0.03, 0.3)
"""Mean KLs that are aimed at."""
BRANCHES = {"raised": 0.25, "kept": 1.0, "lowered": 4.0}
"""What beta does, and the target in units of the KL that makes it do that."""
NEUTRAL = {"beta": 0.5, "increment": 2.0, "decrement": 0.5, "beta_min": 1e-6, "beta_max": 1e6}
"""Values with which every branch of the beta rule shows."""
ATTEMPTS = 6
COUNTING = 0.8
"""The share that counts, of a case's rows that may."""
PADDING = 0.1
"""The share of a case's rows that are padding, where the example has some."""

Arrays = dict[str, Tensor]
Run = Callable[[Arrays, Mapping[str, float]], Arrays]


@dataclass(frozen=True)
class Case:
    """A minibatch and what the scalars are set to."""

    name: str
    arrays: Arrays
    scalars: dict[str, float]


class CaseMaker:
    """Makes the cases of one graph; `run` is the eager graph."""

    def __init__(self, graph: Graph, example: TensorDictBase, run: Run, batch: int) -> None:
        self.entries = graph.entries
        self.defaults = {name: float(x) for name, x in graph.scalars().items()}
        self.dims = graph.batch_dims
        self.example = example
        self.flat = example.select(*[e.key for e in graph.entries]).reshape(-1)
        self.run = run
        self.batch = batch
        self.random = torch.Generator().manual_seed(0)
        counts = self._counting()
        self.counting, self.padding = (x.nonzero().squeeze(-1) for x in (counts, ~counts))
        """Rows of the flat example that count, and that don't."""
        given = [self._that_count(e) for e in graph.entries if e.role == "log_prob"]
        self.usual = 2.0 + max((float(x.nan_to_num().abs().max()) for x in given), default=0.0)
        """Above the largest |log-prob| of the example."""
        self.deviations = self._deviations()

    def cases(self) -> Iterator[Case]:
        """The example as it is, then the random batches, then the edges."""
        count = self.batch or min(len(self.example), SIZES[-1])
        first = self.example[torch.arange(count) % len(self.example)]
        yield Case("the example", self._arrays(first), {})
        for i, size in enumerate((self.batch,) * len(SIZES) if self.batch else SIZES):
            if "beta" not in self.defaults:
                yield Case(f"random, {size} rows", self._disturbed(size), {})
                continue
            for j, branch in enumerate(BRANCHES):
                nats = NATS[(i + j) % len(NATS)]
                yield self._random(f"random, {size} rows, beta {branch}", size, nats, branch)
        if "beta" in self.defaults:
            yield from self._edges()

    def _random(self, name: str, size: int, nats: float, branch: str) -> Case:
        """A minibatch of about that KL, its target such that beta takes that branch."""
        arrays = self._policies(self._disturbed(size), nats)
        mean_kl = float(self.run(arrays, {})["mean_kl"])
        scalars = {**NEUTRAL, "dtarg": max(mean_kl, 1e-12) * BRANCHES[branch]}
        if branch == "kept":
            others = {"entropy_coeff": 0.03, "critic_coeff": 0.7}
            scalars |= {name: x for name, x in others.items() if name in self.defaults}
        return Case(name, arrays, scalars)

    def _edges(self) -> Iterator[Case]:
        """Equal policies, observations far away, a row that is no number, one row that counts."""
        size = self.batch or 7
        same = self._policies(self._disturbed(size), 0.0)
        yield Case("equal policies", same, {**NEUTRAL})
        far = self._disturbed(size, spread=3.0)
        yield Case("far observations", self._policies(far, 0.3), {**NEUTRAL})
        broken = dict(self._policies(self._disturbed(size), 0.03))
        advantage = next(e.name for e in self.entries if e.role == "advantage")
        broken[advantage] = broken[advantage].clone()
        broken[advantage].view(-1)[0] = torch.nan
        yield Case("a NaN advantage", broken, {**NEUTRAL})
        masks = [e.name for e in self.entries if e.role == "mask"]
        if masks:
            lone = dict(self._policies(self._disturbed(size), 0.03))
            for name in masks:
                lone[name] = lone[name].clone()
                lone[name][1:] = False
            yield Case("one row that counts", lone, {**NEUTRAL})

    # ---- arrays

    def _arrays(self, chosen: TensorDictBase) -> Arrays:
        return {e.name: chosen.get(e.key).detach().cpu().contiguous() for e in self.entries}

    def _counting(self) -> Tensor:
        """Which rows of the flat example count."""
        if all(e.role != "mask" for e in self.entries):
            return torch.ones(len(self.flat), dtype=torch.bool)
        valid = self.run(self._arrays(self.example), {})["valid"].bool()
        return valid.reshape(len(self.flat), -1).any(-1)

    def _that_count(self, entry: Entry) -> Tensor:
        """An array of the example, in the rows that count."""
        x: Tensor = self.flat.get(entry.key).detach().cpu()
        return x[self.counting] if len(self.padding) else x

    def _deviations(self) -> dict[str, Tensor]:
        """How far each observation moves; 1 where all rows are alike, which says nothing of it."""
        seen = {
            e.name: self._that_count(e).float()
            for e in self.entries
            if e.role == "observation" and self.flat.get(e.key).is_floating_point()
        }
        if all(bool((x == x[:1]).all()) for x in seen.values()):
            return {name: torch.ones_like(x[0]) for name, x in seen.items()}
        return {name: x.std(0, correction=0).nan_to_num(1.0, 1.0, 1.0) for name, x in seen.items()}

    def _disturbed(self, size: int, spread: float = 0.3) -> Arrays:
        """Rows drawn again, their observations disturbed, everything free redrawn.

        An action that is a number stays where it was. Observations stay so near that it does not
        become improbable: a ratio is the difference of two log-probs, and would have no digits.
        """
        arrays = self._drawn(size, spread)
        action = next((arrays[e.name] for e in self.entries if e.role == "action"), None)
        if action is not None and action.is_floating_point():
            for _ in range(ATTEMPTS):
                found = self.run(arrays, {})
                log_prob = found["log_prob"]
                if "valid" in found:
                    log_prob = log_prob[found["valid"].bool()]
                if float(log_prob.abs().max()) < self.usual:
                    break
                spread /= 3.0
                arrays = self._drawn(size, spread)
        return arrays

    def _drawn(self, size: int, spread: float) -> Arrays:
        arrays = self._arrays(self.flat[self._redrawn(size)])
        for entry in self.entries:
            x = arrays[entry.name]
            if entry.role == "observation" and x.is_floating_point():
                moved = x + spread * self._noise(x) * self.deviations[entry.name]
                arrays[entry.name] = moved.to(x.dtype)
            elif entry.role == "advantage":
                arrays[entry.name] = self._noise(x).to(x.dtype)
            elif entry.role == "mask":
                kept = torch.rand(x.shape, generator=self.random) < COUNTING
                kept[0] = True
                arrays[entry.name] = (x.bool() & kept).to(x.dtype)
        return arrays

    def _redrawn(self, size: int) -> Tensor:
        """Rows of the flat example for a case, padding among them; the first one counts."""
        shape = (size, TIMES[size % len(TIMES)])[: self.dims]
        rows = self._among(self.counting, shape)
        if not len(self.padding):
            return rows
        padded = torch.rand(shape, generator=self.random) < PADDING
        padded[0] = False
        if self.dims == 2:
            # A network along time would take what is in padding into the rows after it.
            padded = padded.sort(-1).values
        return torch.where(padded, self._among(self.padding, shape), rows)

    def _among(self, rows: Tensor, shape: tuple[int, ...]) -> Tensor:
        return rows[torch.randint(len(rows), shape, generator=self.random)]

    def _policies(self, arrays: Arrays, nats: float) -> Arrays:
        """Old parameters at about that mean KL from the new, and what belongs to them."""
        arrays = dict(arrays)
        new = self.run(arrays, {})
        old = [e for e in self.entries if e.role == "old_head"]
        noise = {e.name: self._noise(new[joined(e.key)]) for e in old}
        size = nats**0.5
        for _ in range(ATTEMPTS):
            for e in old:
                moved = _moved(new[joined(e.key)], size * noise[e.name])
                arrays[e.name] = moved.to(arrays[e.name].dtype)
            kl = float(self.run(arrays, {})["mean_kl"])
            if not old or not nats or 0.5 < kl / nats < 2.0:
                break
            size *= (nats / kl) ** 0.5 if 0 < kl < torch.inf else 0.1
        # A policy that is almost sure takes steps to that KL which would make ratios of thousands.
        spread = 2 * min(size, nats**0.5)
        for e in self.entries:
            x = arrays[e.name]
            if e.role == "log_prob":
                moved = new["log_prob"].reshape(x.shape) - spread * self._noise(x)
            elif e.role in {"value_target", "state_value"}:
                away = 1.0 if e.role == "value_target" else self.defaults["clip_value"]
                moved = new["value"].reshape(x.shape) + away * self._noise(x)
            else:
                continue
            arrays[e.name] = moved.to(x.dtype)
        return arrays

    def _noise(self, x: Tensor) -> Tensor:
        return torch.randn(x.shape, generator=self.random)


def _moved(parameter: Tensor, by: Tensor) -> Tensor:
    """A parameter disturbed: a positive one by a factor, any other by a summand."""
    positive = (parameter > 0) | parameter.isnan()
    return parameter * by.exp() if bool(positive.all()) else parameter + by
