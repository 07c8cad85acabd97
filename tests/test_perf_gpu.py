"""The GPU suite end to end, interpreted and tiny; its verdicts; what reads Inductor's code."""

import dataclasses
import re

import pytest
import torch

pytest.importorskip("triton", reason="Triton has no wheel here")

from klppo_compile.exit_codes import BadInputError, CannotError, ExitCode, FailedError
from klppo_compile.perf.__main__ import main
from klppo_compile.perf.gpu import contenders as gpu_contenders
from klppo_compile.perf.gpu import kernel_tests
from klppo_compile.perf.gpu.cases import (
    INDUCTOR,
    LARGE,
    LIGER,
    OURS,
    SMALL,
    TORCHRL,
    TORCHRL_COMPILED,
    Job,
    floor_bytes,
    jobs,
    part_of,
)
from klppo_compile.perf.gpu.inductor import case_of
from klppo_compile.perf.gpu.inductor_code import parse
from klppo_compile.perf.gpu.job import FLOOR, answer, measure_job
from klppo_compile.perf.gpu.suite import header, open_record, run_gpu_suite
from klppo_compile.perf.gpu.targets import (
    GRAPH_TIME,
    OVER_FLOOR,
    SYNCS,
    TARGETS,
    speed_over,
    verdict,
)
from klppo_compile.perf.gpu.timing import InterpretedDevice, one_after_another
from klppo_compile.perf.providers import faults
from klppo_compile.perf.rows import Row, read_document
from klppo_compile.perf.workloads import Workload, problem

# The interpreter is numpy: logits that aren't there are infinite, and selected away later.
pytestmark = pytest.mark.filterwarnings("ignore:(invalid|divide|overflow):RuntimeWarning")
TINY = Workload("normal", 5, columns=3)


def row(workload, metric, value, provider=OURS):
    return Row(workload, provider, metric, "x", value, value, value, 9, "lower")


def test_it_runs_end_to_end_and_goes_on_where_it_ended(tmp_path, capsys):
    path = tmp_path / "run.json"
    assert main(["gpu", "--interpret", "--no-tests", "--out", str(path)]) == 0
    printed = capsys.readouterr().out
    run, rows = read_document(path)
    assert run["interpreted"]
    assert "no speed above means anything" in printed
    assert re.search(r"10x faster than torchrl eager\s+│ unmeasured", printed)
    measured = {(r.workload, r.provider) for r in rows if r.metric == "time, forward+backward"}
    peers = (OURS, INDUCTOR, TORCHRL, TORCHRL_COMPILED)
    assert {(jobs(interpreted=True)[0].workload.name, peer) for peer in peers} < measured
    words = jobs(interpreted=True)[-1].workload.name
    assert (words, OURS) in measured
    if not gpu_contenders.CONTENDERS[LIGER].missing:
        pytest.skip("Liger is installed here")
    assert run["refused"] == {words: {LIGER: "liger_kernel is not installed"}}

    assert main(["gpu", "--interpret", "--no-tests", "--out", str(path)]) == 0
    assert read_document(path)[1] == rows


def test_no_job_begins_that_would_not_fit(tmp_path, capsys):
    out = tmp_path / "[a] run.json"
    code = run_gpu_suite(minutes=0, out=out, interpret=True, tests=False)
    assert code == ExitCode.GOOD
    assert {r.workload for r in read_document(out)[1]} == {"copy"}
    assert f"rows written to {out}\n" in capsys.readouterr().out


def test_without_a_device_it_says_so(capsys):
    if torch.cuda.is_available():
        pytest.skip("there is a device")
    assert main(["gpu"]) == 4
    assert "needs a CUDA device" in capsys.readouterr().err


def test_triton_must_know_that_it_interprets_before_it_loads(monkeypatch, tmp_path):
    monkeypatch.setattr("triton.language.softmax", object())
    with pytest.raises(CannotError, match="Set TRITON_INTERPRET=1 from the start"):
        run_gpu_suite(interpret=True, out=tmp_path)


def test_a_file_of_another_commit_is_not_continued(tmp_path):
    out = tmp_path / "run.json"
    head = header("gpu", interpret=True)
    open_record(head, out).add([])
    assert open_record(head, out).rows == []
    with pytest.raises(BadInputError, match="same commit only"):
        open_record(head | {"commit": "another"}, out)
    out.write_text("{")
    with pytest.raises(BadInputError, match="must be a JSON document"):
        open_record(head, out)


def test_a_difference_that_noise_made_is_no_row(tmp_path):
    record = open_record(header("gpu", interpret=True), tmp_path / "run.json")
    rows = [row("w", f"time, {name}", x) for name, x in (("forward", 2.0), ("backward", -0.1))]
    record.add([*rows, dataclasses.replace(row("w", SYNCS, 0), kind="exact")])
    assert [r.metric for r in record.rows] == ["time, forward", SYNCS]
    assert read_document(record.path)[1] == record.rows


