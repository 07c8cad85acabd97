"""Comparing two runs: the rules of the three kinds, what can't be compared, and the command."""

import json
import re
from dataclasses import replace

import pytest
from rich.console import Console

from klppo_compile.cli import run
from klppo_compile.exit_codes import BadInputError, ExitCode
from klppo_compile.perf.comparing.accepting import FILE, Accepted, read_accepted
from klppo_compile.perf.comparing.documents import Document, compare_documents
from klppo_compile.perf.comparing.findings import Verdict, exit_code
from klppo_compile.perf.comparing.rules import compare_rows
from klppo_compile.perf.comparing.table import (
    conclusion,
    count_tables,
    findings_table,
    timed_tables,
)
from klppo_compile.perf.exact.metrics import exact_row
from klppo_compile.perf.rows import SCHEMA, Row, write_document

WORKLOAD, OURS = "normal/networks/256", "ours compiled"
KERNELS = exact_row(WORKLOAD, OURS, "kernels", "kernels", 35)
COUNTED = Row(
    WORKLOAD, "ours eager", "instructions", "", 1e6, 1e6, 1e6, 11, "lower", kind="counted"
)
SPEED = Row(WORKLOAD, OURS, "speed over torchrl eager", "x", 6.0, 5.97, 6.03, 200, "higher")
TIME = Row(WORKLOAD, OURS, "time", "us", 500.0, 490.0, 510.0, 200, "lower")
MACHINE = {"cpu": "A CPU", "cores": 2, "isa": "AVX2", "torch": "2.13.0", "triton": "3.9.0"}
RUN = {"machine": MACHINE, "suite": "quick"}
SHAPELESS = {"schema": SCHEMA, "run": RUN, "rows": [{"value": 1}]}


def value(row, number):
    return replace(row, value=number, low=number, high=number)


def verdicts(base, new, accepted=()):
    return [found.verdict for found in compare_rows(base, new, accepted)]


# Exact


@pytest.mark.parametrize(
    ("new", "verdict"),
    [(35, Verdict.SAME), (36, Verdict.REGRESSION), (34, Verdict.IMPROVEMENT)],
)
def test_any_exact_change_is_an_event(new, verdict):
    (found,) = compare_rows([KERNELS], [value(KERNELS, new)])
    assert found.verdict is verdict
    assert (found.base, found.new, found.metric) == (35, new, "kernels")


def test_a_first_graph_break_is_a_regression_though_it_has_no_ratio():
    none = exact_row(WORKLOAD, OURS, "graph breaks", "breaks", 0)
    (found,) = compare_rows([none], [value(none, 1)])
    assert found.verdict is Verdict.REGRESSION
    assert found.change != found.change


def test_an_accepted_change_passes_and_only_that_one():
    decision = Accepted("kernels", WORKLOAD, OURS, 35, 36, "a row of its own")
    (found,) = compare_rows([KERNELS], [value(KERNELS, 36)], [decision])
    assert found.verdict is Verdict.ACCEPTED
    assert "a row of its own" in found.reason
    assert verdicts([KERNELS], [value(KERNELS, 37)], [decision]) == [Verdict.REGRESSION]
    for change in ({"workload": "normal/heads/256"}, {"provider": "sm_90"}):
        other = replace(decision, **change)
        assert verdicts([KERNELS], [value(KERNELS, 36)], [other]) == [Verdict.REGRESSION]


def test_the_peer_is_not_judged():
    row = replace(KERNELS, provider="torchrl compiled")
    assert verdicts([row], [value(row, 99)]) == [Verdict.ACCEPTED]
    graphs = replace(row, metric="graphs")
    assert verdicts([row, graphs], [row]) == [Verdict.SAME, Verdict.ACCEPTED]
    found = compare_documents(document(KERNELS, row), document(KERNELS))
    assert [x.verdict for x in found.findings] == [Verdict.SAME, Verdict.ACCEPTED]
    assert exit_code(found.findings) is ExitCode.GOOD


@pytest.mark.parametrize("change", [{"unit": "MB"}, {"kind": "counted"}, {"better": "higher"}])
def test_sides_that_measure_something_else_can_not_be_told(change):
    (found,) = compare_rows([KERNELS], [replace(value(KERNELS, 36), **change)])
    assert (found.verdict, found.change != found.change) == (Verdict.UNDECIDED, True)
    assert f"{next(iter(change))} is" in found.reason


def test_a_count_that_becomes_a_time_can_not_be_told():
    other = replace(KERNELS, kind="timed")
    assert verdicts([KERNELS], [other]) == verdicts([other], [KERNELS]) == [Verdict.UNDECIDED]
    found = compare_documents(document(SPEED, other), document(SPEED, KERNELS))
    assert "kind is timed and exact" in found.findings[1].reason


