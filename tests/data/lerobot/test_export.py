"""`export_lerobot`: what is written reads back as it was, and what does not fit is refused by name."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from flagscale_vla.config.export_lerobot import ExportLeRobotRun
from flagscale_vla.data.convert.pictures import decode_picture
from flagscale_vla.data.lerobot import export
from flagscale_vla.data.lerobot.dataset import LeRobotDataset
from flagscale_vla.data.lerobot.stats import histogram, number_stats, picture_stats
from flagscale_vla.data.shards import ShardWriter
from flagscale_vla.records import Image, RawSample, Segment
from flagscale_vla.robots.embodiments import save_embodiments
from tests.data.lerobot.test_convert import Samples, convert_dataset, read_samples
from tests.data.lerobot.written import CAMERAS, LENGTHS, SUBTASKS, decode, write_v2, write_v3
from tests.samples import PANDA, SAWYER, picture_sample, robot_sample
from tests.settings import load


def export_shards(shards: Path, folder: Path, *overrides: str) -> LeRobotDataset:
    """Run the job with `conf/export_lerobot.yaml`; the dataset that it wrote."""
    cache = folder.parent / "cache"
    common = (
        f"data.shards={shards}",
        f"output={folder}",
        f"data.cache.folder={cache}",
        "processes=1",
        "frames_per_file=20",
    )
    settings = load("export_lerobot", *common, *overrides)
    assert isinstance(settings, ExportLeRobotRun)
    export.run(settings)
    return LeRobotDataset.open(folder)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three episodes with PNG pictures, the second held out, converted from a dataset of version 2.1."""
    folder = tmp_path_factory.mktemp("shards")
    samples = convert_dataset(write_v2(folder / "toy", video=False), folder / "out", "heldout_share=0.5", "name=toy-3")
    assert {sample.key.split("-")[0] for sample, _ in samples.values()} == {"train", "heldout"}
    return folder / "out"


def assert_same(first: RawSample, second: RawSample, *, pictures: bool) -> None:
    """Whether two samples hold the same, with or without their pictures' bytes."""
    for ours, theirs in zip(first.segments, second.segments, strict=True):
        assert type(ours) is type(theirs)
        for field in fields(ours):
            if pictures or field.name != "encoded":
                assert equal(ours, theirs, field.name), field.name


def equal(first: Segment, second: Segment, name: str) -> bool:
    ours, theirs = (object.__getattribute__(segment, name) for segment in (first, second))
    return np.array_equal(ours, theirs) if isinstance(ours, np.ndarray) else bool(ours == theirs)


def in_order(samples: Samples) -> list[int]:
    """Episodes as an export numbers them: those for training, then those held out."""
    splits = {episode: sample.key.startswith("heldout") for (episode, _), (sample, _) in samples.items()}
    return sorted(splits, key=lambda episode: (splits[episode], episode))


def test_shards_come_back_as_they_were(shards: Path, tmp_path: Path) -> None:
    before = read_samples(shards)
    export_shards(shards, tmp_path / "dataset")
    after = convert_dataset(tmp_path / "dataset", tmp_path / "again", "name=toy-3")
    order = in_order(before)
    assert {(order[episode], frame) for episode, frame in after} == set(before)
    for (episode, frame), (sample, meta) in after.items():
        original, about = before[order[episode], frame]
        assert_same(sample, original, pictures=True)
        assert meta | {"episode": order[episode]} == about


def test_videos_are_near_and_in_step(shards: Path, tmp_path: Path) -> None:
    before = read_samples(shards)
    dataset = export_shards(shards, tmp_path / "dataset", "pictures=video", "frames_per_file=100")
    order = in_order(before)
    for episode, name in ((episode, name) for episode in range(3) for name in CAMERAS):
        wanted = range(LENGTHS[order[episode]])
        for frame, pixels in zip(wanted, dataset.frames(episode, f"observation.images.{name}", wanted), strict=True):
            sample = before[order[episode], frame][0]
            shown = next(s for s in sample.segments if isinstance(s, Image) and s.name == name)
            assert decode(pixels) == (order[episode], frame, CAMERAS.index(name))
            assert np.abs(pixels.astype(int) - decode_picture(shown.encoded)).mean() < 3
    assert len({place.path for about in dataset.episodes.values() for place in about.videos.values()}) == 2
    after = convert_dataset(tmp_path / "dataset", tmp_path / "again")
    for (episode, frame), (sample, _) in after.items():
        assert_same(sample, before[order[episode], frame][0], pictures=False)


