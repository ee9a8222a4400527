"""What a run computes on, chosen once: CPU and gloo, or GPU, NCCL and Transformer Engine."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from flagscale_vla.config.checks import ConfigError
from flagscale_vla.config.parallel import Device, Dtype, Fp8, PlatformConfig
from flagscale_vla.mcore.cpu import install_cpu_stand_ins
from flagscale_vla.mcore.layers import LayerSet, has_transformer_engine, plain_layers, transformer_engine_layers


@dataclass(frozen=True, slots=True, kw_only=True)
class Platform:
    """The one answer to what differs between a CPU and a GPU."""

    device: torch.device
    backend: str
    """process-group backend"""
    dtype: torch.dtype
    """of weights and activations; the flow head is float32 everywhere"""
    layers: LayerSet
    fp8: bool
    """whether the language model's layers multiply in 8 bits"""

    @property
    def is_gpu(self) -> bool:
        """Whether batches are copied to a device of its own memory."""
        return self.device.type == "cuda"

    @property
    def name(self) -> str:
        """A word for reports: the GPU's name, or the CPU and its threads."""
        if self.is_gpu:
            return torch.cuda.get_device_name(self.device)
        return f"cpu, {torch.get_num_threads()} threads"


def count_gpus() -> int:
    """GPUs that this process can see."""
    return torch.cuda.device_count()


def choose_platform(config: PlatformConfig) -> Platform:
    """Choose what to compute on, and set precision and threads of the process accordingly.

    Raises:
        ConfigError: where a GPU or its 8-bit products are asked for and there are none.
    """
    torch.set_float32_matmul_precision(config.matmul.value)
    if config.threads:
        torch.set_num_threads(config.threads)
    gpus = count_gpus()
    if config.device is Device.gpu and not gpus:
        raise ConfigError(
            "platform.device=gpu: this machine has no GPU that torch can see. "
            "This would pass: platform.device=cpu, with a model that fits, such as --config-name train_tiny_action"
        )
    wants_gpu = config.device is Device.gpu or (config.device is Device.auto and gpus > 0)
    if config.fp8 is not Fp8.none:
        _check_fp8(wants_gpu)
    return _gpu(config) if wants_gpu else _cpu(config.dtype)


FP8_CAPABILITY = (8, 9)
DTYPES = {Dtype.float32: torch.float32, Dtype.bfloat16: torch.bfloat16}


def _cpu(dtype: Dtype) -> Platform:
    install_cpu_stand_ins()
    return Platform(
        device=torch.device("cpu"),
        backend="gloo",
        dtype=DTYPES.get(dtype, torch.float32),
        layers=plain_layers(),
        fp8=False,
    )


def _check_fp8(on_gpu: bool) -> None:
    if not (on_gpu and has_transformer_engine() and torch.cuda.get_device_capability() >= FP8_CAPABILITY):
        raise ConfigError(
            "platform.fp8=hybrid: needs Transformer Engine and a GPU of compute capability 8.9 (Ada, Hopper) or newer. "
            "This would pass: platform.fp8=none"
        )


def _gpu(config: PlatformConfig) -> Platform:
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    layers = transformer_engine_layers() if has_transformer_engine() else plain_layers()
    dtype = DTYPES.get(config.dtype, torch.bfloat16)
    return Platform(device=device, backend="nccl", dtype=dtype, layers=layers, fp8=config.fp8 is Fp8.hybrid)
