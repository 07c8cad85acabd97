"""The cases that a check is made of, and what it says where they would prove nothing."""

import pytest
import torch
from tensordict import TensorDict
from torch import nn

from klppo_compile import KLPENPPOLoss
from klppo_compile.exit_codes import BadInputError
from klppo_compile.export import export_loss
from klppo_compile.export.cases import CaseMaker
from klppo_compile.export.parity import Reference, check
from klppo_compile.export.preparation import prepare
from tests.builders import CASES, actor_of, critic_of
from tests.export_cases import ROWS, collected, loss_of


class SquareRoot(nn.Module):
    """No number below 1."""

    def forward(self, x):
        return (x - 1.0).sqrt()


def padded(name, shape):
    """A rollout whose rows are padding but for the first of a sequence, or one in eight."""
    loss, data = loss_of(name)
    mask = torch.arange(48) % 8 == 0
    for x in data.values():
        # An action of -1 is one that there isn't.
        x[~mask] = torch.nan if x.is_floating_point() else -1
    data["collector"] = TensorDict({"mask": mask}, batch_size=[48])
    return loss, data.reshape(shape)


@pytest.mark.parametrize("shape", [(48,), (6, 8)])
@pytest.mark.parametrize("name", ["Categorical", "Independent(Normal)"])
def test_padding_counts_in_no_case_of_a_check(name, shape, monkeypatch):
    monkeypatch.setattr(torch.distributions.Distribution, "_validate_args", False)
    prepared = prepare(*padded(name, shape), "loss")
    run = Reference(prepared.reference).draft
    seen = torch.zeros(2)
    for case in CaseMaker(prepared.reference, prepared.example, run, 0).cases():
        out = run(case.arrays, case.scalars)
        valid = out["valid"]
        if case.name.startswith("random"):
            assert 1e-3 < out["mean_kl"] < 1
        if "4096" in case.name:
            seen += torch.stack([valid.float().mean(), out["kl"].isnan().float().mean()])
        assert out["log_prob"][valid].isfinite().all()
        assert valid.any()
        if valid.ndim == 2 and case.name != "the example":
            # Padding is the last of a sequence.
            assert (out["kl"].isnan().int().diff(dim=1) >= 0).all()
    kept, padding = seen / 3
    assert kept == pytest.approx(0.9 * 0.8, abs=0.03)
    assert padding == pytest.approx(0.1, abs=0.02)


def test_a_rollout_that_is_padding_for_the_most_part_is_checked(tmp_path):
    loss, data = padded("Categorical", (48,))
    done = export_loss(loss, data, tmp_path / "padded.onnx")
    assert done.parity.branches == {"raised", "kept", "lowered"}
    data["collector", "mask"][:] = False
    with pytest.raises(BadInputError, match=r"must have rows that count; .*'mask'\) leaves none"):
        export_loss(loss, data, tmp_path / "none.onnx")


def checked_against_itself(loss, data):
    """What a check finds of a file that computes just what eager does."""
    prepared = prepare(loss, data, "loss")
    reference = Reference(prepared.reference)

    def runner(arrays, scalars):
        found = reference.run({k: torch.from_numpy(x) for k, x in arrays.items()}, scalars)
        return {k: x.numpy() for k, x in found.items()}

    return check(prepared.reference, prepared.example, runner, 1e-5)


@pytest.mark.parametrize("rows", [[0], [0, 0, 0]], ids=["one", "alike"])
@pytest.mark.parametrize("name", ["Categorical", "Independent(Normal)"])
def test_an_example_whose_rows_are_alike_is_disturbed_all_the_same(name, rows):
    loss, data = loss_of(name)
    found = checked_against_itself(loss, data[torch.tensor(rows)])
    assert found.problem() == ""
    low, high = found.seen["log_prob"]
    assert high - low > 0.01


def test_a_check_that_could_not_fail_says_what_can_be_done():
    loss, data = loss_of("Categorical", delay_actor=True)
    problem = checked_against_itself(loss, data).problem()
    assert "every KL of the cases is 0, for the actor is equal to its delayed copy" in problem
    assert "a loss whose actor has moved since; other data change nothing." in problem
    actor = actor_of(CASES["Categorical"], net=nn.Sequential(SquareRoot(), nn.Linear(4, 5)))
    data = TensorDict({"observation": 1.0 + torch.rand(ROWS, 4) ** 8}, [ROWS])
    data, critic = collected(actor, critic_of(), data), critic_of()
    problem = checked_against_itself(KLPENPPOLoss(actor, critic), data).problem()
    assert "the KL is no number (random, " in problem
    assert "an example (--data) near which the networks give numbers." in problem
