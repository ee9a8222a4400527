"""The shell scripts end in one torchrun line, with what Slurm or the user has said."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

LAUNCH = Path(__file__).parents[2] / "launch"
OURS = {"NODES", "PROCESSES", "MASTER", "PORT", "RUN_ID", "CLUSTER", "PYTHON", "OMP_NUM_THREADS"}

STUB = """
import os, sys
from pathlib import Path
text = " ".join([os.environ["WORLD_SIZE"], os.environ["OMP_NUM_THREADS"], *sys.argv[1:]])
Path(f"rank{os.environ['RANK']}").write_text(text)
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with the scripts, and a `run.py` that notes how it was started."""
    shutil.copytree(LAUNCH, tmp_path / "launch")
    (tmp_path / "run.py").write_text(STUB)
    return tmp_path


def call(checkout: Path, script: str, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run one of the scripts with nothing of ours in the environment but `env`."""
    clean = {key: value for key, value in os.environ.items() if key not in OURS and not key.startswith("SLURM")}
    return subprocess.run(
        [str(checkout / "launch" / script), *arguments],
        env=clean | {"PYTHON": sys.executable} | env,
        cwd=checkout,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.ranks
def test_local_starts_processes_that_share_the_cores(checkout: Path) -> None:
    done = call(checkout, "local.sh", "2", "--config-name", "train", "a=b c", CLUSTER="cpu")
    assert done.returncode == 0, done.stderr
    share = max(1, len(os.sched_getaffinity(0)) // 2)
    notes = [(checkout / f"rank{rank}").read_text() for rank in range(2)]
    assert notes == [f"2 {share} --config-name train a=b c"] * 2


def test_local_says_how_it_is_used(checkout: Path) -> None:
    done = call(checkout, "local.sh", "2")
    assert (done.returncode, done.stderr.splitlines()[0][:23]) == (2, "usage: launch/local.sh ")


def test_several_hosts_need_a_port(checkout: Path) -> None:
    done = call(checkout, "torchrun.sh", "--config-name", "train", NODES="2")
    assert done.returncode == 1
    assert "This would pass: PORT=29500" in done.stderr


def fake(checkout: Path, name: str, script: str) -> None:
    """Put a program of this name on the path."""
    folder = checkout / "bin"
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


def test_slurm_makes_nodes_processes_and_master_of_its_variables(checkout: Path) -> None:
    fake(checkout, "scontrol", 'test "$3" = "gpu[07-08]" && echo gpu07 && echo gpu08')
    fake(checkout, "srun", 'echo "$NODES $PROCESSES $MASTER $PORT $RUN_ID $CLUSTER"; for a in "$@"; do echo "$a"; done')
    slurm = {
        "PATH": f"{checkout / 'bin'}:{os.environ['PATH']}",
        "SLURM_SUBMIT_DIR": str(checkout),
        "SLURM_JOB_ID": "1234567",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_JOB_NODELIST": "gpu[07-08]",
        "SLURM_GPUS_ON_NODE": "8",
    }
    done = call(checkout, "slurm.sbatch", "--config-name", "train", "a=b c", **slurm)
    assert done.returncode == 0, done.stderr
    variables, *command = done.stdout.splitlines()
    assert variables == "2 8 gpu07 24567 slurm-1234567 h100"
    assert command[:2] == ["--ntasks-per-node=1", "--cpu-bind=none"]
    assert command[-4:] == ["launch/torchrun.sh", "--config-name", "train", "a=b c"]


def test_slurm_wants_the_repository(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    done = call(checkout, "slurm.sbatch", "--config-name", "train", SLURM_SUBMIT_DIR=str(elsewhere))
    assert done.returncode == 1
    assert "call sbatch in the repository's root" in done.stderr
