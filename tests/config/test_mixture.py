"""Settings of a mixture: given in braces, and refused by their rules."""

from __future__ import annotations

import pytest

from flagscale_vla.config.checks import ConfigError
from flagscale_vla.config.stored import flat_settings
from flagscale_vla.train.changes import fixed
from tests.settings import load_training

NO_SHARDS = "data.shards=''"
TWO = "+data.mixture={arm:{shards:runs/a,weight:3},text:{shards:'s3://b/c',weight:1}}"


def test_a_mixture_and_its_stages_are_read() -> None:
    stages = "data.stages=[{samples:1000,weights:{text:0}},{samples:0,weights:{}}]"
    data = load_training("train_tiny_action", NO_SHARDS, TWO, stages).data
    assert {name: source.shards for name, source in data.mixture.items()} == {"arm": "runs/a", "text": "s3://b/c"}
    assert data.weights_by_stage() == [(1000, {"arm": 3.0, "text": 0.0}), (0, {"arm": 3.0, "text": 1.0})]


def test_shards_may_be_moved_and_weights_may_not() -> None:
    settings = fixed(flat_settings(load_training("train_tiny_action", NO_SHARDS, TWO)))
    assert "data.mixture.arm.weight" in settings
    assert "data.mixture.arm.shards" not in settings


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ([TWO], "data.shards=runs/demo: give either data.shards or data.mixture"),
        ([NO_SHARDS], "data.shards='': give either"),
        ([NO_SHARDS, "+data.mixture={arm:{shards:'',weight:1}}"], "data.mixture.arm.shards=''"),
        ([NO_SHARDS, "+data.mixture={arm:{shards:a,weight:-1}}"], "data.mixture.arm.weight=-1.0"),
        ([NO_SHARDS, "+data.mixture={arm:{shards:a,weight:0}}"], "data.mixture.arm.weight=0: every source needs"),
        ([NO_SHARDS, "+data.mixture={a.b:{shards:a,weight:1}}"], "data.mixture=a.b: a name is letters"),
        (["data.stages=[{samples:0,weights:{}}]"], "data.stages[0].weights={}: must not all be zero"),
        ([NO_SHARDS, TWO, "data.stages=[{samples:1,weights:{}}]"], "data.stages[0].samples=1: the last stage"),
        (
            [NO_SHARDS, TWO, "data.stages=[{samples:0,weights:{}},{samples:0,weights:{}}]"],
            "data.stages[0].samples=0: only the last stage",
        ),
        ([NO_SHARDS, TWO, "data.stages=[{samples:0,weights:{wood:1}}]"], "data.stages[0].weights=['wood']: there is"),
        ([NO_SHARDS, TWO, "data.stages=[{samples:0,weights:{arm:-1}}]"], "must not be negative"),
        ([NO_SHARDS, TWO, "data.stages=[{samples:0,weights:{arm:0}}]"], "data.mixture.arm.weight=0: every source"),
    ],
)
def test_a_mixture_that_cannot_be_is_refused(overrides: list[str], words: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load_training("train_tiny_action", *overrides)
    assert words in str(refused.value)
    assert "This would pass: " in str(refused.value)
