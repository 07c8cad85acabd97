"""Result files: what a row may be, and that a broken file is refused by every reader."""

import json
import math
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path

import pytest

from klppo_compile.cli import run
from klppo_compile.exit_codes import BadInputError
from klppo_compile.perf.__main__ import main
from klppo_compile.perf.machine import result_name
from klppo_compile.perf.rows import SCHEMA, Row, read_document, write_document, write_result

RESULTS = sorted((Path(__file__).parents[1] / "perf" / "results").glob("*.json"))
EXACT = Row("w", "ours compiled", "kernels", "kernels", 35, 35, 35, 1, "lower", "exact")
TIMED = Row("w", "ours compiled", "speed over torchrl eager", "x", 6.0, 5.9, 6.1, 99, "higher")
RUN = {"machine": {"cpu": "A CPU", "cores": 2, "isa": "AVX2", "torch": "2.13.0"}}


def written(path, *rows):
    document = {"schema": SCHEMA, "run": RUN, "rows": list(rows)}
    path.write_text(json.dumps(document))
    return str(path)


BAD = [
    ({"value": math.nan}, "must be finite numbers"),
    ({"value": math.inf, "high": math.inf}, "must be finite numbers"),
    ({"low": math.nan}, "must be finite numbers"),
    ({"value": "6"}, "must be finite numbers"),
    ({"value": None}, "must be finite numbers"),
    ({"value": True}, "must be finite numbers"),
    ({"value": 10**400}, "must be finite numbers"),
    ({"value": 2e300, "high": 2e300}, "must be at most 1e+300 in size"),
    ({"kind": "counted", "low": -1.0}, "must be 0 or more"),
    ({"kind": "exact", "low": -1.0}, "must be 0 or more"),
    ({"value": 5.0}, "must lie between low and high"),
    ({"value": 0, "low": 0, "high": 0}, "must be above 0"),
    ({"low": -1.0}, "must be above 0"),
    ({"launches": 0}, "must be whole numbers above 0"),
    ({"samples": 1.5}, "must be whole numbers above 0"),
    ({"samples": "9" * 99}, "must be whole numbers above 0"),
    ({"kind": "weird"}, "kind must be one of"),
    ({"kind": []}, "kind must be one of"),
    ({"better": "Higher"}, "better one of"),
    ({"metric": ["time"]}, "must be text"),
    ({"workload": 3}, "must be text"),
    ({"unit": None}, "must be text"),
]


@pytest.mark.parametrize(("change", "why"), BAD, ids=lambda x: str(x)[:30])
@pytest.mark.parametrize("side", [0, 1])
def test_a_row_that_is_no_measurement_gets_no_verdict(tmp_path, change, why, side, capsys):
    rows = [asdict(TIMED), asdict(TIMED) | change]
    files = [written(tmp_path / f"{i}.json", asdict(EXACT), row) for i, row in enumerate(rows)]
    assert run(["bench", "compare", files[side], files[1 - side]]) == 2
    error = capsys.readouterr().err.strip()
    assert why in error
    assert error.startswith("Error: 1.json: ")
    assert len(error.splitlines()) == 1
    assert len(error) < 300


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-1e999"])
def test_a_header_with_a_number_that_json_lacks_is_bad_input(tmp_path, number, capsys):
    files = [written(tmp_path / f"{i}.json", asdict(EXACT)) for i in range(2)]
    text = Path(files[1]).read_text().replace('"cores": 2', f'"cores": 2, "memory": {number}')
    Path(files[1]).write_text(text)
    assert run(["bench", "compare", *files]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("Error: 1.json: what it says of the run must be JSON")
    assert len(error.splitlines()) == 1
    command = ["bench", "convert", files[1], "--to", "bmf", "--out", str(tmp_path / "out")]
    assert run(command) == 2


def test_a_metric_that_is_there_twice_gets_no_verdict(tmp_path, capsys):
    good = written(tmp_path / "a.json", asdict(EXACT))
    worse = asdict(EXACT) | dict.fromkeys(("value", "low", "high"), 36)
    assert run(["bench", "compare", good, written(tmp_path / "b.json", worse, asdict(EXACT))]) == 2
    assert "w · ours compiled · kernels is there twice" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a": ' * 100_000, "9" * 5000, "\ufffe"])
def test_what_no_parser_takes_is_bad_input(tmp_path, text):
    path = tmp_path / "deep.json"
    path.write_text(text)
    with pytest.raises(BadInputError, match=r"deep\.json must"):
        read_document(path)


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.name[:21])
def test_every_record_is_read(path):
    assert read_document(path)[1]


