"""A signal to a whole process group, as launchers and terminals send it, leaves the readers reading."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

PROGRAM = """
import os, signal, sys, time
from pathlib import Path
from tests.data.test_loader import RAWS, open_feed, opened
from tests.samples import write_shards

if __name__ == "__main__":
    number = signal.Signals[sys.argv[2]]
    stopped = []
    signal.signal(number, lambda *_: stopped.append(number))
    folder = Path(sys.argv[1])
    folder.mkdir()
    write_shards(folder, RAWS, max_bytes=50_000)
    with opened(open_feed(folder), workers=1) as loader:
        loader.take(1)
        os.killpg(0, number)
        time.sleep(0.5)
        # More than was read ahead.
        loader.take(40)
    assert stopped == [number]
    print(loader.packs)
"""


@pytest.mark.parametrize("signal_name", ["SIGTERM", "SIGINT"])
def test_readers_outlive_a_signal_to_the_group(tmp_path: Path, signal_name: str) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, str(program), str(tmp_path / "shards"), signal_name],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT)},
        start_new_session=True,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("41")
