"""Revisions of the package laid apart, so that two of them can run side by side.

A revision's package is copied under a name of its own, by its text: operators and their namespace,
imports and logger follow. Entries of sys.modules swapped about would not do: dynamo keeps what it
compiled by the module's name, and B would run A's code without an error. The measuring room is this
checkout's on every side, so that what is compared is measured by one text.
"""

import io
import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from klppo_compile.exit_codes import BadInputError, MissingRequirementError, RefusalError

PACKAGE = "klppo_compile"
# As long as the package's own name: no line of a copy is longer than the original's.
ALIASES = {
    "base": "klppo_arm_one",
    "null": "klppo_arm_two",
    "new": "klppo_arm_tri",
    "slow": "klppo_arm_for",
}
WORKING_TREE = "."
UNKNOWN = "unknown"
ROOMS = ("kernels", "export")
ROOM = Path(__file__).resolve().parent
LEFT_OUT = {"__pycache__", "results"}


@dataclass(frozen=True)
class Source:
    """The text of a revision's package.

    Attributes:
        name: how the user named it, and the commit it is.
        files: text by path inside the package.
        commit: as result files are named by it.
    """

    name: str
    files: dict[str, str]
    commit: str = UNKNOWN

    @property
    def version(self) -> str:
        """What the package says of itself."""
        text = self.files.get("__init__.py", "")
        found = re.search(r'^__version__ = "(.+)"$', text, re.MULTILINE)
        return found[1] if found else UNKNOWN


def read_revision(revision: str, repository: Path | None = None) -> Source:
    """The package as a git revision has it; "." is the working tree.

    Raises:
        BadInputError: no checkout of this package here, no such revision, one without the package.
        MissingRequirementError: no git.
    """
    root = Path(git("rev-parse", "--show-toplevel", at=repository or Path.cwd()).decode().strip())
    if revision == WORKING_TREE:
        files, name, commit = dict(files_of_tree(root)), "the working tree", commit_here(root)
    else:
        whole = commit_of(revision, root)
        files = dict(files_of_archive(git("archive", "--format=tar", whole, at=root)))
        commit = whole[:10]
        name = commit if whole.startswith(revision) else f"{revision} ({commit})"
    if "loss.py" not in files:
        raise BadInputError(
            f"a revision must hold the package {PACKAGE}; {revision} of {root.name} does not. Run"
            " this in a checkout of klppo-compile."
        )
    return Source(name, files, commit)


def commit_here(root: Path) -> str:
    """A checkout's commit, marked -dirty where its files differ or the package has new ones.

    "unknown" where this folder itself is no checkout: one around it is somebody else's.
    """
    if not (root / ".git").exists():
        return UNKNOWN
    package = (PACKAGE, *ROOMS, "perf", ":(exclude)perf/results")
    describe = ("describe", "--always", "--dirty", "--abbrev=10", "--exclude=*")
    try:
        commit = git(*describe, at=root).decode().strip()
        new = git("ls-files", "--others", "--exclude-standard", "--", *package, at=root)
    except RefusalError:
        return UNKNOWN
    return f"{commit}-dirty" if new and not commit.endswith("-dirty") else commit


def commit_of(revision: str, root: Path) -> str:
    """The commit that a revision names.

    Raises:
        BadInputError: it names none.
    """
    try:
        found = git(
            "rev-parse",
            "--verify",
            "--quiet",
            "--end-of-options",
            f"{revision}^{{commit}}",
            at=root,
        )
    except BadInputError as error:
        raise BadInputError(
            f"a revision is a commit, a branch, a tag, or . for the working tree; got {revision!r},"
            " which this repository does not know. See git log."
        ) from error
    return found.decode().strip()


def is_place(variable: str) -> bool:
    """Whether a variable of the environment may name git another repository."""
    return variable.startswith("GIT_") and not variable.startswith("GIT_CONFIG")


def git(*arguments: str, at: Path) -> bytes:
    """What git prints of the repository there, whichever one its variables name.

    Raises:
        BadInputError: git refuses.
        MissingRequirementError: no git.
    """
    try:
        done = subprocess.run(  # noqa: S603  git, on what the user named after --end-of-options
            ["git", *arguments],  # noqa: S607 - whichever git is on the path
            cwd=at,
            env={name: value for name, value in os.environ.items() if not is_place(name)},
            capture_output=True,
            check=True,
        )
    except FileNotFoundError as error:
        raise MissingRequirementError("reading revisions needs git. Install it.") from error
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode(errors="replace").strip().splitlines() or ["it said nothing"]
        raise BadInputError(
            f"revisions are read by git from the repository one stands in; git says: {said[0]}. Run"
            " this in a checkout of klppo-compile."
        ) from error
    return done.stdout


def inside_package(path: PurePosixPath) -> str | None:
    """Where a file of the checkout lies in the installed package; None if it does not."""
    top, *rest = path.parts
    if path.suffix not in {".py", ".json", ".typed"} or LEFT_OUT & set(path.parts) or not rest:
        return None
    if top == PACKAGE and rest[0] not in {*ROOMS, "perf"}:
        return "/".join(rest)
    return path.as_posix() if top in ROOMS else None


def files_of_archive(archive: bytes) -> Iterator[tuple[str, str]]:
    """The package's files in a tar archive of a checkout."""
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        for member in tar:
            place = inside_package(PurePosixPath(member.name)) if member.isfile() else None
            content = tar.extractfile(member) if place else None
            if place and content:
                yield place, text_of(content.read(), member.name)


def files_of_tree(root: Path) -> Iterator[tuple[str, str]]:
    """The package's files in a checkout."""
    for top in (PACKAGE, *ROOMS):
        for path in sorted((root / top).rglob("*")):
            place = inside_package(PurePosixPath(path.relative_to(root).as_posix()))
            if place and path.is_file():
                yield place, text_of(path.read_bytes(), str(path))


def text_of(content: bytes, name: str) -> str:
    """A source file as text.

    Raises:
        BadInputError: it is none.
    """
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise BadInputError(
            f"the files of a revision must be text in UTF-8; {name} is not: {error}. Name another"
            " revision."
        ) from error


def install(source: Source, folder: Path, name: str = PACKAGE) -> Path:
    """Write a revision and this checkout's measuring room as the package `name` into a folder."""
    package = folder / name
    shutil.rmtree(package, ignore_errors=True)
    room = {
        f"perf/{path.relative_to(ROOM).as_posix()}": path.read_text(encoding="utf-8")
        for path in sorted(ROOM.rglob("*.py"))
        if not LEFT_OUT & set(path.relative_to(ROOM).parts)
    }
    for place, text in (source.files | room).items():
        path = package / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(renamed(text, name), encoding="utf-8")
    return folder


def renamed(text: str, name: str) -> str:
    """A text that speaks of the package by another name."""
    return text.replace(PACKAGE, name)
