"""Result files: what a row may be, and that a broken file is refused by every reader."""

import json
import math
from dataclasses import asdict
from pathlib import Path

import pytest

from klppo_compile.cli import run
from klppo_compile.exit_codes import BadInputError
from klppo_compile.perf.rows import SCHEMA, Row, read_document

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
