"""Other tools' formats: read by their own parser where it is a Python package, else by a schema."""

import csv
import io
import json
import subprocess
import sys
from importlib.util import find_spec

import jsonschema
import pytest
from prometheus_client import parser
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from klppo_compile.cli import run
from klppo_compile.commands import bench_report
from klppo_compile.exit_codes import BadInputError
from klppo_compile.perf.formats.files import FORMATS, converted
from klppo_compile.perf.history.files import read_history
from klppo_compile.perf.rows import Row, write_document
from klppo_compile.perf.workloads import Workload
from tests.perf_history_cases import MACHINE, header, write_history

NUMBER, TEXT = {"type": "number"}, {"type": "string"}
TEXTS = {"type": "object", "additionalProperties": TEXT}
SCHEMAS = {
    # github.com/benchmark-action/github-action-benchmark, src/extract.ts, BenchmarkResult
    "github-action": {
        "type": "array",
        "items": {
            "type": "object",
            "properties": {
                "name": TEXT,
                "unit": TEXT,
                "value": NUMBER,
                "range": TEXT,
                "extra": TEXT,
            },
            "required": ["name", "unit", "value"],
            "additionalProperties": False,
        },
    },
    # bencher.dev/docs/reference/bencher-metric-format, and its limit on names of measures
    "bmf": {
        "type": "object",
        "additionalProperties": {
            "type": "object",
            "propertyNames": {"maxLength": 64},
            "additionalProperties": {
                "type": "object",
                "properties": {"value": NUMBER, "lower_value": NUMBER, "upper_value": NUMBER},
                "required": ["value"],
                "additionalProperties": False,
            },
        },
    },
    # github.com/pytorch/test-infra, clickhouse_db_schema/oss_ci_benchmark_v3/schema.sql
    "hud-v3": {
        "type": "array",
        "items": {
            "type": "object",
            "required": ["benchmark", "model", "metric"],
            "properties": {
                "benchmark": {
                    "type": "object",
                    "required": ["name"],
                    "properties": {"name": TEXT, "mode": TEXT, "dtype": TEXT, "extra_info": TEXTS},
                },
                "model": {
                    "type": "object",
                    "required": ["name"],
                    "properties": {
                        "name": TEXT,
                        "type": TEXT,
                        "backend": TEXT,
                        "origins": {"type": "array", "items": TEXT},
                    },
                },
                "metric": {
                    "type": "object",
                    "required": ["name", "benchmark_values"],
                    "properties": {
                        "name": TEXT,
                        "benchmark_values": {"type": "array", "items": NUMBER},
                        "target_value": NUMBER,
                        "extra_info": TEXTS,
                    },
                },
                "dependencies": {"type": "object", "additionalProperties": TEXTS},
                "runners": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "properties": {"name": TEXT, "type": TEXT, "cpu_info": TEXT},
                        "additionalProperties": False,
                    },
                },
            },
            "additionalProperties": False,
        },
    },
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return read_history(write_history(tmp_path_factory.mktemp("history"), 2))


@pytest.mark.parametrize("form", SCHEMAS)
def test_it_has_the_documented_shape(runs, form):
    document = json.loads(converted(runs[:1], form)[0][""])
    jsonschema.validate(document, SCHEMAS[form])
    assert len(document) == {"github-action": 32, "bmf": 8, "hud-v3": 40}[form]


@pytest.mark.parametrize("form", SCHEMAS)
def test_the_schema_tells_right_from_wrong(runs, form):
    document = json.loads(converted(runs[:1], form)[0][""].replace('"value"', '"worth"'))
    if form == "hud-v3":
        document[0]["metric"]["benchmark_values"] = 1.0
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, SCHEMAS[form])


@pytest.mark.parametrize(
    ("workload", "dtype"),
    [
        (Workload("normal", 256).name, "float32"),
        (Workload("categorical", 8192, columns=32768, dtype="bfloat16").name, "bfloat16"),
        ("kernels/normal/N=1048576/K=1/D=6/float32", "float32"),
        ("kernels/normal/N=1048576/K=1/D=512/float16", "float16"),
        ("kernels/categorical/N=1048576/K=1/D=18/bfloat16/masks", "bfloat16"),
    ],
)
def test_the_hud_gets_the_dtype_that_was_measured(tmp_path, workload, dtype):
    row = Row(workload, "p", "m", "", 1.0, 1.0, 1.0, 1, "lower", "exact")
    (record,) = json.loads(converted(written(tmp_path, ({}, [row])), "hud-v3")[0][""])
    assert record["benchmark"]["dtype"] == dtype


