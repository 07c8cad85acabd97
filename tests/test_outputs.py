"""A result never takes the place of what its command reads, nor of another result."""

import pytest

from klppo_compile.cli import run
from klppo_compile.commands.outputs import require_apart
from klppo_compile.exit_codes import BadInputError, ExitCode

READS = "must not be, nor lie in, what the command reads; got"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Files that hold what nobody can read, so that a refusal is of the names."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "memmap").mkdir()
    for name in ("a.onnx", "a.onnx.json", "b.onnx", "d.npz", "part.json", "memmap/meta.json"):
        (tmp_path / name).write_text("precious")
    return tmp_path


@pytest.mark.parametrize(
    "words",
    [
        "evaluate a.onnx --data d.npz --out a.onnx",
        "evaluate a.onnx --data d.npz --out ./a.onnx.json",
        "evaluate a.onnx --data d.npz --out d.npz",
        "evaluate a.onnx --data memmap --out memmap/new.json",
        "evaluate memmap/../a.onnx --data d.npz --out a.onnx",
        "compare a.onnx b.onnx --data d.npz --out a.onnx",
        "compare a.onnx b.onnx --data d.npz --out b.onnx.json",
        "merge part.json --out part.json",
        "bench convert part.json --to bmf --out part.json",
        "bench report --results . --out part.json",
        "bench report --results memmap --accepted part.json --out part.json",
    ],
)
def test_no_input_is_written_over(folder, words, capsys):
    before = {path: path.read_text() for path in folder.rglob("*.*")}
    assert run(words.split()) == ExitCode.BAD_INPUT
    assert READS in capsys.readouterr().err
    assert {path: path.read_text() for path in folder.rglob("*.*")} == before


@pytest.mark.parametrize(
    "words", ["merge loop.json --out new.json", "merge part.json --out loop.json"]
)
def test_a_link_that_goes_in_a_circle_is_no_defect(folder, words, capsys):
    (folder / "loop.json").symlink_to("loop.json")
    assert run(words.split()) == ExitCode.BAD_INPUT
    assert "Traceback" not in capsys.readouterr().err


def test_a_picture_is_no_result(folder, capsys):
    words = "merge part.json --out kl.png --picture ./kl.png"
    assert run(words.split()) == ExitCode.BAD_INPUT
    assert "--out and --picture must be two files; got" in capsys.readouterr().err


def test_what_is_beside_an_input_or_not_asked_for_is_free(tmp_path):
    require_apart({"--out": tmp_path / "new.json", "--picture": None}, [tmp_path / "d.npz"])
    with pytest.raises(BadInputError, match=READS):
        require_apart({"--out": tmp_path}, [tmp_path])
