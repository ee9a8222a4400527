"""The recipe: randomness that belongs to the sample, one code for training and policy, and the way back."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from flagscale_vla.config.checks import ConfigError
from flagscale_vla.config.data import Normalization
from flagscale_vla.config.image import Decoder
from flagscale_vla.data.faults import BadSampleError
from flagscale_vla.data.images import decode
from flagscale_vla.data.recipe import RECIPE_FILE, Recipe
from flagscale_vla.model.pixels import cut_patches
from flagscale_vla.records import Action, Image, Observation, RawSample, Sample, State, Text, Video
from flagscale_vla.robots.statistics import RobotStatistics, Statistics, no_statistics
from tests.samples import (
    PANDA,
    SAWYER,
    encode_picture,
    image_config,
    interleaved_sample,
    make_recipe,
    picture,
    picture_sample,
    robot_sample,
    text_sample,
)


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return make_recipe(shift_pixels=4)


def assert_same(first: Sample, second: Sample, but: tuple[str, ...] = ()) -> None:
    for field in dataclasses.fields(Sample):
        ours, theirs = (object.__getattribute__(sample, field.name) for sample in (first, second))
        if field.name not in but:
            same = torch.equal(ours, theirs) if isinstance(ours, torch.Tensor) else ours == theirs
            assert same, field.name


def test_shapes_and_dtypes(recipe: Recipe) -> None:
    sample = recipe.sample(robot_sample(0), seed=0, epoch=0, augment=True)
    length = sample.tokens.numel()
    assert sample.positions.shape == (3, length)
    assert sample.pixels.shape == (128 * 14 * 14 * 3,)
    assert sample.frames.tolist() == [1, 1]
    assert sample.grid.tolist() == [[1, 8, 8], [1, 8, 8]]
    assert sample.actions.shape == sample.action_valid.shape == sample.noise.shape == (1, 8, 8)
    assert sample.states.shape == (1, 8)
    assert (sample.tokens[sample.image_slots] == recipe.vocabulary.image_pad).all()
    assert (sample.tokens[sample.action_slots] == recipe.vocabulary.action_pad).all()
    assert (sample.tokens[sample.state_slots] == recipe.vocabulary.state_pad).all()
    assert sample.pixels.dtype == torch.uint8
    for name in ("actions", "noise", "time", "states"):
        assert object.__getattribute__(sample, name).dtype == torch.float32
    for name in ("tokens", "labels", "positions", "grid", "image_slots", "action_slots", "state_slots"):
        assert object.__getattribute__(sample, name).dtype == torch.int64


def test_a_sample_is_a_function_of_seed_epoch_and_key(recipe: Recipe) -> None:
    raw = robot_sample(0)
    first = recipe.sample(raw, seed=1, epoch=2, augment=True)
    recipe.sample(robot_sample(1), seed=1, epoch=2, augment=True)
    assert_same(first, recipe.sample(raw, seed=1, epoch=2, augment=True))
    for other in (
        recipe.sample(raw, seed=2, epoch=2, augment=True),
        recipe.sample(raw, seed=1, epoch=3, augment=True),
        recipe.sample(dataclasses.replace(raw, key="other"), seed=1, epoch=2, augment=True),
    ):
        assert not torch.equal(first.noise, other.noise)
        assert not torch.equal(first.time, other.time)
        assert not torch.equal(first.pixels, other.pixels)
        assert torch.equal(first.tokens, other.tokens)
    plain = recipe.sample(raw, seed=1, epoch=2, augment=False)
    assert_same(first, plain, but=("pixels",))


def test_flow_time_is_eo1s(recipe: Recipe) -> None:
    raw = text_sample(0, 4).segments[:1] + robot_sample(0).segments[2:]
    times = [
        recipe.sample(RawSample(key=str(number), segments=raw), seed=0, epoch=0, augment=False).time.item()
        for number in range(400)
    ]
    assert 0.001 <= min(times) < max(times) <= 1.0
    # Beta(1.5, 1) has mean 0.6.
    assert abs(np.mean(times) - (0.999 * 0.6 + 0.001)) < 0.04


def test_actions_are_scaled_cut_padded_and_masked() -> None:
    raw = robot_sample(3)
    action = raw.segments[-1]
    assert isinstance(action, Action)
    sample = make_recipe(horizon=5).sample(raw, seed=0, epoch=0, augment=False)
    assert np.array_equal(sample.actions[0, :, :4].numpy(), action.values[:5])
    assert not sample.actions[0, :, 4:].any()
    assert np.array_equal(sample.action_valid[0, :, 0].numpy(), action.valid[:5])
    assert not sample.action_valid[0, :, 4:].any()
    assert sample.noise.std() > 0.5
    padded = make_recipe(horizon=5, supervise_padding=True).sample(raw, seed=0, epoch=0, augment=False)
    assert np.array_equal(padded.action_valid[0, :, 7].numpy(), action.valid[:5])


def test_scaling_and_back(recipe: Recipe) -> None:
    statistics = Statistics(
        count=9,
        mean=(1.0, -2.0, 0.0, 5.0),
        std=(2.0, 0.5, 1e-3, 0.0),
        min=(-4.0, -4.0, -0.01, 5.0),
        max=(5.0, 0.0, 0.01, 5.0),
        q01=(-3.0, -3.0, -0.003, 5.0),
        q99=(5.0, -1.0, 0.003, 5.0),
    )
    ours = recipe.with_statistics({"sawyer": RobotStatistics(state=statistics, action=statistics)})
    raw = robot_sample(1)
    action = raw.segments[-1]
    assert isinstance(action, Action)
    sample = ours.sample(raw, seed=0, epoch=0, augment=False)
    np.testing.assert_allclose(sample.actions[0, :, 0], (action.values[:8, 0] - 1) / 2, rtol=1e-6)
    np.testing.assert_allclose(ours.action_values("sawyer", sample.actions[0].numpy()), action.values[:8], atol=1e-5)
    assert ours.action_values("sawyer", np.zeros((3, 8), np.float32)).shape == (3, 4)


def test_of_several_chunks_one_is_noised_and_earlier_ones_are_clean(recipe: Recipe) -> None:
    seen = set()
    for seed in range(12):
        sample = recipe.sample(interleaved_sample(0, num_chunks=3), seed=seed, epoch=0, augment=False)
        noised = sample.time > 0
        chunks = len(noised)
        pads = (sample.tokens == recipe.vocabulary.action_pad).sum().item()
        assert noised.sum() <= 1
        assert pads == 8 * noised.sum().item()
        assert not sample.noise[~noised].any()
        assert not sample.action_valid[~noised].any()
        assert sample.actions.abs().sum(dim=(1, 2)).all()
        if noised.any():
            assert noised[-1]
        seen.add((chunks, bool(noised.any())))
    assert seen == {(1, True), (2, True), (3, True), (3, False)}


def test_length_is_known_without_decoding(recipe: Recipe) -> None:
    for raw in (robot_sample(0), text_sample(1, 60), picture_sample(2, 30), robot_sample(3, PANDA)):
        assert recipe.length(raw) == recipe.sample(raw, seed=0, epoch=0, augment=True).tokens.numel()


def observe(raw: RawSample) -> Observation:
    """What the robot saw when a frame was recorded."""
    images = {image.name: decode(image.name, image.encoded) for image in raw.segments if isinstance(image, Image)}
    state = next(segment for segment in raw.segments if isinstance(segment, State))
    text = next(segment for segment in raw.segments if isinstance(segment, Text))
    return Observation(images=images, state=state.values, instruction=text.text, robot=state.robot)


@pytest.mark.parametrize("decoder", [Decoder.pillow, Decoder.turbo])
@pytest.mark.parametrize("robot", [SAWYER, PANDA])
def test_a_policy_sees_what_training_saw(decoder: Decoder, robot: object) -> None:
    recipe = make_recipe()
    recipe.image.decoder = decoder
    raw = robot_sample(5, robot, side=200)  # type: ignore[arg-type]
    trained = recipe.sample(raw, seed=0, epoch=0, augment=False)
    prompt = recipe.prompt(observe(raw), seed=7)
    changed = ("key", "labels", "actions", "action_valid", "noise", "time")
    assert_same(trained, prompt, but=changed)
    assert (prompt.labels == -100).all()
    assert prompt.time.tolist() == [1.0]
    assert not prompt.action_valid.any()
    assert prompt.noise.shape == trained.noise.shape
    assert torch.equal(prompt.noise, recipe.prompt(observe(raw), seed=7).noise)
    assert not torch.equal(prompt.noise, recipe.prompt(observe(raw), seed=8).noise)


def test_an_observation_that_does_not_fit_is_refused(recipe: Recipe) -> None:
    seen = observe(robot_sample(0))
    with pytest.raises(ValueError, match=r"robot='tank' was not trained on; known are \['panda', 'sawyer'\]"):
        recipe.prompt(dataclasses.replace(seen, robot="tank"), seed=0)
    with pytest.raises(ValueError, match=r"has cameras \['front', 'wrist'\], the observation has \['front'\]"):
        recipe.prompt(dataclasses.replace(seen, images={"front": seen.images["front"]}), seed=0)
    with pytest.raises(ValueError, match=r"a state of 4 numbers, not of shape \(3,\)"):
        recipe.prompt(dataclasses.replace(seen, state=seen.state[:3]), seed=0)
    with pytest.raises(ValueError, match="NaN"):
        recipe.prompt(dataclasses.replace(seen, state=seen.state * np.nan), seed=0)
    floats = {name: image / np.float32(255) for name, image in seen.images.items()}
    with pytest.raises(ValueError, match=r"image 'front' must be u8\[h, w, 3\], not float32\[112, 112, 3\]"):
        recipe.prompt(dataclasses.replace(seen, images=floats), seed=0)


def test_a_recipe_survives_disk(recipe: Recipe, tmp_path: Path) -> None:
    recipe.save(tmp_path / "recipe")
    loaded = Recipe.load(tmp_path / "recipe")
    for raw in (robot_sample(0), interleaved_sample(1), picture_sample(2, 20)):
        ours, theirs = (r.sample(raw, seed=3, epoch=1, augment=True) for r in (recipe, loaded))
        assert_same(ours, theirs)
    with pytest.raises(ValueError, match=r"holds no recipe: it needs recipe\.json and tokenizer\.json"):
        Recipe.load(tmp_path)


def test_what_cannot_be_trained_on_is_named(recipe: Recipe) -> None:
    good = robot_sample(0)
    state, action = good.segments[2], good.segments[4]
    assert isinstance(state, State)
    assert isinstance(action, Action)
    wide = np.zeros(5, np.float32)
    for bad, reason in (
        (dataclasses.replace(action, values=action.values * np.nan), "its action holds NaN or infinity"),
        (dataclasses.replace(state, values=np.full(4, np.inf, np.float32)), "its state holds NaN or infinity"),
        (dataclasses.replace(state, values=wide), "its state has 5 dims; robot 'sawyer' has 4"),
        (dataclasses.replace(state, robot="tank"), r"robot 'tank' is not in embodiments\.json"),
        (dataclasses.replace(action, values=action.values[:7]), r"7 steps; action\.horizon=8"),
    ):
        raw = RawSample(key="train-000000.tar/k", segments=(bad,))
        with pytest.raises(BadSampleError, match=f"^train-000000.tar/k: .*{reason}"):
            recipe.sample(raw, seed=0, epoch=0, augment=False)
        with pytest.raises(BadSampleError, match=reason):
            recipe.length(raw)
    with pytest.raises(BadSampleError, match="has no segments"):
        recipe.length(RawSample(key="k", segments=()))


def film_sample(count: int = 5, fps: float = 2.0, sides: tuple[int, int] = (84, 112)) -> RawSample:
    """A film, a picture, a question, an answer."""
    generator = np.random.default_rng(7)
    frames = tuple(encode_picture(picture(generator, *sides)) for _ in range(count))
    still = Image(name="still", encoded=encode_picture(picture(generator, 56, 56)))
    question, answer = Text(text="what happens?", supervised=False), Text(text="it opens", supervised=True)
    return RawSample(
        key="train-000000.tar/film", segments=(Video(name="clip", frames=frames, fps=fps), question, still, answer)
    )


def test_a_film_is_read_as_pairs_of_frames(recipe: Recipe) -> None:
    raw = film_sample()
    sample = recipe.sample(raw, seed=0, epoch=0, augment=False)
    v = recipe.vocabulary
    assert sample.grid.tolist() == [[3, 6, 4], [1, 4, 4]] or sample.grid.tolist() == [[3, 4, 6], [1, 4, 4]]
    assert sample.pixels.shape == ((5 * 24 + 16) * 14 * 14 * 3,)
    assert sample.frames.tolist() == [5, 1]
    assert cut_patches(sample.pixels, sample.frames, sample.grid).shape == (3 * 24 + 16, 1176)
    assert (sample.tokens[sample.image_slots[:18]] == v.video_pad).all()
    assert (sample.tokens[sample.image_slots[18:]] == v.image_pad).all()
    first, last = sample.image_slots[0], sample.image_slots[17]
    assert (sample.tokens[first - 1], sample.tokens[last + 1]) == (v.vision_start, v.vision_end)
    # At 2 frames a second a pair takes a second, which is 2 positions for Qwen2.5-VL.
    times = sample.positions[0, sample.image_slots[:18]]
    assert (times - times[0]).tolist() == [0] * 6 + [2] * 6 + [4] * 6
    assert recipe.length(raw) == sample.tokens.numel()


def test_long_films_get_smaller_frames() -> None:
    ours = make_recipe()
    ours.image.video.total_pixels = 6 * 784
    few, many = (ours.pictures.open("k", film_sample(count).segments)[0].clip.grid for count in (2, 12))
    assert few == (1, 4, 4)
    # Six tokens' area over six pairs leaves one token's, and 1.05 times the smallest is no more.
    assert many == (6, 2, 2)
    assert ours.length(film_sample(12)) == ours.sample(film_sample(12), seed=0, epoch=0, augment=False).tokens.numel()


def test_a_film_of_frames_of_two_sizes_is_refused(recipe: Recipe) -> None:
    film = film_sample().segments[0]
    assert isinstance(film, Video)
    odd = encode_picture(picture(np.random.default_rng(0), 112, 56))
    raw = RawSample(key="k", segments=(dataclasses.replace(film, frames=(*film.frames, odd)),))
    with pytest.raises(BadSampleError, match=r"^k\.clip: its frames have different sizes: .*84.*112.*112.*56"):
        recipe.length(raw)
    with pytest.raises(BadSampleError, match=r"^k\.clip: its frames have different sizes"):
        recipe.sample(raw, seed=0, epoch=0, augment=False)
    broken = dataclasses.replace(film, frames=(*film.frames[:3], film.frames[3][: len(film.frames[3]) // 2]))
    with pytest.raises(BadSampleError, match=r"^k\.clip-003\.jpg: cannot be decoded"):
        recipe.sample(RawSample(key="k", segments=(broken,)), seed=0, epoch=0, augment=False)


def test_a_recipe_from_before_films_and_changes_is_read(recipe: Recipe, tmp_path: Path) -> None:
    recipe.save(tmp_path)
    path = tmp_path / RECIPE_FILE
    content = json.loads(path.read_text())
    content["image"] = {"min_pixels": 784, "max_pixels": 12544, "shift_pixels": 4}
    path.write_text(json.dumps(content))
    old = Recipe.load(tmp_path)
    assert old.image.decoder is Decoder.pillow
    assert old.image.augment == recipe.image.augment
    assert (old.image.video.min_pixels, old.image.video.max_pixels) == (784, 12544)
    assert_same(*(r.sample(robot_sample(0), seed=3, epoch=1, augment=True) for r in (recipe, old)))


def test_a_robot_without_statistics_is_named(recipe: Recipe) -> None:
    ours = recipe.with_statistics({"panda": recipe.statistics["panda"]})
    with pytest.raises(BadSampleError, match=r"robot 'sawyer' has no action statistics; known are \['panda'\]"):
        ours.sample(robot_sample(0), seed=0, epoch=0, augment=False)
    with pytest.raises(ValueError, match="robot 'sawyer' has no action statistics"):
        ours.action_values("sawyer", np.zeros((8, 8), np.float32))
    blind = RobotStatistics(state=no_statistics(), action=recipe.statistics["sawyer"].action)
    with pytest.raises(BadSampleError, match="robot 'sawyer' has no state statistics"):
        recipe.with_statistics({"sawyer": blind}).sample(robot_sample(0), seed=0, epoch=0, augment=False)


def test_a_robot_wider_than_the_model_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"model\.flow\.width=4: must be at least the 7 dims of robot 'panda'"):
        make_recipe(width=4)


def test_normalization_is_part_of_the_recipe(tmp_path: Path) -> None:
    recipe = make_recipe()
    recipe.action.normalization = Normalization.quantile
    recipe.save(tmp_path)
    assert Recipe.load(tmp_path).action.normalization is Normalization.quantile
    assert Recipe.load(tmp_path).image == image_config()
