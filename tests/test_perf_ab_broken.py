"""Revisions that break while they are measured, and processes that outlive their use."""

import io
import json
import os
import subprocess
import sys
import time

import pytest
import torch

from klppo_compile.exit_codes import BadInputError, CannotError
from klppo_compile.perf.exact.metrics import RaisedError, refusal
from klppo_compile.perf.gate import launch, pairing
from klppo_compile.perf.gate import run as ab_run
from klppo_compile.perf.gate.pairing import Pair, probe
from klppo_compile.perf.gate.run import Result, count_both
from klppo_compile.perf.processes import RUNNING, run_process, workers
from klppo_compile.perf.revisions import Source
from klppo_compile.perf.workloads import WORKLOADS

SIDES = {"base": "one", "null": "one", "new": "two"}


@pytest.mark.parametrize("number", [None, 0])
def test_a_revision_that_exits_is_named(tmp_path, monkeypatch, number):
    (tmp_path / "klppo_exits.py").write_text("import sys\nsys.exit(0)\n")
    monkeypatch.syspath_prepend(tmp_path)
    request = {"sides": {"base": "klppo_exits"}, "workloads": ["w"], "launch": number}
    reply = launch.serve(request | {"rounds": 1, "seconds": 1})
    assert reply == {"side": "base", "error": "SystemExit: 0"}


def test_a_revision_that_ends_the_process_is_bad_input(tmp_path, monkeypatch):
    ended = subprocess.CompletedProcess([], 0, "", "")
    monkeypatch.setattr(pairing, "run_process", lambda *_: ended)
    with pytest.raises(BadInputError, match="one and two was ended from within: it said nothing"):
        probe(Pair(tmp_path, SIDES), ["w"])


def test_what_a_revision_prints_is_no_reply(monkeypatch, capfd):
    def printing(_request):
        os.write(1, b"hello")
        return {"side": "base"}

    monkeypatch.setattr(launch, "serve", printing)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    monkeypatch.setattr(sys, "stdin", io.StringIO("{}"))
    assert launch.main() == 0
    os.write(1, b"bye")  # as a process that ends may
    out, err = capfd.readouterr()
    assert json.loads(out) == {"side": "base"}
    assert "hellobye" in err


@pytest.mark.parametrize("code", [0, 1])
@pytest.mark.parametrize("side", ["base", "new"])
def test_a_revision_that_breaks_when_it_is_compiled_is_bad_input(tmp_path, monkeypatch, code, side):
    died = subprocess.CompletedProcess([], code, "", "RuntimeError: it does not compile")

    def count(_workload, place, _parts):
        if place.name == f"exact-{int(side == 'new')}":
            raise refusal("w", died)
        return []

    monkeypatch.setattr(ab_run, "counted", count)
    one, two = Source("base", {"loss.py": ""}), Source("new", {"loss.py": ""})
    with pytest.raises(BadInputError, match=f"; {side} does not: w could .*: it does not compile$"):
        count_both(one, two, WORKLOADS[:1], tmp_path, Result("base", "new", []))


def test_a_process_that_was_killed_says_nothing_of_a_revision():
    killed = refusal("w", subprocess.CompletedProcess([], -9, "", "Killed"))
    assert isinstance(killed, CannotError)
    assert not isinstance(killed, RaisedError)


def test_work_that_is_broken_off_ends_its_processes():
    command = [sys.executable, "-S", "-c", "import time; time.sleep(20)"]
    found = []

    def work():
        with workers(1) as pool:
            found.append(pool.submit(run_process, "it", command, os.environ, 60))
            while not RUNNING:
                time.sleep(0.01)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    assert found[0].result().returncode < 0
    assert not RUNNING
