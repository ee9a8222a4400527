"""Run any job: `python run.py --config-name NAME key=value ...`.

The config is composed from `conf/`, checked, and handed to the job that its type names. Where it asks for more than
one process on this host, the processes are started here.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import TypeGuard

import hydra
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
from flagscale_vla.config.runs import EvalRun, RecordRun, TrainRun, Verb
from flagscale_vla.config.schema import register_schemas, settings_of
from flagscale_vla.config.statistics import StatisticsRun
from flagscale_vla.config.tokenizer_run import TokenizerRun
from flagscale_vla.config.view import ViewRun

JOBS: dict[type, tuple[str, str]] = {
    TrainRun: ("flagscale_vla.train.pretrain", "run"),
    TokenizerRun: ("flagscale_vla.train.tokenizer", "run"),
    RecordRun: ("flagscale_vla.sim.record", "run"),
    EvalRun: ("flagscale_vla.sim.evaluate", "run"),
    ReplayRun: ("flagscale_vla.sim.replay", "run"),
    ImportRun: ("flagscale_vla.hf.importer", "run"),
    ExportRun: ("flagscale_vla.hf.exporter", "run"),
    IndexRun: ("flagscale_vla.data.indexing", "run"),
    AgilexRun: ("flagscale_vla.data.convert.agilex.job", "run"),
    StatisticsRun: ("flagscale_vla.data.statistics", "run"),
    ConvertConversationsRun: ("flagscale_vla.data.convert.conversations", "run"),
    ConvertEo1Run: ("flagscale_vla.data.convert.eo1", "run"),
    ExportConversationsRun: ("flagscale_vla.data.convert.export_conversations", "run"),
    ConvertReasonerRun: ("flagscale_vla.data.convert.reasoner", "run"),
    ConvertLeRobotRun: ("flagscale_vla.data.lerobot.convert", "run"),
    ExportLeRobotRun: ("flagscale_vla.data.lerobot.export", "run"),
    ViewRun: ("flagscale_vla.view.job", "run"),
}
"""Root type of a config, to the module and function that does its job. Imported only when it is wanted."""

DRYRUN = ("flagscale_vla.plan.dryrun", "run")
"""The job of a `TrainRun` that is only to be tried."""

VERBS = {f"action={verb.value}": f"verb={verb.value}" for verb in Verb}


def find_job(run: object) -> Callable[[object], None]:
    """The function that does the job of these settings."""
    module, name = DRYRUN if isinstance(run, TrainRun) and run.verb is Verb.dryrun else JOBS[type(run)]
    return import_module(module).__dict__[name]


def leave_unread(config: DictConfig) -> None:
    """Let a dry run do without what it would not read: shards and tokenizer."""
    if OmegaConf.get_type(config) is TrainRun and config.verb is Verb.dryrun:
        if not config.data.shards and not config.data.mixture:
            config.data.shards = "unread"
        if OmegaConf.is_missing(config.data, "tokenizer"):
            config.data.tokenizer = "unread"


def run_composed(config: DictConfig) -> None:
    """Check a composed config, then do its job here or in processes started for it."""
    leave_unread(config)
    run = settings_of(config)
    if may_start_ranks(run) and "RANK" not in os.environ:
        from launch.ranks import start_ranks

        if start_ranks(run):
            return
    find_job(run)(run)


def may_start_ranks(run: object) -> TypeGuard[TrainRun | TokenizerRun]:
    """Whether a job shares its work out over processes that are started for it."""
    return isinstance(run, TokenizerRun) or (isinstance(run, TrainRun) and run.verb is Verb.run)


@hydra.main(version_base=None, config_path="conf")
def main(config: DictConfig) -> None:
    """Entry point; a setting or input that cannot work ends in one line, not in a trace."""
    logging.getLogger().setLevel(logging.INFO)
    # It lists every parameter at that level.
    logging.getLogger("megatron").setLevel(logging.WARNING)
    if "TORCHELASTIC_ERROR_FILE" in os.environ:
        from launch.failures import run_as_rank

        run_as_rank(partial(run_composed, config))
        return
    try:
        run_composed(config)
    except (ConfigError, ValueError, OSError) as error:
        if os.environ.get("FLAGSCALE_VLA_TRACE"):
            raise
        sys.exit(f"{type(error).__name__}: {error}\n(set FLAGSCALE_VLA_TRACE=1 for the whole trace)")


if __name__ == "__main__":
    register_schemas()
    sys.argv = [VERBS.get(argument, argument) for argument in sys.argv]
    main()
