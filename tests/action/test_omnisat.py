"""OmniSAT's strings: their order, their alphabet, fewer layers, other horizons, and what is not one."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from flagscale_vla.action.batch import Group, turn
from flagscale_vla.action.groups import fitting, from_points, to_points
from flagscale_vla.action.losses import distance, drift, geodesic, pass_straight, pass_turned
from flagscale_vla.action.omnisat import OmniSat
from flagscale_vla.action.search import led_astray, miss, root_of_misses, slope
from flagscale_vla.action.store import load_action_tokenizer
from flagscale_vla.action.tokenizer import CodesError
from flagscale_vla.config.tokenizer import KindConfig
from flagscale_vla.robots.layout import Kind, parts_of
from flagscale_vla.robots.rotations import angle_between
from tests.action.chunks import ACTIONS, HORIZON, make_chunks, training_chunks, units
from tests.action.codec import fit_omnisat


@pytest.fixture(scope="module")
def codec() -> OmniSat:
    return fit_omnisat(training_chunks(), units())


def error(codec: OmniSat, robot: str) -> float:
    chunks = make_chunks(robot, 50, 9)
    decoded = codec.decode(robot, codec.encode(robot, chunks), HORIZON)
    return float(np.abs(units().normalize(robot, decoded) - units().normalize(robot, chunks)).mean())


def test_strings_go_layer_by_layer(codec: OmniSat) -> None:
    kinds = [part.kind.value for part in parts_of(codec.embodiments["twin"])]
    assert kinds == ["position", "rotation", "gripper"] * 2
    places = codec.places("twin")
    assert places[:6] == [(part, 0) for part in range(6)]
    # Grippers have one layer.
    assert places[6:10] == [(0, 1), (1, 1), (3, 1), (4, 1)]
    assert [layer for _, layer in places] == sorted(layer for _, layer in places)


@pytest.mark.parametrize("shared", [True, False])
def test_alphabet(codec: OmniSat, shared: bool) -> None:
    config = dataclasses.replace(codec.config, shared_ids=shared)
    other = OmniSat(config, codec.coders, codec.units)
    codes = {kind: (codec.layers(kind), len(coder[1].books[0])) for kind, coder in codec.coders.items()}
    assert other.num_codes == sum(size if shared else layers * size for layers, size in codes.values())
    grammar = other.grammar("panda", HORIZON)
    if not shared:
        # One place's codes belong to no other place, and coarse ones come first.
        assert (grammar.lows[1:] >= grammar.lows[:-1] + grammar.sizes[:-1]).all()
    chunks = make_chunks("panda", 5, 2)
    decoded = [each.decode("panda", each.encode("panda", chunks), HORIZON) for each in (codec, other)]
    np.testing.assert_array_equal(*decoded)


def test_fewer_layers_are_shorter_and_coarser(codec: OmniSat) -> None:
    errors = [error(codec.with_layers(layers), "panda") for layers in (1, 3, 0)]
    assert errors[0] > errors[1] > errors[2]
    assert codec.with_layers(2).grammar("panda", HORIZON).longest == 5
    assert codec.with_layers(1).num_codes <= codec.num_codes
    with pytest.raises(ValueError, match="layers=-1: must not be negative"):
        codec.with_layers(-1)


def test_greedy_strings_begin_like_longer_ones(codec: OmniSat) -> None:
    greedy = OmniSat(dataclasses.replace(codec.config, beam=1, endings=1), codec.coders, codec.units)
    chunks = make_chunks("panda", 5, 2)
    short = greedy.with_layers(2).encode("panda", chunks)
    for string, whole in zip(short, greedy.encode("panda", chunks), strict=True):
        np.testing.assert_array_equal(string, whole[: len(string)])


def test_fewer_layers_are_saved_as_such(codec: OmniSat, tmp_path: Path) -> None:
    codec.with_layers(2).save(tmp_path)
    loaded = load_action_tokenizer(tmp_path)
    assert loaded.grammar("panda", HORIZON).longest == 5


@pytest.mark.parametrize("horizon", [1, 5, 8, 24, 48])
def test_any_horizon_goes_in_and_out(codec: OmniSat, horizon: int) -> None:
    chunks = make_chunks("panda", 4, 7)
    steps = np.linspace(0, HORIZON - 1, horizon).round().astype(int)
    codes = codec.encode("panda", chunks[:, steps])
    assert len(codes[0]) == codec.grammar("panda", horizon).longest
    decoded = codec.decode("panda", codes, horizon)
    assert decoded.shape == (4, horizon, 7)
    assert np.isfinite(decoded).all()


def test_a_finer_rate_has_nearly_the_same_curve(codec: OmniSat) -> None:
    chunks = make_chunks("panda", 50, 7)
    fine = np.linspace(0, HORIZON - 1, 2 * HORIZON - 1)
    low = np.floor(fine).astype(int)
    between = chunks[:, low] + (fine - low)[:, None] * (chunks[:, np.minimum(low + 1, HORIZON - 1)] - chunks[:, low])
    decoded = codec.decode("panda", codec.encode("panda", between.astype(np.float32)), HORIZON)
    gap = np.abs(units().normalize("panda", decoded) - units().normalize("panda", chunks))[..., :6]
    assert gap.mean() < 0.15


@pytest.mark.parametrize(("horizon", "points"), [(16, 16), (5, 16), (1, 16), (7, 32), (32, 16)])
def test_steps_are_read_back_where_they_were(horizon: int, points: int) -> None:
    entry = KindConfig(points=points, degree=0, latent=1, hidden=1, layers=1, codes=2)
    switched = (torch.arange(horizon) >= horizon // 2).to(torch.float32)[None, :, None]
    free = torch.tensor([False])
    back = from_points(to_points(switched, entry, 0.0, free), entry, horizon, free)
    if horizon <= points:
        torch.testing.assert_close(back, switched)
    assert fitting(horizon, points, 0, 0.0).shape == (points, horizon)


def test_twins_arms_share_their_codes(codec: OmniSat) -> None:
    """Both arms of a robot whose numbers are alike have the same string."""
    chunks = np.repeat(make_chunks("panda", 1, 3), 2, axis=2)[..., [0, 2, 4, 6, 8, 10, 12] * 2]
    limits = units().limits("twin")
    codes = codec.encode("twin", np.clip(chunks, *limits))[0]
    places = codec.places("twin")
    assert {place for place, _ in places} == set(range(6))
    assert len(codes) == len(places)


def misses(codec: OmniSat, **changes: float) -> NDArray[np.float64]:
    """Per chunk f64[n, 2]: the mean square of errors of steps, scaled, and of what they add up to."""
    chunks = make_chunks("panda", 200, 4)
    chosen = OmniSat(dataclasses.replace(codec.config, **changes), codec.coders, codec.units)
    decoded = chosen.decode("panda", chosen.encode("panda", chunks), HORIZON)
    away = (units().normalize("panda", decoded) - units().normalize("panda", chunks)).astype(np.float64)[..., :6]
    sums = away.cumsum(1) / HORIZON
    through_the_next = np.concatenate([sums, np.repeat(sums[:, -1:], HORIZON, axis=1)], axis=1)
    return np.stack([(away**2).mean(1).sum(1), (through_the_next**2).mean(1).sum(1)], axis=-1)


def test_of_a_few_strings_the_one_that_misses_least_is_taken(codec: OmniSat) -> None:
    weight = 2.0 * codec.config.position.points
    costs = [misses(codec, endings=endings, astray=2.0) @ [1.0, weight] for endings in (1, 4, 16)]
    assert costs[0].mean() > costs[1].mean() > costs[2].mean()


def test_errors_are_traded_for_where_they_lead(codec: OmniSat) -> None:
    (errors, sums), (eyed_errors, eyed_sums) = (misses(codec, endings=1, astray=each).mean(0) for each in (0.0, 2.0))
    assert eyed_sums < 0.9 * sums
    assert eyed_errors > errors


def test_steps_change_with_their_latent_as_the_search_believes(codec: OmniSat) -> None:
    autoencoder, _ = codec.coders[Kind.position]
    entry = codec.config.position
    latents = 1e-2 * torch.randn(20, entry.latent, generator=torch.Generator().manual_seed(0))
    latents = torch.cat([torch.zeros(1, entry.latent), latents])
    with torch.no_grad():
        steps = from_points(autoencoder.decode(latents), entry, HORIZON, torch.zeros(21, dtype=torch.bool))
    expected = torch.einsum("nd,dhw->nhw", latents, slope(autoencoder, entry, HORIZON, pinned=False))
    torch.testing.assert_close(steps - steps[0], expected, atol=1e-3, rtol=2e-2)


def test_where_errors_lead_is_the_mean_over_this_chunk_and_the_next() -> None:
    errors = torch.randn(5, 8, 3, generator=torch.Generator().manual_seed(0))
    sums = torch.cat([errors, torch.zeros(5, 8, 3)], dim=1).cumsum(dim=1) / 8
    torch.testing.assert_close(led_astray(errors).square().sum(dim=1), sums.square().mean(dim=1))


def test_a_code_of_another_group_is_refused(codec: OmniSat) -> None:
    string = codec.encode("panda", make_chunks("panda", 1, 0))[0]
    swapped = string.copy()
    swapped[[0, 1]] = string[[1, 0]]
    with pytest.raises(CodesError, match=r"code \d+ at place [01] must lie in"):
        codec.decode("panda", [swapped], HORIZON)


def test_missing_coder(codec: OmniSat) -> None:
    kinds = list(codec.coders)
    with pytest.raises(ValueError, match=rf"no coder for the groups \['{kinds[0].value}'\]"):
        OmniSat(codec.config, {kind: codec.coders[kind] for kind in kinds[1:]}, codec.units)


def test_robots_have_the_codes_of_their_parts(codec: OmniSat) -> None:
    for robot in ACTIONS:
        layers = [codec.layers(part.kind) for part in parts_of(codec.embodiments[robot])]
        assert codec.grammar(robot, HORIZON).longest == sum(layers)


def test_what_lies_past_the_range_is_right_where_the_wanted_value_ends_it() -> None:
    wanted = torch.tensor([1.0, 1.0, 0.5, -1.0])
    decoded = torch.tensor([1.7, 0.9, 1.7, -3.0], requires_grad=True)
    low, high = torch.full((4,), -1.0), torch.full((4,), 1.0)
    errors = distance(decoded, wanted, low, high)
    torch.testing.assert_close(errors, torch.tensor([0.0, 0.1, 1.2, 0.0]))
    errors.sum().backward()
    torch.testing.assert_close(decoded.grad, torch.tensor([0.0, -1.0, 1.0, 0.0]))


def test_drift_is_the_running_sum_of_errors() -> None:
    wanted = torch.zeros(2, 4, 1)
    decoded = torch.tensor([[0.4, 0.4, 0.4, 0.4], [0.4, -0.4, 0.4, -0.4]])[..., None]
    astray = drift(decoded, wanted, wanted - 1, wanted + 1)[..., 0]
    torch.testing.assert_close(astray, torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.1, 0.0, 0.1, 0.0]]))


def test_what_is_missed_is_within_the_range() -> None:
    wanted = torch.zeros(1, 1, 4)
    decoded = torch.tensor([[0.4, 0.4, 0.4, 0.4], [9.0, -9.0, 0.0, 0.0]])[:, None]
    # Sums per step of the chunk: .1 .2 .3 .4 and .4 four times more; .25 and then nothing.
    squares = torch.tensor([(0.01 + 0.04 + 0.09 + 5 * 0.16) / 8, 0.0625 / 8])
    missed = miss(decoded, wanted, wanted - 1, wanted + 1, root_of_misses(4, 2.0))
    torch.testing.assert_close(missed, torch.tensor([0.16, 0.5]) + 2 * squares)


def test_geodesic_is_the_angle_between_rotations() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(50, 3, generator=generator) for _ in range(2))
    expected = torch.from_numpy(angle_between(first.numpy(), second.numpy())).to(torch.float32)
    torch.testing.assert_close(geodesic(first, second), expected, atol=1e-4, rtol=1e-4)
    same = first.clone().requires_grad_()
    geodesic(same, first).sum().backward()
    assert same.grad is not None
    assert torch.isfinite(same.grad).all()


def test_gradients_pass_the_quantiser() -> None:
    latents = torch.tensor([[2.0, 0.0]], requires_grad=True)
    quantized = torch.tensor([[0.0, 3.0]])
    for through, expected in ((pass_straight, [1.0, 0.0]), (pass_turned, [0.0, -1.5])):
        passed = through(latents, quantized)
        torch.testing.assert_close(passed, quantized)
        gradient = torch.autograd.grad(passed[0, 0], latents)[0][0]
        # Turned by a quarter and stretched by 1.5.
        torch.testing.assert_close(gradient, torch.tensor(expected))


def test_turned_groups_keep_their_ranges() -> None:
    values = torch.randn(200, HORIZON, 3, generator=torch.Generator().manual_seed(0))
    ones = torch.ones_like(values)
    low, high = values.amin(dim=1, keepdim=True), values.amax(dim=1, keepdim=True)
    keys = torch.arange(200) * 7919
    group = Group(
        values=values, weights=ones, chunk_weights=torch.ones(200), low=low.expand_as(values),
        high=high.expand_as(values), radians=ones, shift=0 * ones, keys=keys,
        plain=keys >= 0, pinned=keys < 0,
    )  # fmt: skip
    turned = turn(group, 0.5, 0, 0)
    assert (turned.values >= turned.low).all()
    assert (turned.values <= turned.high).all()
    torch.testing.assert_close(turned.values.square().sum(dim=2), values.square().sum(dim=2))
    same = (turned.values == values).flatten(1).all(dim=1).to(torch.float32).mean()
    assert 0.4 < same < 0.65
    torch.testing.assert_close(turned.values[turned.plain], values[turned.plain])
    assert turn(group, 0.0, 0, 0) is group
