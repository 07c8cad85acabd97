import io
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import click
import pytest

from klppo_compile import __version__, cli
from klppo_compile.cli import COMMANDS, klppo, run
from klppo_compile.commands import demo
from klppo_compile.commands.progress import free_folder
from klppo_compile.exit_codes import CannotError, ExitCode
from klppo_compile.export import deployment
from klppo_compile.export.deployment import Deployment
from klppo_compile.export.gates import GATES as GATES_OF_THE_ROOM
from klppo_compile.export.gates import Verdict
from klppo_compile.training.loading import load_run
from klppo_compile.training.settings import TrainSettings
from tests.training_cases import finished_run

ROOT = Path(__file__).parents[1]
MIRROR = "tests.mirror_environments:tests/{}-v0"
SMALL = ["--steps=256", "--num-envs=4", "--horizon=32", "--epochs=1", "--minibatch-size=64"]
SMALL += ["--no-compile"]

GATES = (
    "--max-kl --max-ratio --max-row-kl --min-entropy --min-ess --min-explained-variance"
    " --out --picture"
)
SURFACE = {
    "demo": "--no-compile --out --seed --steps",
    "train": "--dtarg --entropy-coef --env --epochs --gamma --horizon --learning-rate --lmbda"
    " --minibatch-size --no-compile --num-envs --out --resume --seed --steps",
    "export": "--batch --checkpoint --data --dtype --format --graph --json --no-check --opset --out"
    " --tolerance",
    "check": "--checkpoint --data --json --provider --target --tolerance",
    "evaluate": f"--batch-rows --data --json --provider --rows --set {GATES}",
    "compare": f"--batch-rows --data --json --provider --rows {GATES}",
    "merge": f"--json {GATES}",
    "inspect": "--json",
    "doctor": "--json",
    "bench": "",
    "bench run": "--out --part --suite --workload",
    "bench compare": "--accepted --across-machines --all --json",
    "bench ab": "--json --launches --minutes --out --workload",
    "bench calibrate": "--json --minutes --workload",
    "bench report": "--accepted --commit-url --out --results",
    "bench convert": "--out --to",
}


# The surface