def test_a_type_of_node_that_appears_is_worse_than_none():
    total = exact_row(WORKLOAD, "ours exported", "ONNX nodes", "nodes", 150)
    scan = exact_row(WORKLOAD, "ours exported", "ONNX nodes, Scan", "nodes", 1)
    assert verdicts([total], [total, scan]) == [Verdict.SAME, Verdict.REGRESSION]
    assert verdicts([total, scan], [total]) == [Verdict.SAME, Verdict.IMPROVEMENT]


def test_types_of_nodes_that_one_side_did_not_count_are_not_none():
    total = exact_row(WORKLOAD, "ours exported", "ONNX nodes", "nodes", 150)
    add = exact_row(WORKLOAD, "ours exported", "ONNX nodes, Add", "nodes", 12)
    other = replace(COUNTED, provider="ours exported")
    assert verdicts([other], [other, total, add]) == [Verdict.SAME] * 3
    assert verdicts([other, total, add], [other]) == [Verdict.SAME, *[Verdict.UNDECIDED] * 2]


def test_a_metric_that_is_gone_can_not_be_told():
    syncs = exact_row(WORKLOAD, OURS, "host syncs", "syncs", 0)
    gone, added = (
        compare_rows([KERNELS, syncs], [KERNELS])[1],
        compare_rows([KERNELS], [KERNELS, syncs])[1],
    )
    assert (gone.metric, gone.verdict, gone.new) == ("host syncs", Verdict.UNDECIDED, None)
    assert (added.metric, added.verdict, added.base) == ("host syncs", Verdict.SAME, None)


# Counted and timed


@pytest.mark.parametrize(
    ("factor", "verdict"),
    [(1.004, Verdict.SAME), (1.006, Verdict.REGRESSION), (0.99, Verdict.IMPROVEMENT)],
)
def test_half_a_percent_of_instructions_is_the_limit(factor, verdict):
    assert verdicts([COUNTED], [value(COUNTED, 1e6 * factor)]) == [verdict]


@pytest.mark.parametrize(
    ("factor", "verdict"),
    [(0.97, Verdict.SAME), (0.5, Verdict.UNDECIDED), (2.0, Verdict.IMPROVEMENT)],
)
def test_times_of_two_runs_never_are_a_regression(factor, verdict):
    slower = replace(SPEED, value=6.0 * factor, low=5.97 * factor, high=6.03 * factor)
    (found,) = compare_rows([SPEED], [slower])
    assert found.verdict is verdict
    assert found.low < factor - 1 < found.high
    assert ("bench ab" in found.reason) == (verdict is Verdict.UNDECIDED)


def test_more_launches_show_smaller_changes():
    slower = replace(SPEED, value=5.4, low=5.37, high=5.43)
    assert verdicts([SPEED], [slower]) == [Verdict.SAME]
    many = [replace(row, launches=40) for row in (SPEED, slower)]
    assert verdicts(many[:1], many[1:]) == [Verdict.UNDECIDED]


def test_few_samples_tell_nothing():
    seven = replace(SPEED, samples=7)
    for base, new in ((SPEED, seven), (seven, SPEED)):
        (found,) = compare_rows([base], [new])
        assert found.verdict is Verdict.UNDECIDED
        assert "an interval needs 8 samples; one side has 7" in found.reason


def test_no_size_is_too_large_to_compare():
    huge, tiny = (replace(SPEED, value=x, low=x, high=x) for x in (1e308, 1e-308))
    for base, new in ((huge, tiny), (tiny, huge)):
        table = findings_table(compare_rows([base], [new]))
        assert table.row_count == 1


def test_absolute_times_are_not_compared():
    assert compare_rows([TIME], [value(TIME, 5000.0)]) == []


# Documents


def document(*rows, name="run", **changes):
    run = {**RUN, **{k: v for k, v in changes.items() if k not in MACHINE}}
    run["machine"] = MACHINE | {k: v for k, v in changes.items() if k in MACHINE}
    return Document(name, run, list(rows))


def test_files_of_two_machines_get_no_verdict_unless_asked_for():
    slow = replace(SPEED, value=1.0, low=1.0, high=1.0)
    base, new = document(KERNELS, SPEED), document(KERNELS, slow, cpu="B CPU", cores=4)
    with pytest.raises(BadInputError, match=r"cpu is A CPU and B CPU, cores is 2.*--across-mach"):
        compare_documents(base, new)
    found = compare_documents(base, new, across_machines=True)
    assert [x.metric for x in found.findings] == ["kernels"]
    assert any("timed rows are not compared" in note for note in found.notes)
    with pytest.raises(BadInputError, match="machine class is a-cpu"):
        compare_documents(document(SPEED), document(SPEED, cpu="B CPU"), across_machines=True)


