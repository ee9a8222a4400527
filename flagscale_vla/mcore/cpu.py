"""What Megatron-core 0.16 takes for granted of CUDA, answered by the CPU: installed once, only where a run is on it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
import torch._dynamo
from megatron.core.jit import disable_jit_fuser
from megatron.core.tensor_parallel import random as megatron_random
from torch import Tensor
from torch.overrides import TorchFunctionMode

CPU = torch.device("cpu")


class _Stream:
    """A stream or event on a device that has one queue: everything is already in order."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def _nothing(self, *_: Any, **__: Any) -> None:
        return None

    wait_stream = wait_event = record_event = record = wait = synchronize = _nothing


def _is_cuda(device: object) -> bool:
    return isinstance(device, str | torch.device) and str(device).startswith("cuda")


class CudaMeansCpu(TorchFunctionMode):
    """Turns `device="cuda"` into the CPU, `Tensor.cuda()` into identity, and spells `Tensor.type()` as CUDA does.

    The optimizer and the clipping code compare the spelling of a parameter's type.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is Tensor.cuda:
            return args[0]
        if func is Tensor.type and len(args) == 1 and not kwargs:
            return str(func(*args)).replace("torch.", "torch.cuda.", 1)
        if _is_cuda(kwargs.get("device")):
            kwargs["device"] = CPU
        return func(*args, **kwargs)


def _set_rng_state(state: Tensor, *_: Any, **__: Any) -> None:
    torch.set_rng_state(state)


def _always(make: Callable[[], Any]) -> Callable[..., Any]:
    """A new function for each name: torch's compiler refuses to see one function under two names."""
    return lambda *_, **__: make()


@cache
def install_cpu_stand_ins() -> None:
    """Answer Megatron-core's CUDA calls on the CPU, for the rest of the process."""
    stand_ins: dict[str, Callable[..., Any]] = {
        "current_device": _always(lambda: CPU),
        "set_device": _always(lambda: None),
        "synchronize": _always(lambda: None),
        "empty_cache": _always(lambda: None),
        "manual_seed": lambda seed: torch.manual_seed(seed),
        "get_rng_state": _always(torch.get_rng_state),
        "set_rng_state": lambda state, *_, **__: torch.set_rng_state(state),
        "Stream": type("Stream", (_Stream,), {}),
        "Event": type("Event", (_Stream,), {}),
        "stream": _always(contextlib.nullcontext),
        "current_stream": _always(_Stream),
        "default_stream": _always(_Stream),
    }
    for name, stand_in in stand_ins.items():
        setattr(torch.cuda, name, stand_in)
    setattr(megatron_random, "_get_cuda_rng_state", _always(torch.get_rng_state))  # noqa: B010
    setattr(megatron_random, "_set_cuda_rng_state", _set_rng_state)  # noqa: B010
    # Megatron-core compiles small fusions; on a CPU that costs minutes and needs a C++ compiler.
    disable_jit_fuser()
    torch._dynamo.config.disable = True
    CudaMeansCpu().__enter__()
