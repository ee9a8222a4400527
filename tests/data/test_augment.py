"""Changes of pictures: drawn from the sample and camera alone, and known where they can be worked out by hand."""

from __future__ import annotations

import colorsys
import dataclasses

import numpy as np
import PIL.Image
import pytest
from numpy.typing import NDArray
from PIL import ImageEnhance

from flagscale_vla.data.augment import MOVES, Change, Kind, allowed, apply, draw
from flagscale_vla.data.changes import shift
from flagscale_vla.data.draws import Draw, stream
from flagscale_vla.data.recipe import Recipe
from flagscale_vla.records import Sample, Text
from tests.samples import augment_config, make_recipe, picture, picture_sample, robot_sample, text_sample

EO1 = augment_config(
    brightness=[0.8, 1.2],
    contrast=[0.8, 1.2],
    saturation=[0.5, 1.5],
    sharpness=[0.5, 1.5],
    hue=[-0.05, 0.05],
    crop=[0.95, 1.0],
    rotate=[-3.0, 3.0],
)
EVERY = frozenset(Kind)


def changed(pixels: NDArray[np.uint8], kind: Kind, strength: float, place: tuple[float, float] = (0.0, 0.0)):
    after = apply(pixels, [Change(kind=kind, strength=strength, place=place)])
    assert after.shape == pixels.shape
    assert after.dtype == np.uint8
    return after