def test_counts_under_other_versions_are_bad_input():
    base, new = document(KERNELS, SPEED), document(KERNELS, SPEED, torch="2.14.0")
    for across in (False, True):
        with pytest.raises(BadInputError, match=r"torch is 2\.13\.0 and 2\.14\.0"):
            compare_documents(base, new, across_machines=across)
    spills = exact_row("kernels/normal", "sm_90", "forward spills", "spills", 0)
    found = compare_documents(
        document(KERNELS, spills), document(KERNELS, value(spills, 5), triton="3.10.0")
    )
    assert [x.metric for x in found.findings] == ["kernels"]
    assert "triton is 3.9.0 and 3.10.0" in found.notes[0]


def test_a_version_that_one_file_lacks_is_another():
    spills = exact_row("kernels/normal", "sm_90", "forward spills", "spills", 0)
    base, new = document(KERNELS, spills, triton=None), document(KERNELS, value(spills, 5))
    found = compare_documents(base, new)
    assert [x.metric for x in found.findings] == ["kernels"]
    assert "triton is not given and 3.9.0" in found.notes[0]
    # Where one side has no such rows, there is nothing that a version could change.
    assert compare_documents(document(KERNELS, triton=None), new).notes == [
        "only in run: kernels/normal (sm_90, exact)."
    ]


def test_what_one_side_lacks_is_named():
    found = compare_documents(document(KERNELS, COUNTED), document(KERNELS))
    lost = found.findings[-1]
    assert (lost.provider, lost.verdict) == ("ours eager", Verdict.UNDECIDED)
    found = compare_documents(document(KERNELS, name="a"), document(KERNELS, COUNTED, name="b"))
    assert found.notes == [f"only in b: {WORKLOAD} (ours eager, counted)."]
    whole = document(KERNELS, replace(COUNTED, provider=OURS), name="full", suite="full")
    found = compare_documents(whole, document(KERNELS))
    assert [finding.metric for finding in found.findings] == ["kernels"]
    assert found.notes == [f"only in full: {WORKLOAD} ({OURS}, counted)."]
    # Without suites, as bench ab writes, what is gone can't be told; nothing in common is no pass.
    both = document(KERNELS, replace(COUNTED, provider=OURS), suite=None)
    found = compare_documents(both, document(KERNELS, suite=None))
    assert exit_code(found.findings) is ExitCode.CANNOT
    for suite in (None, "quick", "full"):
        other = document(replace(COUNTED, provider=OURS), suite=suite)
        with pytest.raises(BadInputError, match="no metric of a workload and provider in common"):
            compare_documents(document(KERNELS), other)
    found = compare_documents(document(KERNELS, COUNTED, suite="full"), document(KERNELS))
    assert exit_code(found.findings) is ExitCode.GOOD
    assert "ours eager" in found.notes[0]


# Tables


def test_the_worst_stands_first():
    new = [value(KERNELS, 34), value(COUNTED, 1.01e6), SPEED]
    findings = compare_rows([KERNELS, COUNTED, SPEED], new)
    table = findings_table(findings)
    assert list(table.columns[0].cells) == ["regression", "improvement"]
    assert list(table.columns[6].cells) == ["+1.00%", "-2.86%"]
    assert findings_table(findings, everything=True).row_count == 3
    assert conclusion(findings) == "REGRESSION: 1 regression, 1 improvement, 1 same."


def columns_of(table, width):
    """The text of each column as it is printed, the words of a cell run together."""
    console = Console(width=width)
    with console.capture() as captured:
        console.print(table)
    lines = [line.split("│")[1:-1] for line in captured.get().splitlines() if "│" in line]
    return ["".join("".join(cells).split()) for cells in zip(*lines, strict=True)]


def test_no_name_is_cut_on_a_narrow_page():
    long = replace(KERNELS, metric="recompilations in a training sequence")
    rows = [replace(long, workload=f"normal/{kind}/256") for kind in ("heads", "networks")]
    findings = compare_rows(rows, [value(row, 36) for row in rows])
    verdicts, workloads, who, metrics, *_ = columns_of(findings_table(findings), 80)
    assert (verdicts, workloads) == ("regression" * 2, "normal/heads/256normal/networks/256")
    assert (who, metrics) == (2 * "ourscompiled", 2 * long.metric.replace(" ", ""))
    cold = replace(TIME, metric="cold: cached first call over torchrl compiled")
    tables = [*count_tables(rows[:1]), *timed_tables([TIME, cold])]
    firsts = [columns_of(table, 20)[0] for table in tables]
    assert firsts == [name.replace(" ", "") for name in (long.metric, OURS, cold.metric)]


# The command


