"""Exact metrics: seeded changes are found by name, and two processes count the same."""

import json
import sys
from types import SimpleNamespace

import pytest
import torch

from klppo_compile.cli import run
from klppo_compile.commands import bench_run
from klppo_compile.exit_codes import CannotError, FailedError
from klppo_compile.perf import suites
from klppo_compile.perf.comparing.findings import Verdict
from klppo_compile.perf.comparing.rules import BY_TYPE, compare_rows
from klppo_compile.perf.exact import kernels as exact_kernels
from klppo_compile.perf.exact.compiled import breaks_allowed, count_calls, count_first
from klppo_compile.perf.exact.metrics import exact_row, measure_exact, told, understood
from klppo_compile.perf.exact.onnx import count_onnx
from klppo_compile.perf.exact.step import count_eager, saved_bytes
from klppo_compile.perf.providers import our_loss
from klppo_compile.perf.workloads import Workload, problem

SMALL = Workload("normal", 16, True)


# Seeded changes


def counts(change):
    """What is counted of the eager loss with a change made to its call."""
    case = problem(SMALL)
    loss = our_loss(case)
    return count_eager(lambda data: change(loss(data), case), case)


def moved(change):
    before, after = counts(unchanged), counts(change)
    rows = [
        [exact_row("w", "ours eager", name, unit, value) for name, (value, unit) in side.items()]
        for side in (before, after)
    ]
    found = compare_rows(*rows)
    return {x.metric for x in found if x.verdict is Verdict.REGRESSION}


def unchanged(out, case):
    return out


def reads_the_kl(out, case):
    assert out["kl"].mean().item() > 0
    return out


def takes_a_variance(out, case):
    assert out["kl"].var(correction=0) is not None
    return out


def asks_the_actor_twice(out, case):
    case.actor[0].module(case.data["observation"])
    return out


def keeps_a_copy(out, case):
    out["loss_objective"] = out["loss_objective"] + 0 * case.leaves[0].clone().exp().sum()
    return out


def test_the_loss_reads_nothing_and_asks_its_networks_once():
    found = counts(unchanged)
    assert found["host syncs"][0] == 0
    assert found["actor calls"][0] == found["critic calls"][0] == 1
    assert found["peak memory"][0] > 0
    assert moved(unchanged) == set()
    assert "host syncs" not in moved(takes_a_variance)  # read by the CPU's kernel alone


@pytest.mark.parametrize(
    ("change", "metric"),
    [
        (reads_the_kl, "host syncs"),
        (asks_the_actor_twice, "actor calls"),
        (keeps_a_copy, "saved for backward"),
    ],
)
def test_a_seeded_change_is_found_by_name(change, metric):
    assert metric in moved(change)


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # Dynamo asks at a break
@pytest.mark.parametrize("breaking", [False, True])
def test_a_graph_break_is_counted(breaking):
    case = problem(SMALL)
    loss = our_loss(case)

    def losses(data):
        out = loss(data)
        if breaking:
            torch._dynamo.graph_break()
        return {key: 2 * x for key, x in out.items()}

    with breaks_allowed():
        compiled = torch.compile(losses, fullgraph=True, backend="eager")
    found = count_first(compiled, case)
    assert (found["graphs"][0], found["graph breaks"][0]) == (1 + breaking, breaking)


def test_calls_of_the_networks_are_seen_in_the_graph(monkeypatch):
    assert count_calls(SMALL) == {"actor calls": (1, "calls"), "critic calls": (1, "calls")}

    def twice(case):
        loss = our_loss(case)
        real = loss.run

        def both(data, *rest):
            case.critic.module(data["observation"])
            return real(data, *rest)

        loss.run = both
        return loss

    monkeypatch.setattr("klppo_compile.perf.exact.compiled.our_loss", twice)
    assert count_calls(SMALL)["critic calls"] == (2, "calls")


def test_saved_bytes_count_each_storage_once_and_nothing_given():
    x, weight = torch.randn(8, requires_grad=True), torch.randn(8)
    y = x.exp()
    assert saved_bytes((y * y).sum(), [x]) == 32
    assert saved_bytes((x * weight).sum(), [x, weight]) == 0
    assert saved_bytes((x * weight).sum(), [x]) == 32


# Processes


def test_two_processes_count_the_same(monkeypatch):
    found = []
    for seed in ("1", "77"):
        monkeypatch.setenv("PYTHONHASHSEED", seed)
        found.append(measure_exact([Workload("normal", 16)], parts=("compiled", "eager")))
    assert found[0] == found[1]
    values = {(row.provider, row.metric): row.value for row in found[0]}
    assert values["ours compiled", "graphs"] == 1
    assert values["ours compiled", "graph breaks"] == values["ours compiled", "host syncs"] == 0
    assert values["ours compiled", "recompiles in training"] == 1
    assert values["ours compiled", "kernels"] > 0
    assert values["ours compiled", "bytes of the kernels"] > 0
    assert values["ours eager", "operators"] > values["ours compiled", "operators"]


def test_nodes_are_counted_by_type():
    found = count_onnx(Workload("normal", 16))
    types = {name: n for name, (n, _) in found.items() if name.startswith(BY_TYPE)}
    assert found["ONNX nodes"][0] == sum(types.values())
    assert types[f"{BY_TYPE}Exp"] > 0
    assert found["ONNX file"][0] > 1000


