"""The quarantine: listed once, counted always, and a budget that stops a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from flagscale_vla.data.faults import Fault, Quarantine, load_faults


def faults(count: int) -> list[Fault]:
    return [Fault(shard="train-000000.tar", member=f"k{number}", reason="is missing") for number in range(count)]


def test_faults_are_listed_once_over_restarts(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "quarantine.jsonl"
    for _ in range(2):
        quarantine = Quarantine(path, 0.5)
        quarantine.count(10, faults(2))
        quarantine.count(10, faults(3))
        assert quarantine.num_bad == 5
    assert load_faults(path) == faults(3)


def test_nothing_bad_writes_nothing(tmp_path: Path) -> None:
    Quarantine(tmp_path / "quarantine.jsonl", 0.0).count(10, [])
    assert not list(tmp_path.iterdir())


def test_past_the_budget_the_first_few_are_named(tmp_path: Path) -> None:
    quarantine = Quarantine(tmp_path / "q.jsonl", 0.01)
    quarantine.count(5, faults(1))
    message = (
        r"8 of 20 samples read are bad, past data\.max_bad_share=0\.01: train-000000\.tar/k0: is missing; "
        r".*; and 3 more\. .*q\.jsonl lists them\. Repair or remove them, or raise data\.max_bad_share"
    )
    with pytest.raises(ValueError, match=message):
        quarantine.count(15, faults(7))


def test_the_first_hundred_reads_count_as_hundred(tmp_path: Path) -> None:
    quarantine = Quarantine(tmp_path / "q.jsonl", 0.02)
    quarantine.count(2, faults(2))
    with pytest.raises(ValueError, match="3 of 3"):
        quarantine.count(1, faults(1))


def test_a_large_index_does_not_excuse_bad_reads(tmp_path: Path) -> None:
    quarantine = Quarantine(tmp_path / "q.jsonl", 0.01)
    quarantine.inspect(1_000_000, faults(5), listed=True)
    with pytest.raises(ValueError, match="6 of 300 samples read"):
        quarantine.count(300, faults(6))


def test_an_index_past_the_budget_stops_the_run(tmp_path: Path) -> None:
    quarantine = Quarantine(tmp_path / "q.jsonl", 0.01)
    with pytest.raises(ValueError, match="20 of 1000 samples indexed"):
        quarantine.inspect(980, faults(20), listed=False)
    assert not load_faults(tmp_path / "q.jsonl")
