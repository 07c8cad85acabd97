"""Revisions side by side: what is installed, what is refused, what is seeded."""

import ast
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import klppo_compile
from klppo_compile.cli import run
from klppo_compile.exit_codes import BadInputError, CannotError, FailedError
from klppo_compile.perf import revisions
from klppo_compile.perf.comparing.findings import Finding, Verdict
from klppo_compile.perf.exact import cache as exact_cache
from klppo_compile.perf.gate import pairing
from klppo_compile.perf.gate import run as ab_run
from klppo_compile.perf.gate.calibrating import GATE, Noise
from klppo_compile.perf.gate.pairing import Pair, install_pair, probe
from klppo_compile.perf.gate.run import EXACT, Result, compare_sources, count_both
from klppo_compile.perf.gate.seeding import read_changes, seeded, slowdown
from klppo_compile.perf.revisions import (
    ALIASES,
    PACKAGE,
    Source,
    commit_here,
    inside_package,
    install,
    read_revision,
)
from klppo_compile.perf.rows import Row, read_document
from klppo_compile.perf.workloads import WORKLOADS

ROOT = Path(__file__).resolve().parents[1]
CHANGES = read_changes()


def git(folder, *arguments):
    who = ("-c", "user.name=a", "-c", "user.email=a@b.c")
    subprocess.run(["git", *who, *arguments], cwd=folder, check=True, capture_output=True)  # noqa: S607


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """Two commits of a package of this name: the second's loss says 2."""
    folder = tmp_path_factory.mktemp("repository")
    git(folder, "init", "-q")
    for number in (1, 2):
        for place in ("klppo_compile/loss.py", "kernels/a.py", "export/b.py", "tests/c.py"):
            path = folder / place
            path.parent.mkdir(exist_ok=True)
            path.write_text(f"import klppo_compile.x  # {number}\n")
        git(folder, "add", ".")
        git(folder, "commit", "-q", "-m", str(number))
    return folder


def test_a_revision_is_read_from_git_and_from_disk(repository):
    first, second = read_revision("HEAD~1", repository), read_revision("HEAD", repository)
    assert set(first.files) == {"loss.py", "kernels/a.py", "export/b.py"}
    assert "1" in first.files["loss.py"]
    assert "2" in second.files["loss.py"]
    assert read_revision(".", repository).files == second.files
    assert first.name.startswith("HEAD~1 (")


def test_a_source_that_is_no_text_is_named(repository, tmp_path):
    shutil.copytree(repository, tmp_path / "copy")
    (tmp_path / "copy" / "kernels" / "a.py").write_bytes(b"# caf\xe9\n")
    git(tmp_path / "copy", "commit", "-q", "-a", "-m", "latin 1")
    for revision in ("HEAD", "."):
        with pytest.raises(BadInputError, match=r"UTF-8; .*kernels/a\.py is not: .* Name another"):
            read_revision(revision, tmp_path / "copy")


def test_a_revision_knows_its_commit(repository, monkeypatch):
    first, here = read_revision("HEAD~1", repository), read_revision(".", repository)
    assert re.fullmatch(r"[0-9a-f]{10}", first.commit)
    assert here.commit == read_revision("HEAD", repository).commit != first.commit
    assert first.version == "unknown"
    assert read_revision(".", ROOT).version == klppo_compile.__version__
    # Neither a variable of git's nor a repository around it makes a folder somebody else's.
    monkeypatch.setenv("GIT_DIR", str(ROOT / ".git"))
    assert commit_here(repository) == here.commit
    assert commit_here(repository / "klppo_compile") == "unknown"


def test_git_is_configured_as_the_caller_has_it(repository, monkeypatch):
    """Containers name what they trust in variables."""
    for name, value in {"COUNT": "1", "KEY_0": "klppo.test", "VALUE_0": "kept"}.items():
        monkeypatch.setenv(f"GIT_CONFIG_{name}", value)
    assert revisions.git("config", "--get", "klppo.test", at=repository) == b"kept\n"


