"""Job `statistics`: what it gathers, that it is kept, and what it says about where the numbers come from."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from flagscale_vla.config.data import CacheConfig
from flagscale_vla.config.statistics import StatisticsRun, StatisticsSource
from flagscale_vla.data import statistics as statistics_module
from flagscale_vla.data.gather import Rows, collect_differences, gather, names_of
from flagscale_vla.data.statistics import SourceStatistics, gather_source, run
from flagscale_vla.data.store import open_store
from flagscale_vla.records import Action, RawSample, State
from flagscale_vla.robots.embodiments import Embodiment, save_embodiments
from flagscale_vla.robots.statistics import Statistics
from tests.samples import PANDA, SAWYER, robot_sample, text_sample, write_shards

ARM = Embodiment(name="arm", state=("gripper", "j1", "speed"), action=("j1", "j2", "gripper"), cameras=(), fps=10)
RAWS = [
    *(robot_sample(seed, side=28) for seed in range(12)),
    *(robot_sample(20 + seed, PANDA, 28) for seed in range(5)),
]


def settings(folder: Path, **changes: object) -> StatisticsRun:
    cache = CacheConfig(folder=str(folder / "cache"), max_bytes=1 << 20)
    source = StatisticsSource(shards=str(folder / "shards"), cache=cache)
    return StatisticsRun(**({"output": str(folder / "out"), "data": source, "processes": 1} | changes))


def arm_sample(number: int, values: list[list[float]], valid: list[bool]) -> RawSample:
    state = State(values=np.asarray([0.5, 1.0, 9.0], np.float32), robot="arm")
    action = Action(values=np.asarray(values, np.float32), valid=np.asarray(valid), robot="arm")
    return RawSample(key=f"arm-{number}", segments=(state, action))


def test_differences_are_taken_where_they_mean_something() -> None:
    rows: Rows = {}
    collect_differences(arm_sample(0, [[1, 0, 1], [3, 0.5, 1], [4, 9, 9]], [True, True, False]), {"arm": ARM}, rows)
    collect_differences(arm_sample(1, [[2, 0, 0], [7, 7, 7]], [True, False]), {"arm": ARM}, rows)
    # j1 and the gripper are in both, in another order; what is past the episode's end is no motion.
    np.testing.assert_allclose(np.vstack(rows["arm", "delta"]), [[0, 0.5], [2, 0.5], [1, -0.5]])
    np.testing.assert_allclose(np.vstack(rows["arm", "step"]), [[2, 0.5, 0]])
    assert names_of(ARM, "delta") == ("j1", "gripper")
    assert gather(rows)["arm", "delta"].count == 3


def test_the_file_tells_numbers_names_and_origin(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shards = write_shards(tmp_path / "shards", [*RAWS, text_sample(0, 9)], max_bytes=30_000)
    run(settings(tmp_path))
    content = json.loads((tmp_path / "shards" / "statistics.json").read_text())
    assert content == json.loads((tmp_path / "out" / "statistics.json").read_text())
    assert content["samples"] == len(RAWS) + 1
    assert [entry["name"] for entry in content["shards"]] == [shard.name for shard in shards]
    digest = hashlib.blake2b(shards[0].read_bytes(), digest_size=16).hexdigest()
    assert content["shards"][0]["blake2b"] == digest
    assert content["made_with"]["numpy"] == np.__version__
    assert content["sketch"]["largest_relative_error"] == 2**-6
    states = np.stack([s.values for raw in RAWS[:12] for s in raw.segments if isinstance(s, State)]).astype(float)
    sawyer = content["robots"]["sawyer"]
    assert list(sawyer) == ["state", "action", "delta", "step"]
    assert sawyer["state"]["names"] == list(SAWYER.state)
    np.testing.assert_allclose(sawyer["state"]["mean"], states.mean(axis=0))
    np.testing.assert_allclose(sawyer["state"]["median"], np.median(states, axis=0))
    assert sawyer["delta"]["names"] == [name for name in SAWYER.action if name in SAWYER.state]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "sawyer: states" in page
    assert page.count("data:image/png") == sum(map(len, content["robots"].values()))
    assert "hardly changes" not in caplog.text


def test_dims_that_hardly_change_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    raws = [arm_sample(number, [[number, 0.25, 1]], [True]) for number in range(6)]
    write_shards(tmp_path / "shards", raws)
    save_embodiments(tmp_path / "shards", [ARM])
    run(settings(tmp_path))
    assert "robot arm: action hardly changes in j2, gripper" in caplog.text
    assert "robot arm: state hardly changes in gripper, j1, speed" in caplog.text
    assert "only shifted: j2, gripper." in (tmp_path / "out" / "report.html").read_text()
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["constant"]["arm/action"] == ["j2", "gripper"]


def test_a_shard_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_shards(tmp_path / "shards", RAWS, max_bytes=30_000)
    source = settings(tmp_path).data
    first = gather_source(open_store(source.shards, source.cache), "train", 1)
    monkeypatch.setattr(statistics_module, "usable_samples", lambda *_: pytest.fail("read again"))
    again = gather_source(open_store(source.shards, source.cache), "train", 1)
    assert finished(again) == finished(first)
    assert [part.digest for part in again.parts] == [part.digest for part in first.parts]


def finished(found: SourceStatistics) -> dict[tuple[str, str], Statistics]:
    return {place: gatherer.finish() for place, gatherer in found.gatherers.items()}


def test_processes_change_no_bit(tmp_path: Path) -> None:
    write_shards(tmp_path / "shards", RAWS, max_bytes=30_000)
    source = settings(tmp_path).data
    store = open_store(source.shards, source.cache)
    alone = gather_source(store, "train", 1)
    for path in (tmp_path / "shards" / ".index").glob("*.npz"):
        path.unlink()
    assert finished(gather_source(store, "train", 2)) == finished(alone)


def test_bad_samples_are_left_out_and_listed(tmp_path: Path) -> None:
    (shard,) = write_shards(tmp_path / "shards", RAWS[:4])
    content = shard.read_bytes()
    shard.write_bytes(content.replace(b'"robot": "sawyer"', b'"robot": "hammer"', 1))
    run(settings(tmp_path))
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["samples"] == 3
    (fault,) = summary["faults"]
    assert fault["shard"] == shard.name
    assert "robot 'hammer' is not in embodiments.json" in fault["reason"]
