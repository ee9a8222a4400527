"""Fitting an action tokenizer: the job of a `TokenizerRun`.

Whatever stops it, the same command goes on where its newest checkpoint stands, to the same codebooks bit for bit.
"""

from __future__ import annotations

import logging
import shutil
import sys
import time
from pathlib import Path

from flagscale_vla.action.tokenizer import ActionTokenizer
from flagscale_vla.config.tokenizer_run import TokenizerKind, TokenizerRun
from flagscale_vla.mcore.platform import choose_platform
from flagscale_vla.mcore.topology import Topology
from flagscale_vla.reports.outputs import CONFIG, SUMMARY, replace_text, settings_yaml
from flagscale_vla.train.checkpoint import prepare_output
from flagscale_vla.train.pretrain import STOPPED
from flagscale_vla.train.tokenizer_data import FitData, open_data
from flagscale_vla.train.tokenizer_findings import find
from flagscale_vla.train.tokenizer_fit import fit_codec
from flagscale_vla.train.tokenizer_peers import Peers
from flagscale_vla.train.tokenizer_report import FOLDER, conclude, tell_paths
from flagscale_vla.train.tokenizer_saves import check_settings

logger = logging.getLogger(__name__)


def run(run: TokenizerRun) -> None:
    """Fit, measure and report, or go on doing so.

    Raises:
        ConfigError: settings, shards or checkpoints with which the run cannot be.
        ValueError: too many bad samples, or a loss that is no longer a number.
        SystemExit: a signal stopped the fit, so what was to come after it must not begin.
    """
    output = Path(run.output)
    prepare_output(output)
    check_settings(run)
    if is_finished(output):
        logger.info("%s is finished", output)
        tell_paths(output)
        return
    begin = time.perf_counter()
    topology = Topology.start(run.parallel, choose_platform(run.platform))
    data = find_data(run, topology)
    tokenizer, steps = fit(run, data, topology)
    topology.stop()
    if steps < run.fit.steps:
        logger.warning("stopped at step %d of %d; the same command goes on from there", steps, run.fit.steps)
        sys.exit(STOPPED)
    if topology.is_writer:
        save(tokenizer, output / FOLDER)
        conclude(run, data, find(run, data, tokenizer), time.perf_counter() - begin)


def find_data(run: TokenizerRun, topology: Topology) -> FitData:
    """The chunks of a run. The writer looks through the shards first; the others find what it has kept beside them."""
    if topology.is_writer:
        open_data(run, writes=True)
        replace_text(Path(run.output) / CONFIG, settings_yaml(run))
    topology.barrier()
    return open_data(run, writes=False)


def is_finished(output: Path) -> bool:
    """Whether all that a run leaves is there; the summary is written last."""
    return (output / SUMMARY).is_file() and (output / FOLDER).is_dir()


def fit(run: TokenizerRun, data: FitData, topology: Topology) -> tuple[ActionTokenizer, int]:
    """The tokenizer that is asked for, and the steps that were made for it."""
    if run.kind is TokenizerKind.omnisat:
        return fit_codec(run, data, topology)
    return Peers(run, data).own(run.kind), run.fit.steps


def save(tokenizer: ActionTokenizer, folder: Path) -> None:
    """Write the tokenizer, in one step."""
    partial = folder.with_name(f"{folder.name}.tmp")
    for path in (partial, folder):
        shutil.rmtree(path, ignore_errors=True)
    tokenizer.save(partial)
    partial.rename(folder)