@pytest.mark.parametrize(
    ("place", "dirty"),
    [
        ("klppo_compile/new.py", True),
        ("perf/new.py", True),
        ("kernels/a.py", True),
        ("perf/results/run.json", False),
        ("notes.txt", False),
    ],
)
def test_a_file_that_no_commit_has_makes_it_dirty(repository, tmp_path, place, dirty):
    root = shutil.copytree(repository, tmp_path / "copy")
    path = root / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("x = 1\n")
    assert commit_here(root) == commit_here(repository) + "-dirty" * dirty


def test_rows_of_two_revisions_are_filed_under_the_new_one(tmp_path, monkeypatch):
    row = Row(GATE[0], "ours compiled", "kernels", "kernels", 3, 3, 3, 1, "lower", "exact")
    monkeypatch.setattr(ab_run, "probe", lambda *_: None)
    two = Source("two", {"__init__.py": '__version__ = "9.9"\n'}, "0123456789")
    result = compare_sources(Source("one", {}), two, GATE, 0.0, None, tmp_path, print, ())
    measured = {"commit": "0123456789", "version": "9.9", "base": "unknown"}
    assert result.measured == measured
    result.rows.append(row)
    result.findings.clear()
    monkeypatch.setattr(ab_run, "compare_revisions", lambda *_: result)
    assert run(["bench", "ab", "one", "two", "--out", str(tmp_path / "out")]) == 0
    (path,) = (tmp_path / "out").iterdir()
    assert path.name[10:22] == "-0123456789-"
    assert read_document(path)[0].items() >= measured.items()


@pytest.mark.parametrize("revision", ["nowhere", "--help", "HEAD:klppo_compile", ""])
def test_a_revision_that_git_does_not_know_is_said(repository, revision):
    with pytest.raises(BadInputError, match="a revision is a commit, a branch, a tag, or \\."):
        read_revision(revision, repository)


def test_a_place_without_a_repository_is_said(tmp_path):
    with pytest.raises(BadInputError, match="git says"):
        read_revision("HEAD", tmp_path)


def test_a_repository_of_something_else_is_said(tmp_path):
    git(tmp_path, "init", "-q")
    (tmp_path / "a").write_text("a")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "a")
    with pytest.raises(BadInputError, match="must hold the package klppo_compile"):
        read_revision("HEAD", tmp_path)


def test_only_the_package_is_taken():
    places = {
        "klppo_compile/loss.py": "loss.py",
        "klppo_compile/py.typed": "py.typed",
        "klppo_compile/perf/rows.py": None,
        "kernels/baseline.json": "kernels/baseline.json",
        "perf/rows.py": None,
        "tests/test_loss.py": None,
        "klppo_compile/__pycache__/loss.py": None,
        "klppo_compile/notes.txt": None,
        "README.md": None,
    }
    assert {p: inside_package(Path(p)) for p in places} == places


def test_a_copy_goes_by_its_own_name_and_has_this_room(tmp_path):
    assert {len(name) for name in ALIASES.values()} == {len(PACKAGE)}
    source = read_revision(".", ROOT)
    install(source, tmp_path, ALIASES["new"])
    copies = list((tmp_path / ALIASES["new"]).rglob("*.py"))
    assert not [path for path in copies if PACKAGE in path.read_text(encoding="utf-8")]
    room = tmp_path / ALIASES["new"] / "perf" / "measure.py"
    assert room.read_text(encoding="utf-8") == (ROOT / "perf" / "measure.py").read_text(
        encoding="utf-8"
    ).replace(PACKAGE, ALIASES["new"])
    # A side that was installed before leaves nothing behind.
    install(Source("less", {"loss.py": ""}), tmp_path, ALIASES["new"])
    assert not (tmp_path / ALIASES["new"] / "compiling.py").exists()


