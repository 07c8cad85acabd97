"""`compile_loss`: the whole loss module under torch.compile, one graph forward and one backward."""

import re
from collections.abc import Callable, Sequence
from inspect import signature
from types import FunctionType, MethodType
from typing import Any

import torch
from tensordict import MemoryMappedTensor, TensorDictBase
from torch import Tensor
from torch._dynamo import config
from torch._dynamo.exc import BackendCompilerFailed, FailOnRecompileLimitHit, TorchDynamoException
from torch.nn.parameter import is_lazy

from klppo_compile import any_size
from klppo_compile.loss import KLPENPPOLoss

CompiledLoss = Callable[[TensorDictBase], TensorDictBase]

# A tenth of a softmax loss's time on a CPU, a twenty-fifth of a Gaussian's; and one rounding less.
FUSED_MULTIPLY_ADD = {"cpp.enable_floating_point_contract_flag": "fast"}

# Generated code checks its own sizes, which the guards have decided: a twentieth of a small call.
UNCHECKED = {"size_asserts": False}

# A loss has a graph for each kind of call: training, evaluation, ranks of a batch, settings. Torch
# gives up after eight by default; torch 2.11 takes no other number here.
KINDS = 64
LIMITED = "recompile_limit" in signature(torch.compile).parameters

RAISE = (
    "Pass a larger recompile_limit to compile_loss"
    if LIMITED
    else "Raise torch._dynamo.config.recompile_limit"
)

# What Dynamo guards, by the names it gives: globals of ours and of the libraries, and classes.
OURS = re.compile(
    r"(dict\()?G\['(__import_(klppo_compile(_dot_|')|dataclasses')|__builtins|(?!__import_|_\d|___un))"
)
LIBRARIES = re.compile(r"G\['(__import_(torch|tensordict)(_dot_|')|_\d|___un)")
CONSTANTS = re.compile(
    r".*('\]\.torch\.\w+|\.TensorDict\._is_\w+|\.__defaults__|___unnamed_scope\w*'\](\['_tuple_new'\])?"
    r"|NO_DEFAULT|_has_h5|_initial_missing)$"
)
CLASSES = re.compile(r"dict\(type\(")
CODE = {
    "BUILTIN_MATCH",
    "CLASS_MATCH",
    "CLOSURE_MATCH",
    "DICT_NOT_CONTAINS",
    "DUPLICATE_INPUT",
    "HASATTR",
    "MODULE_MATCH",
    "NOT_PRESENT_IN_GENERIC_DICT",
}


def compile_loss(loss: KLPENPPOLoss, *, cudagraphs: bool = False, **options: Any) -> CompiledLoss:
    """Compile a loss into one graph forward and one backward.

    Beta, the coefficients and (after its second size) the batch size move without a recompilation.
    Each call has graphs of its own, so losses of any number and architecture live in one process.
    That code stays what it was is not checked at every call (see `may_change`).
    Whether beta moves is decided outside the graph: a recomputation inside a backward (activation
    checkpointing) leaves it alone.

    Args:
        loss: the module. Its parameters and buffers stay where they are: train, save and schedule
            it as before.
        cudagraphs: replay the graphs as CUDA graphs (as `mode="reduce-overhead"` does). Unproven:
            no device has run it yet.
        **options: further arguments of `torch.compile`; `options` are added to ours, a `mode`
            takes their place. None is as good as absent.

    Returns:
        A callable from tensordict to tensordict, like the loss.

    Raises:
        TypeError: something else than a loss of ours.
        ValueError: `cudagraphs` without CUDA parameters, or with a `mode` or `backend` of your own;
            a loss with hooks or a `forward` of its own, which would not run. Nor do hooks that are
            registered later; `fullgraph=False`.
    """
    _refuse_more_than_the_loss(loss)
    options = {name: x for name, x in options.items() if x is not None}
    if not options.pop("fullgraph", True):
        raise ValueError(
            "compile_loss makes one graph of the whole loss; got fullgraph=False. Leave it out, or "
            "call torch.compile(loss) for several graphs."
        )
    if cudagraphs:
        device = loss.beta.device
        if device.type != "cuda":
            raise ValueError(
                f"cudagraphs=True needs a loss on a CUDA device; this one is on {device}. Move it "
                "with loss.to('cuda'), or compile without cudagraphs."
            )
        if taken := sorted({"mode", "backend"} & options.keys()):
            raise ValueError(
                f"cudagraphs=True chooses mode and backend; got {taken[0]}={options[taken[0]]!r} "
                "as well. Leave one out."
            )
    if "mode" not in options:  # torch takes one of the two
        ours = _options(loss, cudagraphs, inductor="backend" not in options)
        options["options"] = ours | options.get("options", {})
    if LIMITED:
        options.setdefault("recompile_limit", max(KINDS, config.recompile_limit))
    options = any_size.preferred(options, loss.beta.device)
    graph: Any = torch.compile(_apart(loss.run), fullgraph=True, **options)
    met = False  # a memory-mapped tensor

    def compiled(tensordict: TensorDictBase) -> TensorDictBase:
        nonlocal met
        given = tensordict.apply(_plain) if met else tensordict
        # loss.beta would be two calls, and each counts in a small minibatch.
        beta = loss.used_betas.of(tensordict, loss._buffers["beta"])  # noqa: SLF001
        try:
            out: TensorDictBase = graph(given, loss.moves_beta(), beta)
        except BackendCompilerFailed:
            raise  # that is no matter of the data
        except FailOnRecompileLimitHit as error:
            raise RuntimeError(
                "this loss must have no more graphs than torch's recompile_limit, one for each kind"
                " of call (training, evaluation, ranks of the batch, settings); this is one more."
                f" TORCH_LOGS=recompiles says what changes. {RAISE}, or call the loss itself."
            ) from error
        except TorchDynamoException as error:
            refused = error
        except TypeError:
            # Dynamo hands memory-mapped tensors to operators that raise. To look for them at every
            # call would take one in fifty of a small one.
            if met or not any(type(x) is MemoryMappedTensor for x in given.values(True, True)):
                raise
            met = True
            return compiled(tensordict)
        else:
            return out
        _say_what_eager_code_says(loss, tensordict, beta)
        raise refused

    return compiled


