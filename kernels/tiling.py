"""How rows and columns are cut: a table by size, without tuning at run time."""

import functools
import math
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
import triton

from klppo_compile.kernels.layout import Head

WIDE = 4096  # actions beyond which a row is streamed
FILL = 264  # programs that keep a large chip busy: two per multiprocessor
WAVE = 64 if torch.version.hip else 32
# Before 3.8 the assembler spills for sm_90 where a thread takes four rows backward: 64 registers.
TIGHT = tuple(int(x) for x in triton.__version__.split(".")[:2]) < (3, 8)
CHIP: ContextVar[str | None] = ContextVar("chip", default=None)
"""The chip that is compiled for without a device; see report.py."""


class Tile(NamedTuple):
    """BN rows of a block, T threads on a row, W columns per thread and step; its threads."""

    BN: int
    T: int
    W: int
    threads: int

    def tail(self, D: int) -> tuple[int, int]:
        """T and W of the last tile of a sweep, where whole ones don't end at D."""
        if self.T > 1:
            return self.T, self.W
        return 1, int(triton.next_power_of_2(max(1, D % self.W)))

    def unroll(self, D: int, heavy: bool) -> int:
        """Steps of a sweep to unroll: it spares instructions and takes registers."""
        shared = self.T > 1 or D % 2 == 1
        return max(1, D // (self.T * self.W)) if not heavy and (shared or D <= 12) else 1


CLOSING = Tile(4, 1, 1, 32)  # rows of vocabularies, after their streaming
CRITIC = Tile(256, 1, 1, 128)  # a critic's rows where they are not the policy's


def tile(D: int, N: int, bits: int, most: int = 256) -> Tile:
    """The tile for N rows of D columns: small blocks where N is small, so that all the chip works.

    most: threads on rows of a block, counted once per row that a thread takes; 512 spreads a
    block's sums over more rows, where the registers of four rows per thread suffice.
    """
    W = math.gcd(D, 128 // bits if D > 32 else 4)
    if W == 1 and D > 4:
        W = 4
    T = 1
    while D > 32 and T < 256 and D > 16 * T:
        T *= 2
    lanes = min(
        most, 512 if N * T >= 2**19 else 256 if N * T >= 2**17 else 128 if N * T >= 2**14 else 32
    )
    BN = max(1, lanes // T)
    return Tile(BN, T, W, min(128, BN * T))


def deepest(h: Head, backward: bool = False) -> int:
    """How many rows a thread may take (128 for one): what fits in registers; see report.py."""
    if h.softmax:
        if h.K > 1:
            return 128
        short = 16 if crowded(CHIP.get(), h.new[0].device) else 24
        return 512 if h.D % 2 == 0 and (short >= h.D or (h.D > 32 and h.bits == 32)) else 256
    if h.heavy:
        return 128
    light = not backward or (len(h.new) == 1 and not TIGHT)
    return 512 if h.D <= 6 and light else 256


@functools.cache
def crowded(chip: str | None, device: torch.device) -> bool:
    """Whether the chip's assembler reads so far ahead that four rows of 18 actions would spill.

    It does from compute capability 10 on.
    """
    if chip is None and device.type == "cuda" and not torch.version.hip:
        return torch.cuda.get_device_capability(device)[0] >= 10
    return chip == "sm_100"


def streaming_tile(D: int, bits: int) -> Tile:
    """One row per block."""
    W = 128 // bits
    return Tile(1, min(256, triton.next_power_of_2(triton.cdiv(D, W))), W, 256)


def split(rows: int, D: int, block: Tile) -> tuple[int, int]:
    """Chunks per program and programs on a row: a few rows are split until they fill the chip."""
    chunks = triton.cdiv(D, block.T * block.W)
    programs = min(triton.cdiv(FILL, max(rows, 1)), triton.cdiv(chunks, 2))
    steps = triton.cdiv(chunks, programs)
    return steps, triton.cdiv(chunks, steps)


def options(threads: int, wave: int = WAVE) -> dict[str, Any]:
    """Launch options; fusing multiply and add is Triton's default until 3.10 and ours for good."""
    return {"num_warps": max(1, threads // wave), "enable_fp_fusion": True}