def package(folder, text):
    """A package whose measuring module does as `text` says."""
    room = folder / "klppo_compile" / "perf" / "exact"
    room.mkdir(parents=True)
    for package in (room, *room.parents[:2]):
        (package / "__init__.py").touch()
    (room / "loss.py").write_text("import json, sys\n" + text)
    return folder


def test_the_package_of_the_folder_is_measured(tmp_path):
    row = json.dumps([dict(exact_row("w", "p", "kernels", "kernels", 3).__dict__)])
    path = package(tmp_path, f"open(sys.argv[1], 'w').write({row!r})")
    told_lines = []
    assert measure_exact([SMALL], path, told_lines.append)[0].value == 3
    assert told_lines == [f"counting {SMALL.name}"]


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("sys.exit(11)", FailedError, "no numbers for a wrong answer"),
        ("print('it broke', file=sys.stderr); sys.exit(3)", CannotError, "ended with 3: it broke"),
        ("", CannotError, "ended with 0"),
    ],
)
def test_a_process_that_fails_gives_no_numbers(tmp_path, text, error, words):
    with pytest.raises(error, match=words):
        measure_exact([SMALL], package(tmp_path, text))


def test_a_workload_survives_the_way_to_its_process():
    workload = Workload("categorical", 3, True, columns=5)
    assert understood(told(workload)) == workload


# Suites and the command


def test_kernels_become_rows(monkeypatch):
    room = "klppo_compile.kernels.compiled_cost"
    compiled_cost = pytest.importorskip(room, reason="Triton has no wheel here")
    cost = SimpleNamespace(instructions=100, registers=40, spills=1, stack=8)
    key = "sm_90 forward normal N=8 D=6"
    kernel = SimpleNamespace(kernel="forward", key=key, cost=cost)
    monkeypatch.setattr(compiled_cost, "measure", lambda *_: [kernel])
    rows = exact_kernels.rows_on("sm_90", ["normal", "6"])
    assert {row.workload for row in rows} == {"kernels/normal/N=8/D=6"}
    assert {row.metric: row.value for row in rows} == {
        "kernels launched": 1,
        "forward instructions": 100,
        "forward registers": 40,
        "forward spills": 9,
    }


@pytest.fixture
def fake(monkeypatch):
    """Suites whose parts take no time."""

    def part(name):
        return lambda *_, **__: [exact_row("w", "ours eager", name, "", 1)]

    for name in ("measure_exact", "measure_kernels", "measure_counted", "timed_rows"):
        monkeypatch.setattr(suites, name, part(name))
    monkeypatch.setattr("klppo_compile.perf.timed.cold.measure_cold", part("cold"))
    monkeypatch.setattr(suites, "lacks", lambda part: "no such tool" if part == "counted" else "")


def test_what_is_missing_is_left_out_unless_it_was_asked_for(fake, tmp_path, capsys):
    out = tmp_path / "full.json"
    assert run(["bench", "run", "--suite", "full", "--out", str(out)]) == 0
    assert "counted is left out: no such tool" in capsys.readouterr().out
    document = json.loads(out.read_text())
    assert document["run"]["suite"] == "full"
    metrics = {row["metric"] for row in document["rows"]}
    assert metrics == {"measure_exact", "measure_kernels", "timed_rows", "cold"}
    assert run(["bench", "run", "--part", "counted", "--out", str(out)]) == 4
    assert "no such tool" in capsys.readouterr().err


def test_a_folder_gets_a_file_named_by_date_commit_and_machine(fake, tmp_path, capsys):
    assert run(["bench", "run", "--part", "timed", "--out", str(tmp_path / "new")]) == 0
    (path,) = (tmp_path / "new").iterdir()
    assert path.suffix == ".json"
    assert path.name in capsys.readouterr().out.replace("\n", "")


def test_a_narrowed_run_says_what_it_was_narrowed_to(fake, tmp_path):
    """The page asks, of a series that a run lacks, whether that run would have measured it."""
    out, only = tmp_path / "x.json", ["--part", "timed", "--workload", "categorical/heads/4096"]
    assert run(["bench", "run", *only, "--out", str(out)]) == 0
    command = json.loads(out.read_text())["run"]["command"]
    assert command == " ".join(["klppo bench run --suite quick", *only])


@pytest.mark.parametrize(
    "arguments",
    [["--workload", "gamma/heads/1"], ["--suite", "gpu", "--part", "timed"], ["--part", "none"]],
)
def test_bad_usage_is_refused(fake, tmp_path, arguments):
    assert run(["bench", "run", *arguments, "--out", str(tmp_path / "x.json")]) == 2


def test_a_file_where_a_folder_must_be_is_bad_input(fake, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert run(["bench", "run", "--out", str(tmp_path / "file")]) == 2
    assert "--out must be a .json file or a folder" in capsys.readouterr().err


def test_a_missing_torchrl_is_said(fake, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torchrl", None)
    assert run(["bench", "run", "--out", str(tmp_path / "x.json")]) == 4
    assert "pip install 'klppo-compile[perf]'" in capsys.readouterr().err


def test_the_command_names_what_there_is():
    assert bench_run.PARTS == suites.PARTS
    assert (*suites.SUITES, "gpu") == bench_run.SUITES
    names = {w.name for w in suites.WORKLOADS}
    for suite in suites.SUITES.values():
        assert {*suite.exact, *suite.timed, *suite.counted, suite.cold} <= names
