"""Machine code without a GPU: no spills, no growth, and the parts that read it."""

import json
import os
import re
import subprocess
import sys

import pytest

from tests.house import ROOT

pytest.importorskip("triton", reason="Triton has no wheel here")

from klppo_compile.kernels import machine_code, report
from klppo_compile.kernels.cases import Case, cases
from klppo_compile.kernels.compiled_cost import Row

SASS = """
        /*0000*/                   LDG.E.128 R4, [R2.64] ;
        /*0010*/              @!P0 LDG.E R8, [R2.64] ;
        /*0020*/                   LDG.E.U16 R9, [R2.64] ;
        /*0030*/                   STL [R1], R4 ;
        /*0040*/               @P1 BRA 0x10 ;
        /*0050*/                   STG.E.64 [R2.64], R4 ;
        /*0060*/                   BRA 0x60 ;
        /*0070*/                   NOP ;
"""
FAR = """
import dataclasses

import torch
import triton

from klppo_compile.kernels import launch, machine_code, tiling
from klppo_compile.kernels.cases import Case
from klppo_compile.kernels.layout import Static

FAR = 2**30 + 8
triton.runtime.driver.set_active(machine_code.DRIVER)


def run(kernel, grid, threads, *args):
    text = kernel.warmup(*args, grid=(1,), **tiling.options(threads, 32)).asm["ttir"]
    assert f"{FAR} : i32" not in text, kernel.fn.__name__
    print(f"{FAR} : i64" in text)


static = Static("mean", "l2", False, True, False)
for D in (4, 5000):
    p = Case("categorical", 8, D, K=3).problem()
    # As logits [K, N, D] seen as [N, K, D].
    far = dataclasses.replace(p.heads[0], SH=(3, FAR, D, FAR, D, FAR))
    p = dataclasses.replace(p, heads=(far,))
    out = launch.forward(p, (1.0,) * 10, static, run)
    g = torch.empty(1, device="meta")
    launch.backward(p, (g, g, g), out.metrics, out.log_prob, out.kept, static, run)
"""
PLAIN = {"registers": 40, "spills": 0, "stack": 0, "shared": 0, "instructions": 100, "warps": 4}


def row(**changes):
    cost = machine_code.Cost(**PLAIN | changes, loops=(), loads={}, stores={})
    return Row("finalize", Case("normal", 8, 2), "sm_90", cost, 1, 1.0, 1.0)


def compiling(*arguments):
    """Python in a process of its own, where Triton compiles."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, *arguments],
        check=False,
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )


def report_on(*arguments):
    """The report, likewise."""
    return compiling("-m", "klppo_compile.kernels.report", *arguments)


# The usual widths on every chip. sm_90's other widths are as many again, six minutes on a core:
# `python -m klppo_compile.kernels.report` has them.
@pytest.mark.parametrize("family", report.FAMILIES)
@pytest.mark.parametrize("chip", report.CHIPS)
def test_shipped_kernels_neither_spill_nor_grow(chip, family, tmp_path):
    saved = tmp_path / "rows.jsonl"
    columns = map(str, report.USUAL)
    options = ("--chips", chip, "--families", family, "--columns", *columns)
    done = report_on(*options, "--save", str(saved))
    assert done.returncode == 0, done.stderr
    rows = [json.loads(text) for text in saved.read_text(encoding="utf-8").splitlines()]
    kernels = {found["kernel"].split("_")[-1] for found in rows}
    assert {"forward", "backward", "finalize"} <= kernels


def test_heads_of_a_row_far_apart_are_reached_in_64_bits():
    # The interpreter's integers don't overflow: the compiled text has to say it.
    done = compiling("-c", FAR)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split().count("True") == 6


def test_sass_is_read():
    found = machine_code.from_sass("REG:40 STACK:8", SASS)
    assert (found["registers"], found["stack"], found["spills"]) == (40, 8, 1)
    assert found["instructions"] == 7
    assert found["loops"] == (4,)
    assert (found["loads"], found["stores"]) == ({16: 1, 32: 1, 128: 1}, {64: 1})


def test_spills_and_growth_are_faults(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "BASELINE", tmp_path / "baseline.json")
    report.refresh([row()])
    assert report.check([row()]) == []
    assert "takes 101 instructions, 100 in the baseline" in report.check([row(instructions=101)])[0]
    assert "spills registers" in report.check([row(spills=2)])[0]


def test_another_tritons_counts_are_not_compared_and_it_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "BASELINE", tmp_path / "baseline.json")
    report.refresh([row()])
    assert report.compared() == "no count beyond the baseline"
    monkeypatch.setattr("triton.__version__", "3.0.0")
    assert report.check([row(instructions=101)]) == []
    assert "spills registers" in report.check([row(spills=2)])[0]
    assert re.fullmatch(
        r"counts not compared: the baseline is Triton \S+'s, this is 3.0.0", report.compared()
    )


def test_every_family_has_cases():
    assert {case.family for case in cases()} == set(report.FAMILIES)
