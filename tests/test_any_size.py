"""Inductor's code for a CPU serves batches of any size, and adds up the large ones as precisely."""

import pytest
import torch
from torch._dynamo.utils import counters
from torch._inductor.codegen.cpp import CppKernel
from torch.compiler import config as cache

from klppo_compile import KLPENPPOLoss, any_size, compile_loss
from tests.test_compiling import assert_same, call, problem


@pytest.fixture(autouse=True)
def _fresh():
    torch.compiler.reset()
    counters.clear()


def of_rows(data, rows):
    """As many rows of the data, again and again."""
    return data[torch.arange(rows) % len(data)]


@pytest.mark.parametrize(("kind", "first"), [("normal", 5), ("categorical", 64)])
def test_two_graphs_serve_every_batch_size(kind, first):
    """On either side of sums of 4,096 numbers: of elements, of rows, of weights' gradients."""
    actor, critic, data = problem(kind)
    leaves = [*actor.parameters(), *critic.parameters()]
    eager, loss = (KLPENPPOLoss(actor, critic) for _ in range(2))
    compiled = compile_loss(loss)
    for rows in (first, 30, 24, 600, 1_500, 7, 5_000, 70_000):
        batch = of_rows(data, rows)
        assert_same(call(compiled, batch, leaves), call(eager, batch, leaves))
    assert counters["stats"]["unique_graphs"] == 2


def test_module_compile_serves_every_batch_size():
    actor, _, data = problem("bernoulli")
    loss = KLPENPPOLoss(actor, critic_coeff=0.0)
    loss.compile(fullgraph=True)
    for rows in (64, 30, 5_000):
        loss(of_rows(data, rows))
    assert counters["stats"]["unique_graphs"] == 2


def test_sums_of_a_size_to_be_told_are_added_in_parts():
    """Each of 16 lanes adding 262,144 numbers one to the other, 2e-5 were lost."""
    compiled = torch.compile(lambda x: (x * x).sum(), dynamic=True, backend=any_size.inductor)
    x = torch.rand(2**22)
    torch.testing.assert_close(compiled(x), (x.double() ** 2).sum().float(), rtol=1e-6, atol=0)


def test_nothing_of_inductor_stays_changed():
    before = CppKernel.need_use_acc_helper, cache.cache_key_tag
    torch.compile(lambda x: x.sum(), backend=any_size.inductor)(torch.ones(8))
    assert (CppKernel.need_use_acc_helper, cache.cache_key_tag) == before


def test_graphs_in_the_cache_that_hold_guards_are_left_there():
    found = []
    for backend in ("inductor", "inductor", any_size.inductor, any_size.inductor):
        torch.compiler.reset()
        counters.clear()
        compiled = torch.compile(lambda x: x.sum(), dynamic=True, backend=backend)
        for rows in (8, 5_000):
            compiled(torch.ones(rows))
        found.append(counters["stats"]["unique_graphs"])
    assert found == [2, 2, 1, 1]


def test_modes_and_options_reach_inductor():
    seen = []

    def look(graph):
        seen.append(torch._inductor.config.max_autotune)

    passes = {"post_grad_custom_post_pass": look}
    compiled = torch.compile(lambda x: x.exp().sum(), backend=any_size.inductor, options=passes)
    compiled(torch.ones(8))
    torch.compiler.reset()
    patched = {"mode": "max-autotune-no-cudagraphs", "backend": any_size.inductor}
    with torch._inductor.config.patch(passes):
        torch.compile(lambda x: x.exp().sum(), **patched)(torch.ones(8))
    assert seen == [False, True]


def test_another_backend_or_device_is_left_alone():
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert any_size.preferred({"backend": "eager"}, cpu) == {"backend": "eager"}
    assert any_size.preferred({"dynamic": True}, cuda) == {"dynamic": True}
    for options in ({}, {"backend": "inductor"}):
        assert any_size.preferred(options, cpu) == {"backend": any_size.inductor}


def test_what_inductor_does_not_know_is_refused_at_once():
    actor, critic, _ = problem("normal")
    loss = KLPENPPOLoss(actor, critic)
    for compiling in (loss.compile, lambda **options: compile_loss(loss, **options)):
        with pytest.raises(RuntimeError, match="Unexpected optimization option unheard"):
            compiling(options={"unheard": True})
        with pytest.raises(RuntimeError, match="Unrecognized mode=unheard"):
            compiling(mode="unheard")
