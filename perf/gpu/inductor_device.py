"""A CUDA device that is only described, for the one tool that reads Inductor's code without a GPU.

Inductor asks the device for its properties before it writes a line. Here, and only here, they are
made up, by patching torch's and Inductor's own functions for as long as a `with` block lasts.
"""

import contextlib
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch


@contextlib.contextmanager
def described_device(name: str) -> Iterator[None]:
    """Let torch and Inductor believe in a CUDA device of this make, as far as writing code needs.

    Nothing can run on it. All is put back at the end but Triton's driver, which there wasn't.
    """
    import triton
    from torch._dynamo import device_interface
    from torch._inductor.runtime.hints import DeviceProperties
    from torch.utils import _triton

    from klppo_compile.kernels.machine_code import CHIPS, DRIVER

    chip = CHIPS[name]
    major, minor = divmod(int(chip.target.arch), 10)
    properties = SimpleNamespace(
        name="described",
        major=major,
        minor=minor,
        multi_processor_count=chip.units,
        total_memory=80 << 30,
        regs_per_multiprocessor=65536,
        max_threads_per_multi_processor=2048,
        max_threads_per_block=1024,
        warp_size=32,
        shared_memory_per_block=49152,
        shared_memory_per_block_optin=232448 if major > 8 else 166912,
        gcnArchName="",
        L2_cache_size=50 << 20,
        is_integrated=0,
    )
    interface, known = _interface(properties), dict(device_interface.device_interfaces)
    answers: dict[str, Any] = {
        "is_available": True,
        "is_initialized": True,
        "device_count": 1,
        "current_device": 0,
        "get_device_properties": properties,
        "get_device_capability": (major, minor),
        "get_rng_state": torch.zeros(16, dtype=torch.uint8),
        **dict.fromkeys(("_lazy_init", "set_rng_state", "synchronize")),
        **dict.fromkeys(("_exchange_device", "_maybe_exchange_device"), 0),
    }
    DRIVER.chip = chip
    with contextlib.ExitStack() as stack:
        for question, value in answers.items():
            stack.enter_context(mock.patch.object(torch.cuda, question, _always(value)))
        for question in ("_cuda_getDevice", "_cuda_getCurrentRawStream"):
            stack.enter_context(mock.patch.object(torch._C, question, _always(0), create=True))  # noqa: SLF001
        stack.enter_context(mock.patch.object(torch.version, "cuda", "12.8"))
        triton.runtime.driver.set_active(DRIVER)
        for remembered in (_triton.has_triton, DeviceProperties.create):
            remembered.cache_clear()  # of the chip before
            stack.callback(remembered.cache_clear)
        device_interface.device_interfaces |= {"cuda": interface, "cuda:0": interface}
        stack.callback(device_interface.device_interfaces.update, known)
        stack.callback(device_interface.device_interfaces.clear)
        yield


def _always(value: Any) -> Callable[..., Any]:
    """A function that answers the same whatever it is asked."""
    return lambda *_args, **_options: value


def _interface(properties: SimpleNamespace) -> Any:
    """Dynamo's view of the device: an interface class all of whose answers are fixed."""
    from torch._dynamo.device_interface import DeviceInterface

    answers: dict[str, Any] = {
        "current_device": 0,
        "device_count": 1,
        "is_available": True,
        "is_initialized": True,
        "get_compute_capability": 10 * properties.major + properties.minor,
        "get_device_properties": properties,
        "get_raw_stream": 0,
        "exchange_device": 0,
        "maybe_exchange_device": 0,
        "is_bf16_supported": True,
        "is_dtype_supported": True,
        "is_triton_capable": True,
        **dict.fromkeys(("set_device", "synchronize", "raise_if_triton_unavailable")),
    }
    fixed = {name: staticmethod(_always(value)) for name, value in answers.items()}
    worker = type("Worker", (DeviceInterface.Worker,), fixed)
    nothing = _always(contextlib.nullcontext())
    return type("Described", (DeviceInterface,), fixed | {"Worker": worker, "device": nothing})
