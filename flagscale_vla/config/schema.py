"""The schemas that a YAML in `conf/` names first in its `defaults`, and the way from a composed config to settings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from difflib import get_close_matches

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from flagscale_vla.config.checks import ConfigError
from flagscale_vla.config.convert_agilex import AgilexRun
from flagscale_vla.config.convert_conversations import ConvertConversationsRun
from flagscale_vla.config.convert_eo1 import ConvertEo1Run
from flagscale_vla.config.convert_lerobot import ConvertLeRobotRun
from flagscale_vla.config.convert_reasoner import ConvertReasonerRun
from flagscale_vla.config.exchange import ExportRun, ImportRun
from flagscale_vla.config.export_conversations import ExportConversationsRun
from flagscale_vla.config.export_lerobot import ExportLeRobotRun
from flagscale_vla.config.index_run import IndexRun
from flagscale_vla.config.replay import ReplayRun
from flagscale_vla.config.runs import EvalRun, RecordRun, TrainRun
from flagscale_vla.config.statistics import StatisticsRun
from flagscale_vla.config.tokenizer_run import TokenizerRun
from flagscale_vla.config.view import ViewRun

SCHEMAS: dict[str, type] = {
    "train_schema": TrainRun,
    "tokenizer_schema": TokenizerRun,
    "record_schema": RecordRun,
    "eval_schema": EvalRun,
    "replay_schema": ReplayRun,
    "import_schema": ImportRun,
    "export_schema": ExportRun,
    "index_schema": IndexRun,
    "convert_agilex_schema": AgilexRun,
    "statistics_schema": StatisticsRun,
    "convert_conversations_schema": ConvertConversationsRun,
    "convert_eo1_schema": ConvertEo1Run,
    "export_conversations_schema": ExportConversationsRun,
    "convert_reasoner_schema": ConvertReasonerRun,
    "convert_lerobot_schema": ConvertLeRobotRun,
    "export_lerobot_schema": ExportLeRobotRun,
    "view_schema": ViewRun,
}


def register_schemas() -> None:
    """Make every root type known to Hydra under its schema's name."""
    store = ConfigStore.instance()
    for name, root in SCHEMAS.items():
        store.store(name=name, node=root)


def settings_of(config: DictConfig) -> object:
    """A composed config as an instance of its root type, with every check of every part passed.

    Raises:
        ConfigError: for a value that a check refuses, a setting left open, or one that does not exist. Hydra itself
            refuses a typo and a wrong type, but takes `+new.key=1` without a word.
    """
    for key, known in unknown_keys(config, ""):
        raise ConfigError(f"{key}: there is no such setting. {suggestion(key, known)}")
    for key in sorted(OmegaConf.missing_keys(config)):
        raise ConfigError(f"{key}=???: has no value yet. Give it one on the command line: {key}=VALUE")
    return OmegaConf.to_object(config)


def unknown_keys(config: DictConfig, prefix: str) -> Iterator[tuple[str, list[str]]]:
    """Keys that the type of their node does not have, each with the names that it has."""
    root = OmegaConf.get_type(config)
    # The keys of a mapping are free; what they stand for has a type again.
    known = [field.name for field in fields(root)] if is_dataclass(root) else [str(name) for name in config]
    for name in map(str, config):
        key = f"{prefix}{name}"
        if name not in known:
            yield key, known
        elif OmegaConf.is_dict(config._get_node(name)):
            yield from unknown_keys(config[name], f"{key}.")


def suggestion(key: str, known: list[str]) -> str:
    """The setting that was probably meant, or all that there are."""
    parent, _, name = key.rpartition(".")
    close = get_close_matches(name, known, n=1)
    path = f"{parent}." if parent else ""
    return f"Did you mean {path}{close[0]}?" if close else "There are: " + ", ".join(path + other for other in known)
