"""Residual codebooks: what they choose, how they start and move, and who is drawn for a dead code."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from flagscale_vla.action.keys import content_keys, draw_rows, mix, uniform
from flagscale_vla.action.quantizer import Averages, ResidualQuantizer, kmeans


def nothing(_: Tensor) -> None:
    """Adds up over one rank."""


def make_quantizer(layers: int = 3, codes: int = 16, width: int = 6) -> ResidualQuantizer:
    generator = torch.Generator().manual_seed(0)
    scale = 0.5 ** torch.arange(layers)[:, None, None]
    return ResidualQuantizer(torch.randn(layers, codes, width, generator=generator) * scale)


def rows(count: int, width: int = 6, seed: int = 1) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def test_each_layer_takes_its_nearest_code() -> None:
    quantizer, latents = make_quantizer(), rows(700)
    codes, rest = quantizer.encode(latents, 3), latents.clone()
    for layer, book in enumerate(quantizer.books):
        expected = torch.cdist(rest.double(), book.double()).argmin(dim=1)
        torch.testing.assert_close(codes[:, layer], expected)
        rest = rest - book[expected]
    torch.testing.assert_close(quantizer.decode(codes), latents - rest)
    torch.testing.assert_close(quantizer.chosen(codes).sum(dim=0), quantizer.decode(codes))


def test_a_prefix_of_layers_is_what_fewer_layers_give() -> None:
    quantizer, latents = make_quantizer(), rows(50)
    codes = quantizer.encode(latents, 3)
    torch.testing.assert_close(codes[:, :2], quantizer.encode(latents, 2))
    left = [(latents - quantizer.decode(codes[:, :layers])).square().mean() for layers in (1, 2, 3)]
    assert left[0] > left[1] > left[2]


def test_a_wide_beam_finds_the_best_string() -> None:
    quantizer, latents = make_quantizer(layers=2, codes=4), rows(40)
    strings = torch.tensor(list(itertools.product(range(4), repeat=2)))
    best = torch.cdist(latents, quantizer.decode(strings)).argmin(dim=1)
    torch.testing.assert_close(quantizer.encode(latents, 2, beam=4), strings[best])


def test_candidates_are_the_nearest_strings_in_order() -> None:
    quantizer, latents = make_quantizer(layers=2, codes=4), rows(40)
    strings = torch.tensor(list(itertools.product(range(4), repeat=2)))
    order = torch.cdist(latents, quantizer.decode(strings)).argsort(dim=1)
    torch.testing.assert_close(quantizer.candidates(latents, 2, 4, 16), strings[order])
    torch.testing.assert_close(quantizer.candidates(latents, 2, 4, 99), strings[order])
    assert quantizer.candidates(latents, 1, 2, 3).shape == (40, 3, 1)
    assert quantizer.candidates(latents[:0], 2, 2, 3).shape == (0, 3, 2)
    torch.testing.assert_close(quantizer.candidates(latents, 2, 2, 4)[:, 0], quantizer.encode(latents, 2, beam=2))


def test_candidates_out_of_many_blocks_of_codes_are_the_nearest() -> None:
    quantizer, latents = make_quantizer(layers=2, codes=96), rows(40)
    strings = torch.tensor(list(itertools.product(range(96), repeat=2)))
    order = torch.cdist(latents, quantizer.decode(strings)).argsort(dim=1)[:, :16]
    torch.testing.assert_close(quantizer.candidates(latents, 2, 96, 16), strings[order])


def test_more_beam_leaves_less() -> None:
    quantizer, latents = make_quantizer(layers=6), rows(500)
    left = [
        float((latents - quantizer.decode(quantizer.encode(latents, 6, beam))).square().mean()) for beam in (1, 2, 4)
    ]
    assert left[0] > left[1] > left[2]


@pytest.mark.parametrize("beam", [1, 2])
def test_no_latents_no_codes(beam: int) -> None:
    assert make_quantizer().encode(torch.zeros(0, 6), 3, beam).shape == (0, 3)


def test_kmeans_finds_clusters_and_weighs_rows() -> None:
    centres = torch.tensor([[0.0, 0.0], [9.0, 0.0], [0.0, 9.0]])
    points = centres.repeat_interleave(50, dim=0) + 0.1 * rows(150, 2)
    weights = torch.full((150,), 2.0)
    codes, total = kmeans(points, weights, 3, 20, torch.Generator().manual_seed(3))
    order = torch.cdist(centres, codes).argmin(dim=1)
    torch.testing.assert_close(codes[order], centres, atol=0.1, rtol=0)
    assert total.tolist() == [100.0, 100.0, 100.0]


def test_fewer_rows_than_codes_become_codes() -> None:
    points = rows(5)
    codes, _ = kmeans(points, torch.ones(5), 16, 3, torch.Generator().manual_seed(0))
    assert torch.cdist(points, codes).min(dim=1).values.max() < 1e-5


def test_averages_move_to_what_is_chosen() -> None:
    quantizer, latents = make_quantizer(layers=1, codes=4), rows(400)
    averages = Averages(quantizer, decay=0.5)
    averages.begin(latents, torch.ones(400), rounds=2, seed=0)
    for _ in range(200):
        codes = quantizer.encode(latents, 1)
        added = averages.tally(latents, codes, quantizer.chosen(codes), torch.ones(400), torch.ones(400) > 0)
        averages.update(added, torch.tensor(400.0))
    codes = quantizer.encode(latents, 1)[:, 0]
    for code in range(4):
        torch.testing.assert_close(quantizer.books[0, code], latents[codes == code].mean(dim=0), atol=1e-3, rtol=0)
    torch.testing.assert_close(averages.counts.sum(), torch.tensor(1.0))


@pytest.mark.parametrize("chosen_by_turned", [False, True])
def test_dead_codes_are_drawn_from_what_is_left(chosen_by_turned: bool) -> None:
    quantizer, latents = make_quantizer(layers=2, codes=8), rows(300)
    averages = Averages(quantizer, decay=0.9)
    averages.begin(latents, torch.ones(300), rounds=3, seed=0)
    averages.plain[1, 3] = 0.0
    if not chosen_by_turned:
        averages.counts[1, 3] = averages.sums[1, 3] = 0.0
    quantizer.books[1, 3] = 1e3
    codes = quantizer.encode(latents, 2)
    chosen = quantizer.chosen(codes)
    dead = averages.revive(latents, chosen, mix(content_keys(latents), 0), 0.05, nothing)
    assert dead == 1
    rest = latents - chosen[0]
    assert (rest - quantizer.books[1, 3]).abs().sum(dim=1).min() < 1e-5
    assert 3 in quantizer.encode(latents, 2)[:, 1]


def test_a_code_never_chosen_stays_where_it_is() -> None:
    quantizer = make_quantizer(layers=1, codes=4)
    averages, before = Averages(quantizer, decay=0.9), quantizer.books.clone()
    averages.update(torch.zeros(1, 4, 8), torch.tensor(0.0))
    torch.testing.assert_close(quantizer.books, before)


def test_who_is_drawn_does_not_depend_on_who_holds_it() -> None:
    values = rows(200)
    keys = mix(content_keys(values), 5)
    alone, found = draw_rows(values, keys, 7, nothing)
    assert found.all()
    order = torch.randperm(200, generator=torch.Generator().manual_seed(0))
    shuffled, _ = draw_rows(values[order], keys[order], 7, nothing)
    torch.testing.assert_close(shuffled, alone, rtol=0, atol=0)
    assert (alone[:, None] == values).all(dim=2).any(dim=1).all()
    none, found = draw_rows(values[:0], keys[:0], 7, nothing)
    assert not found.any()
    assert not none.any()


def test_keys_are_even_and_belong_to_the_bits() -> None:
    values = rows(4000, 3)
    keys = content_keys(values)
    assert len(keys.unique()) == 4000
    torch.testing.assert_close(keys, content_keys(values.clone()))
    numbers = uniform(mix(keys, 1, 2))
    counts = torch.histc(numbers, 10, 0.0, 1.0)
    assert counts.min() > 330
    assert counts.max() < 470
    assert (uniform(mix(keys, 1, 3)) != numbers).all()
