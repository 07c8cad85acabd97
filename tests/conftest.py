"""One thread, one seed and torch's own defaults for every test, whatever ran before it."""

import os
import sys
from pathlib import Path

# Read once, when torch and Inductor load: before any test module imports them.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
# KLPPO_TEST_DEVICE=cuda: the kernel tests' tensors are made there, and Triton compiles its kernels.
# Without a GPU it interprets them. `python -m klppo_compile.perf gpu` sets this.
os.environ.setdefault("KLPPO_TEST_DEVICE", "cpu")
os.environ.setdefault("TRITON_INTERPRET", "01"[os.environ["KLPPO_TEST_DEVICE"] == "cpu"])
os.environ.setdefault(
    "TORCHINDUCTOR_CACHE_DIR", str(Path(__file__).resolve().parents[1] / ".cache" / "inductor")
)

import pytest
import torch
from torch.distributions import Distribution

torch.set_num_threads(1)
if os.environ["KLPPO_TEST_DEVICE"] != "cpu":
    torch.set_default_device(os.environ["KLPPO_TEST_DEVICE"])


@pytest.fixture(autouse=True)
def _fresh_state(monkeypatch):
    """Seed torch, undo torchrl's switch (its import turns argument checks off), drop graphs."""
    torch.manual_seed(0)
    monkeypatch.setattr(Distribution, "_validate_args", __debug__)
    yield
    if "torch._dynamo" in sys.modules:
        # Otherwise tests of one function add up to its recompile limit.
        torch._dynamo.reset()
