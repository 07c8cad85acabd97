"""The benchmark of ONNX Runtime: its arithmetic, and no speed for a wrong answer."""

import numpy as np
import pytest
from click.testing import CliRunner

from klppo_compile.perf.providers import OURS, OURS_COMPILED, TORCHRL
from klppo_compile.perf.timed.cpu import WrongAnswerError
from klppo_compile.perf.timed.evaluating import (
    ONNX,
    ONNX_BOUND,
    ONNX_ROWS,
    command,
    errors,
    measure,
    prepared,
    require_right,
    rows_of,
    table_of,
)


def test_times_become_rows_and_speeds():
    times = {TORCHRL: [4e-3] * 9, OURS_COMPILED: [2e-3] * 9, ONNX: [1e-3] * 9}
    rows = rows_of("evaluate/normal", 2304, times)
    found = {(row.provider, row.metric): row for row in rows}
    assert found[ONNX, "time"].value == pytest.approx(1000)
    assert found[ONNX, "time of 2,304 rows"].value == pytest.approx(9e-3)
    assert found[ONNX, f"speed over {OURS_COMPILED}"].value == 2
    assert found[TORCHRL, f"speed over {TORCHRL}"].value == 1
    assert found[ONNX, f"speed over {TORCHRL}"].better == "higher"
    assert [column.header for column in table_of("n", rows).columns][1:3] == [
        "time",
        "time of 2,304 rows",
    ]


def test_errors_are_relative_and_of_the_mean():
    true = {"kl": np.array([1.0, 3.0]), "loss_critic": np.array(4.0)}
    assert errors({"kl": np.array([2.0, 2.2])}, true) == {"kl": pytest.approx(0.05)}


def test_contenders_agree_with_float64_and_a_wrong_one_gets_no_speed():
    with prepared("categorical", 64, 192) as (recorded, evaluates):
        # Compiling would take longer than the rest of this file.
        del evaluates[OURS_COMPILED]
        rows = measure(recorded, evaluates)
        assert {row.provider for row in rows} == {TORCHRL, OURS, ONNX, ONNX_BOUND, ONNX_ROWS}
        assert {row.samples for row in rows if row.metric == "time"} == {3}
        assert recorded.name == "evaluate/categorical/networks/64"
        off = {ONNX: lambda i: {"kl": 1.01 * evaluates[ONNX](i)["kl"]}}
        with pytest.raises(WrongAnswerError, match=r"ONNX Runtime: kl of minibatch 0 is off by 1"):
            require_right(recorded, off)


def test_too_few_rows_are_refused():
    done = CliRunner().invoke(command, ["--rows", "100"])
    assert done.exit_code == 2
    assert "100 is not in the range x>=8192" in done.output