def test_two_sides_are_two_packages(tmp_path):
    source = read_revision(".", ROOT)
    files = source.files | {
        "penalty.py": source.files["penalty.py"].replace("BAND = 1.5", "BAND = 9.5")
    }
    install(source, tmp_path, ALIASES["base"])
    install(replace(source, files=files), tmp_path, ALIASES["new"])
    program = (
        f"import {ALIASES['base']}.penalty as base, {ALIASES['new']}.penalty as new\n"
        "assert (base.BAND, new.BAND) == (1.5, 9.5)\n"
        "assert base.clip is not new.clip\n"
    )
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True)


def test_a_compiler_does_not_take_one_side_for_the_other(tmp_path):
    source = read_revision(".", ROOT)
    files = source.files | {
        "penalty.py": source.files["penalty.py"].replace("BAND = 1.5", "BAND = 9.5")
    }
    install(source, tmp_path, ALIASES["base"])
    install(replace(source, files=files), tmp_path, ALIASES["new"])
    program = (
        "import torch\n"
        f"import {ALIASES['base']}.penalty as base, {ALIASES['new']}.penalty as new\n"
        "numbers = [torch.tensor(x) for x in (1.0, 2.0, 4.0, 1.0, 2.0, 0.5, 1e-6, 1e6)]\n"
        "sides = [torch.compile(x.adaptive, backend='eager') for x in (base, new)]\n"
        "assert [side(*numbers).item() for side in sides] == [2.0, 1.0]\n"
    )
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True)


def test_a_revision_that_does_not_import_is_named(tmp_path):
    source = read_revision(".", ROOT)
    broken = replace(source, name="abc", files=source.files | {"loss.py": "import nowhere\n"})
    pair = install_pair(source, broken, tmp_path)
    with pytest.raises(BadInputError, match="abc does not: ModuleNotFoundError: No module named"):
        probe(pair, GATE)


def test_a_revision_that_runs_on_one_workload_only_is_found_before_counting(tmp_path):
    source = read_revision(".", ROOT)
    place = "distributions/categorical.py"
    text = source.files[place].replace(
        "def moments(", "def moments(*_):\n    1 / 0\n\n\ndef other("
    )
    broken = replace(source, name="abc", files=source.files | {place: text})
    for base, new in ((source, broken), (broken, source)):
        with pytest.raises(BadInputError, match="abc does not: ZeroDivisionError"):
            compare_sources(base, new, GATE[:1], 0.0, None, tmp_path, print, EXACT)


@pytest.mark.parametrize(
    ("side", "error", "said"),
    [
        ("base", CannotError("it died"), "one gives nothing to compare two with: it died"),
        ("base", FailedError("wrong"), "one gives nothing to compare two with: wrong"),
        ("new", CannotError("it died"), "two: it died"),
    ],
)
def test_a_revision_that_can_not_be_counted_is_named(side, error, said, tmp_path, monkeypatch):
    def count(_workload, place, _parts):
        if place.name == f"exact-{int(side == 'new')}":
            raise error
        return []

    monkeypatch.setattr(ab_run, "counted", count)
    one, two = Source("one", {"loss.py": ""}), Source("two", {"loss.py": ""})
    with pytest.raises(CannotError) as caught:
        count_both(one, two, WORKLOADS[:1], tmp_path, Result("one", "two", []))
    assert str(caught.value) == said


