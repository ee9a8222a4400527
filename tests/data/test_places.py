"""`Placer`: what is kept for an instruction is what would be laid out anew, and no more is kept than allowed."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch

from flagscale_vla.data.places import Placer
from flagscale_vla.data.recipe import Recipe
from flagscale_vla.records import RawSample, Sample
from tests.samples import interleaved_sample, make_recipe, picture_sample, robot_sample

RAWS = [
    *(robot_sample(seed, side=side) for seed in range(4) for side in (112, 168)),
    *(interleaved_sample(seed) for seed in range(4)),
    *(picture_sample(seed, 20) for seed in range(2)),
]


def read(recipe: Recipe, raw: RawSample, epoch: int) -> Sample:
    return recipe.sample(raw, seed=3, epoch=epoch, augment=False)


@pytest.mark.parametrize("kept", [0, 400, 1 << 18])
def test_kept_places_are_those_laid_out_anew(monkeypatch: pytest.MonkeyPatch, kept: int) -> None:
    """In other epochs another chunk of an interleaved sample is chosen."""
    monkeypatch.setattr(Placer, "KEPT_TOKENS", kept)
    keeping = make_recipe(horizon=3)
    for epoch in range(3):
        for raw in [*RAWS, *RAWS[::-1]]:
            ours, anew = read(keeping, raw, epoch), read(make_recipe(horizon=3), raw, epoch)
            for field in fields(Sample):
                a, b = (sample.__getattribute__(field.name) for sample in (ours, anew))
                assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b, field.name


def test_only_what_a_robot_is_told_is_kept() -> None:
    recipe = make_recipe(horizon=3)
    robot, question = robot_sample(0), picture_sample(0, 20)
    assert read(recipe, robot, 0).tokens is read(recipe, robot, 1).tokens
    assert read(recipe, question, 0).tokens is not read(recipe, question, 1).tokens
