"""The schemas that a YAML in `conf/` names first in its `defaults`, so that typos and wrong types are refused."""

from __future__ import annotations

from hydra.core.config_store import ConfigStore

from flagscale_vla.config.runs import EvalRun, RecordRun, TrainRun

SCHEMAS: dict[str, type] = {
    "train_schema": TrainRun,
    "record_schema": RecordRun,
    "eval_schema": EvalRun,
}


def register_schemas() -> None:
    """Make every root type known to Hydra under its schema's name."""
    store = ConfigStore.instance()
    for name, root in SCHEMAS.items():
        store.store(name=name, node=root)