def test_a_launch_that_dies_names_its_revisions(tmp_path, monkeypatch):
    died = subprocess.CompletedProcess([], -9, "", "Killed")
    monkeypatch.setattr(pairing, "run_process", lambda *_: died)
    pair = Pair(tmp_path, {"base": "one", "null": "one", "new": "two"})
    with pytest.raises(CannotError, match="a launch of one and two ended with -9: Killed"):
        probe(pair, GATE)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["ab", "nowhere", "."], "got 'nowhere', which this repository does not know"),
        (["ab", ".", ".", "--workload", "gamma"], "'gamma' matches none of"),
        (["ab", ".", ".", "--launches", "2"], "2 is not in the range x>=3"),
        (["calibrate", "--minutes", "0"], "0.0 is not in the range x>0"),
    ],
)
def test_bad_input_is_one_line_and_2(arguments, said, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    assert run(["bench", *arguments]) == 2
    assert said in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("command", [["ab", "one", "two"], ["calibrate"]])
def test_a_log_is_wide_enough_for_names(command, monkeypatch, capsys):
    name, metric = "categorical/networks/65536", "recompilations in a training sequence"
    why = "a reason of some length, as they are"
    worse = Finding(
        name, "ours compiled", metric, "exact", "", 1, 2, 1.0, 1.0, 1.0, Verdict.REGRESSION, why
    )
    result = Result("one", "two", [worse])
    noise = Noise(name, 1e-3, 0.0, -0.001, 0.001, 0.01, 0.02, 8)
    monkeypatch.setattr(ab_run, "compare_revisions", lambda *_: result)
    monkeypatch.setattr(ab_run, "calibrate", lambda *_: ([noise], []))
    run(["bench", *command])
    (line,) = [x for x in capsys.readouterr().out.splitlines() if name in x]
    assert ("regression" in line and metric in line) == (command[0] == "ab")
    assert "…" not in line


def test_what_was_counted_of_a_text_is_not_counted_again(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    row = Row(GATE[0], "ours", "kernels", "kernels", 3.0, 3.0, 3.0, 1, "lower", "exact")
    calls = []
    monkeypatch.setattr(exact_cache, "measure_exact", lambda *_, **__: calls.append(1) or [row])
    place = tmp_path / "place"
    install(Source("a", {"loss.py": "1"}), place)
    for _ in range(2):
        assert exact_cache.counted(WORKLOADS[0], place, ("eager",)) == [row]
    assert len(calls) == 1
    (kept,) = (tmp_path / "cache" / "klppo-ab" / "exact").iterdir()
    kept.write_text("{")  # cut short
    assert exact_cache.counted(WORKLOADS[0], place, ("eager",)) == [row]
    install(Source("b", {"loss.py": "2"}), place)
    exact_cache.counted(WORKLOADS[0], place, ("eager",))
    exact_cache.counted(WORKLOADS[1], place, ("eager",))
    assert len(calls) == 4
    for package in ("tensordict", "torchrl", "onnx", "onnxscript", "triton"):
        given = {package: "99"}
        monkeypatch.setattr(exact_cache, "version", lambda name, given=given: given.get(name, "1"))
        exact_cache.counted(WORKLOADS[1], place, ("eager",))
    assert len(calls) == 9


# ---- what is seeded


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.name)
def test_seeded_changes_apply_to_what_is_there(change):
    source = read_revision(".", ROOT)
    changed = seeded(source, change)
    different = [place for place in source.files if source.files[place] != changed.files[place]]
    assert different
    for place in different:
        ast.parse(changed.files[place])
    assert bool(change.found_by) == change.regression


def test_there_are_enough_of_both():
    assert sum(change.regression for change in CHANGES) >= 10
    assert sum(not change.regression for change in CHANGES) >= 20


def test_a_seeded_change_that_no_longer_applies_is_said():
    source = read_revision(".", ROOT)
    with pytest.raises(BadInputError, match=r"its text once in loss\.py; found 0"):
        seeded(replace(source, files=dict.fromkeys(source.files, "")), CHANGES[0])


def test_a_slowdown_wastes_as_much_as_asked():
    tables = [slowdown(part)[1].new for part in (0.03, 0.06)]
    small, large = (ast.literal_eval(table.split("WASTE = ")[1].split("\n")[0]) for table in tables)
    assert set(small) == {int(name.split("/")[2]) for name in GATE}
    assert all(large[batch] == pytest.approx(2 * small[batch], abs=2) for batch in small)