def commands(group, prefix=""):
    """Every command below a group, by the words that call it."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        yield prefix + name, command
        if isinstance(command, click.Group):
            yield from commands(command, f"{prefix}{name} ")


def test_commands_and_options_are_frozen():
    surface = {
        words: {
            flag
            for parameter in command.get_params(click.Context(command))
            for flag in parameter.opts
            if flag.startswith("--")
        }
        for words, command in commands(klppo)
    }
    assert surface == {name: {"--help", *flags.split()} for name, flags in SURFACE.items()}


def test_exit_codes_are_frozen():
    assert {code.name: int(code) for code in ExitCode} == {
        "GOOD": 0,
        "FAILED": 1,
        "BAD_INPUT": 2,
        "CANNOT": 3,
        "MISSING": 4,
        "INTERRUPTED": 130,
        "UNREAD": 141,
    }


@pytest.mark.parametrize("arguments", ["doctor", "doctor --json"])
def test_output_that_nobody_reads_is_no_failed_check(arguments):
    with subprocess.Popen(
        [sys.executable, "-m", "klppo_compile.cli", *arguments.split()],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as process:
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait() == ExitCode.UNREAD


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is full")
@pytest.mark.parametrize("arguments", ["doctor", "doctor --json", "merge none.json", "--nothing"])
@pytest.mark.parametrize("both", [False, True])
def test_a_full_disk_is_no_failed_check(arguments, both):
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "klppo_compile.cli", *arguments.split()],
            stdout=full,
            stderr=full if both else subprocess.PIPE,
            text=True,
            cwd=ROOT,
            check=False,
        )
    prints = arguments.startswith("doctor")
    assert done.returncode == (ExitCode.CANNOT if prints else ExitCode.BAD_INPUT)
    if prints and not both:
        assert re.fullmatch(r"Error: .* No space left on device\..*\n", done.stderr)


def test_a_letter_that_the_output_has_not_is_written_out(monkeypatch):
    output = io.TextIOWrapper(io.BytesIO(), "latin-1")
    monkeypatch.setattr(sys, "stdout", output)
    monkeypatch.setattr(cli, "run", lambda _: click.echo("fé…"))
    with pytest.raises(SystemExit):
        cli.main()
    output.flush()
    assert output.buffer.getvalue() == b"f\xe9\\u2026\n"


@pytest.mark.parametrize(
    "arguments",
    [
        "train --resume {}",
        "export {} --out x.onnx",
        "merge part.json --out {}",
        "merge part.json --picture {}.png",
        "inspect {}",
        "bench compare {} {}",
    ],
)
def test_a_path_that_nothing_can_reach_is_bad_input(arguments, capsys):
    assert run(arguments.replace("{}", 300 * "a").split()) == ExitCode.BAD_INPUT
    error = capsys.readouterr().err
    assert "File name too long" in error
    assert "Traceback" not in error


def test_an_exit_of_another_is_left_alone():
    @click.command()
    def leaves():
        sys.exit(7)

    with pytest.raises(SystemExit, match="7"):
        run([], leaves)


def test_version(capsys):
    assert run(["--version"]) == ExitCode.GOOD
    assert capsys.readouterr().out == f"klppo, version {__version__}\n"


@pytest.mark.parametrize("arguments", [["--help"], *([name, "-h"] for name in COMMANDS)])
def test_help_needs_nothing_heavy(arguments):
    heavy = {"torch", "numpy", "gymnasium", "matplotlib", "tensordict", "safetensors"}
    code = (
        "import sys; from klppo_compile.cli import run;"
        f"assert run({arguments!r}) == 0; print(*({heavy!r} & sys.modules.keys()), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout.startswith("Usage: klppo")
    assert done.stderr == "\n"


def test_help_states_the_exit_codes(capsys):
    run(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    for code in ExitCode:
        assert f" {int(code)} " in text


# Exit code 0


def test_train_says_what_came_of_it_and_where(tmp_path, capsys):
    folder = tmp_path / "run"
    arguments = ["train", "--env", MIRROR.format("Box"), "--out", str(folder), *SMALL]
    assert run([*arguments, "--seed=7", "--dtarg=0.02"]) == ExitCode.GOOD
    output = capsys.readouterr()
    assert re.search(r"mean return \d\.\d before, \d\.\d after 256 steps", output.out)
    assert f"Run folder: {folder}" in output.out
    # A log gets lines, each with the three numbers to watch.
    assert re.search(r"128 of 256 steps  return [\d.]+  KL [\d.]+  beta [\d.]+\n", output.err)
    settings = json.loads((folder / "config.json").read_text())["settings"]
    assert (settings["seed"], settings["dtarg"], settings["compile"]) == (7, 0.02, False)
    assert run(["train", "--resume", str(folder), "--steps=512"]) == ExitCode.GOOD
    assert "after 512 steps" in capsys.readouterr().out


def test_demo_trains_both_and_prints_a_table(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    assert run(["demo", "--steps=2048", "--no-compile", f"--out={tmp_path}"]) == ExitCode.GOOD
    output = capsys.readouterr().out
    for env in ("CartPole-v1", "InvertedPendulum-v5"):
        assert re.search(rf"{env} +│ +[\d.]+ ± [\d.]+ │ +[\d.]+ ± [\d.]+ │ 2,048 │", output)
        assert str(tmp_path / f"{env}-seed0") in output
        assert load_run(tmp_path / f"{env}-seed0").config.settings.env == env
        assert (tmp_path / f"{env}-seed0" / "best.onnx.json").is_file()
    # And what came of it on ONNX Runtime: the largest error, the rows, the gate.
    assert re.search(r"best.onnx of +┃ CartPole-v1-seed0 +┃ InvertedPendulum-v5-seed0", output)
    for name, cell in (("checked to", r"\d\.\de-\d+"), ("rows", "2,048"), ("gate", ".* passed")):
        assert re.search(rf"{name}.* │ +{cell} │ +{cell} │", output)


def test_a_demo_whose_gate_fails_fails(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    exported = SimpleNamespace(parity=SimpleNamespace(needed=1e-6))
    verdict = Verdict(GATES_OF_THE_ROOM[0], 5.0, 7.5, 0, passed=False)
    done = Deployment(exported, 2048, 1e-4, 0.99, verdict)
    monkeypatch.setattr(deployment, "deploy", lambda *_: done)
    result = finished_run(tmp_path / "run")
    monkeypatch.setattr(demo, "watch", lambda *_: result)
    assert run(["demo", f"--out={tmp_path}"]) == ExitCode.FAILED
    assert "7.5 <= 5 FAILED" in capsys.readouterr().out


def test_the_default_folder_is_never_one_that_exists(tmp_path):
    settings = TrainSettings(env="ale_py:ALE/Pong-v5", seed=3)
    # Made at once, for another process may be looking for one.
    for name in ("seed3", "seed3-2", "seed3-3"):
        found = free_folder(tmp_path / "runs", settings)
        assert found == tmp_path / "runs" / f"ale_py-ALE-Pong-v5-{name}"
        assert list(found.iterdir()) == []


# Exit code 2


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["train"], "Missing option '--env'"),
        (["train", "--env", "NoSuchEnv-v0"], "got 'NoSuchEnv-v0'"),
        (["train", "--env", "CartPole-v99"], "got 'CartPole-v99'"),
        (["train", "--env", "FrozenLake-v1"], "observations must be a Box space; got Discrete"),
        (["train", "--env", "Blackjack-v1"], "observations must be a Box space; got Tuple"),
        (["train", "--env", "CartPole-v1", "--steps", "0"], "steps must be at least 1; got 0"),
        (["train", "--env", "CartPole-v1", "--steps", "many"], "'many' is not a valid integer"),
        (["train", "--env", "CartPole-v1", "--seed", "-1"], "seed must be from 0"),
        (["train", "--env", "CartPole-v1", "--minibatch-size", "7"], "must divide num_envs"),
        (["train", "--env", "CartPole-v1", "--learning-rate", "nan"], "learning_rate must be"),
        (["train", "--resume", "nowhere"], "got nowhere, which has no config.json"),
        (["train", "--resume", "nowhere", "--gamma", "0.9"], "--gamma can't be given"),
        (["train", "--env", "CartPole-v1", "--stepps", "3"], "No such option"),
        (["tarin"], "No such command 'tarin'"),
        (["check", "a.onnx", "--data=b", "--checkpoint=last"], "Give --target too"),
        (["export", "r", "--out=q.onnx", "--data=q.onnx"], "--out must not be"),
        (["demo", "--steps", "-5"], "steps must be at least 1; got -5"),
    ],
)
def test_bad_input_is_one_clear_line_and_leaves_nothing(
    arguments, reason, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert run(arguments) == ExitCode.BAD_INPUT
    error = capsys.readouterr().err
    assert reason in error
    assert [line for line in error.splitlines() if line.startswith("Error: ")] == [
        error.splitlines()[-1]
    ]
    assert list(tmp_path.iterdir()) == []


def test_a_run_folder_that_cannot_be_written_is_refused(tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    folder = tmp_path / "file" / "run"
    arguments = ["train", "--env", "CartPole-v1", "--out", str(folder)]
    assert run(arguments) == ExitCode.BAD_INPUT
    assert f"{folder} must be writable; got Not a directory" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("out", "said"),
    [
        ("rollout/q.onnx", "--out must not be, nor lie in, what the command reads"),
        ("q.onnx", "a run folder is one that"),  # what is refused next, of this one
    ],
)
def test_an_export_into_what_it_reads_is_refused(out, said, tmp_path, capsys):
    (tmp_path / "rollout").mkdir()
    assert run(["export", str(tmp_path), f"--out={tmp_path / out}"]) == ExitCode.BAD_INPUT
    assert said in capsys.readouterr().err
    assert [path.name for path in tmp_path.rglob("*")] == ["rollout"]


def test_an_occupied_run_folder_is_refused(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    arguments = ["train", "--env", "CartPole-v1", "--out", str(tmp_path)]
    assert run(arguments) == ExitCode.BAD_INPUT
    assert "must be new or empty" in capsys.readouterr().err


# Exit codes 3 and 4


def test_an_environment_that_gives_no_numbers_cannot_be_trained_on(tmp_path, capsys):
    arguments = ["train", "--env", MIRROR.format("Broken"), "--out", str(tmp_path / "r"), *SMALL]
    assert run(arguments) == ExitCode.CANNOT
    assert "every reward of an evaluation must be finite" in capsys.readouterr().err
    assert not (tmp_path / "r").exists()


def test_a_defect_is_no_verdict(capsys, monkeypatch):
    def broken(*args, **kwargs):
        raise ZeroDivisionError("of our own")

    monkeypatch.setattr(klppo, "main", broken)
    assert run([]) == ExitCode.CANNOT
    error = capsys.readouterr().err
    assert "ZeroDivisionError: of our own" in error
    assert error.endswith("Error: klppo itself broke; please report the lines above.\n")


@pytest.mark.parametrize("package", cli.EXTRAS)
def test_a_missing_package_is_named_with_its_extra(package, capsys, monkeypatch):
    def importing(*args, **kwargs):
        raise ModuleNotFoundError(f"No module named {package!r}", name=f"{package}.part")

    monkeypatch.setattr(klppo, "main", importing)
    assert run([]) == ExitCode.MISSING
    assert f"needs {package}, which is not installed" in capsys.readouterr().err


def test_training_without_gymnasium_names_the_extra(tmp_path):
    code = (
        "import sys; sys.modules['gymnasium'] = None; from klppo_compile.cli import run;"
        f"sys.exit(run(['train', '--env', 'CartPole-v1', '--out', {str(tmp_path / 'r')!r}]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == ExitCode.MISSING
    assert done.stderr == (
        "Error: this command needs gymnasium, which is not installed."
        " Run pip install 'klppo-compile[train]'.\n"
    )
    assert not (tmp_path / "r").exists()


def test_every_refusal_reaches_the_shell(capsys, monkeypatch):
    def refuse(*args, **kwargs):
        raise CannotError("the rule; what came; the fix")

    monkeypatch.setattr(klppo, "main", refuse)
    assert run([]) == ExitCode.CANNOT
    assert capsys.readouterr().err == "Error: the rule; what came; the fix\n"
