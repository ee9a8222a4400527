"""Saving a run so that it can go on as if never stopped, and going on. The folder: `config/checkpoints.py`.

Every rank calls `save` and `restore`. The engine writes its shards from all of them; everything else is written by the
one writer, between barriers, the commit marker last. What keep-N removes loses its marker first, so a kill at any
moment leaves whole checkpoints and folders that do not count.
"""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from flagscale_vla.config.checkpoint_files import (
    FORMAT,
    Metadata,
    file_digests,
    read_metadata,
    verify_digests,
    write_metadata,
)
from flagscale_vla.config.checkpoints import (
    CONFIG,
    METADATA,
    PROGRESS,
    RECIPE,
    WEIGHTS,
    checkpoint_folder,
    committed,
    find_checkpoint,
    is_committed,
    uncommitted,
)
from flagscale_vla.config.checks import ConfigError
from flagscale_vla.config.provenance import git_hash, package_versions
from flagscale_vla.config.runs import TrainRun
from flagscale_vla.config.stored import flat_settings
from flagscale_vla.data.recipe import TOKENIZER_FILE
from flagscale_vla.data.tokenizer import read_tokenizer
from flagscale_vla.records import Progress
from flagscale_vla.train.changes import check_resumable, differing, read_settings, write_config
from flagscale_vla.train.metadata import samples_digest

if TYPE_CHECKING:
    from flagscale_vla.data.loader import Source
    from flagscale_vla.mcore.engine import Engine
    from flagscale_vla.mcore.topology import Topology

logger = logging.getLogger(__name__)


def prepare_output(output: Path) -> None:
    """Make the folder for results and see that it can be written to.

    Raises:
        ConfigError: where it cannot.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output):
            pass
    except OSError as error:
        raise ConfigError(
            f"output={output}: cannot be written to ({error.strerror}). "
            "This would pass: a folder of your own on a disk with room"
        ) from error


def save(run: TrainRun, topology: Topology, engine: Engine, source: Source, progress: Progress) -> Path:
    """Write the checkpoint of this step and drop those past `checkpoint.keep`. Called by every rank.

    Returns:
        Its folder, committed. A step that is already saved is left as it is.
    """
    output = Path(run.output)
    folder = checkpoint_folder(output, progress.step)
    if is_committed(folder):
        return folder
    if topology.is_writer:
        clean(output)
        folder.mkdir(parents=True)
    topology.barrier()
    engine.save(folder / WEIGHTS)
    topology.barrier()
    if topology.is_writer:
        describe(folder, run, source, progress)
        prune(output, run.checkpoint.keep)
        logger.info("saved %s", folder)
    topology.barrier()
    return folder


def describe(folder: Path, run: TrainRun, source: Source, progress: Progress) -> None:
    """Write all that stands beside the weights, the commit marker last."""
    source.recipe.save(folder / RECIPE)
    write_config(run, folder / CONFIG)
    (folder / PROGRESS).write_text(json.dumps(asdict(progress), indent=2))
    metadata = Metadata(
        format=FORMAT,
        step=progress.step,
        model=flat_settings(run.model),
        parallel=flat_settings(run.parallel),
        special_tokens=asdict(source.recipe.vocabulary),
        samples=samples_digest(source.index),
        digests=file_digests(folder, [RECIPE, CONFIG, PROGRESS]),
        versions=package_versions(),
        git_hash=git_hash(),
    )
    write_metadata(folder, metadata)


def clean(output: Path) -> None:
    """Remove what saves that were cut short have left behind."""
    for folder in uncommitted(output):
        logger.warning("removing %s: its save was cut short", folder)
        shutil.rmtree(folder)


def prune(output: Path, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints."""
    for folder in committed(output)[:-keep]:
        (folder / METADATA).unlink()
        shutil.rmtree(folder)


def read_progress(folder: Path, run: TrainRun) -> Progress:
    """Where the run stood at a checkpoint of its own, once that is found sound and made under the same settings.

    Raises:
        ConfigError: naming the settings that differ, or the file that was changed.
    """
    verify_digests(folder, read_metadata(folder))
    check_resumable(read_settings(folder / CONFIG), run, folder)
    return Progress(**json.loads((folder / PROGRESS).read_text()))


def restore(folder: Path, engine: Engine, *, weights_only: bool) -> None:
    """Load a checkpoint's weights, and the optimizer's state unless `weights_only`. Called by every rank."""
    engine.load(folder / WEIGHTS, weights_only=weights_only)


def check_samples(folder: Path, run: TrainRun, source: Source) -> None:
    """Refuse to go on with other samples than the run was begun with: their order would no longer be the run's.

    Raises:
        ConfigError: where shards were added, removed or changed.
    """
    if read_metadata(folder).samples != samples_digest(source.index):
        raise ConfigError(
            f"data.shards={run.data.shards}: holds other samples than {folder} was trained on. This would pass: the "
            f"shards as they were, or another output= with init={folder} to train its weights on these"
        )


def check_tokenizer(folder: Path, run: TrainRun, source: Source) -> None:
    """Refuse to start from weights that were trained with other token ids.

    Raises:
        ConfigError: naming the tokenizer that belongs to them.
    """
    path = folder / RECIPE / TOKENIZER_FILE
    if read_tokenizer(path).to_str() != source.recipe.tokenizer.to_str():
        raise ConfigError(
            f"data.tokenizer={run.data.tokenizer}: init={run.init} was trained with another one. "
            f"This would pass: data.tokenizer={path}"
        )


def find_init(run: TrainRun) -> Path:
    """The checkpoint that `init` names, once its model is found to be the one that is asked for.

    Raises:
        ConfigError: where there is none, or its model differs, naming the keys.
    """
    folder = find_checkpoint(Path(run.init), key="init")
    metadata = read_metadata(folder)
    verify_digests(folder, metadata)
    saved = {key: value for key, value in metadata.model.items() if key != "name"}
    asked = {key: value for key, value in flat_settings(run.model).items() if key != "name"}
    lines = differing(saved, asked)
    if lines:
        raise ConfigError(f"init={run.init}: its model is another one:\n  model." + "\n  model.".join(lines))
    return folder
