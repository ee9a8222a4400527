"""Going on from a checkpoint: finding it, seeing that it is sound and belongs to this run, and loading it."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flagscale_vla.action.vocabulary import ACTION_TOKENS, extends
from flagscale_vla.config.checkpoint_files import DamagedError, read_metadata, verify_digests
from flagscale_vla.config.checkpoints import (
    CONFIG,
    PROGRESS,
    RECIPE,
    WEIGHTS,
    committed,
    find_checkpoint,
    put_aside,
)
from flagscale_vla.config.checks import ConfigError
from flagscale_vla.config.data import Answer, CodeIds
from flagscale_vla.config.runs import TrainRun
from flagscale_vla.config.stored import flat_settings
from flagscale_vla.data.recipe import ACTION_TOKENIZER, TOKENIZER_FILE, Recipe
from flagscale_vla.data.tokenizer import read_tokenizer
from flagscale_vla.hf.head import head_table
from flagscale_vla.hf.table import name_table
from flagscale_vla.hf.target import VOCABULARY
from flagscale_vla.mcore.optimizer import part_of
from flagscale_vla.mcore.storage import StoredTensors
from flagscale_vla.records import Progress
from flagscale_vla.train.changes import check_resumable, differing, read_settings
from flagscale_vla.train.metadata import samples_digest

if TYPE_CHECKING:
    from flagscale_vla.data.feed import Feed
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


def newest_progress(run: TrainRun) -> tuple[Path | None, Progress]:
    """The newest checkpoint of a run whose small files are sound, and where the run stood there.

    Raises:
        ConfigError: it was made under settings that must not change; or every checkpoint is damaged.
    """
    folders = committed(Path(run.output))
    for folder in reversed(folders):
        try:
            return folder, read_progress(folder, run)
        except DamagedError as error:
            logger.error("%s; going on from the one before", error)
    if folders:
        raise ConfigError(f"output={run.output}: {none_sound(folders)}")
    return None, Progress()


def none_sound(folders: list[Path]) -> str:
    """What to say where no checkpoint can be gone on from."""
    names = ", ".join(folder.name for folder in folders)
    return f"none of its checkpoints is sound ({names}). This would pass: another output, to start afresh"


def read_progress(folder: Path, run: TrainRun) -> Progress:
    """Where the run stood at a checkpoint of its own, once that is found sound and made under the same settings.

    Raises:
        ConfigError: naming the settings that differ.
        DamagedError: naming the file that was changed.
    """
    verify_digests(folder, read_metadata(folder))
    check_resumable(read_settings(folder / CONFIG), run, folder)
    return Progress(**json.loads((folder / PROGRESS).read_text()))


def resume(run: TrainRun, topology: Topology, engine: Engine) -> tuple[Path | None, Progress]:
    """Load the newest checkpoint of this run that is sound to the last bit; a damaged one is told and put aside.

    Returns:
        The checkpoint and where the run stood; (None, the beginning) where the run has made none.

    Raises:
        ConfigError: as `newest_progress`.
    """
    folder, progress = newest_progress(run)
    while folder is not None and topology.any(_is_damaged(folder, engine)):
        if topology.is_writer:
            logger.error("%s is put aside as %s; going on from the one before", folder, put_aside(folder).name)
        topology.barrier()
        folder, progress = newest_progress(run)
        if folder is None:
            raise ConfigError(f"output={run.output}: its only checkpoint is damaged and was put aside. Start again")
    return folder, progress


def _is_damaged(folder: Path, engine: Engine) -> bool:
    try:
        engine.load(folder / WEIGHTS, with_optimizer=True)
    except DamagedError as error:
        logger.error("%s", error)
        return True
    return False


def warm_start(folder: Path, run: TrainRun, topology: Topology, engine: Engine) -> list[str]:
    """Load weights alone to start a new run. The head may be missing or of another shape: it is then drawn anew.

    An embedding may have grown, for codes: the checkpoint's rows are kept, and those behind them drawn anew.

    Returns:
        Lines that say which tensors were drawn anew and which of the checkpoint's were not used.

    Raises:
        ValueError: naming a tensor of the backbone that is missing or of another shape.
        DamagedError: naming a tensor that is not as it was written.
    """
    left = engine.load(folder / WEIGHTS, with_optimizer=False, may_miss=is_heads, may_grow=has_row_per_id)
    names = [row.ours for row in name_table(run.model) + head_table(run.model)]
    stored = StoredTensors.open(folder / WEIGHTS)
    counts = topology.all_reduce_sum([float(name in left) for name in names])
    anew = [name for name, count in zip(names, counts, strict=True) if count]
    lines = [f"{name} is not there in this shape, drawn anew" for name in anew]
    lines += [f"{name} is there and not used" for name in stored.weights if name not in names]
    rows = {name: stored.shape(name)[0] for name in stored.weights if has_row_per_id(name)}
    lines += [
        f"{name} has {count} rows there; the {run.model.language.vocab - count} behind them are drawn anew"
        for name, count in rows.items()
        if count < run.model.language.vocab
    ]
    return [f"init={folder}: {line}" for line in lines]


def is_heads(name: str) -> bool:
    """Whether a tensor belongs to the action head."""
    return part_of(name) == "head"


def has_row_per_id(name: str) -> bool:
    """Whether a tensor has a row for each token id."""
    return name in VOCABULARY


def check_action_tokenizer(folder: Path, run: TrainRun, recipe: Recipe) -> None:
    """Refuse to go on with other codes than the run was begun with, wherever their tokenizer lies.

    Raises:
        ConfigError: where the action tokenizer is another one.
    """
    path = folder / RECIPE / ACTION_TOKENIZER
    if recipe.codes and (saved := Recipe.load(folder / RECIPE).codes) and saved.digest != recipe.codes.digest:
        raise ConfigError(
            f"action.tokenizer={run.action.tokenizer}: is not the one that {folder} was trained with. "
            f"This would pass: action.tokenizer={path}"
        )


def check_samples(folder: Path, run: TrainRun, feed: Feed) -> None:
    """Refuse to go on with other samples than the run was begun with: their order would no longer be the run's.

    Raises:
        ConfigError: where shards were added, removed or changed.
    """
    if read_metadata(folder).samples != samples_digest(feed):
        raise ConfigError(
            f"data.shards={run.data.shards}: holds other samples than {folder} was trained on. This would pass: the "
            f"shards as they were, or another output= with init={folder} to train its weights on these"
        )


def check_tokenizer(folder: Path, run: TrainRun, feed: Feed) -> None:
    """Refuse to start from weights that were trained with other token ids.

    Ids of codes may come behind those that there are. Where the weights have no flow head, as a vision-language model's
    that was imported, EO-1's tokens mean nothing yet and may lie elsewhere.

    Raises:
        ConfigError: naming the tokenizer that belongs to them.
    """
    path = folder / RECIPE / TOKENIZER_FILE
    recipe = feed.recipe
    head = {row.ours for row in head_table(run.model)}
    moved = () if head & set(StoredTensors.open(folder / WEIGHTS).weights) else ACTION_TOKENS
    if not extends(recipe.tokenizer, read_tokenizer(path), moved):
        raise ConfigError(
            f"data.tokenizer={run.data.tokenizer}: init={run.init} was trained with another one. "
            f"This would pass: data.tokenizer={path}"
        )
    if recipe.codes and (path.parent / ACTION_TOKENIZER).is_dir():
        other = Recipe.load(path.parent).codes
        if other and other.digest != recipe.codes.digest:
            logger.warning("init=%s was trained on another action tokenizer's codes, and must learn these", run.init)


def find_init(run: TrainRun) -> Path:
    """The checkpoint that `init` names, once its backbone is found to be the one that is asked for.

    Raises:
        ConfigError: where there is none, or its vision tower or language model differs, naming the keys.
        DamagedError: naming the file that was changed.
    """
    folder = find_checkpoint(Path(run.init), key="init")
    metadata = read_metadata(folder)
    verify_digests(folder, metadata)
    lines = differing(_backbone(metadata.model, run), _backbone(flat_settings(run.model), run))
    if lines:
        raise ConfigError(f"init={run.init}: its model is another one:\n  model." + "\n  model.".join(lines))
    return folder


def _backbone(settings: Mapping[str, Any], run: TrainRun) -> dict[str, object]:
    """Settings that must be the checkpoint's. An embedding that has room for new codes may have more rows than it."""
    backbone = {key: value for key, value in settings.items() if key != "name" and not key.startswith("flow.")}
    rows, vocab = backbone["language.vocab"], run.model.language.vocab
    may_grow = run.action.answer is not Answer.flow and run.action.ids is CodeIds.appended
    return backbone | ({"language.vocab": vocab} if may_grow and rows <= vocab else {})
