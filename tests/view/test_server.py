"""The page on shards: what it is told over HTTP, and what it is not."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from starlette.testclient import TestClient

from flagscale_vla.config.checks import ConfigError
from flagscale_vla.config.view import ViewRun
from flagscale_vla.data.images import decode
from flagscale_vla.records import Image, RawSample
from flagscale_vla.view.job import open_library
from flagscale_vla.view.library import Library
from flagscale_vla.view.samples import seen_pictures
from flagscale_vla.view.server import make_app
from flagscale_vla.view.shelf import Shelf
from tests.samples import interleaved_sample, picture_sample
from tests.settings import load
from tests.view.folder import FRAMES, write_episodes

TOKEN = "a secret of 24 letters.."


def settings(folder: Path, *overrides: str) -> ViewRun:
    run = load("view_data", f"data.shards={folder}", "data.image.max_pixels=12544", "port=0", *overrides)
    assert isinstance(run, ViewRun)
    return run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_episodes(tmp_path_factory.mktemp("shards"), [interleaved_sample(1), picture_sample(2, 20)])


@pytest.fixture(scope="module")
def library(folder: Path) -> Library:
    return open_library(settings(folder))


@pytest.fixture
def client(folder: Path, library: Library) -> TestClient:
    return TestClient(make_app(library, settings(folder)), base_url="http://127.0.0.1")


@pytest.fixture
def shelf(library: Library) -> Shelf:
    return library.shelf("shards")


def get(client: TestClient, address: str) -> Any:
    answer = client.get(f"/api/{address}")
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_the_overview_counts_every_shard_and_robot(client: TestClient, shelf: Shelf) -> None:
    (overview,) = get(client, "overview")
    assert overview["samples"] == 2 * FRAMES + 2
    assert overview["tokens"] == sum(shard["tokens"] for shard in overview["shards"]) == shelf.index.lengths.sum()
    assert {robot["name"]: robot["samples"] for robot in overview["robots"]} == {
        "(no robot)": 1,
        "sawyer": 2 * FRAMES + 1,
    }
    (sawyer,) = [robot for robot in overview["robots"] if robot["name"] == "sawyer"]
    assert [dim["name"] for dim in sawyer["action"]] == ["dx", "dy", "dz", "gripper"]


def test_an_episode_is_played_in_the_order_of_its_frames(client: TestClient, shelf: Shelf) -> None:
    (shard,) = shelf.index.shards
    listed = get(client, f"sources/shards/shards/{shard}")
    assert [(entry["name"], entry["frames"]) for entry in listed] == [
        ("door #0", FRAMES),
        ("door #1", FRAMES),
        ("single samples", 2),
    ]
    episode = get(client, f"sources/shards/shards/{shard}/episode?name=door%20%231")
    assert [frame["frame"] for frame in episode["frames"]] == list(range(FRAMES))
    assert episode["fps"] == 20
    last = shelf.seen(episode["frames"][-1]["sample"]).raw
    assert episode["frames"][-1]["state"] == pytest.approx(last.segments[2].values.tolist())
    assert episode["frames"][-1]["action"] == pytest.approx(last.segments[4].values[0].tolist())


def test_a_sample_is_shown_as_training_makes_it(client: TestClient, shelf: Shelf) -> None:
    number = shelf.index.keys.index("interleaved-00001")
    shown = get(client, f"sources/shards/samples/{number}?epoch=3")
    raw, sample = shelf.sample(number, 3)
    again = [run["id"] for run in shown["runs"] for _ in range(run["count"])]
    assert again == sample.tokens.tolist()
    learnt = [run["learnt"] for run in shown["runs"] for _ in range(run["count"])]
    assert learnt[1:] == (sample.labels[:-1] != -100).tolist()
    assert shown["runs"][0]["positions"][0] == [0, 0, 0]
    assert sum(chunk["trained"] for chunk in shown["chunks"]) == int(sample.action_valid.any())
    assert raw.key == shown["key"]


def test_pictures_are_shown_as_stored_and_as_the_model_gets_them(client: TestClient, shelf: Shelf) -> None:
    number = shelf.index.keys.index("picture-00002")
    stored = client.get(f"/api/sources/shards/samples/{number}/stored/0")
    raw = shelf.seen(number).raw
    assert stored.content == first_picture(raw).encoded
    assert stored.headers["content-type"] == "image/jpeg"
    seen = np.asarray(PIL.Image.open(io.BytesIO(client.get(f"/api/sources/shards/samples/{number}/seen/0").content)))
    assert seen.shape == (84, 112, 3)
    # The picture has the model's size already, so that nothing but rounding could change it.
    recipe = shelf.recipe.sample(raw, seed=0, epoch=0, augment=False)
    assert np.array_equal(seen_pictures(recipe)[0], decode("picture", first_picture(raw).encoded))


def first_picture(raw: RawSample) -> Image:
    return next(segment for segment in raw.segments if isinstance(segment, Image))


def test_a_pack_lists_its_samples_end_to_end(client: TestClient) -> None:
    pack = get(client, "packs/0")
    ends = [sample["start"] + sample["tokens"] for sample in pack["samples"]]
    assert [sample["start"] for sample in pack["samples"]] == [0, *ends[:-1]]
    assert ends[-1] == pack["num_tokens"] <= pack["length"]


def test_the_mixture_is_counted_source_by_source(folder: Path, tmp_path: Path) -> None:
    other = write_episodes(tmp_path, [picture_sample(number, 20) for number in range(30)])
    mixture = f"+data.mixture={{robot:{{shards:{folder},weight:3}},pictures:{{shards:{other},weight:1}}}}"
    library = open_library(settings(folder, "data.shards=''", mixture, "data.pack_length=512"))
    client = TestClient(make_app(library, settings(folder)), base_url="http://127.0.0.1")
    assert [source["name"] for source in get(client, "overview")] == ["pictures", "robot"]
    counts = {row["source"]: row["samples"] for row in get(client, "mixture?packs=40")}
    packs = [sample for number in range(40) for sample in get(client, f"packs/{number}")["samples"]]
    assert counts == {name: sum(sample["source"] == name for sample in packs) for name in counts}
    assert counts["robot"] == pytest.approx(3 * counts["pictures"], rel=0.2)
    for sample in packs[:20]:
        shown = get(client, f"sources/{sample['source']}/samples/{sample['number']}?epoch={sample['epoch']}")
        assert shown["key"] == sample["key"], "what a pack names is what the page opens"
        assert shown["num_tokens"] == sample["tokens"]


@pytest.mark.parametrize(
    "address",
    [
        "sources/other/samples/0",
        "sources/shards/samples/999",
        "sources/shards/samples/-1",
        "sources/shards/shards/other.tar",
        "sources/shards/samples/0/stored/9",
        "sources/shards/samples/0/seen/9",
        "packs/-1",
    ],
)
def test_what_is_not_there_is_told_in_one_line(client: TestClient, address: str) -> None:
    answer = client.get(f"/api/{address}")
    assert answer.status_code == 404
    assert "there is no" in answer.json()["error"] or "none is number 9" in answer.json()["error"]


def test_a_sample_that_broke_after_indexing_is_named(tmp_path: Path) -> None:
    folder = write_episodes(tmp_path, [])
    library = open_library(settings(folder))
    (shard,) = folder.glob("*.tar")
    content = bytearray(shard.read_bytes())
    place = content.index(b"\x93NUMPY")
    content[place : place + 6] = b"BROKEN"
    shard.write_bytes(content)
    answer = TestClient(make_app(library, settings(folder)), base_url="http://127.0.0.1").get(
        "/api/sources/shards/samples/0"
    )
    assert answer.status_code == 422
    assert "state.npy" in answer.json()["error"]


def test_only_who_shows_the_token_may_look(folder: Path, library: Library) -> None:
    app = make_app(library, settings(folder, "host=0.0.0.0", f"token='{TOKEN}'"))
    stranger, guest = (TestClient(app, base_url="http://somewhere") for _ in range(2))
    for address in ("/", "/page.js", "/api/overview", "/api/overview?token=wrong"):
        assert stranger.get(address).status_code == 401
    assert stranger.get("/api/overview", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200
    assert guest.get("/", params={"token": TOKEN}).status_code == 200
    assert guest.get("/api/overview").status_code == 200, "the cookie of the first visit is enough"


def test_other_names_for_this_machine_are_refused(folder: Path, library: Library) -> None:
    stranger = TestClient(make_app(library, settings(folder)), base_url="http://rebound.example")
    assert stranger.get("/api/overview").status_code == 400


def test_an_open_address_needs_a_token(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"token=''.*host=0\.0\.0\.0 can be reached by others"):
        settings(folder, "host=0.0.0.0")
