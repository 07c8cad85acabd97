"""From a run folder back to modules, with neither Gymnasium nor the environment."""

from dataclasses import dataclass
from pathlib import Path

from tensordict import TensorDict
from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictModule

from klppo_compile.loss import KLPENPPOLoss
from klppo_compile.training.agent import build_agent
from klppo_compile.training.run_folder import Checkpoint, RunConfig, RunFolder
from klppo_compile.training.update import build_loss


@dataclass(frozen=True)
class Run:
    """A trained run, ready to be used, checked or exported."""

    config: RunConfig
    loss: KLPENPPOLoss
    """In evaluation mode, with the checkpoint's beta."""
    actor: ProbabilisticTensorDictSequential
    critic: TensorDictModule
    example: TensorDict
    """The last rollout `[N]`: every key that the loss reads, and raw observations."""


def load_run(folder: str | Path, which: Checkpoint = "best") -> Run:
    """Rebuild a run's modules at one of its checkpoints.

    Everything is read as data (JSON, safetensors, memory-mapped arrays) and checked against
    `config.json`; a file that is missing or doesn't fit raises a BadInputError that names it.
    """
    run_folder = RunFolder(Path(folder))
    config = run_folder.read_config()
    agent = build_agent(config.observation, config.action)
    loss = build_loss(agent, config.settings)
    run_folder.read_checkpoint(which, loss)
    example = run_folder.read_rollout(agent.head_keys)
    return Run(config, loss.eval(), agent.actor, agent.critic, example)
