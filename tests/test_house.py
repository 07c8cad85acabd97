"""The house's rules: who imports whom, which families there are, what a file may hold."""

import ast
import re
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.house import (
    CORE,
    LAYERS,
    MODULES,
    OUTSIDE,
    PACKAGE,
    PART_OF,
    ROOM_FOLDERS,
    ROOM_IMPORTERS,
    ROOMS,
    ROOT,
    UNITS,
)

TEST_FILES = sorted((ROOT / "tests").rglob("*.py"))


class Import(NamedTuple):
    """One imported name, and whether it loads inside a function."""

    name: str
    inside: bool
    line: int


def unit_of(name: str) -> str:
    """`klppo_compile.distributions.normal.FAMILY` belongs to `distributions`."""
    second = [*name.split("."), ""][1]
    return second if second in UNITS else "__init__"


def imports_of(path: Path) -> Iterator[Import]:
    """Every name a file imports, in full: `from torch import Tensor` is `torch.Tensor`."""

    def walk(node: ast.AST, inside: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, inside, node.lineno) for alias in node.names)
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            return  # names of types, never loaded
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield Import(f"{node.module or ''}.{alias.name}", inside, node.lineno)
        inside = inside or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            yield from walk(child, inside)

    yield from walk(ast.parse(path.read_text(encoding="utf-8")), inside=False)


def allowed_units(unit: str) -> set[str]:
    """The units that `unit` may import; its own files are always among them."""
    if unit in ROOMS:
        return ROOMS[unit] | {unit}
    layer = next(i for i, row in enumerate(LAYERS) if unit in row)
    whole = {unit, PART_OF.get(unit)}
    earlier = {u for row in LAYERS[:layer] for u in row if PART_OF.get(u, unit) in whole}
    return earlier | {unit} | {room for room, who in ROOM_IMPORTERS.items() if unit in who}


def fault(unit: str, found: Import) -> str | None:
    """Why `unit` may not have this import, or None."""
    top = found.name.split(".")[0]
    if top == PACKAGE:
        target = unit_of(found.name)
        if target not in allowed_units(unit):
            return f"{unit} may import only {sorted(allowed_units(unit))}"
        if target in ROOMS and target != unit and not found.inside:
            return f"a room is imported inside the function that needs it, not by all of {unit}"
    elif top not in sys.stdlib_module_names and found.name != "torch.Tensor":
        if top not in OUTSIDE:
            return f"{top} is not in the table OUTSIDE: say there who may know it"
        if unit not in OUTSIDE[top]:
            return f"only {sorted(OUTSIDE[top])} may know {top}"
    return None


@pytest.mark.parametrize("module", MODULES)
def test_imports_follow_the_table(module):
    unit = unit_of(module)
    assert unit in CORE or unit in ROOMS, f"{unit} is new: give it its row in the table"
    faults = {found: fault(unit, found) for found in imports_of(MODULES[module])}
    assert not [f"line {i.line}: {i.name}: {why}" for i, why in faults.items() if why]


@pytest.mark.parametrize(
    ("unit", "name", "inside", "why"),
    [
        ("series", "klppo_compile.loss", False, "may import only"),
        ("objective", "klppo_compile.penalty", False, "may import only"),
        ("functional", "klppo_compile.arguments", False, "may import only"),
        ("compiling", "klppo_compile.networks", False, "may import only"),
        ("objective", "torch", False, "may know torch"),
        ("objective", "torch.exp", False, "may know torch"),
        ("objective", "torch.Tensor", False, None),
        ("loss", "torchrl.objectives", True, "may know torchrl"),
        ("loss", "gymnasium", True, "may know gymnasium"),
        ("loss", "requests", True, "not in the table"),
        ("backends", "klppo_compile.kernels.launch", False, "inside the function"),
        ("export", "klppo_compile.kernels", True, "may import only"),
        ("loss", "klppo_compile.checks", False, None),
        ("backends", "klppo_compile.kernels.launch", True, None),
        ("distributions", "klppo_compile.distributions.normal", False, None),
        ("perf", "torchrl.objectives", True, None),
    ],
)
def test_the_table_tells_right_from_wrong(unit, name, inside, why):
    found = fault(unit, Import(name, inside, 1))
    assert found is None if why is None else why in (found or "")


@pytest.mark.parametrize("path", TEST_FILES, ids=lambda path: path.name)
def test_no_relative_or_top_level_room_imports(path):
    # `import perf` finds our folder only while the root is on the path.
    assert not [i for i in imports_of(path) if i.name.split(".")[0] in {"", *ROOMS}]


def test_every_family_is_registered_and_in_the_readme():
    families = import_module(f"{PACKAGE}.distributions").FAMILIES
    prefix = f"{PACKAGE}.distributions."
    files = [import_module(name).FAMILY for name in MODULES if name.startswith(prefix)]
    assert sorted(family.name for family in files) == sorted(families)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    # `tanh_normal` may stand in its table as TanhNormal.
    table = "".join(re.findall(r"^\|.*\|$", readme, re.MULTILINE)).replace("_", "").lower()
    names = [name.replace("_", "") for name in families]
    assert not [name for name in names if not re.search(rf"\b{name}\b", table)]


@pytest.mark.parametrize("path", [*MODULES.values(), *TEST_FILES], ids=lambda p: p.name)
def test_a_file_holds_one_concept(path):
    # a table of cases is long and simple: tests may be longer than what they test
    limit = 400 if path in TEST_FILES else 320
    assert len(path.read_text(encoding="utf-8").splitlines()) <= limit, "split it by concept"
    assert not {"utils", "util", "common", "helpers", "core", "misc"} & set(
        path.relative_to(ROOT).with_suffix("").parts
    ), "name it after what it holds"


def test_nothing_names_the_machine_it_was_written_on():
    everywhere = r"/wor[k]/|/opt/ven[v]|/roo[t]/|/hom[e]/|/User[s]/"
    folders = {PACKAGE, "tests", *ROOM_FOLDERS.values()}
    text = {".py", ".md", ".toml", ".txt", ".json", ".jsonl", ".csv", ".html", ".svg"}
    files = [path for folder in folders for path in (ROOT / folder).rglob("*")]
    files += [*ROOT.glob("*.*"), ROOT / "Makefile", ROOT / ".ci" / "run"]
    faults = []
    for path in files:
        if path.suffix not in text | {""} or not path.is_file():
            continue
        own = everywhere if ROOT / "tests" in path.parents else everywhere + r"|/tm[p]/"
        lines = path.read_text(encoding="utf-8").splitlines()
        faults += [f"{path.name}:{i}" for i, line in enumerate(lines, 1) if re.search(own, line)]
    assert not faults