def noise(height: int = 28, width: int = 42) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def grey(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Luma of ITU-R BT.601."""
    return pixels @ np.array([0.299, 0.587, 0.114])


def blend(base: object, pixels: NDArray[np.uint8], factor: float) -> NDArray[np.float64]:
    return np.clip(np.asarray(base) + factor * (pixels - np.asarray(base, np.float64)), 0, 255)


@pytest.mark.parametrize("factor", [0.5, 0.8, 1.0, 1.2, 1.5])
def test_colours_change_as_their_formulas_say(factor: float) -> None:
    pixels = noise()
    expected = {
        Kind.brightness: blend(0.0, pixels, factor),
        Kind.contrast: blend(round(grey(pixels).mean()), pixels, factor),
        Kind.saturation: blend(grey(pixels)[..., None], pixels, factor),
    }
    for kind, values in expected.items():
        # Two roundings: of the grey, and of the result.
        assert np.abs(changed(pixels, kind, factor) - values).max() <= 1 + abs(1 - factor), kind
    enhanced = ImageEnhance.Sharpness(PIL.Image.fromarray(pixels)).enhance(factor)
    assert np.array_equal(changed(pixels, Kind.sharpness, factor), np.asarray(enhanced))


@pytest.mark.parametrize("sides", [(28, 42), (1, 5), (2, 2), (3, 4)])
def test_changes_are_pillows(sides: tuple[int, int]) -> None:
    pixels = noise(*sides)
    image = PIL.Image.fromarray(pixels)
    for factor in (0.5, 1.3):
        for kind, enhance in {
            Kind.brightness: ImageEnhance.Brightness,
            Kind.saturation: ImageEnhance.Color,
            Kind.sharpness: ImageEnhance.Sharpness,
        }.items():
            assert np.array_equal(changed(pixels, kind, factor), np.asarray(enhance(image).enhance(factor))), kind
        contrast = np.asarray(ImageEnhance.Contrast(image).enhance(factor), np.float64)
        assert np.abs(changed(pixels, Kind.contrast, factor) - contrast).max() <= 1
    for degrees in (-3.0, 1.7, 40.0):
        turned = np.asarray(image.rotate(degrees, PIL.Image.Resampling.BILINEAR), np.float64)
        assert np.abs(changed(pixels, Kind.rotate, degrees) - turned).max() <= 1


def test_sharpness_is_away_from_a_smoothed_picture() -> None:
    pixels = noise().astype(np.float64)
    kernel = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]]) / 13
    smooth = sum(
        kernel[row, column] * pixels[row : row + 26, column : column + 40] for row in range(3) for column in range(3)
    )
    after = changed(noise(), Kind.sharpness, 0.5)[1:-1, 1:-1]
    assert np.abs(after - (smooth + pixels[1:-1, 1:-1]) / 2).max() <= 1.5


@pytest.mark.parametrize("turn", [-0.5, -0.05, 0.0, 0.03, 1 / 3, 0.5])
def test_hue_turns_colours_and_leaves_greys(turn: float) -> None:
    pixels = noise()
    pixels[0, :8] = [[0, 0, 0], [255] * 3, [9] * 3, [255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0], [1, 0, 0]]
    expected = []
    for colour in pixels.reshape(-1, 3) / 255:
        hue, saturation, value = colorsys.rgb_to_hsv(*colour)
        expected.append(colorsys.hsv_to_rgb((hue + turn) % 1.0, saturation, value))
    after = changed(pixels, Kind.hue, turn)
    assert np.abs(after - 255 * np.reshape(expected, pixels.shape)).max() <= 0.501
    assert np.array_equal(after[0, :3], pixels[0, :3])


def test_a_crop_keeps_its_share_of_the_area_where_it_is_told() -> None:
    down, right = np.mgrid[0:84, 0:112]
    ramp = np.stack([down * 3, right * 2, np.zeros_like(down)], axis=-1).astype(np.uint8)
    assert np.array_equal(changed(ramp, Kind.crop, 1.0), ramp)
    for place in ((0.0, 0.0), (1.0, 1.0), (0.25, 0.75)):
        after = changed(ramp, Kind.crop, 0.25, place)
        rows, columns = after[10:-10, 50, 0] / 3, after[40, 10:-10, 1] / 2
        assert np.polyfit(np.arange(64), rows, 1)[0] == pytest.approx(0.5, abs=0.01)
        assert np.polyfit(np.arange(92), columns, 1)[0] == pytest.approx(0.5, abs=0.01)
        assert after[42, 56, 0] / 3 == pytest.approx(42 * place[0] + 21, abs=1)
        assert after[42, 56, 1] / 2 == pytest.approx(56 * place[1] + 28, abs=1)


def test_a_rotation_turns_about_the_middle() -> None:
    pixels = np.zeros((56, 56, 3), np.uint8)
    pixels[27:29, 40:54] = 255
    upright = changed(pixels, Kind.rotate, 90.0)
    assert np.array_equal(upright, np.rot90(pixels))
    slight = changed(pixels, Kind.rotate, 3.0)
    # 20 pixels right of the middle, 3 degrees counter-clockwise are one pixel up.
    weights = slight[:, 47, 0].astype(float)
    assert (weights @ np.arange(56)) / weights.sum() == pytest.approx(27.5 - 20 * np.tan(np.pi / 60), abs=0.2)


def test_a_shift_moves_the_picture_and_repeats_its_edge() -> None:
    pixels = picture(np.random.default_rng(0), 28, 56)
    moved = shift(pixels, 2, -3)
    assert np.array_equal(moved, changed(pixels, Kind.shift, 0.0, (2, -3)))
    assert np.array_equal(moved[2:, :-3], pixels[:-2, 3:])
    assert np.array_equal(moved[0, :-3], pixels[0, 3:])
    assert np.array_equal(moved[2:, -1], pixels[:-2, -1])
    assert np.array_equal(moved[:2], np.broadcast_to(moved[2], (2, 56, 3)))
    assert np.array_equal(shift(pixels, 0, 0), pixels)
    assert np.array_equal(shift(pixels[::-1, ::-1], -2, 3)[::-1, ::-1], moved)


def draws(config, number: int, kinds: frozenset[Kind] = EVERY) -> list[Change]:
    return draw(config, kinds, stream(0, 0, f"k{number}", Draw.augment))


def test_three_of_eo1s_seven_in_any_order_and_within_their_ranges() -> None:
    seen = [draws(EO1, number) for number in range(600)]
    assert {len(changes) for changes in seen} == {3}
    assert all(len({change.kind for change in changes}) == 3 for changes in seen)
    for kind in EVERY - {Kind.shift}:
        found = [change.strength for changes in seen for change in changes if change.kind is kind]
        first = [changes[0].kind for changes in seen].count(kind)
        least, most = object.__getattribute__(EO1, kind.value)
        assert 190 < len(found) < 330
        assert 55 < first < 120
        assert least <= min(found) < least + 0.05 * (most - least)
        assert most - 0.05 * (most - least) < max(found) <= most


def test_each_kind_can_be_off_and_none_may_be_left() -> None:
    assert draws(augment_config(), 0) == []
    assert draws(dataclasses.replace(EO1, most=0), 0) == []
    only = augment_config(rotate=[-3.0, 3.0], shift=2)
    seen = [draws(only, number) for number in range(50)]
    assert {frozenset(change.kind for change in changes) for changes in seen} == {frozenset({Kind.rotate, Kind.shift})}
    moves = {change.place for changes in seen for change in changes if change.kind is Kind.shift}
    assert {place for pair in moves for place in pair} == {-2, -1, 0, 1, 2}
    assert {change.kind for number in range(50) for change in draws(EO1, number, EVERY - MOVES)} == EVERY - MOVES


def test_only_robots_pictures_are_changed_and_answers_in_words_keep_places() -> None:
    assert allowed(robot_sample(0).segments) == EVERY
    assert allowed(picture_sample(0, 20).segments) == allowed(text_sample(0, 20).segments) == frozenset()
    box = Text(text='{"bbox_2d": [1, 2, 3, 4]}', supervised=True)
    assert allowed((*robot_sample(0).segments, box)) == EVERY - MOVES


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    ours = make_recipe()
    ours.image.augment = EO1
    return ours


def cameras(sample: Sample) -> list[NDArray[np.uint8]]:
    return list(np.split(sample.pixels.numpy(), 2))


def test_changes_belong_to_seed_epoch_key_and_camera(recipe: Recipe) -> None:
    raw = robot_sample(0)
    first, second = raw.segments[:2]
    # The same picture from both cameras is changed in two ways.
    twin = dataclasses.replace(
        raw, segments=(first, dataclasses.replace(second, encoded=first.encoded), *raw.segments[2:])
    )
    front, wrist = cameras(recipe.sample(twin, seed=0, epoch=0, augment=True))
    assert not np.array_equal(front, wrist)
    recipe.sample(robot_sample(1), seed=0, epoch=0, augment=True)
    assert np.array_equal(front, cameras(recipe.sample(raw, seed=0, epoch=0, augment=True))[0])
    for other in ({"seed": 1, "epoch": 0}, {"seed": 0, "epoch": 1}):
        assert not np.array_equal(front, cameras(recipe.sample(raw, **other, augment=True))[0])
    renamed = dataclasses.replace(raw, key="other")
    assert not np.array_equal(front, cameras(recipe.sample(renamed, seed=0, epoch=0, augment=True))[0])
    plain = cameras(recipe.sample(raw, seed=0, epoch=0, augment=False))
    assert not np.array_equal(front, plain[0])
    # Changed, yet near.
    assert np.abs(front.astype(int) - plain[0]).mean() < 60


def test_the_frames_of_a_film_are_changed_alike(recipe: Recipe) -> None:
    raw = robot_sample(0)
    still = recipe.pictures.open(raw.key, raw.segments)[0]
    film = dataclasses.replace(still, frames=still.frames * 3)
    plain, changed = np.empty((2, 3, still.clip.nbytes), np.uint8)
    recipe.pictures.read([film], plain.ravel())
    recipe.pictures.read(recipe.pictures.change(raw.key, raw.segments, [film], 0, 0), changed.ravel())
    for before, after in zip(plain, changed, strict=True):
        assert np.array_equal(after, changed[0])
        assert not np.array_equal(after, before)
