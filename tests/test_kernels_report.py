"""Machine code without a GPU: no spills, no growth, and the parts that read it."""

import json
import os
import subprocess
import sys

import pytest

from tests.house import ROOT

pytest.importorskip("triton", reason="Triton has no wheel here")

from klppo_compile.kernels import machine_code, report

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
PLAIN = {"registers": 40, "spills": 0, "stack": 0, "shared": 0, "instructions": 100, "warps": 4}


def row(**changes):
    cost = machine_code.Cost(**PLAIN | changes, loops=(), loads={}, stores={})
    return report.Row("finalize", report.Case("normal", 8, 2), "sm_90", cost, 1, 1.0, 1.0)


def report_on(*arguments):
    """The report in an interpreter of its own, where Triton compiles."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "klppo_compile.kernels.report", *arguments]
    return subprocess.run(
        command, check=False, cwd=ROOT, env=environment, capture_output=True, text=True
    )


@pytest.mark.parametrize(
    ("family", "columns"), [("normal", "6"), ("bernoulli", "6"), ("categorical", "18")]
)
def test_shipped_kernels_neither_spill_nor_grow(family, columns, tmp_path):
    saved = tmp_path / "rows.jsonl"
    options = ("--chips", "sm_90", "--families", family, "--columns", columns)
    done = report_on(*options, "--save", str(saved))
    assert done.returncode == 0, done.stderr
    rows = [json.loads(text) for text in saved.read_text(encoding="utf-8").splitlines()]
    kernels = {found["kernel"].split("_")[-1] for found in rows}
    assert {"forward", "backward", "finalize"} <= kernels


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


def test_every_family_has_cases():
    assert {case.family for case in report.cases()} == set(report.FAMILIES)