def _refuse_more_than_the_loss(loss: KLPENPPOLoss) -> None:
    """Raise where a call does more than `KLPENPPOLoss.forward`, or is of something else."""
    if not isinstance(loss, KLPENPPOLoss):
        raise TypeError(
            f"compile_loss takes a KLPENPPOLoss; got a {type(loss).__name__}. Compile what is none "
            "with torch.compile."
        )
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    hooks = any(getattr(loss, kind) for kind in kinds)
    more = "hooks" if hooks else "a forward of its own" if _own_forward(loss) else ""
    if more:
        raise ValueError(
            f"compile_loss compiles KLPENPPOLoss.forward alone; this {type(loss).__name__} has "
            f"{more}, which would not run. Use torch.compile(loss, fullgraph=True), or take them "
            "out and do their work where the loss is called."
        )


def _own_forward(loss: KLPENPPOLoss) -> bool:
    return "forward" in vars(loss) or type(loss).forward is not KLPENPPOLoss.forward


def _say_what_eager_code_says(loss: KLPENPPOLoss, tensordict: TensorDictBase, beta: Tensor) -> None:
    """Call the loss for the error that it has for these data, which Dynamo's hides.

    Beta rests, and the random state and the buffers that networks write in place are put back.
    """
    before = [(x, x.clone()) for x in loss.buffers() if not is_lazy(x)]
    devices = [beta.device] if beta.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices):
            loss.run(tensordict, False, beta)
    finally:
        with torch.no_grad():
            for x, value in before:
                if not torch.equal(x, value):  # what was saved of it for a backward stays valid
                    x.copy_(value)


def _options(loss: KLPENPPOLoss, cudagraphs: bool, inductor: bool) -> dict[str, Any]:
    chosen: dict[str, Any] = {"guard_filter_fn": may_change}
    if inductor:
        chosen |= UNCHECKED
    if inductor and loss.beta.device.type == "cpu":
        chosen |= FUSED_MULTIPLY_ADD
    if cudagraphs:
        chosen["triton.cudagraphs"] = True
    return chosen


def may_change(guards: Sequence[Any]) -> list[bool]:
    """Which of Dynamo's guards to check at every call: data and settings, not what code is.

    Left out are functions, classes, modules and constants of this package, of torch and of
    tensordict: two thirds of all guards, a fifth of a small call on a CPU. Whatever a network,
    its class or its module holds stays guarded, and so do modes and hooks.
    """
    return [_may_change(guard.name, guard.guard_type) for guard in guards]


def _may_change(name: str, kind: str) -> bool:
    if OURS.match(name) or "_TENSORCLASS_MEMO" in name:  # tensordict's cache of its own classes
        return False
    if CLASSES.match(name):
        return kind not in CODE and "__defaults__" not in name and "__closure__" not in name
    return not (LIBRARIES.match(name) and (kind in CODE or CONSTANTS.match(name)))


def _plain(x: Tensor) -> Tensor:
    """A memory-mapped tensor as torch's own, over the same memory."""
    return x.as_subclass(Tensor) if type(x) is MemoryMappedTensor else x


def _apart(run: Any) -> Any:
    """A method with code of its own, by which torch keeps graphs and counts recompilations.

    `isolate_recompiles` is for this, but torch 2.11 and 2.12 have none.
    """
    function = getattr(run, "__func__", None)
    if function is None:  # somebody has put something else in its place
        return run
    code = function.__code__.replace(co_name=f"{function.__name__}_apart")
    copy = FunctionType(
        code, function.__globals__, function.__name__, function.__defaults__, function.__closure__
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    return MethodType(copy, run.__self__)