def test_meta_tells_what_is_there(shards: Path, tmp_path: Path) -> None:
    dataset = export_shards(shards, tmp_path / "dataset")
    about = json.loads((tmp_path / "dataset/meta/info.json").read_text())
    order = in_order(read_samples(shards))
    assert [episode.length for episode in dataset.episodes.values()] == [LENGTHS[episode] for episode in order]
    assert (about["fps"], about["robot_type"], about["total_frames"]) == (20, "sawyer", sum(LENGTHS))
    kept = sum(1 for episode in order if not is_heldout(shards, episode))
    assert about["splits"] == {"train": f"0:{kept}", "heldout": f"{kept}:3"}
    words = [[part.text for part in episode.subtasks] for episode in dataset.episodes.values()]
    assert words == [[text for _, text in SUBTASKS[episode]] for episode in order]
    files = sorted((tmp_path / "dataset/data").rglob("*.parquet"))
    rows = np.concatenate([pq.read_table(path, columns=["action"])["action"].to_pylist() for path in files])
    stats = json.loads((tmp_path / "dataset/meta/stats.json").read_text())
    np.testing.assert_allclose(stats["action"]["q10"], np.quantile(rows, 0.1, axis=0))
    np.testing.assert_allclose(stats["action"]["std"], rows.std(axis=0), rtol=1e-5)
    assert np.shape(stats["observation.images.front"]["mean"]) == (3, 1, 1)
    assert (tmp_path / "dataset/report.html").read_text().count("data:image/png") == 6
    only = export_shards(shards, tmp_path / "train", "splits=[train]")
    assert len(only.episodes) == kept


def is_heldout(shards: Path, episode: int) -> bool:
    return read_samples(shards)[episode, 0][0].key.startswith("heldout")


