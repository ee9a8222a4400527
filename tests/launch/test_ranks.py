"""Ranks are started, stopped and reported on; a run that this host cannot hold is refused with what to do instead."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import pytest

from flagscale_vla.config.checks import ConfigError
from flagscale_vla.config.parallel import Device, Dtype, Fp8, MatmulPrecision, ParallelConfig, PlatformConfig
from flagscale_vla.mcore import platform as mcore_platform
from launch import ranks
from tests.settings import load_training

ROOT = Path(__file__).parents[2]


def layout(*, data: int = 1, hosts: int = 1) -> ParallelConfig:
    """A plain data-parallel layout."""
    return replace(ParallelConfig.alone(), data=data, hosts=hosts)


def on(device: Device) -> PlatformConfig:
    """A platform by its device."""
    return PlatformConfig(device=device, dtype=Dtype.auto, fp8=Fp8.none, matmul=MatmulPrecision.highest, threads=0)


def test_a_run_over_hosts_says_how_to_start_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["run.py", "--config-name", "train_3b_action"])
    with pytest.raises(ConfigError) as error:
        ranks.check_hosts(layout(data=128, hosts=16), ranks.train_here())
    for words in (
        "128 processes on 16 hosts, 8 on each",
        "sbatch --nodes=16 launch/slurm.sbatch --config-name train_3b_action\n",
        "NODES=16 PROCESSES=8 MASTER=FIRST_HOST launch/torchrun.sh --config-name train_3b_action\n",
        "python run.py --config-name train_3b_action action=dryrun\n",
    ):
        assert words in str(error.value)
    ranks.check_hosts(layout(data=128), "")


@pytest.mark.parametrize(
    ("device", "found", "answer"),
    [(Device.cpu, 8, False), (Device.auto, 0, False), (Device.auto, 2, True), (Device.gpu, 8, True)],
)
def test_gpus_are_used_where_enough_are_found(
    monkeypatch: pytest.MonkeyPatch, device: Device, found: int, answer: bool
) -> None:
    monkeypatch.setattr(mcore_platform, "count_gpus", lambda: found)
    assert ranks.check_gpus(layout(data=2), on(device), "") is answer


@pytest.mark.parametrize(("device", "found"), [(Device.gpu, 0), (Device.gpu, 1), (Device.auto, 1)])
def test_too_few_gpus_are_refused(monkeypatch: pytest.MonkeyPatch, device: Device, found: int) -> None:
    monkeypatch.setattr(mcore_platform, "count_gpus", lambda: found)
    words = f"platform.device={device.value}: 2 processes want a GPU each and this host has {found}"
    with pytest.raises(ConfigError, match=words):
        ranks.check_gpus(layout(data=2), on(device), ranks.run_here())


def test_memory_of_replicas_adds_up() -> None:
    assert ranks.least_bytes(1000, layout()) == 16 * 1000 + ranks.PROCESS_BYTES
    assert ranks.least_bytes(1000, layout(data=4)) == (4 * 8 + 8) * 1000 + 4 * ranks.PROCESS_BYTES


def test_a_model_beyond_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "memory_limit", lambda: 23 * ranks.GIB)
    overrides = ["parallel.hosts=1", "parallel.data=1", "platform.device=cpu"]
    words = r"model.name=3b: 3,\d+,\d+,\d+ parameters .* take at least 57 GiB on a CPU and this host has 23 GiB"
    with pytest.raises(ConfigError, match=words):
        ranks.start_ranks(load_training("train_3b_action", *overrides))
    assert ranks.start_ranks(load_training("train_tiny_action", "platform.device=cpu")) is False


@pytest.mark.parametrize(("content", "limited"), [("max\n", False), ("1000\n", True)])
def test_a_container_limit_counts(tmp_path: Path, content: str, limited: bool) -> None:
    (tmp_path / "memory.max").write_text(content)
    assert (ranks.memory_limit(tmp_path / "memory.max") == 1000) is limited
    assert ranks.memory_limit(tmp_path / "absent") > 1000


def start(tmp_path: Path, job: str) -> subprocess.Popen[str]:
    """A script that starts itself in two ranks, each of which runs `job` with `rank` and `folder` set."""
    body = textwrap.indent(textwrap.dedent(job).strip(), "    ")
    script = tmp_path / "script.py"
    script.write_text(
        "import os, signal, sys, time\n"
        "from pathlib import Path\n"
        "from launch.failures import run_as_rank\n"
        "from launch.ranks import launch\n"
        "folder = Path(sys.argv[1])\n"
        "def job():\n"
        "    rank = int(os.environ['RANK'])\n"
        f"{body}\n"
        "launch(2, 3) if 'RANK' not in os.environ else run_as_rank(job)\n"
    )
    command = [sys.executable, str(script), str(tmp_path)]
    env = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"} | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.ranks
def test_every_rank_runs_with_its_share_of_threads(tmp_path: Path) -> None:
    process = start(tmp_path, "(folder / f'rank{rank}').write_text(os.environ['OMP_NUM_THREADS'])")
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert [(tmp_path / f"rank{rank}").read_text() for rank in range(2)] == ["3", "3"]


@pytest.mark.ranks
def test_the_failing_rank_is_named_with_its_message(tmp_path: Path) -> None:
    job = """
    if rank == 1:
        raise ValueError("runs/demo/train-000000.tar: truncated")
    time.sleep(600)
    """
    process = start(tmp_path, job)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "Traceback" not in output
    assert output.splitlines()[-1] == "rank 1 of 2 failed: ValueError: runs/demo/train-000000.tar: truncated"


@pytest.mark.ranks
def test_an_error_of_ours_shows_the_trace_of_the_first_rank_alone(tmp_path: Path) -> None:
    job = """
    if rank == 1:
        while not (folder / "failed").exists():
            time.sleep(0.01)
        time.sleep(0.3)
        raise RuntimeError("the other rank is gone")
    (folder / "failed").touch()
    assert rank, "first to fail"
    """
    process = start(tmp_path, job)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert output.splitlines()[-1] == "rank 0 of 2 failed: AssertionError: first to fail"
    assert output.count("Traceback") == 1
    assert "in job" in output


@pytest.mark.ranks
def test_a_signal_lets_ranks_save_and_stop(tmp_path: Path) -> None:
    job = """
    stopped = []
    signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
    (folder / f"started{rank}").touch()
    while not stopped:
        time.sleep(0.05)
    (folder / f"saved{rank}").touch()
    """
    process = start(tmp_path, job)
    wait_for(tmp_path / "started0", tmp_path / "started1")
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert "stopped by SIGTERM" in output
    assert (tmp_path / "saved0").exists()
    assert (tmp_path / "saved1").exists()


@pytest.mark.ranks
def test_ranks_that_stopped_by_themselves_have_not_failed(tmp_path: Path) -> None:
    process = start(tmp_path, "sys.exit(143)")
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "failed:" not in output


@pytest.mark.ranks
def test_ranks_stop_when_their_starter_is_killed(tmp_path: Path) -> None:
    job = """
    (folder / f"started{rank}").write_text(str(os.getpid()))
    time.sleep(600)
    """
    process = start(tmp_path, job)
    wait_for(tmp_path / "started0", tmp_path / "started1")
    process.kill()
    # Their end of the pipe closes only when both are gone.
    process.communicate(timeout=20)


def wait_for(*files: Path) -> None:
    """Wait up to a minute for all of `files`."""
    end = time.monotonic() + 60
    while not all(file.exists() for file in files):
        assert time.monotonic() < end, f"{files} did not appear"
        time.sleep(0.05)
