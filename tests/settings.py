"""Settings as `run.py` would make them, for tests that need a whole run's."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from flagscale_vla.config.runs import EvalRun, RecordRun, TrainRun
from flagscale_vla.config.schema import SCHEMAS, register_schemas, settings_of

CONF = Path(__file__).parents[1] / "conf"


@cache
def composed(name: str, *overrides: str) -> DictConfig:
    """`conf/NAME.yaml` with overrides, as Hydra gives it to `run.py`."""
    register_schemas()
    with initialize_config_dir(str(CONF), version_base=None):
        return compose(name, list(overrides))


def load(name: str, *overrides: str) -> TrainRun | RecordRun | EvalRun:
    """The checked settings of a config with overrides, made anew for each call."""
    run = settings_of(composed(name, *overrides))
    assert isinstance(run, tuple(SCHEMAS.values()))
    return run


def load_training(name: str, *overrides: str) -> TrainRun:
    """The checked settings of a training run."""
    run = load(name, *overrides)
    assert isinstance(run, TrainRun)
    return run
