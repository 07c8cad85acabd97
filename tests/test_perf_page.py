"""The page: what it says of a history with sown steps."""

import json
import re
from dataclasses import replace

import pytest

from klppo_compile.cli import run
from klppo_compile.exit_codes import BadInputError
from klppo_compile.perf.history.files import read_history
from klppo_compile.perf.page.file import SCRIPT, asset, page
from klppo_compile.perf.page.view import sections
from klppo_compile.perf.rows import Row, write_document
from tests.perf_history_cases import MACHINE, header, write_history
from tests.perf_page_cases import URL, Elements

STEPPED = ("normal/heads/256", "ours compiled")


@pytest.fixture(scope="module")
def history(tmp_path_factory):
    """30 runs of 40 series; from run 19 (hexadecimal 13) on one contender is worse."""
    return read_history(write_history(tmp_path_factory.mktemp("history"), 30, step_at=19))


# What it says


def test_the_sown_steps_are_flagged_at_their_commit_and_nothing_else(history):
    (section,) = sections(history)
    (event,) = section.events
    assert (event.workload, event.provider) == STEPPED
    assert (event.commit.name, event.before.name, event.runs) == ("13c0ffee01", "12c0ffee01", 11)
    assert {move.metric for move in event.moves} == {row.metric for row in history[0].rows}
    assert {move.verdict for move in event.moves} == {"worse"}
    assert section.counts == {"worse": 5, "better": 0, "same": 35, "ended": 0}


def test_what_is_worst_stands_first(history):
    (section,) = sections(history)
    card, *others = section.cards
    assert (card.workload, card.provider, card.state) == (*STEPPED, "worse")
    assert {other.state for other in others} == {"same"}
    assert card.charts[0]["m"] == "time"
    first, second, *rest = section.exact
    assert (first.first, first.last, first.changes[0][0]) == ("0", "1", "0 → 1")
    assert (second.first, second.last) == ("17", "18")
    assert second.changes[0][0] == "+5.9 % (17 → 18)"
    assert not [row for row in rest if row.changes]


def test_a_chart_has_its_runs_levels_and_noise(history):
    chart = sections(history)[0].cards[0].charts[0]
    assert chart["r"] == list(range(30))
    ((index, before, after, text, worse),) = chart["c"]
    assert (index, worse) == (19, 1)
    assert after / before == pytest.approx(1.08, abs=0.01)
    assert re.fullmatch(r"\+[78]\.\d %", text)
    # 99 % of the runs at a level: 2.6 times what was sown
    assert chart["n"] == pytest.approx(2.576 * 0.0075, rel=0.5)


def test_links_lead_to_commits_where_an_address_is_given(history):
    linked, plain = Elements(page(history, URL)), Elements(page(history))
    links = {attrs["href"] for tag, attrs in linked.found if tag == "a"}
    assert f"{URL}13c0ffee01" in links
    assert all(link.startswith(URL) for link in links)
    assert not [tag for tag, _ in plain.found if tag == "a"]
    assert "13c0ffee01" in page(history)


def test_a_commit_that_is_no_hash_gets_no_link(tmp_path):
    row = Row("w", "p", "m", "", 1.0, 1.0, 1.0, 1, "lower", "exact")
    for number, commit in enumerate(("unknown", "abc1234567-dirty")):
        write_document(tmp_path / f"{number}.json", header(number) | {"commit": commit}, [row])
    links = [
        a["href"] for tag, a in Elements(page(read_history(tmp_path), URL)).found if tag == "a"
    ]
    assert links == [f"{URL}abc1234567"]


def test_one_run_is_a_table_with_a_hint(tmp_path):
    text = page(read_history(write_history(tmp_path, 1)))
    assert "a trend needs a second one" in text
    assert "Newest numbers" in text
    assert "worse</b>" not in text
    assert not Elements(text).of_class("card")


def test_classes_of_machine_stand_apart(tmp_path):
    write_history(tmp_path, 8, step_at=4)
    write_history(tmp_path, 9, machine=MACHINE | {"cpu": "Xeon"})
    first, second = sections(read_history(tmp_path))
    # the one measured last first
    assert first.machine_class.startswith("xeon")
    assert (len(first.events), len(second.events)) == (0, 1)


