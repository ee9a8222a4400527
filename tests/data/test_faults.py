"""The quarantine: listed once, counted always, and a budget that stops a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from flagscale_vla.data.faults import Fault, Quarantine, load_faults

SHARD = "train-000000.tar"


def faults(count: int, shard: str = SHARD) -> list[Fault]:
    return [Fault(shard=shard, member=f"k{number}", reason="is missing") for number in range(count)]


def test_faults_are_listed_once_over_restarts(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "quarantine.jsonl"
    for _ in range(2):
        quarantine = Quarantine(path, 0.5, 1.0)
        quarantine.count({SHARD: 10}, faults(2))
        quarantine.count({SHARD: 10}, faults(3))
        assert quarantine.num_bad == 5
    assert load_faults(path) == faults(3)


def test_nothing_bad_writes_nothing(tmp_path: Path) -> None:
    Quarantine(tmp_path / "quarantine.jsonl", 0.0, 0.0).count({SHARD: 10}, [])
    assert not list(tmp_path.iterdir())


def test_past_the_budget_the_first_few_are_named(tmp_path: Path) -> None:
    quarantine = Quarantine(tmp_path / "q.jsonl", 0.01, 1.0)
    quarantine.count({SHARD: 5}, faults(1))
    message = (
        r"8 of 20 samples read are bad, past data\.max_bad_share=0\.01: train-000000\.tar/k0: is missing; "
        r".*; and 3 more\. .*q\.jsonl lists them\. Repair or remove them, or raise data\.max_bad_share"
    )
    with pytest.raises(ValueError, match=message):
        quarantine.count({SHARD: 15}, faults(7))


def test_the_first_hundred_reads_count_as_hundred(tmp_path: Path) -> None:
    quarantine = Quarantine(tmp_path / "q.jsonl", 0.02, 1.0)
    quarantine.count({SHARD: 2}, faults(2))
    with pytest.raises(ValueError, match="3 of 3"):
        quarantine.count({SHARD: 1}, faults(1))


def test_a_large_index_does_not_excuse_bad_reads(tmp_path: Path) -> None:
    quarantine = Quarantine(tmp_path / "q.jsonl", 0.01, 1.0)
    quarantine.inspect({SHARD: 1_000_000}, faults(5), listed=True)
    with pytest.raises(ValueError, match="6 of 300 samples read"):
        quarantine.count({SHARD: 300}, faults(6))


def test_an_index_past_the_budget_stops_the_run(tmp_path: Path) -> None:
    quarantine = Quarantine(tmp_path / "q.jsonl", 0.01, 1.0)
    with pytest.raises(ValueError, match="20 of 1000 samples indexed"):
        quarantine.inspect({SHARD: 980}, faults(20), listed=False)
    assert not load_faults(tmp_path / "q.jsonl")


def test_a_shard_past_its_own_budget_stops_the_run(tmp_path: Path) -> None:
    quarantine = Quarantine(tmp_path / "q.jsonl", 0.5, 0.2)
    quarantine.count({SHARD: 100, "train-000001.tar": 30}, faults(20))
    quarantine.count({"train-000001.tar": 10}, faults(8, "train-000001.tar"))
    message = (
        r"9 of 41 samples read of train-000001\.tar are bad, past data\.max_bad_shard_share=0\.2: "
        r"train-000001\.tar/k0: is missing; .*; and 4 more\. .*, or raise data\.max_bad_shard_share"
    )
    with pytest.raises(ValueError, match=message):
        quarantine.count({"train-000001.tar": 1}, faults(1, "train-000001.tar"))


def test_the_first_twenty_of_a_shard_count_as_twenty(tmp_path: Path) -> None:
    """So that a tar that is empty, or broken near its beginning, costs no more than one sample does."""
    quarantine = Quarantine(tmp_path / "q.jsonl", 0.5, 0.2)
    quarantine.inspect({SHARD: 0, "train-000001.tar": 1000}, faults(4), listed=True)
    with pytest.raises(ValueError, match=r"5 of 6 samples indexed of train-000000\.tar are bad"):
        quarantine.inspect({SHARD: 1, "train-000001.tar": 1000}, faults(5), listed=True)