def test_processes_and_kills_change_nothing(shards: Path, tmp_path: Path) -> None:
    export_shards(shards, tmp_path / "alone", "pictures=video")
    export_shards(shards, tmp_path / "killed", "pictures=video")
    (tmp_path / "killed/files/000001.json").unlink()
    (tmp_path / "killed/meta/info.json").unlink()
    untouched = next((tmp_path / "killed/videos").rglob("file-000.mp4"))
    written = untouched.stat().st_mtime_ns
    export_shards(shards, tmp_path / "killed", "pictures=video", "processes=2")
    assert untouched.stat().st_mtime_ns == written
    names = [path.relative_to(tmp_path / "alone") for path in (tmp_path / "alone").rglob("*.parquet")]
    names += [path.relative_to(tmp_path / "alone") for path in (tmp_path / "alone").rglob("*.mp4")]
    assert len(names) > 8
    for name in names:
        assert (tmp_path / "alone" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes(), name


def write_frames(folder: Path, frames: list[tuple[RawSample, dict[str, object]]]) -> Path:
    with ShardWriter(folder, "train", max_bytes=2**40) as writer:
        for number, (raw, meta) in enumerate(frames):
            writer.write(f"s-{number:04d}", raw.segments, {"task": "t"} | meta)
    save_embodiments(folder, (SAWYER, PANDA))
    return folder


def test_what_is_no_whole_episode_is_refused(tmp_path: Path) -> None:
    good = [(robot_sample(seed), {"episode": 0, "frame": seed}) for seed in range(4)]
    gap = [(robot_sample(seed), {"episode": 1, "frame": seed}) for seed in (0, 2)]
    short = [(robot_sample(9), {"episode": 2, "frame": 0, "num_frames": 2})]
    twice = [(robot_sample(seed), {"episode": 3, "frame": 0}) for seed in (5, 6)]
    large = [(robot_sample(7, side=56), {"episode": 4, "frame": 0})]
    others = [(picture_sample(1, 20), {}), (robot_sample(1, PANDA), {"episode": 0, "frame": 0})]
    folder = write_frames(tmp_path / "shards", [*good, *gap, *short, *twice, *large, *others])
    dataset = export_shards(folder, tmp_path / "out", "robot=sawyer", "max_refused_share=0.5")
    assert [episode.length for episode in dataset.episodes.values()] == [4]
    refused = [json.loads(line) for line in (tmp_path / "out/refused.jsonl").read_text().splitlines()]
    assert [(entry["place"], entry["reason"][:22], entry["rows"]) for entry in refused] == [
        ("t 1", "frames are missing: [1", 2),
        ("t 2", "frames are missing: [1", 1),
        ("t 3", "frames come twice", 2),
        ("t 4", "frames have another sh", 1),
    ]
    skipped = json.loads((tmp_path / "out/summary.json").read_text())["skipped"]
    assert skipped == {"another robot": 1, "not one state, one instruction and one action": 1}
    with pytest.raises(ValueError, match=r"robot='': .* hold frames of: panda \(1\), sawyer \(10\)"):
        export_shards(folder, tmp_path / "any")
    with pytest.raises(ValueError, match="rows are refused, more than max_refused_share"):
        export_shards(folder, tmp_path / "strict", "robot=sawyer", "max_refused_share=0.01")


def test_odd_sides_and_changed_shards_are_refused(tmp_path: Path) -> None:
    frames = [(robot_sample(seed, side=57), {"episode": 0, "frame": seed}) for seed in range(2)]
    folder = write_frames(tmp_path / "shards", frames)
    with pytest.raises(ValueError, match=r"pictures=video: .* sides \[57, 57\], and mp4 files need even ones"):
        export_shards(folder, tmp_path / "video", "pictures=video")
    export_shards(folder, tmp_path / "out")
    (folder / "train-000000.tar").unlink()
    write_frames(folder, frames[:1])
    with pytest.raises(ValueError, match="holds files of other shards"):
        export_shards(folder, tmp_path / "out")


def test_statistics_are_exact() -> None:
    generator = np.random.default_rng(0)
    values = generator.normal(size=(500, 3)).astype(np.float32)
    found = number_stats(values)
    np.testing.assert_allclose(found["q90"], np.quantile(values.astype(np.float64), 0.9, axis=0))
    pixels = generator.integers(0, 256, (90, 120, 3), dtype=np.uint8)
    shown = picture_stats(histogram(pixels), 1)
    flat = pixels.reshape(-1, 3) / 255
    np.testing.assert_allclose(np.ravel(shown["mean"]), flat.mean(axis=0))
    np.testing.assert_allclose(np.ravel(shown["std"]), flat.std(axis=0))
    for name, share in (("q01", 0.01), ("q50", 0.5), ("q99", 0.99)):
        np.testing.assert_allclose(np.ravel(shown[name]), np.quantile(flat, share, axis=0), atol=1 / 255)
    assert np.ravel(shown["max"]).max() <= 1.0


def test_a_dataset_of_version_3_comes_back(tmp_path: Path) -> None:
    """v3 -> shards -> v3: the same rows in the same order."""
    first = LeRobotDataset.open(write_v3(tmp_path / "toy", video=False))
    convert_dataset(tmp_path / "toy", tmp_path / "shards", "heldout_share=0", "state_keys=[observation.state]")
    second = export_shards(tmp_path / "shards", tmp_path / "out")
    assert list(second.tasks.values()) == list(first.tasks.values())
    for episode in first.order:
        keys = ["observation.state", "action", "timestamp", "index", "task_index"]
        ours, theirs = first.frame_table(episode, keys), second.frame_table(episode, keys)
        for key in keys:
            np.testing.assert_array_equal(ours[key], theirs[key])
        assert first.episodes[episode].subtasks[:1] == second.episodes[episode].subtasks[:1]
