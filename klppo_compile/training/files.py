"""Files that appear whole or not at all: written under a temporary name, then renamed."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from klppo_compile.exit_codes import BadInputError, CannotError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`, a file or a folder, that replaces it at the end."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with writing(path):
            yield temporary
            _rename(temporary, path)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        else:
            temporary.unlink(missing_ok=True)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Say in one line why `path` could not be written: a full disk, a lost permission."""
    try:
        yield
    except OSError as error:
        raise CannotError(
            f"{path} must be writable; got {error.strerror or error}."
            " Make room or give another folder."
        ) from error


def require_text(path: Path) -> None:
    """Refuse a name that is no text: safetensors opens files by text."""
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise BadInputError(
            f"a run folder's name must be valid UTF-8; got {str(path)!r}. Give another name."
        ) from error


@contextmanager
def choosing(path: Path) -> Iterator[None]:
    """As `writing`, where a folder is chosen for a run: there it is bad input, and no accident."""
    try:
        with writing(path):
            yield
    except CannotError as error:
        raise BadInputError(str(error)) from error


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keep others from training in `folder`, by a lock on the folder itself, which adds no file.

    Where there are no such locks (Windows, some network disks) nobody is kept out; a folder that
    can't be opened is left to those who read it.
    """
    try:
        import fcntl

        handle = os.open(folder, os.O_RDONLY)
    except (ImportError, OSError):
        yield
        return
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BadInputError(
                f"a run folder takes one process at a time; another process is training in"
                f" {folder}. Wait until it ends, or give another folder."
            ) from error
        except OSError:
            pass
        yield
    finally:
        os.close(handle)


def _rename(temporary: Path, path: Path) -> None:
    if temporary.is_dir() and path.exists():
        # A folder can't be renamed over a folder with files in it.
        retired = path.with_name(f".{path.name}.{os.getpid()}.old")
        try:
            path.rename(retired)
            temporary.rename(path)
        except BaseException:  # Ctrl-C too
            if retired.exists() and not path.exists():
                retired.rename(path)
            raise
        shutil.rmtree(retired)
    else:
        temporary.replace(path)


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write values as strict JSON."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(values, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object."""
    try:
        values = json.loads(path.read_text())
        if not isinstance(values, dict):
            raise TypeError(f"a {type(values).__name__}")
    except (OSError, TypeError, ValueError, RecursionError) as error:
        raise BadInputError(
            f"{path} must be a JSON object; got {error}. Give an intact run folder."
        ) from error
    return values


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors and text as one safetensors file."""
    with replacing(path) as temporary:
        # Cloned: the format refuses two names for one storage, and networks may share modules.
        copies = {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}
        # As bytes: the library's own writer makes files that only their owner can read.
        temporary.write_bytes(save(copies, metadata=dict(metadata)))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a safetensors file: its tensors and its text."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return tensors, dict(file.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise BadInputError(
            f"{path} must be a safetensors file; got {error}. Give an intact run folder."
        ) from error
