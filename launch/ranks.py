"""Start a job's processes on this host, or say what the job needs that this host has not got."""

from __future__ import annotations

import logging
import os
import shlex
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol
from uuid import uuid4

import psutil

from flagscale_vla.config.checks import ConfigError
from flagscale_vla.config.parallel import Device, ParallelConfig, PlatformConfig
from flagscale_vla.config.runs import TrainRun

logger = logging.getLogger(__name__)

GIB = 2**30
REPLICATED_BYTES = 8
"""float32 weight and gradient of one parameter, held by every data-parallel and context rank."""
SHARDED_BYTES = 8
"""AdamW's two float32 moments of one parameter, split over those ranks."""
PROCESS_BYTES = GIB // 2
"""Resident size of a process that has imported torch and Megatron-core."""
CHATTY = [f"torch.distributed.elastic.{name}.api" for name in ("agent.server", "multiprocessing")]
"""Loggers of torch that tell what is told here too: which process gets which signal, and which failed."""
LOOPBACK = "lo"
"""Linux's name of the interface that ranks of one host talk over."""
SAVE_SECONDS = 300
"""How long ranks may take to save and stop after a signal, before they are killed."""


class Ranked(Protocol):
    """Settings of a job that may run in several processes."""

    @property
    def parallel(self) -> ParallelConfig:
        """How many, and what each does."""

    @property
    def platform(self) -> PlatformConfig:
        """What they compute on."""


def start_ranks(run: Ranked) -> bool:
    """Run `run.py` once per process that the settings ask for, with this process's own arguments, and wait.

    Returns:
        False when the run is a single process: the caller does the job itself. True when all ranks succeeded.

    Raises:
        ConfigError: the run needs hosts, GPUs or memory that are not here; the message says how to start it.
        SystemExit: a rank failed (its number and message), or a signal stopped the run.
    """
    here = train_here() if isinstance(run, TrainRun) else run_here()
    check_hosts(run.parallel, here)
    on_gpu = check_gpus(run.parallel, run.platform, here)
    if not on_gpu and isinstance(run, TrainRun):
        check_memory(run)
    if run.parallel.world_size == 1:
        return False
    launch(run.parallel.world_size, run.platform.threads)
    return True


def check_hosts(parallel: ParallelConfig, here: str) -> None:
    """Refuse a run over several hosts that no launcher started; `here` says what can be run on this one."""
    if parallel.hosts > 1:
        raise ConfigError(f"parallel.hosts={parallel.hosts}: this is one host. {needs(parallel, here)}")


def check_gpus(parallel: ParallelConfig, platform: PlatformConfig, here: str) -> bool:
    """Whether the run computes on GPUs; refuses one that wants more of them than this host has."""
    if platform.device is Device.cpu:
        return False
    from flagscale_vla.mcore.platform import count_gpus

    found = count_gpus()
    if platform.device is Device.auto and found == 0:
        return False
    if found < parallel.world_size:
        value = platform.device.value
        rule = f"{parallel.world_size} processes want a GPU each and this host has {found}"
        raise ConfigError(f"platform.device={value}: {rule}. {needs(parallel, here)}")
    return True


def check_memory(run: TrainRun) -> None:
    """Refuse a model whose weights, gradients and optimizer state alone do not fit this host's memory."""
    from flagscale_vla.model.size import count_parameters

    parameters = sum(count_parameters(run.model).values())
    least = least_bytes(parameters, run.parallel)
    limit = memory_limit()
    if least > limit:
        rule = (
            f"{parameters:,} parameters with gradients and optimizer state take at least {least / GIB:.0f} GiB "
            f"on a CPU and this host has {limit / GIB:.0f} GiB"
        )
        raise ConfigError(f"model.name={run.model.name}: {rule}. {needs(run.parallel, train_here())}")


def least_bytes(parameters: int, parallel: ParallelConfig) -> int:
    """The least memory, in bytes, that all ranks of a CPU run take together before the first activation."""
    copies = parallel.data * parallel.context
    return parameters * (REPLICATED_BYTES * copies + SHARDED_BYTES) + parallel.world_size * PROCESS_BYTES


def memory_limit(cgroup: Path = Path("/sys/fs/cgroup/memory.max")) -> int:
    """Memory of this host in bytes, or of this container where that is less."""
    total = int(psutil.virtual_memory().total)
    limit = cgroup.read_text().strip() if cgroup.is_file() else "max"
    return total if limit == "max" else min(total, int(limit))


def train_here() -> str:
    """What of a training run can be done on this host, as a sentence for an error message."""
    return (
        "On this machine, `make train` trains the small model, and\n"
        f"  python run.py {shlex.join(sys.argv[1:])} action=dryrun\n"
        "checks these settings and counts parameters."
    )


def run_here() -> str:
    """The same of any other job."""
    return f"On this machine, this would pass: python run.py {shlex.join(sys.argv[1:])} parallel.hosts=1"


def needs(parallel: ParallelConfig, here: str) -> str:
    """What a run needs, how to start it there, and what can be run here, as sentences for an error message."""
    arguments = shlex.join(sys.argv[1:])
    hosts, local = parallel.hosts, parallel.world_size // parallel.hosts
    each = f", {local} on each" if hosts > 1 else ""
    return (
        f"The run needs {count(parallel.world_size, 'process')} on {count(hosts, 'host')}{each}, "
        "with a GPU for each process or memory enough for its share of the model. Start it under Slurm with\n"
        f"  sbatch --nodes={hosts} launch/slurm.sbatch {arguments}\n"
        "or on every host with\n"
        f"  NODES={hosts} PROCESSES={local} MASTER=FIRST_HOST launch/torchrun.sh {arguments}\n"
        f"{here}"
    )


def count(number: int, noun: str) -> str:
    """A number with its noun, in the plural where there are several."""
    plural = noun + ("es" if noun.endswith("s") else "s")
    return f"{number} {noun if number == 1 else plural}"


def launch(processes: int, threads: int) -> None:
    """Run `run.py` with this process's arguments in `processes` ranks and wait for them; see `start_ranks`."""
    # Imported here: a job of one process should not pay for it.
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    from launch.failures import tell_failure

    share_out_threads(processes, threads)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", LOOPBACK)
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(SAVE_SECONDS))
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    logger.info("starting %d processes", processes)
    with TemporaryDirectory() as folder:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=processes,
            run_id=str(uuid4()),
            rdzv_backend="c10d",
            rdzv_endpoint="127.0.0.1:0",
            local_addr="127.0.0.1",
            max_restarts=0,
            logs_specs=DefaultLogsSpecs(log_dir=folder),
        )
        try:
            elastic_launch(config, sys.executable)("-u", *sys.argv)
        except ChildFailedError as error:
            raise SystemExit(tell_failure(error.failures, processes)) from None
        except SignalException as error:
            # The ranks got the same signal and have saved and stopped by now.
            logger.warning("stopped by %s; the same command goes on from the last checkpoint", error.sigval.name)
            raise SystemExit(128 + error.sigval) from None


def share_out_threads(processes: int, threads: int) -> None:
    """Give each rank its share of the cores (`threads`, or an even share for 0), unless the user has set it."""
    share = threads or max(1, len(os.sched_getaffinity(0)) // processes)
    os.environ.setdefault("OMP_NUM_THREADS", str(share))