def test_the_kernel_tests_run_as_a_subprocess(tmp_path):
    folder = kernel_tests.checkout(None)
    assert kernel_tests.arguments(folder, "cpu") == [kernel_tests.INTERPRETED]
    assert "tests/test_kernels_report.py" not in kernel_tests.arguments(folder, "cuda")
    with pytest.raises(CannotError, match="run from a checkout"):
        kernel_tests.checkout(tmp_path)
    (tmp_path / "tests").mkdir()
    red = tmp_path / "tests" / "test_kernels.py"
    red.write_text("def test_two_launches_agree_bit_by_bit():\n    assert 1 == 2\n")
    with pytest.raises(FailedError, match="must pass before"):
        kernel_tests.run_tests(kernel_tests.checkout(tmp_path), "cpu", 60)


def test_a_wrong_contender_gets_no_speed(monkeypatch):
    right = gpu_contenders.CONTENDERS[OURS]
    wrong = dataclasses.replace(
        right, build=lambda *_: lambda case: 1.01 * right.build(case, "")(case)
    )
    monkeypatch.setitem(gpu_contenders.CONTENDERS, TORCHRL, wrong)
    found = measure_job(Job(TINY, (OURS, TORCHRL)), InterpretedDevice(), 1e9, "aot_eager")
    assert found.refused[TORCHRL].startswith("wrong: loss is off by")
    timed = {r.provider for r in found.rows if r.metric == "time, forward"}
    assert timed == {OURS, FLOOR}


class Replaying(InterpretedDevice):
    """A device with graphs, of forward and backward only where `narrow`, and without waiting."""

    def __init__(self, narrow=False):
        self.narrow, self.asked = narrow, 0

    def captured(self, calls):
        self.asked += 1
        if self.narrow and self.asked == 1:
            raise RuntimeError("operation not permitted")
        return one_after_another(calls)

    def syncs(self, run):
        run()
        return 0


def without_kernels(monkeypatch):
    right = gpu_contenders.CONTENDERS[OURS]
    plain = dataclasses.replace(right, build=lambda case, _: gpu_contenders.ours(case, "torch"))
    for name in (OURS, INDUCTOR):
        monkeypatch.setitem(gpu_contenders.CONTENDERS, name, plain)


def test_what_can_be_replayed_is_compared_replayed(monkeypatch):
    without_kernels(monkeypatch)
    workload = dataclasses.replace(TINY, batch=SMALL)
    found = measure_job(Job(workload, (OURS, INDUCTOR)), Replaying(), 1e9, "").rows
    own = {r.metric: r for r in found if r.provider == OURS}
    assert {
        GRAPH_TIME,
        OVER_FLOOR,
        SYNCS,
        speed_over(INDUCTOR),
        "graph time, backward",
    } <= own.keys()
    floor = next(r for r in found if r.provider == FLOOR and r.metric == "time, forward+backward")
    assert own[OVER_FLOOR].value == pytest.approx(own[GRAPH_TIME].value / floor.value)
    assert own[SYNCS].value == 0
    quick = next(t for t in TARGETS if t.metric == GRAPH_TIME)
    state = "met" if own[GRAPH_TIME].value <= 25 else "missed"
    assert verdict(quick, found, [Job(workload, (OURS,))]).state == state


def test_a_capture_that_fails_leaves_the_calls(monkeypatch):
    without_kernels(monkeypatch)
    found = measure_job(Job(TINY, (OURS, INDUCTOR)), Replaying(narrow=True), 1e9, "")
    assert found.refused == {f"{OURS} under a graph": "RuntimeError: operation not permitted"}
    metrics = {r.metric for r in found.rows if r.provider == OURS}
    assert GRAPH_TIME not in metrics
    assert {OVER_FLOOR, speed_over(INDUCTOR)} <= metrics


@pytest.mark.parametrize(
    "workload", [TINY, Workload("categorical", 6, columns=4, dtype="bfloat16")]
)
def test_the_truth_in_pieces_is_the_truth(workload, monkeypatch):
    case = problem(workload)
    whole = gpu_contenders.exact(case)
    monkeypatch.setattr(gpu_contenders, "CHUNK", 2 * workload.width)
    assert not faults(gpu_contenders.exact(case), whole, 1e-6)


def test_the_formula_that_liger_is_held_to():
    case = problem(Workload("categorical", 12, columns=7))
    monkey = gpu_contenders.exact_liger(case)
    logits, ids, old, gain = gpu_contenders.sequences(case)
    log_prob = torch.distributions.Categorical(logits=logits[:, :-1]).log_prob(ids)
    ratio, penalty = (log_prob - old).exp(), (old - log_prob).exp() - 1 - (old - log_prob)
    reward = torch.minimum(ratio * gain[:, None], ratio.clamp(0.8, 1.2) * gain[:, None])
    total = (0.04 * penalty - reward).mean()
    grads = torch.autograd.grad(total, case.leaves[:1])
    assert not faults((total.detach(), grads), monkey, 1e-5)


