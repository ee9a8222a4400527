"""Random strings of codes: the tool finds nothing wrong with a sound tokenizer, and tells on unsound ones."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from flagscale_vla.action.binning import Binning
from flagscale_vla.action.tokenizer import Codes, Floats
from tests.action.chunks import HORIZON, units
from tools.fuzz_codes import fuzz, main


class Forgiving(Binning):
    """Gives zeros for what it cannot read, as public servers do."""

    def decode(self, robot: str, codes: Sequence[Codes], horizon: int) -> Floats:
        try:
            return super().decode(robot, codes, horizon)
        except ValueError:
            return np.zeros((len(codes), horizon, self.units.dims(robot)), np.float32)


class Overshooting(Binning):
    """Leaves the range seen in training."""

    def decode(self, robot: str, codes: Sequence[Codes], horizon: int) -> Floats:
        return super().decode(robot, codes, horizon) * 2


class Refusing(Binning):
    """Takes one code less than its grammar allows."""

    def decode(self, robot: str, codes: Sequence[Codes], horizon: int) -> Floats:
        return super().decode(robot, [string[1:] for string in codes], horizon)


def test_a_sound_tokenizer_passes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Binning(bins=16, units=units()).save(tmp_path)
    monkeypatch.setattr(sys, "argv", ["fuzz_codes.py", str(tmp_path), "--count", "50", "--horizon", "3"])
    with pytest.raises(SystemExit, match="0"):
        main()
    printed = capsys.readouterr().out
    assert "50 of 50 legal strings decoded to finite actions in range, 50 of 50 illegal" in printed


@pytest.mark.parametrize(
    ("kind", "decoded", "refused"), [(Forgiving, 60, 0), (Overshooting, 0, 60), (Refusing, 0, None)]
)
def test_unsound_ones_are_told_on(kind: type[Binning], decoded: int, refused: int | None) -> None:
    found = fuzz(kind(bins=16, units=units()), 60, HORIZON, seed=1)
    assert not found.is_clean
    assert found.decoded == decoded
    assert refused is None or found.refused == refused
