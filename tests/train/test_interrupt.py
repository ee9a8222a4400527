"""Signals: the first is noted, Ctrl-C after it kills, and what was there before comes back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from flagscale_vla.train.interrupt import Interrupt


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_first_signal_is_noted_and_handlers_come_back(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with Interrupt() as interrupt:
        assert not interrupt.asked
        os.kill(os.getpid(), number)
        assert interrupt.asked
    assert signal.getsignal(number) is before


def test_of_later_signals_only_ctrl_c_ends_at_once() -> None:
    code = (
        "import os, signal\n"
        "from flagscale_vla.train.interrupt import Interrupt\n"
        "with Interrupt():\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    print('alive', flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    print('still alive', flush=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGINT
    assert done.stdout == "alive\n"
    assert "Ctrl-C from now ends at once" in done.stderr