def row(metric, value, kind="exact", provider="ours", unit=""):
    return Row("w", provider, metric, unit, value, value, value, 1, "lower", kind)


def history_of(folder, *documents):
    """A run a day: what its head has of its own, and its rows."""
    for number, (head, rows) in enumerate(documents):
        write_document(folder / f"{number:03}.json", header(number) | head, rows)
    return read_history(folder)


@pytest.fixture
def ended(tmp_path):
    """One contender is gone after its exact metric got worse, one lost a metric, one goes on."""
    whole = [row("time", 5.0, "timed", p) for p in ("gone", "ours")] + [row("kernels", 1.0)]
    whole.append(row("memory rate", 7.0, "timed"))
    worse = [*whole[:3], whole[3], row("graph breaks", 1.0, provider="gone")]
    first = [*whole, row("graph breaks", 0.0, provider="gone")]
    other = ({"command": "klppo bench run --part exact"}, [row("kernels", 1.0)])
    rest = ({}, [whole[1], whole[2]])
    return history_of(tmp_path, ({}, first), ({}, worse), other, rest, other)


def test_what_is_no_longer_measured_has_ended_and_stands_last(ended):
    (section,) = sections(ended)
    assert section.counts == {"worse": 0, "better": 0, "same": 2, "ended": 3}
    ours, gone = section.cards
    assert (ours.state, ours.ended_at, gone.state) == ("same", None, "ended")
    assert gone.ended_at.name == "01c0ffee01"
    assert section.metrics == ("time", "memory rate")
    assert [cell.text for cell in ours.cells] == ["5", "7"]
    assert [cell.ended_at and cell.ended_at.name for cell in ours.cells] == [None, "01c0ffee01"]
    kernels, breaks = section.exact
    assert (kernels.state, breaks.state, breaks.ended_at.name) == ("same", "ended", "01c0ffee01")
    (event,) = section.events
    assert (event.state, event.setback, event.moves[0].verdict) == ("ended", 0, "quiet")


def test_a_run_that_left_something_out_ends_nothing(tmp_path):
    """It lacked a tool, say."""
    both, one = [row("kernels", 1.0), row("memory", 2.0)], [row("kernels", 1.0)]
    partial = ({"left out": ["memory is left out: no such tool"]}, one)
    (section,) = sections(history_of(tmp_path / "partial", ({}, both), partial))
    assert section.counts["ended"] == 0
    (section,) = sections(history_of(tmp_path / "whole", ({}, both), ({}, one)))
    assert section.counts["ended"] == 1


def test_the_page_says_where_it_ended_and_calls_it_nothing_else(ended):
    text = page(ended)
    assert "<title>klppo bench: 0 worse, 0 better</title>" in text
    # the contender's card and line, its exact metric, the metric that the other lost
    assert text.count("last measured at") == 4
    elements = Elements(text)
    assert not [
        a for tag, a in elements.found if tag in {"b", "span"} and a.get("class") == "worse"
    ]
    assert not [a for a in elements.of_class("n") if "worse" in a["class"]]
    assert "<option>ended</option>" in text


def test_a_run_of_another_command_ends_nothing(tmp_path):
    runs = history_of(
        tmp_path, ({}, [row("kernels", 1.0)]), ({"command": "other"}, [row("graph breaks", 0.0)])
    )
    assert sections(runs)[0].counts["ended"] == 0


def test_a_new_version_is_no_commits_doing(tmp_path):
    """The old version's series ends; the new one's numbers stand, and nothing is worse."""
    runs = history_of(
        tmp_path,
        *(
            ({"machine": MACHINE | {"torchrl": version}}, [row("time", value, "timed")])
            for version, value in (("0.14", 5.0), ("0.15", 8.0))
        ),
    )
    (section,) = sections(runs)
    assert section.counts == {"worse": 0, "better": 0, "same": 1, "ended": 1}
    (card,) = section.cards
    assert (card.state, card.cells[0].text, card.cells[0].ended_at) == ("same", "8", None)
    assert [chart["e"] for chart in card.charts] == [0, 1]


