"""Counting instructions: the client requests, the dumps, and what is missing."""

import subprocess
import sys

import pytest

from klppo_compile.exit_codes import MissingRequirementError
from klppo_compile.perf.counted import instructions as counted
from klppo_compile.perf.workloads import Workload
from tests.house import ROOT

DUMP = """# callgrind format
desc: Trigger: Client Request: {name}
events: Ir
summary: {count}
totals: {count}
"""
LOOP = """
import sys
sys.path.insert(0, sys.argv[1])
from klppo_compile.perf.counted.requests import START, STOP, ZERO, Callgrind
counter = Callgrind()
assert counter.is_there()
counter.ask(START)
for n in (10_000, 10_000, 10_000, 20_000):
    counter.ask(ZERO)
    sum(range(n))
    for _ in range(n):
        pass
    counter.dump(f"loop|{n}")
counter.ask(STOP)
"""
LACKS = counted.missing()


def test_medians_of_the_dumps_are_the_counts(tmp_path):
    for number, count in enumerate((103, 101, 102)):
        text = DUMP.format(name="normal/heads/256|eager", count=count)
        (tmp_path / f"dump.{number}").write_text(text)
    (tmp_path / "dump.9").write_text("desc: Trigger: Program termination\nsummary: 5\n")
    (row,) = counted.rows_in(tmp_path)
    assert (row.value, row.low, row.high, row.samples) == (102, 101, 103, 3)
    assert (row.workload, row.provider, row.kind) == ("normal/heads/256", "ours eager", "counted")


@pytest.mark.skipif(bool(LACKS), reason=LACKS or "counts here")
def test_client_requests_count_a_loop(tmp_path):
    script = tmp_path / "loop.py"
    script.write_text(LOOP)
    command = ["valgrind", "--tool=callgrind", "--instr-atstart=no"]
    command += [f"--callgrind-out-file={tmp_path / 'dump'}", sys.executable, str(script), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = [counted.read_dump(path.read_text()) for path in sorted(tmp_path.glob("dump.*"))]
    _, first, again, twice = [x[2] for x in found if x is not None]
    assert again == pytest.approx(first, rel=0.05)
    assert 1.5 < twice / again < 2.1


@pytest.mark.skipif(bool(LACKS), reason=LACKS or "counts here")
def test_nothing_answers_without_valgrind():
    from klppo_compile.perf.counted.requests import Callgrind

    assert not Callgrind().is_there()


@pytest.mark.parametrize(
    ("machine", "where", "words"),
    [("aarch64", "/bin/valgrind", "on x86-64 only; this is aarch64"), ("x86_64", None, "valgrind")],
)
def test_what_is_missing_is_said(monkeypatch, machine, where, words):
    monkeypatch.setattr(counted.platform, "machine", lambda: machine)
    monkeypatch.setattr(counted.shutil, "which", lambda _: where)
    with pytest.raises(MissingRequirementError, match=words):
        counted.measure_counted([Workload("normal", 256)])