@pytest.fixture
def files(tmp_path):
    def write(name, *rows, **changes):
        path = tmp_path / name
        write_document(path, document(*rows, **changes).run, list(rows))
        return str(path)

    return write


@pytest.mark.parametrize(("kernels", "code"), [(35, 0), (34, 0), (36, 1)])
def test_compare_ends_with_the_verdict(files, kernels, code, capsys):
    base, new = files("a.json", KERNELS), files("b.json", value(KERNELS, kernels))
    assert run(["bench", "compare", base, new]) == code
    assert capsys.readouterr().out.strip().splitlines()[-1].startswith(["PASS", "REGRESSION"][code])
    assert run(["bench", "compare", base, new, "--json"]) == code
    found = json.loads(capsys.readouterr().out)
    assert (found["exit_code"], found["findings"][0]["new"]) == (code, kernels)


def test_json_has_null_where_there_is_no_ratio(files, capsys):
    none = exact_row(WORKLOAD, OURS, "graph breaks", "breaks", 0)
    assert run(
        ["bench", "compare", files("a.json", none), files("b.json", value(none, 1)), "--json"]
    )
    text = capsys.readouterr().out
    assert json.loads(text)["findings"][0]["change"] is None
    assert not {"NaN", "Infinity"} & set(re.findall(r"\w+", text))


def test_a_machine_may_differ_on_demand(files, capsys):
    base, new = files("a.json", KERNELS), files("b.json", KERNELS, cpu="B CPU")
    assert run(["bench", "compare", base, new]) == 2
    assert "--across-machines" in capsys.readouterr().err
    assert run(["bench", "compare", base, new, "--across-machines"]) == 0


def test_a_slowdown_between_runs_can_not_be_told(files, capsys):
    slow = replace(SPEED, value=2.0, low=1.9, high=2.1)
    assert run(["bench", "compare", files("a.json", SPEED), files("b.json", slow)]) == 3
    assert "klppo bench ab" in capsys.readouterr().out


def test_a_file_of_decisions_is_used(files, tmp_path):
    base, new = files("a.json", KERNELS), files("b.json", value(KERNELS, 36))
    decisions = tmp_path / "ok.toml"
    decisions.write_text(
        f'[[accepted]]\nmetric = "kernels"\nworkload = "{WORKLOAD}"\nprovider = "{OURS}"\n'
        'old = 35\nnew = 36\nreason = "one more output"\n'
    )
    assert run(["bench", "compare", base, new, "--accepted", str(decisions)]) == 0


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "must be a JSON document"),
        ('{"schema": "klppo-perf-rows/2", "run"', "must be a JSON document"),
        ('{"schema": "other/1"}', "must have the schema"),
        ("[]", "must have the schema"),
        ('{"schema": "klppo-perf-rows/2", "rows": []}', "must hold a run with its machine"),
        (
            '{"schema": "klppo-perf-rows/2", "run": {"machine": {"cpu": 1}}, "rows": []}',
            "must hold a run with its machine",
        ),
        (json.dumps(SHAPELESS), "must hold a run with its machine"),
        (None, "can't be read"),
    ],
)
def test_what_is_no_result_file_is_bad_input(files, tmp_path, text, told, capsys):
    path = tmp_path / "bad.json"
    if text is not None:
        path.write_text(text)
    assert run(["bench", "compare", files("a.json", KERNELS), str(path)]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert len(error.strip().splitlines()) == 1


ENTRY = {"metric": "kernels", "workload": WORKLOAD, "provider": OURS, "old": 1, "new": 2}
ENTRY |= {"reason": "because"}


def toml(entry):
    return "[[accepted]]\n" + "".join(f"{k} = {json.dumps(v)}\n" for k, v in entry.items())


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[[accepted", "must be TOML"),
        ("other = 1\n", "other"),
        ("accepted = 3\n", "no list"),
        *((toml(ENTRY | {"reason": blank}), "look at reason") for blank in ("", " ", " \t\n ")),
        (toml(ENTRY | {"old": "35"}), "old"),
        (toml(ENTRY | {"until": 3}), "until"),
        (toml({k: v for k, v in ENTRY.items() if k != "metric"}), "metric"),
        (toml({k: v for k, v in ENTRY.items() if k != "provider"}), "look at provider"),
    ],
)
def test_a_malformed_file_of_decisions_is_bad_input(tmp_path, text, told):
    path = tmp_path / "accepted.toml"
    path.write_text(text)
    with pytest.raises(BadInputError, match=told):
        read_accepted(path)


def test_the_shipped_file_of_decisions_reads():
    assert FILE.exists()
    assert all(isinstance(entry, Accepted) for entry in read_accepted())
    with pytest.raises(BadInputError, match="can't be read"):
        read_accepted(FILE.with_name("none.toml"))
