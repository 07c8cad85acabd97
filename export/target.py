"""What is exported, by its name on the command line: a run folder, or `module:factory`.

A factory is the user's own code and is run as such. Checkpoints are read as data.
"""

import importlib
import inspect
import math
import os
import pickle
import re
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from klppo_compile.exit_codes import BadInputError, MissingRequirementError, RefusalError
from klppo_compile.export.data import open_rollout
from klppo_compile.export.graph import in_keys_of, joined
from klppo_compile.export.preparation import hint_for
from klppo_compile.loss import KLPENPPOLoss

EXAMPLE_ROWS = 4096
"""Rows of a rollout that serve as the example."""


@dataclass(frozen=True)
class Target:
    """A loss and an example of its input."""

    loss: KLPENPPOLoss
    example: TensorDictBase | None


def resolve(target: str, checkpoint: str | None = None, data: Path | None = None) -> Target:
    """Load what a target names, at a checkpoint, with the example from a file if one is given."""
    folder = Path(target)
    if (folder / "config.json").is_file():
        found = _run_folder(folder, checkpoint)
    elif all(part.isidentifier() for part in re.split("[.:]", target)) and ":" in target:
        found = _factory(target)
        if checkpoint is not None:
            load_checkpoint(found.loss, Path(checkpoint))
    elif folder.exists():
        raise BadInputError(
            f"a run folder is one that klppo train wrote; got {target}, which has no config.json."
        )
    else:
        raise BadInputError(
            f"a target is a run folder of klppo train, or module:factory; got {target!r}, which is"
            " neither."
        )
    if data is not None:
        found = Target(found.loss, read_example(found.loss, data))
    return found


def _run_folder(folder: Path, checkpoint: str | None) -> Target:
    from klppo_compile.training.loading import load_run

    run = load_run(folder, checkpoint or "best")  # type: ignore[arg-type]  # it refuses other words
    return Target(run.loss, run.example[:EXAMPLE_ROWS])


def _factory(target: str) -> Target:
    module, _, name = target.partition(":")
    # As `python -m` does, so that a script in the current folder is found.
    if os.getcwd() not in sys.path:  # noqa: PTH109  sys.path holds strings
        sys.path.insert(0, os.getcwd())  # noqa: PTH109
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name not in {module, module.split(".", maxsplit=1)[0]}:
            raise MissingRequirementError(
                f"the module {module} needs {error.name}, which is not installed. Install it."
            ) from error
        raise BadInputError(
            f"a target module:factory must name a module; got {module!r}, which is not found."
            " Run from its folder, or install it."
        ) from error
    except (Exception, SystemExit) as error:
        raise BadInputError(_broken(f"the module {module} must load", error)) from error
    factory = getattr(found, name, None)
    if not callable(factory):
        what = "no such name" if factory is None else type(factory).__name__
        raise BadInputError(f"{target} must be a callable of {module}; got {what}.")
    try:
        made = factory()
    except RefusalError:
        raise
    except (Exception, SystemExit) as error:
        raise BadInputError(_broken(f"{target} must run without arguments", error)) from error
    return _require_loss(target, made)


def _require_loss(target: str, made: Any) -> Target:
    """What a factory returned, if it is a loss, or that and a rollout."""
    loss, example = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    good = example is None or isinstance(example, TensorDictBase)
    if isinstance(loss, KLPENPPOLoss) and good:
        return Target(loss, example)
    got = type(made).__name__
    if isinstance(made, tuple):
        got = f"({', '.join(type(part).__name__ for part in made)})"
    if inspect.iscoroutine(made):
        made.close()  # or Python complains that nobody waited for it
    raise BadInputError(
        f"{target} must return a klppo_compile.KLPENPPOLoss, or that and a TensorDict; got"
        f" {got}.{hint_for(loss)}"
    )