HEAD = RUN | {"date": "2026-11-30T12:00:00+00:00", "commit": "abc"}


def test_no_run_takes_anothers_name(tmp_path):
    paths = [write_result(tmp_path, HEAD, [replace(EXACT, samples=n)]) for n in (1, 2, 3)]
    stem = result_name(HEAD).removesuffix(".json")
    assert [path.name for path in paths] == [f"{stem}{end}.json" for end in ("", "-2", "-3")]
    assert [read_document(path)[1][0].samples for path in paths] == [1, 2, 3]
    assert write_result(tmp_path, HEAD, [EXACT], "-onnx").name == f"{stem}-onnx.json"
    assert len(list(tmp_path.iterdir())) == 4


def test_a_file_that_is_named_is_written_again_and_behind_its_link(tmp_path):
    named, link = tmp_path / "new" / "run.json", tmp_path / "link.json"
    link.symlink_to(named)
    for samples, path in ((1, named), (2, named), (3, link)):
        assert write_result(path, HEAD, [replace(EXACT, samples=samples)]) == path
        assert read_document(named)[1][0].samples == samples
    assert link.is_symlink()
    assert list(named.parent.iterdir()) == [named]


def test_what_can_not_be_written_leaves_what_was_there(tmp_path, monkeypatch):
    path = write_result(tmp_path, HEAD, [EXACT])

    def full(self, text, **_):
        with self.open("w") as file:
            file.write(text[:9])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    for out in (path, tmp_path):
        with pytest.raises(BadInputError, match=r"can't be: .* No space left"):
            write_result(out, HEAD, [EXACT, EXACT])
    assert list(tmp_path.iterdir()) == [path]
    assert read_document(path)[1] == [EXACT]


def test_no_file_has_a_number_that_json_lacks(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_document(tmp_path / "a.json", HEAD, [replace(EXACT, value=math.nan)])
    assert not list(tmp_path.iterdir())


def test_a_place_that_can_not_be_written_is_found_before_measuring(tmp_path, monkeypatch, capsys):
    def measured(*_, **__):
        raise AssertionError

    for name in ("suites.run_suite", "timed.cpu.measure_workload", "gate.run.compare_revisions"):
        monkeypatch.setattr(f"klppo_compile.perf.{name}", measured)
    monkeypatch.setattr("klppo_compile.perf.gpu.inductor.require_torch", lambda: None)
    for name in ("timed.evaluating.prepared", "gpu.inductor.compare"):
        monkeypatch.setattr(f"klppo_compile.perf.{name}", measured)
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "file").touch()
    for place in ("folder.json", "file", "file/run.json"):
        out = f"--out={tmp_path / place}"
        for command in (["run", "--part", "kernels"], ["ab", ".", "."]):
            assert run(["bench", *command, out]) == 2
        commands = [["cpu"], ["onnx"]]
        if find_spec("triton"):
            commands += [["inductor"], ["gpu", "--interpret", "--no-tests"]]
        for command in commands:
            assert main([*command, out]) == 2, command
        lines = capsys.readouterr().err.strip().splitlines()
        assert all(line.startswith("Error: --out must be a .json file") for line in lines)
        assert len(lines) == 2 + len(commands)
