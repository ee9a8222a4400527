"""Checkpoints of a fit: the fitter's whole state in one file, its digest beside it, the commit marker last.

OUTPUT/checkpoints/step_00000500/
    codec.safetensors    codebooks, weights, moments
    config.yaml          the resolved settings
    metadata.json        what this is, with the digest of each file; written last
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from flagscale_vla.config.checkpoint_files import (
    FORMAT,
    DamagedError,
    Metadata,
    file_digests,
    read_metadata,
    sync_folder,
    verify_digests,
    write_metadata,
)
from flagscale_vla.config.checkpoints import CONFIG, checkpoint_folder, committed, is_committed, put_aside
from flagscale_vla.config.checks import ConfigError
from flagscale_vla.config.provenance import git_hash, package_versions
from flagscale_vla.config.stored import Settings, flat_settings
from flagscale_vla.config.tokenizer_run import TokenizerRun
from flagscale_vla.reports.outputs import SUMMARY, replace_text, settings_yaml
from flagscale_vla.train.changes import CACHE, differing, read_settings
from flagscale_vla.train.saves import prune

logger = logging.getLogger(__name__)

STATE = "codec.safetensors"
BUDGET = ("data.max_bad_share", "data.max_bad_shard_share")
FREE = ("output", "parallel", "threads", "checkpoint", "report", "data.shards", *BUDGET, *CACHE)
"""Settings that may change when a fit goes on. Shards may be moved: what they hold is compared by its digest."""

State = Mapping[str, Tensor]


def save_state(run: TokenizerRun, step: int, state: State, samples: str) -> Path:
    """Write a checkpoint and remove what is older than the newest `checkpoint.keep`.

    Args:
        run: the settings.
        step: the step that `state` is after.
        state: of the fitter.
        samples: digest of the chunks that are fitted on.

    Raises:
        OSError: the disk is full or fails.
    """
    output = Path(run.output)
    folder = checkpoint_folder(output, step)
    if is_committed(folder):
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    _write_state(state, folder / STATE)
    replace_text(folder / CONFIG, settings_yaml(run))
    sync_folder(folder)
    write_metadata(folder, _describe(run, folder, step, samples))
    prune(output, run.checkpoint.keep)
    return folder


def _write_state(state: State, path: Path) -> None:
    with path.open("wb") as file:
        file.write(save({name: tensor.contiguous() for name, tensor in state.items()}))
        file.flush()
        os.fsync(file.fileno())


def _describe(run: TokenizerRun, folder: Path, step: int, samples: str) -> Metadata:
    return Metadata(
        format=FORMAT,
        step=step,
        model=flat_settings(run.codec),
        parallel=flat_settings(run.parallel),
        special_tokens={},
        samples=samples,
        digests=file_digests(folder, [STATE, CONFIG]),
        versions=package_versions(),
        git_hash=git_hash(),
    )


def newest_state(output: Path) -> tuple[Path, dict[str, Tensor]] | None:
    """The newest checkpoint that is sound to the last bit, and its state; a damaged one is told and put aside.

    Raises:
        ConfigError: there were checkpoints and each is damaged.
    """
    folders = committed(output)
    for folder in reversed(folders):
        try:
            return folder, _read_state(folder)
        except DamagedError as error:
            logger.error("%s; it is put aside as %s, going on from the one before", error, put_aside(folder).name)
    if folders:
        raise ConfigError(f"output={output}: every checkpoint was damaged and is put aside. Start again")
    return None


def _read_state(folder: Path) -> dict[str, Tensor]:
    verify_digests(folder, read_metadata(folder))
    try:
        return load_file(folder / STATE)
    except SafetensorError as error:
        raise DamagedError(f"{folder / STATE} was damaged: {error}") from error


def check_chunks(run: TokenizerRun, folder: Path, samples: str) -> None:
    """Refuse to go on with other chunks or statistics than the fit was begun with.

    Raises:
        ConfigError: where shards were added, removed or changed.
    """
    if read_metadata(folder).samples != samples:
        raise ConfigError(
            f"data.shards={run.data.shards}: its chunks or their statistics are not those that {folder} was fitted on. "
            "This would pass: the shards as they were, or another output= to start afresh"
        )


def check_settings(run: TokenizerRun) -> None:
    """Refuse an output that holds a checkpoint or results of other settings.

    Raises:
        ConfigError: naming every key that differs, with both values.
    """
    output = Path(run.output)
    folders = committed(output)
    for path in [folder / CONFIG for folder in folders[-1:]] + [output / CONFIG]:
        if path.is_file() and (folders or (output / SUMMARY).is_file()):
            _check_same(read_settings(path), run, path)


def _check_same(saved: Settings, run: TokenizerRun, path: Path) -> None:
    lines = differing(_fixed(saved), _fixed(flat_settings(run)))
    if lines:
        raise ConfigError(
            f"output={run.output} holds results of other settings, {path}:\n  "
            + "\n  ".join(lines)
            + "\nGive the saved values to go on, or another output= to start afresh"
        )


def _fixed(settings: Settings) -> Settings:
    """Those settings that must stay as they are."""
    return {key: value for key, value in settings.items() if key not in FREE and key.split(".")[0] not in FREE}


def state_digest(state: State) -> str:
    """sha256 in hex of all tensors by name, dtype and shape, and so of codebooks, weights and moments."""
    digest = sha256()
    for name, tensor in sorted(state.items()):
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()