def _broken(rule: str, error: BaseException) -> str:
    """Whose error it was and where, in one line: the user's code, not ours."""
    *_, last = traceback.extract_tb(error.__traceback__)
    name, text = type(error).__name__, str(error).partition("\n")[0]
    # The last frame is ours where the call itself is wrong.
    where = "" if last.filename == __file__ else f" in {last.filename}:{last.lineno}"
    return f"{rule}; it raised {name}{where}: {text}"


def load_checkpoint(loss: KLPENPPOLoss, path: Path) -> None:
    """Load a safetensors file, or a `.pt` as weights only, whose entries fit the loss."""
    try:
        if path.suffix == ".safetensors":
            state: Any = load_safetensors(path.read_bytes())
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise BadInputError(
            f"a checkpoint must be readable; got {path}: {error.strerror}."
        ) from error
    except (
        SafetensorError,
        pickle.UnpicklingError,
        RuntimeError,
        LookupError,
        EOFError,
        ValueError,
    ) as error:
        raise BadInputError(
            f"a checkpoint is a safetensors file or a .pt of tensors alone; got {path}:"
            f" {(str(error) or type(error).__name__).splitlines()[0]}. Save loss.state_dict()."
        ) from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    _require_fit(loss, state, path)
    loss.load_state_dict(state)


def _require_fit(loss: KLPENPPOLoss, state: Any, path: Path) -> None:
    expected = {k: x for k, x in loss.state_dict().items() if isinstance(x, Tensor)}
    given = (
        {k: x for k, x in state.items() if isinstance(x, Tensor)} if isinstance(state, dict) else {}
    )
    missing = [name for name in expected if name not in given]
    unknown = [name for name in given if name not in expected]
    if missing or unknown:
        what = f"lacks {missing[0]!r}" if missing else f"has an unknown {unknown[0]!r}"
        raise BadInputError(f"{path} must be a state of this loss; it {what}.")
    for name, x in given.items():
        wanted = expected[name]
        # A few bytes can claim a tensor of any size: compare before anything is copied.
        if x.shape != wanted.shape:
            raise BadInputError(
                f"{path} must be a state of this loss; {name} has the shape {list(x.shape)}, not"
                f" {list(wanted.shape)}."
            )
        if x.layout != torch.strided or x.is_floating_point() != wanted.is_floating_point():
            raise BadInputError(
                f"{path} must be a state of this loss; {name} is {x.dtype}, {x.layout}, not"
                f" {wanted.dtype}."
            )
        if x.is_floating_point() and not bool(torch.isfinite(x).all()):
            raise BadInputError(f"{path} must hold finite numbers; {name} has NaN or infinity.")


def read_example(loss: KLPENPPOLoss, path: Path) -> TensorDict:
    """The first rows of a rollout file, as the loss reads it."""
    rows = {}
    with open_rollout(path) as rollout:
        dims = rollout.batch_dims(joined(loss.tensor_keys.advantage))
        for key in _keys(loss):
            rollout.require_readable(joined(key))
            column = rollout.columns.get(joined(key))
            if column is not None and column.shape:
                inner = math.prod(column.shape[1:dims])
                stop = min(column.shape[0], -(-EXAMPLE_ROWS // max(1, inner)))
                rows[key] = torch.from_numpy(column.read(0, stop))
        if not rows:
            raise BadInputError(f"{path} has no entry that the loss reads: {_names(loss)}.")
    first = next(iter(rows.values()))
    out = TensorDict({}, batch_size=first.shape[:dims])
    for key, x in rows.items():
        out.set(key, x)
    return out


def _keys(loss: KLPENPPOLoss) -> list[Any]:
    keys, actor, critic = loss.tensor_keys, loss.actor_network, loss.critic_network
    found: list[Any] = [
        keys.advantage,
        keys.action,
        keys.sample_log_prob,
        keys.value_target,
        keys.value,
    ]
    found += [*loss.actor_head.in_keys, *in_keys_of(actor), *in_keys_of(critic)]
    found += loss.mask_keys()
    return list(dict.fromkeys(found))


def _names(loss: KLPENPPOLoss) -> str:
    return ", ".join(joined(key) for key in _keys(loss))