def test_parts_are_copies_with_leaves_of_their_own():
    case = problem(TINY)
    part = part_of(case, 1, 3, torch.float64)
    assert [x.shape[0] for x in part.leaves] == [2, 2, 2]
    assert all(x.dtype == torch.float64 and x.is_leaf and x.requires_grad for x in part.leaves)
    total = gpu_contenders.torchrl(part)
    assert len(answer(total, part)[1]) == 3
    assert torch.equal(part.old[0], case.old[0][1:3].double())


def test_the_floor_counts_each_input_and_output_once():
    # action 3, old and new 12, log-prob, advantage, value, target 4, KL, log-prob, ratio 3
    assert floor_bytes(problem(TINY))["forward"] == 5 * 4 * (3 + 12 + 4 + 3)
    assert floor_bytes(problem(TINY))["backward"] == 5 * 4 * (3 + 12 + 4 + 6 + 1)


def test_a_target_is_met_only_when_all_is_measured():
    plan = [Job(Workload("normal", LARGE, columns=D), (OURS,)) for D in (1, 6)]
    one, two = (job.workload.name for job in plan)
    floor = next(t for t in TARGETS if t.metric == OVER_FLOOR)
    assert verdict(floor, [], plan).state == "unmeasured"
    assert verdict(floor, [row(one, OVER_FLOOR, 1.1)], plan).state == "unmeasured"
    both = [row(one, OVER_FLOOR, 1.1), row(two, OVER_FLOOR, 1.25)]
    assert verdict(floor, both, plan).state == "met"
    assert verdict(floor, both, plan).worst.value == 1.25
    assert verdict(floor, [row(two, OVER_FLOOR, 1.3)], plan).state == "missed"
    faster = next(t for t in TARGETS if t.metric == speed_over(TORCHRL))
    plan = [Job(plan[0].workload, (OURS, TORCHRL))]
    assert verdict(faster, [row(one, faster.metric, 9.0)], plan).state == "missed"
    waits = next(t for t in TARGETS if t.metric == SYNCS)
    assert verdict(waits, [row(one, SYNCS, 1)], plan).state == "missed"
    assert verdict(waits, [row(one, SYNCS, 3, TORCHRL)], plan).state == "unmeasured"


def test_the_plan_covers_what_was_asked():
    plan = jobs()
    for name in (INDUCTOR, TORCHRL_COMPILED):
        sizes = {
            j.workload.batch for j in plan if name in j.contenders and j.workload.columns < 300
        }
        assert sizes == {4096, LARGE}
    assert {j.workload.batch for j in plan if TORCHRL in j.contenders} == {4096, 8192, 65536, LARGE}
    assert plan[0].workload.batch == LARGE
    assert plan[0].contenders == (OURS, INDUCTOR)


CODE = """
triton_red_fused_0 = async_compile.triton('triton_red_fused_0', '''
def triton_red_fused_0(in_ptr0, out_ptr0, xnumel, r0_numel, XBLOCK : tl.constexpr):
    xnumel = 128
    r0_numel = 8192
''', device_str='cuda')
triton_poi_fused_1 = async_compile.triton('triton_poi_fused_1', '''
    xnumel = 640
''', device_str='cuda')
        triton_red_fused_0.run(arg0, buf0, 128, 8192, stream=stream0)
        triton_poi_fused_1.run(buf0, buf1, 640, stream=stream0)
        triton_red_fused_0.run(buf1, buf2, 128, 8192, stream=stream0)
"""


def test_launches_and_sizes_are_read_from_inductors_text():
    found = parse(CODE, 99)
    names = ["triton_red_fused_0", "triton_poi_fused_1"]
    assert found.launches == [*names, names[0]]
    assert [(found.kernels[n].rows, found.kernels[n].reduced) for n in names] == [
        (128, 8192),
        (640, 1),
    ]


def test_a_head_of_inductors_table_is_named():
    plain = case_of("bernoulli-6", 64)
    several = case_of("categorical-6x4", 64)
    words = case_of("categorical-131072-bfloat16", 64)
    assert (plain.family, plain.D, plain.heads, plain.dtype) == ("bernoulli", 6, 1, "float32")
    assert (several.D, several.heads) == (6, 4)
    assert (words.N, words.D, words.dtype) == (64, 131072, "bfloat16")
    for unknown in ("normal", "normal-0", "gauss-3", "normal-3-float64"):
        with pytest.raises(BadInputError, match="--head must be one of"):
            case_of(unknown, 64)


def test_another_torch_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(torch, "__version__", "2.12.0+cpu")
    assert main(["inductor"]) == 3
    assert "needs torch 2.13.0" in capsys.readouterr().err
