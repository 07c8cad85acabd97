"""A run on disk: which files there are, and how they are written and read back."""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from tensordict import TensorDict
from torch import Tensor, nn

from klppo_compile.exit_codes import BadInputError
from klppo_compile.training.files import (
    choosing,
    held,
    read_json,
    read_tensors,
    replacing,
    require_text,
    write_json,
    write_tensors,
    writing,
)
from klppo_compile.training.settings import TrainSettings
from klppo_compile.training.spaces import (
    ActionSpec,
    ObservationSpec,
    specs_from_json,
    specs_to_json,
)

FORMAT = 1
Checkpoint = Literal["early", "best", "last"]
ROLLOUT_KEYS = (
    "observation",
    "action",
    "action_log_prob",
    "advantage",
    "value_target",
    "state_value",
)


@dataclass(frozen=True)
class RunConfig:
    """What `config.json` says: enough to rebuild the networks without the environment."""

    settings: TrainSettings
    observation: ObservationSpec
    action: ActionSpec


class RunFolder:
    """The paths of a run, and the rules of writing there."""

    def __init__(self, path: Path) -> None:
        require_text(path)
        self.path = path
        self.config = path / "config.json"
        self.metrics = path / "metrics.csv"
        self.curves = path / "curves.png"
        self.summary = path / "summary.json"
        self.rollout = path / "rollout"
        self.resume = path / "resume.safetensors"

    def checkpoint(self, which: Checkpoint) -> Path:
        """Return the path of the loss's state at one moment of the run."""
        if which not in get_args(Checkpoint):
            raise BadInputError(
                f"a run has the checkpoints early, best and last; got {which!r}. Name one of them."
            )
        return self.path / f"{which}.safetensors"

    @contextmanager
    def created(self, config: RunConfig) -> Iterator[None]:
        """Begin a run: make the folder, which must be new or empty, hold it, write its config."""
        with choosing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        with held(self.path):
            self._occupy(config)
            yield

    def _occupy(self, config: RunConfig) -> None:
        with choosing(self.path):
            if any(self.path.iterdir()):
                resumed = ", or --resume to continue the run in it" if self.saved() else ""
                raise BadInputError(
                    f"the run folder must be new or empty; got {self.path}, which holds files."
                    f" Give another --out{resumed}."
                )
            try:
                self.write_config(config)
            except BaseException:
                self.discard()
                raise

    def sweep(self) -> None:
        """Remove what a killed process left under temporary names, and put back what it moved.

        Only while the folder is held: another process's files have such names too.
        """
        with writing(self.path):
            for path in sorted(self.path.glob(".*.old")):
                place = self.path / path.name[1:].rsplit(".", 2)[0]
                if not place.exists():
                    path.rename(place)
            for path in (*self.path.glob(".*.tmp"), *self.path.glob(".*.old")):
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink()

    def saved(self) -> bool:
        """Whether a run was saved here: the last two files of a save are looked for.

        A first save that was cut short has a summary, of one iteration, and nothing to resume.
        """
        if self.resume.exists() or not self.summary.exists():
            return self.resume.exists()
        try:
            return read_json(self.summary).get("iterations") != 1
        except BadInputError:
            return True

    def discard(self) -> None:
        """Remove all that a run wrote which ended before its first save was whole."""
        checkpoints = (self.checkpoint(which) for which in get_args(Checkpoint))
        with writing(self.path):
            self.sweep()
            if self.rollout.exists():
                shutil.rmtree(self.rollout)
            for path in (*checkpoints, self.curves, self.summary, self.metrics, self.config):
                path.unlink(missing_ok=True)
        # It stays where something else lies in it, or where a disk is mounted.
        with suppress(OSError):
            self.path.rmdir()

    def write_config(self, config: RunConfig) -> None:
        """Write `config.json`."""
        spaces = specs_to_json(config.observation, config.action)
        values = {"format": FORMAT, "settings": config.settings.to_json(), "spaces": spaces}
        write_json(self.config, values)

    def read_config(self) -> RunConfig:
        """Read `config.json`."""
        if not self.config.is_file():
            raise BadInputError(
                f"a run folder is one that klppo train wrote; got {self.path}, which has no"
                " config.json. Give the folder that klppo train printed."
            )
        values = read_json(self.config)
        try:
            if values["format"] != FORMAT:
                raise BadInputError(f"its format must be {FORMAT}; got {values['format']!r}")
            settings = TrainSettings.from_json(values["settings"])
            observation, action = specs_from_json(values["spaces"])
        except (KeyError, AttributeError, BadInputError) as error:
            raise BadInputError(
                f"{self.config} must be as klppo train wrote it: {str(error).rstrip('.')}."
                " Give an intact run folder."
            ) from error
        return RunConfig(settings, observation, action)

    def write_rollout(self, rollout: TensorDict) -> None:
        """Replace `rollout/` by these rows, in the files that TensorDict's memmap makes.

        Not by memmap itself: it writes to maps of empty files, and where the disk fills up under
        a map the kernel kills the process.
        """
        with replacing(self.rollout) as temporary:
            temporary.mkdir()
            meta: dict[str, Any] = {}
            for name, rows in rollout.items():
                (temporary / f"{name}.memmap").write_bytes(rows.contiguous().numpy())
                leaf = {"device": "cpu", "shape": list(rows.shape), "dtype": str(rows.dtype)}
                meta[name] = {**leaf, "is_nested": False}
            meta |= {"shape": list(rollout.shape), "device": "cpu", "_type": str(type(rollout))}
            (temporary / "meta.json").write_text(json.dumps(meta))

    def read_rollout(self, head_keys: tuple[str, ...]) -> TensorDict:
        """Read the keys of `rollout/` that the loss reads, into memory.

        Not by load_memmap: that maps the files shared, so that a truncated one is filled up with
        zeros on disk and a change of the tensors is a change of the run.
        """
        names = (*ROLLOUT_KEYS, *head_keys)
        try:
            leaves = json.loads((self.rollout / "meta.json").read_text())
            missing = [name for name in names if name not in leaves]
            if missing:
                raise ValueError(f"no {missing[0]}")
            arrays = {name: self._read_array(name, leaves[name]) for name in names}
            return TensorDict(arrays, batch_size=arrays["advantage"].shape[:1])
        except (OSError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise BadInputError(
                f"{self.rollout} must be the TensorDict memmap that klppo train wrote; got {error}."
                " Give an intact run folder."
            ) from error

    def _read_array(self, name: str, leaf: Mapping[str, Any]) -> Tensor:
        dtype = {"torch.float32": torch.float32, "torch.int64": torch.int64}[leaf["dtype"]]
        data = (self.rollout / f"{name}.memmap").read_bytes()
        if not data:
            raise ValueError(f"no rows in {name}")
        return torch.frombuffer(bytearray(data), dtype=dtype).reshape(leaf["shape"])

    def write_summary(self, values: Mapping[str, Any]) -> None:
        """Write `summary.json`."""
        write_json(self.summary, values)

    def write_checkpoint(self, which: Checkpoint, state: Mapping[str, Tensor]) -> None:
        """Write one checkpoint: exactly the loss's state dict."""
        write_tensors(self.checkpoint(which), state, {"format": f"klppo-run-{FORMAT}"})

    def read_checkpoint(self, which: Checkpoint, module: nn.Module) -> dict[str, Tensor]:
        """Read one checkpoint into `module`, if it fits, and return it."""
        path = self.checkpoint(which)
        state, _ = read_tensors(path)
        load_state(module, state, path)
        return state


def load_state(module: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Load a state dict whose names, shapes, types and finiteness have been checked first."""
    expected = module.state_dict()
    for name in sorted(expected.keys() ^ state.keys()):
        found = "lacks" if name in expected else "has an unknown"
        raise BadInputError(f"{path} must fit the config.json beside it; it {found} {name}.")
    for name, tensor in state.items():
        target = expected[name]
        if (tensor.shape, tensor.dtype) != (target.shape, target.dtype):
            raise BadInputError(
                f"{path} must fit the config.json beside it; {name} must be {target.dtype}"
                f" {list(target.shape)}, got {tensor.dtype} {list(tensor.shape)}."
                " Give an intact run folder."
            )
        if not torch.isfinite(tensor).all():
            raise BadInputError(
                f"{path} must hold finite numbers; {name} has NaN or infinity."
                " Give an intact run folder."
            )
        if name.rpartition(".")[2] in ("var", "count") and (tensor < 0).any():
            raise BadInputError(
                f"{path} must hold statistics; {name} is negative. Give an intact run folder."
            )
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        # The loss knows more rules than shapes: beta has a range.
        raise BadInputError(f"{path} must be a state of the loss: {error}") from error
