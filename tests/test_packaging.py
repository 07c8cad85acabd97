"""What a user gets: the public names, imports that load little, the packages, the wheel."""

import os
import subprocess
import sys
import zipfile
from importlib import import_module
from pathlib import Path
from shutil import copytree

import pytest

from tests.house import MODULES, PACKAGE, ROOM_FOLDERS, ROOT, SETUPTOOLS

PUBLIC = {
    "KLPENPPOLoss",
    "LossConfig",
    "LossOutput",
    "Minibatch",
    "PolicyHead",
    "__version__",
    "compile_loss",
    "klpen_ppo_loss",
}


def in_a_fresh_interpreter(code: str, *flags: str, **environment: str) -> str:
    """What `code` prints in an interpreter of its own."""
    command = [sys.executable, "-W", "error", *flags, "-c", code]
    environment = os.environ | environment
    done = subprocess.run(
        command, check=False, cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_public_names_are_frozen():
    package = import_module(PACKAGE)
    assert set(package.__all__) == PUBLIC
    assert set(dir(package)) >= PUBLIC
    assert all(getattr(package, name) is not None for name in PUBLIC)
    with pytest.raises(AttributeError, match="KLPenPPOLoss"):
        _ = package.KLPenPPOLoss


@pytest.mark.parametrize("module", [PACKAGE, f"{PACKAGE}.cli"])
def test_importing_it_loads_no_torch(module):
    heavy = {"torch", "tensordict", "torchrl", "gymnasium", "triton", "matplotlib", "onnx"}
    loaded = in_a_fresh_interpreter(f"import sys, {module}; print(*sys.modules)").split()
    assert module in loaded
    assert not heavy & set(loaded)


def test_the_loss_works_without_torchrl():
    code = f"import sys; from {PACKAGE} import KLPENPPOLoss, compile_loss; print(*sys.modules)"
    loaded = in_a_fresh_interpreter(code).split()
    assert "torch" in loaded
    # triton itself comes with torch._dynamo wherever it is installed
    assert not {"torchrl", "gymnasium", "onnx", f"{PACKAGE}.kernels"} & set(loaded)


def test_packages_in_pyproject_are_the_folders():
    inits = {name for name, path in MODULES.items() if path.name == "__init__.py"}
    assert inits == set(SETUPTOOLS["packages"])
    assert {name.rpartition(".")[0] for name in MODULES} - {""} <= inits


def test_no_python_outside_the_house():
    rooms = {Path(folder) for folder in ROOM_FOLDERS.values()}
    known = {Path(PACKAGE), Path("tests"), *rooms}
    folders = {path.relative_to(ROOT).parent for path in ROOT.glob("[!.]*/*.py")}
    assert folders - {Path("build")} == known
    assert not list(ROOT.glob("*.py"))


@pytest.mark.parametrize("package", ROOM_FOLDERS)
def test_a_room_is_linked_and_knows_its_name(package):
    folder = ROOM_FOLDERS[package]
    link = ROOT.joinpath(*package.split("."))
    # A checkout without links (Windows) has the target as the file's text.
    target = str(link.readlink()) if link.is_symlink() else link.read_text(encoding="utf-8")
    assert target.strip() == f"../{folder}"
    code = f"try: import {folder}\nexcept ImportError as error: print(error)"
    assert f"import {package}" in in_a_fresh_interpreter(code)


def test_the_wheel_has_every_module_and_imports(tmp_path):
    source = tmp_path / "source"
    for folder in (PACKAGE, *ROOM_FOLDERS.values()):
        copytree(ROOT / folder, source / folder, symlinks=True)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        (source / name).write_bytes((ROOT / name).read_bytes())
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-index"]
    build = [*pip, "--no-build-isolation", "--wheel-dir", str(tmp_path), str(source)]
    subprocess.run(build, check=True, cwd=tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path / "installed")
    installed = {name for name in names if name.endswith(".py")}
    modules = {
        f"{name.replace('.', '/')}{'/__init__' if path.name == '__init__.py' else ''}.py"
        for name, path in MODULES.items()
    }
    assert installed == modules
    assert f"{PACKAGE}/py.typed" in names
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path / 'installed')!r})\n"
        f"import {PACKAGE}.cli, {', '.join(SETUPTOOLS['packages'])}\n"
        f"print({PACKAGE}.KLPENPPOLoss.__name__, {PACKAGE}.__file__)"
    )
    name, file = in_a_fresh_interpreter(code, "-P", PYTHONPATH="").split()
    assert name == "KLPENPPOLoss"
    assert Path(file) == tmp_path / "installed" / PACKAGE / "__init__.py"