def test_bencher_gets_times_as_latency_in_nanoseconds(runs):
    found = json.loads(converted(runs[:1], "bmf")[0][""])["normal/heads/256 ours compiled"]
    time = next(r for r in runs[0].rows if r.provider == "ours compiled" and r.metric == "time")
    assert found["latency"]["value"] == pytest.approx(time.value * 1000)
    assert found["latency"]["lower_value"] < found["latency"]["value"]
    assert found["generated kernels"]["value"] == 17


@pytest.mark.skipif(find_spec("pytest_benchmark") is None, reason="pytest-benchmark: not installed")
def test_pytest_benchmark_compares_two_runs(runs, tmp_path):
    files = []
    for name, one in zip(("old", "new"), runs, strict=True):
        files.append(tmp_path / f"{name}.json")
        files[-1].write_text(converted([one], "pytest-benchmark")[0][""])
    table = tmp_path / "table.csv"
    command = [sys.executable, "-m", "pytest_benchmark", "compare", *map(str, files)]
    done = subprocess.run(
        [*command, "--group-by=fullname", f"--csv={table}"],
        check=False,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "normal/heads/256[ours compiled]" in done.stdout
    lines = list(csv.DictReader(io.StringIO(table.read_text())))
    assert len(lines) == 16
    times = [row.value * 1e-6 for one in runs for row in one.rows if row.metric == "time"]
    assert sorted(float(line["median"]) for line in lines) == pytest.approx(sorted(times))


def test_what_is_no_time_is_beside_it_for_pytest_benchmark(runs):
    documents, notes = converted(runs[:1], "pytest-benchmark")
    first = json.loads(documents[""])["benchmarks"][0]
    assert first["extra_info"]["metrics"]["generated kernels"]["value"] == 17
    assert "99 % interval" in first["extra_info"]["note"]
    assert notes == [
        "32 rows left out: its numbers are times, so the others are only in extra_info."
    ]


def test_prometheus_reads_every_number(runs):
    families = list(text_string_to_metric_families(converted(runs[:1], "openmetrics")[0][""]))
    info, *gauges = families
    assert (info.name, info.type) == ("klppo_run_info", "gauge")
    assert info.samples[0].value == 1
    assert info.samples[0].labels["commit"] == "00c0ffee01"
    assert {family.name for family in gauges} == {
        "klppo_time_seconds",
        "klppo_speed_over_torchrl_eager_ratio",
        "klppo_instructions",
        "klppo_generated_kernels",
        "klppo_graph_breaks",
    }
    medians = [
        (s.labels["workload"], s.labels["provider"], s.value)
        for s in gauges[0].samples
        if s.labels["estimate"] == "median"
    ]
    times = [r for r in runs[0].rows if r.metric == "time"]
    assert medians == [(r.workload, r.provider, pytest.approx(r.value * 1e-6)) for r in times]


def test_the_older_text_format_is_the_same(runs):
    """node_exporter reads that one, and knows these types only."""
    text = converted(runs[:1], "openmetrics")[0][""]
    older = list(parser.text_string_to_metric_families(text))
    newer = list(text_string_to_metric_families(text))
    assert [(x.name, x.samples) for x in older] == [(x.name, x.samples) for x in newer]
    types = {line.split()[3] for line in text.splitlines() if line.startswith("# TYPE")}
    assert types <= {"counter", "gauge", "histogram", "summary", "untyped"}


def test_prometheus_reads_names_that_need_escapes(tmp_path):
    row = Row('a"b\\c\nd', "p", "time", "ms", 2.0, 1.0, 3.0, 9, "lower")
    write_document(tmp_path / "r.json", header(0, MACHINE | {"cpu": 'a "CPU"'}), [row])
    text = converted(read_history(tmp_path), "openmetrics")[0][""]
    info, gauge = text_string_to_metric_families(text)
    assert info.samples[0].labels["cpu"] == 'a "CPU"'
    assert gauge.samples[0].labels["workload"] == row.workload
    assert gauge.samples[0].value == 0.002


def test_asv_gets_a_benchmark_for_each_series_and_a_file_for_each_run(runs):
    files = {name: json.loads(text) for name, text in converted(runs, "asv")[0].items()}
    machine = "amd-epyc-2c-avx2-torch2.13.0"
    assert sorted(files) == [
        f"{machine}/00c0ffee-klppo.json",
        f"{machine}/01c0ffee-klppo.json",
        f"{machine}/machine.json",
        "benchmarks.json",
    ]
    assert files["benchmarks.json"].pop("version") == 2
    results = files[f"{machine}/00c0ffee-klppo.json"]
    assert results["version"] == 2
    assert results["results"].keys() == files["benchmarks.json"].keys()
    kernels = results["results"]["normal_heads_256.ours_compiled.generated_kernels"]
    assert dict(zip(results["result_columns"], kernels, strict=True))["result"] == [17]


def test_otava_gets_a_line_for_each_run_and_one_class_of_machine(runs, tmp_path):
    lines = list(csv.DictReader(io.StringIO(converted(runs, "otava-csv")[0][""])))
    assert [line["commit"] for line in lines] == ["00c0ffee01", "01c0ffee01"]
    assert len(lines[0]) == 42
    assert float(lines[0]["normal/heads/256_ours_compiled_generated_kernels"]) == 17
    write_history(tmp_path, 1, machine=MACHINE | {"cpu": "other"})
    with pytest.raises(BadInputError, match="within one class of machine"):
        converted([*runs, *read_history(tmp_path)], "otava-csv")


def written(tmp_path, *documents):
    """Files of exact rows: a head, and each row's metric and value or a row."""
    for number, (head, rows) in enumerate(documents):
        its = [
            row
            if isinstance(row, Row)
            else Row("w", "p", row[0], "", row[1], row[1], row[1], 1, "lower", "exact")
            for row in rows
        ]
        write_document(tmp_path / f"{number}.json", header(number) | head, its)
    return read_history(tmp_path)


LONG = "bytes of the forward pass over all of the kernels that were made, "


@pytest.mark.parametrize(
    ("form", "metrics", "both"),
    [
        ("openmetrics", ("time, again", "time again"), "'klppo_time_again'"),
        ("openmetrics", ("β", "γ"), "'klppo_'"),
        ("openmetrics", ("run info", "kernels"), "'the run itself' and 'run info' both become"),
        ("bmf", (f"{LONG}one", f"{LONG}two"), LONG[:60]),
        ("otava-csv", ("time, again", "time again"), "'w_p_time_again'"),
        ("asv", ("time, again", "time again"), "'w.p.time_again'"),
    ],
)
def test_names_that_become_one_are_refused(tmp_path, form, metrics, both):
    runs = written(tmp_path, ({}, [(metric, 1.0) for metric in metrics]))
    with pytest.raises(BadInputError, match="must be able to tell names apart") as error:
        converted(runs, form)
    assert both in str(error.value)
    assert metrics[0] in str(error.value)


@pytest.mark.parametrize("form", ["bmf", "github-action"])
def test_the_same_words_of_workload_and_provider_are_refused_where_they_are_joined(tmp_path, form):
    rows = [
        Row(w, p, "m", "", 1.0, 1.0, 1.0, 1, "lower", "exact")
        for w, p in (("a b", "c"), ("a", "b c"))
    ]
    with pytest.raises(BadInputError, match="'a b · c · m' and 'a · b c · m' both become"):
        converted(written(tmp_path, ({}, rows)), form)


def test_otava_gets_no_column_of_two_versions(tmp_path):
    heads = [{"machine": MACHINE | {"torch": f"2.13.0+{build}"}} for build in ("cpu", "cu130")]
    with pytest.raises(BadInputError, match=r"from 0\.json on' and .* from 1\.json on' both"):
        converted(written(tmp_path, *((head, [("m", 1.0)]) for head in heads)), "otava-csv")


def test_histories_keep_one_launch_and_several_apart(tmp_path):
    rows = [
        Row("w", "p", "m", "x", x, x, x, 9, "higher", "timed", n) for x, n in ((2.0, 1), (3.0, 5))
    ]
    runs = written(tmp_path, ({}, rows[:1]), ({}, rows[1:]))
    assert (
        converted(runs, "otava-csv")[0][""].splitlines()[0] == "time,commit,w_p_m,w_p_m_launches_"
    )
    benchmarks = json.loads(converted(runs, "asv")[0]["benchmarks.json"])
    assert benchmarks.keys() == {"w.p.m", "w.p.m_launches", "version"}


def test_what_the_machine_says_becomes_labels(tmp_path):
    odd = {"1key": "a", "a-b": "b", "": "c"}
    runs = written(tmp_path, ({"machine": MACHINE | odd}, [("m", 1.0)]))
    info, _ = text_string_to_metric_families(converted(runs, "openmetrics")[0][""])
    assert {"_1key": "a", "a_b": "b", "_": "c"}.items() <= info.samples[0].labels.items()


@pytest.mark.parametrize("names", [("a-b", "a b"), ("commit", "cores")])
def test_two_facts_of_one_label_are_refused(tmp_path, names):
    runs = written(tmp_path, ({"machine": MACHINE | dict.fromkeys(names, 1)}, [("m", 1.0)]))
    with pytest.raises(BadInputError, match=f"'{names[0]}' .*both become"):
        converted(runs, "openmetrics")


def test_asv_gets_runs_of_one_commit_together(tmp_path):
    clean, dirty = {"commit": "abcdef1234"}, {"commit": "abcdef1234-dirty"}
    runs = written(tmp_path, (clean, [("a", 1.0), ("b", 2.0)]), (dirty, [("b", 2.0), ("c", 3.0)]))
    files = converted(runs, "asv")[0]
    name = "amd-epyc-2c-avx2-torch2.13.0/abcdef12-klppo.json"
    assert len(files) == 3
    found = json.loads(files[name])["results"]
    assert {key: its[0] for key, its in found.items()} == {"w.p.a": [1], "w.p.b": [2], "w.p.c": [3]}
    runs = written(tmp_path, (clean, [("a", 1.0)]), (dirty, [("a", 2.0)]))
    with pytest.raises(BadInputError, match=r"0\.json and 1\.json are both of abcdef1234 and diff"):
        converted(runs, "asv")
    again = [Row("w", "p", "time", "us", x, x, x, 9, "lower") for x in (3.0, 4.0)]
    runs = written(tmp_path, (clean, again[:1]), (clean, again[1:]))
    assert json.loads(converted(runs, "asv")[0][name])["results"]["w.p.time"][0] == [4.0]


def test_asv_does_not_mix_commits_whose_files_have_one_name(tmp_path):
    heads = [{"commit": f"release-{number}"} for number in range(2)]
    with pytest.raises(BadInputError, match=r"release-0' and .*release-1' both become"):
        converted(written(tmp_path, *((head, [("a", 1.0)]) for head in heads)), "asv")


def test_a_format_of_one_run_refuses_two(runs):
    with pytest.raises(BadInputError, match="holds one run in a file; got 2"):
        converted(runs, "bmf")


def test_a_format_without_place_for_any_row_refuses(tmp_path):
    row = Row("w", "p", "speed", "x", 2.0, 1.0, 3.0, 9, "higher")
    write_document(tmp_path / "r.json", header(0), [row])
    for form in ("pytest-benchmark", "github-action"):
        with pytest.raises(BadInputError, match=r"no place for any row of r\.json"):
            converted(read_history(tmp_path), form)


# The command


def test_the_command_offers_every_format():
    assert tuple(FORMATS) == bench_report.FORMATS


@pytest.mark.parametrize("form", FORMATS)
def test_the_command_writes_every_format(tmp_path, form):
    (file,) = write_history(tmp_path / "history", 1).iterdir()
    out = tmp_path / "new" / "out"
    assert run(["bench", "convert", str(file), f"--to={form}", f"--out={out}"]) == 0
    assert out.is_dir() if form == "asv" else out.read_text()


def test_the_command_prints_without_out_and_refuses_bad_input(tmp_path, capsys):
    (file,) = write_history(tmp_path, 1).iterdir()
    assert run(["bench", "convert", str(file), "--to=bmf"]) == 0
    assert "latency" in capsys.readouterr().out
    assert run(["bench", "convert", str(file), "--to=asv"]) == 2
    assert "--out FOLDER" in capsys.readouterr().err
    assert run(["bench", "convert", str(file), "--to=csv"]) == 2
    assert run(["bench", "convert", str(tmp_path / "none.json"), "--to=bmf"]) == 2
    assert "none.json" in capsys.readouterr().err
    file.write_text("[]")
    assert run(["bench", "convert", str(file), "--to=bmf"]) == 2
    assert "must have the schema" in capsys.readouterr().err
