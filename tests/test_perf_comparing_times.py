"""What a comparison of two files says of times it didn't judge, and of two Pythons."""

from dataclasses import replace

import pytest

from klppo_compile.cli import run
from klppo_compile.exit_codes import BadInputError
from klppo_compile.perf.comparing.documents import Document, compare_documents
from klppo_compile.perf.comparing.findings import Verdict
from klppo_compile.perf.exact.metrics import exact_row
from klppo_compile.perf.history.files import read_history
from klppo_compile.perf.history.series import series_of
from klppo_compile.perf.machine import run_header
from klppo_compile.perf.rows import Row, write_document
from tests.perf_history_cases import MACHINE, header

WORKLOAD, OURS = "normal/heads/256", "ours compiled"
KERNELS = exact_row(WORKLOAD, OURS, "kernels", "kernels", 35)
SPEED = Row(WORKLOAD, OURS, "speed over torchrl eager", "x", 6.0, 5.97, 6.03, 200, "higher")
AGAIN = replace(SPEED, metric="speed over torchrl eager, again")
COLD = Row(WORKLOAD, OURS, "cold: import", "s", 5.0, 4.0, 6.0, 5, "lower", launches=5)


def document(*rows, **machine):
    return Document("run", {"machine": MACHINE | machine, "suite": "quick"}, list(rows))


def at(row, factor):
    return replace(row, value=row.value * factor, low=row.low * factor, high=row.high * factor)


def test_a_pass_says_how_small_a_slowdown_it_could_not_see():
    def compared(slowdown):
        rows = KERNELS, at(SPEED, 1 / (1 + slowdown))
        return compare_documents(document(KERNELS, SPEED), document(*rows))

    (note,) = compared(0.2).notes
    assert note == (
        "times: slowdowns up to 30% don't show between two files; `klppo bench ab` finds 3%."
    )
    # That is where the verdict turns.
    verdicts = [compared(slowdown).findings[1].verdict for slowdown in (0.29, 0.31)]
    assert verdicts == [Verdict.SAME, Verdict.UNDECIDED]


def test_the_widest_interval_is_what_hides_most():
    wide = replace(at(SPEED, 1.0), workload="w", low=3.0, high=9.0, launches=5)
    (note,) = compare_documents(document(SPEED, wide), document(SPEED, wide)).notes
    assert "up to 120% don't show" in note
    few = replace(wide, samples=5)
    (note,) = compare_documents(document(SPEED, few), document(SPEED, few)).notes
    assert "up to 30% don't show" in note


def test_timed_metrics_that_are_not_compared_are_counted(tmp_path, capsys):
    worse = at(AGAIN, 0.1), at(COLD, 10)
    rows = ((KERNELS, AGAIN, COLD), (KERNELS, *worse, replace(AGAIN, provider="ours eager")))
    files = [tmp_path / f"{number}.json" for number in range(2)]
    for number, (path, its) in enumerate(zip(files, rows, strict=True)):
        write_document(path, header(number), list(its))
    for options in ([], ["--json"]):
        assert run(["bench", "compare", *map(str, files), *options]) == 0
        assert "times: 2 metrics of both files are not compared" in capsys.readouterr().out
    assert compare_documents(document(KERNELS), document(KERNELS)).notes == []


# Two Pythons


@pytest.mark.parametrize("name", ["python", "arch"])
@pytest.mark.parametrize("across", [False, True])
def test_counts_of_two_pythons_or_architectures_are_not_compared(name, across):
    base, new, silent = (document(KERNELS, **it) for it in ({name: "a"}, {name: "b"}, {}))
    with pytest.raises(BadInputError, match=rf"exact and counted rows .*: {name} is a and b"):
        compare_documents(base, new, across_machines=across)
    for sides in ((base, silent), (silent, new), (base, base)):
        assert compare_documents(*sides, across_machines=across).notes == []
    timed = document(KERNELS, SPEED, python="a"), document(KERNELS, SPEED, python="b")
    with pytest.raises(BadInputError, match="timed rows are not compared: python is a and b"):
        compare_documents(*timed)


def test_a_run_says_its_python_and_architecture():
    assert all(run_header("a command")["machine"][name] for name in ("python", "arch"))


def test_another_python_begins_another_series(tmp_path):
    for number, python in enumerate([None, "3.11.7", "3.12.1"]):
        head = header(number, MACHINE | ({"python": python} if python else {}))
        write_document(tmp_path / f"{number}.json", head, [KERNELS])
    assert [len(one.runs) for one in series_of(read_history(tmp_path))] == [2, 1]
