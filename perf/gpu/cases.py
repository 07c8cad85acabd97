"""What the GPU suite measures, and in which order: the most valuable jobs first."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from klppo_compile.perf.workloads import PARAMETERS, Problem, Workload

LARGE, MIDDLE, SMALL = 1_048_576, 65_536, 4096
HEADS = (("normal", 6), ("categorical", 18), ("normal", 17), ("categorical", 256))
MORE_HEADS = (("normal", 1), ("categorical", 2), ("normal", 64), ("categorical", 6))
VOCABULARIES, TOKENS = (32_768, 131_072), 8192

OURS, INDUCTOR = "our Triton kernels", "our text by Inductor"
TORCHRL, TORCHRL_COMPILED, LIGER = "torchrl eager", "torchrl compiled", "Liger GRPO"


@dataclass(frozen=True)
class Job:
    """One workload and who is timed on it, in turn within one run. Ours is the first."""

    workload: Workload
    contenders: tuple[str, ...]


def jobs(interpreted: bool = False) -> list[Job]:
    """Every job: Inductor on the most telling heads, torchrl eager on all, then what compiles long.

    Compiled peers are measured at two sizes only: compiling takes longer than measuring. For the
    interpreter, a few tiny jobs of every kind.
    """
    if interpreted:
        tiny = [Workload("normal", 5, columns=3), Workload("categorical", 4, columns=2)]
        words = Workload("categorical", 2, columns=5000, dtype="bfloat16")
        return [
            Job(tiny[0], (OURS, INDUCTOR, TORCHRL, TORCHRL_COMPILED)),
            Job(tiny[1], (OURS, TORCHRL)),
            Job(words, (OURS, LIGER)),
        ]
    large, middle, small = (list(heads(batch)) for batch in (LARGE, MIDDLE, SMALL))
    vocabulary = list(vocabularies())
    first = [*large[: len(HEADS)], vocabulary[0], *small[:2]]
    rest = [*large[len(HEADS) :], vocabulary[1], *small[2:]]
    return [
        *(Job(w, (OURS, INDUCTOR)) for w in first),
        *(Job(w, (OURS, TORCHRL)) for w in (*large, *small, *vocabulary, *middle)),
        *(Job(w, (OURS, INDUCTOR)) for w in rest),
        *(Job(w, (OURS, LIGER)) for w in vocabulary),
        *(Job(w, (OURS, TORCHRL_COMPILED)) for w in (*large, *small)),
    ]


def heads(batch: int) -> Iterator[Workload]:
    """All heads at one size."""
    for family, columns in (*HEADS, *MORE_HEADS):
        yield Workload(family, batch, columns=columns)


def vocabularies() -> Iterator[Workload]:
    """Language models' heads."""
    for columns in VOCABULARIES:
        yield Workload("categorical", TOKENS, columns=columns, dtype="bfloat16")


def part_of(case: Problem, start: int, stop: int, dtype: torch.dtype | None = None) -> Problem:
    """Rows of a problem with given heads, copied, in a dtype of their own if one is named."""

    def copied(x: Tensor) -> Tensor:
        rows = x.detach()[start:stop]
        return rows.to(dtype, copy=True) if dtype and x.is_floating_point() else rows.clone()

    data = case.data.empty()
    data.batch_size = torch.Size([stop - start])
    for name, x in case.data.items():
        data[name] = copied(x)
    names = PARAMETERS[case.workload.family]
    given = [data[f"given_{name}"] for name in names]
    return replace(
        case,
        workload=replace(case.workload, batch=stop - start),
        data=data,
        leaves=tuple(x.requires_grad_() for x in (*given, data["given_value"])),
        old=tuple(data[name] for name in names),
        new=tuple(x.detach() for x in given),
    )


def floor_bytes(case: Problem) -> dict[str, int]:
    """Bytes that each pass must move: its inputs read once, its outputs written once.

    Both passes read old and new parameters, action, and per row log-prob, advantage, value and
    target. Forward writes KL, log-prob and ratio of each row, backward the gradients of the new
    parameters and of the value. Nothing kept between them is counted.
    """
    parameters = sum(x.nbytes for x in case.new)
    row = case.data["action_log_prob"].nbytes
    value = case.data["given_value"].nbytes
    read = case.data["action"].nbytes + 2 * parameters + 3 * row + value
    passes = {"forward": read + 3 * row, "backward": read + parameters + value}
    return passes | {"forward+backward": sum(passes.values())}