def test_it_is_one_file_below_1_mb_that_asks_for_nothing(tmp_path):
    text = page(read_history(write_history(tmp_path, 200, step_at=150)), URL)
    assert len(text.encode()) < 1_000_000
    elements = Elements(text).found
    assert not [a for _, a in elements if {"src", "srcset", "data", "action", "poster"} & a.keys()]
    assert not {tag for tag, _ in elements} & {"link", "iframe", "object", "embed", "img", "base"}
    assert not re.search(r"url\(|@import", text)
    (policy,) = [a["content"] for _, a in elements if a.get("http-equiv")]
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy


# As klppo bench run writes it: perf/results/2026-11-30-*.json with the tools' versions.
FULL = {"cpu": "AMD EPYC", "cores": 2, "isa": "AVX512", "torch": "2.13.0+cpu"}
FULL |= {"tensordict": "0.14.3", "torchrl": "0.14.1", "valgrind": "3.19.0", "triton": "3.9.0"}
FULL |= {"compiler": "g++ (Debian 12.2.0-14+deb12u1) 12.2.0", "onnx": "1.23.2"}
FULL |= {"onnxscript": "0.7.2"}


def changing(folder, every, contenders=40, runs=200):
    """40 exact series that get worse again and again."""
    numbers = [(c, m) for c in range(contenders) for m in range(40 // contenders)]
    return history_of(
        folder,
        *(
            (
                {"machine": FULL},
                [
                    row(f"metric {m}", 1e5 + i // every, "exact", f"ours {c}", "B")
                    for c, m in numbers
                ],
            )
            for i in range(runs)
        ),
    )


@pytest.mark.parametrize(("every", "contenders"), [(10, 40), (5, 40), (1, 40), (1, 1)], ids=str)
def test_it_stays_below_1_mb_where_everything_changes(tmp_path, every, contenders):
    text = page(changing(tmp_path, every, contenders), URL)
    assert len(text.encode()) < 1_000_000
    # the newest run, the Runs table and the hover text: not each mention of a commit
    assert text.count("Debian") == 1 + 2 * 200


def test_what_is_not_listed_is_counted_and_found_by_the_filter(tmp_path):
    (section,) = sections(changing(tmp_path, 1, runs=6))
    assert (len(section.events), section.more_events) == (50, 150)
    exact = section.exact[0]
    assert [at.name for _, at, _ in exact.changes] == ["05c0ffee01", "04c0ffee01", "03c0ffee01"]
    assert exact.earlier == 2
    assert exact.names.split() == [f"0{i}c0ffee01" for i in range(1, 6)]
    text = page(read_history(tmp_path))
    assert "and 150 more" in text
    assert text.count("and 2 earlier") == 40


def test_a_series_that_always_changes_drives_no_other_off_the_list(tmp_path):
    steady = [row("kernels", 17.0 + (i > 20), provider="theirs") for i in range(80)]
    documents = [({}, [row("bytes", 2.0**i), one]) for i, one in enumerate(steady)]
    (section,) = sections(history_of(tmp_path, *documents))
    assert [event.provider for event in section.events] == ["ours"] * 3 + ["theirs"]
    assert section.more_events == 79 - 3


def test_no_byte_goes_to_what_says_nothing(ended):
    text = page(ended)
    data = re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1]
    assert data == json.dumps(json.loads(data), separators=(",", ":"))
    assert 'title=""' not in text


def test_our_own_script_stays_small():
    assert len(asset(SCRIPT).encode()) <= 5120


def test_whatever_comes_from_a_file_is_escaped(tmp_path):
    evil = "</script><script>alert(1)</script><img src=x onerror='alert(2)'>\"&"
    head = header(0, MACHINE | {"torchrl": evil}) | {"command": evil}
    for number in range(2):
        rows = [
            Row(evil, evil, evil + kind, evil, number + 1.0, 1.0, 3.0, 9, "lower", kind)
            for kind in ("exact", "timed")
        ]
        date = header(number)["date"]
        write_document(tmp_path / f"{number}.json", head | {"date": date}, rows)
    # A history has no such commit, and the page doesn't lean on that.
    text = page([replace(run, commit=evil) for run in read_history(tmp_path)], URL)
    elements = Elements(text)
    assert not [tag for tag, _ in elements.found if tag == "img"]
    assert sum(tag == "script" for tag, _ in elements.found) == 3
    assert evil in {attrs.get("title") for _, attrs in elements.found} or "&lt;img" in text
    data = re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1]
    assert json.loads(data)[0]["runs"][0]["n"] == evil


@pytest.mark.parametrize("url", ["javascript:alert(1)//", "example.org/", ""])
def test_a_base_address_that_is_none_is_refused(history, url):
    with pytest.raises(BadInputError, match="start of a web address"):
        page(history, url)


# The command


def test_the_command_writes_the_page(tmp_path, capsys):
    write_history(tmp_path / "results", 2)
    out = tmp_path / "new" / "page.html"
    arguments = ["bench", "report", f"--results={tmp_path / 'results'}", f"--out={out}"]
    assert run([*arguments, f"--commit-url={URL}"]) == 0
    assert re.search(r"page\.html: 2 runs, \d+ kB", capsys.readouterr().out)
    assert URL in out.read_text()


def test_the_command_refuses_a_broken_file_and_writes_nothing(tmp_path, capsys):
    write_history(tmp_path, 1)
    (tmp_path / "broken.json").write_text("{")
    out = tmp_path / "page.html"
    assert run(["bench", "report", f"--results={tmp_path}", f"--out={out}"]) == 2
    assert "broken.json must be a JSON document" in capsys.readouterr().err
    assert not out.exists()
    assert run(["bench", "report", f"--results={tmp_path / 'none'}", f"--out={out}"]) == 2


def test_an_improvement_is_none_the_worse_for_what_came_after(tmp_path):
    runs = history_of(tmp_path, *(({}, [row("kernels", x)]) for x in (11.0, 10.0, 12.0)))
    (section,) = sections(runs)
    found = [(e.state, e.setback, e.moves[0].verdict) for e in section.events]
    assert found == [("worse", pytest.approx(0.2), "worse"), ("same", 0, "better")]


def test_a_count_is_told_whole(tmp_path):
    runs = history_of(tmp_path, *(({}, [row("instructions", 4_398_652.0, "counted")]),) * 2)
    (chart,) = sections(runs)[0].cards[0].charts
    assert chart["v"] == chart["l"] == [4_398_652.0] * 2


@pytest.mark.parametrize(("runs", "drawn"), [(7, False), (8, True)])
def test_few_runs_get_no_band(tmp_path, runs, drawn):
    (section,) = sections(read_history(write_history(tmp_path, runs)))
    bands = [chart["n"] for card in section.cards for chart in card.charts]
    assert [n > 0 for n in bands] == [drawn] * len(bands)


def test_an_accepted_step_back_is_told_with_its_reason_and_not_as_worse(tmp_path, capsys):
    write_history(tmp_path / "results", 3, step_at=2)
    decisions, out = tmp_path / "accepted.toml", tmp_path / "page.html"
    decisions.write_text(
        '[[accepted]]\nmetric = "generated kernels"\nworkload = "normal/heads/256"\n'
        'provider = "ours compiled"\nold = 17\nnew = 18\n'
        'reason = "a kernel <b>more</b> for half the time"\n'
    )
    command = ["bench", "report", f"--results={tmp_path / 'results'}", f"--out={out}"]
    counts = []
    for options in ([], [f"--accepted={decisions}"]):
        assert run([*command, *options]) == 0
        text = out.read_text(encoding="utf-8")
        counts.append(int(re.search(r"<title>klppo bench: (\d+) worse", text)[1]))
        reasons = text.count("accepted: a kernel &lt;b&gt;more&lt;/b&gt; for half the time")
        assert reasons == (2 if options else 0)  # where it changed, and in the table
    assert counts[1] == counts[0] - 1
    decisions.write_text("[[accepted]]\nmetric = 1\n")
    assert run([*command, f"--accepted={decisions}"]) == 2
