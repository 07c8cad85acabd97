"""The workloads that the kernels are compiled for where there is no GPU: sizes without data."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from klppo_compile.distributions import FAMILIES
from klppo_compile.kernels.layout import Problem, problem
from klppo_compile.records import Factorised, Family, Minibatch, PolicyHead, Softmax

LARGE, MEDIUM, SMALL = 1 << 20, 1 << 16, 1 << 12
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Case:
    """One workload; `masks`: with row masks, a proximal policy, and losses per row.

    K: softmaxes of a row, `heads`: action heads, `apart`: the critic has rows of its own.
    """

    family: str
    N: int
    D: int
    K: int = 1
    heads: int = 1
    dtype: str = "float32"
    masks: bool = False
    apart: bool = False

    def problem(self) -> Problem:
        """It, on tensors without data."""

        def rows(dtype: torch.dtype = torch.float32, N: int = self.N) -> Tensor:
            return torch.empty(N, dtype=dtype, device="meta")

        mask = rows(torch.bool) if self.masks else None
        values = self.N // 2 if self.apart else self.N
        return problem(
            Minibatch(
                (self.head(),) * self.heads,
                old_log_prob=rows(),
                advantage=rows(),
                value=rows(N=values),
                value_target=rows(N=values),
                old_value=rows(N=values),
                mask=mask,
                value_mask=mask,
                proximal_log_prob=rows() if self.masks else None,
            )
        )

    def head(self) -> PolicyHead:
        """One of its action heads."""
        family = FAMILIES[self.family]
        softmax = isinstance(family, Softmax)
        size = (self.N, self.K, self.D) if softmax else (self.N, self.D)
        parameters = tuple(
            torch.empty(size, dtype=DTYPES[self.dtype], device="meta") for _ in family.parameters
        )
        action = torch.empty(
            size[:2], dtype=torch.int64 if softmax else torch.float32, device="meta"
        )
        extra: dict[str, Any] = {}
        if isinstance(family, Factorised) and family.correction is not None:
            sizes = {"log_volume": (), "noise": (16, 1, 1), "weights": (16,)}
            extra = {name: torch.empty(size, device="meta") for name, size in sizes.items()}
        return PolicyHead(family, action, parameters, parameters, **extra)


def cases(families: Iterable[Family] | None = None) -> Iterator[Case]:
    """Every family at the sizes where its tile changes."""
    for family in FAMILIES.values() if families is None else families:
        if "triton" not in family.backends:
            continue
        softmax = isinstance(family, Softmax)
        for D in (2, 6, 17, 18, 33, 256, 1024) if softmax else (1, 6, 17, 32, 64, 512):
            yield Case(family.name, LARGE, D)
            yield Case(family.name, SMALL, D)
            yield Case(family.name, LARGE, D, dtype="bfloat16")
            yield Case(family.name, LARGE, D, masks=True)
        yield Case(family.name, MEDIUM, D)
        yield Case(family.name, LARGE, 6, heads=2)
        yield Case(family.name, LARGE, 6, apart=True)
        yield Case(family.name, LARGE, D, dtype="float16")
        if softmax:
            yield Case(family.name, LARGE, 7, K=4)
            for dtype in DTYPES:
                for N, D in ((8192, 131072), (8, 131072), (8192, 50257)):
                    yield Case(family.name, N, D, dtype=dtype)
