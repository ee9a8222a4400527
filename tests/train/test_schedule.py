"""The learning-rate curve at the points its docstring names."""

from __future__ import annotations

import pytest

from flagscale_vla.train.schedule import lr_share


def test_curve() -> None:
    curve = [lr_share(step, steps=100, warmup_steps=10, final_share=0.1) for step in range(1, 101)]
    assert curve[0] == pytest.approx(0.1)
    assert curve[9] == 1.0
    assert curve[54] == pytest.approx(0.55)
    assert curve[-1] == pytest.approx(0.1)
    assert curve[:10] == sorted(curve[:10])
    assert curve[9:] == sorted(curve[9:], reverse=True)


def test_no_warmup_starts_near_the_peak_and_ends_at_the_final_share() -> None:
    assert lr_share(1, steps=2, warmup_steps=0, final_share=0.0) == pytest.approx(0.5)
    assert lr_share(2, steps=2, warmup_steps=0, final_share=0.0) == pytest.approx(0.0)


def test_a_run_shorter_than_its_warmup_only_warms_up() -> None:
    assert [lr_share(step, steps=2, warmup_steps=4, final_share=0.0) for step in (1, 2)] == [0.25, 0.5]
