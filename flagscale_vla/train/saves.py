"""The checkpoints that a run writes while it goes on, one at a time. The folder: `config/checkpoints.py`.

Every rank writes and reads back its own pieces; then the one writer describes them and sets the commit marker, last.
What keep-N removes loses its marker first and goes only after a newer one was verified, so a kill at any moment leaves
whole checkpoints and folders that do not count.
"""

from __future__ import annotations

import json
import logging
import shutil
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from flagscale_vla.config.checkpoint_files import (
    FORMAT,
    DamagedError,
    Metadata,
    file_digests,
    write_durably,
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
    is_committed,
    uncommitted,
)
from flagscale_vla.config.provenance import git_hash, package_versions
from flagscale_vla.config.runs import TrainRun
from flagscale_vla.config.stored import flat_settings
from flagscale_vla.mcore.storage import StoredTensors
from flagscale_vla.records import Progress
from flagscale_vla.train.changes import write_config
from flagscale_vla.train.metadata import samples_digest

if TYPE_CHECKING:
    from flagscale_vla.data.feed import Feed
    from flagscale_vla.mcore.engine import Engine
    from flagscale_vla.mcore.topology import Topology

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pending:
    """A save that this rank has begun."""

    folder: Path
    progress: Progress
    written: Future[None]


class Saves:
    """The saves of a run. Every rank calls every method, at the same step.

    A save that fails (a full disk, a damaged file) is told and counted, and the run goes on with the checkpoint before;
    only the last one raises.
    """

    def __init__(self, run: TrainRun, topology: Topology, engine: Engine, feed: Feed) -> None:
        self.run, self.topology, self.engine, self.feed = run, topology, engine, feed
        self.output = Path(run.output)
        self.failed = 0
        self._has_room = False
        self._pending: Pending | None = None
        if topology.is_writer:
            clean(self.output)
        topology.barrier()

    def begin(self, progress: Progress) -> None:
        """Copy weights and state as they are now, and write them while training goes on."""
        self._begin(progress)
        if not self.run.checkpoint.background:
            self._finish()

    def _begin(self, progress: Progress) -> None:
        self._finish()
        folder = checkpoint_folder(self.output, progress.step)
        if not is_committed(folder):
            written = self.engine.start_save(folder / WEIGHTS)
            self._pending = Pending(folder=folder, progress=progress, written=written)

    @property
    def is_writing(self) -> bool:
        """Whether a save is not yet committed."""
        return self._pending is not None

    def poll(self) -> None:
        """Commit the save that is being written, once every rank has written its part. To be called after each step."""
        if self.run.checkpoint.background and not self._has_room:
            # After the first step, for before it the optimizer has no state yet.
            self.engine.prepare_save()
            self._has_room = True
        if self._pending is not None and not self.topology.any(not self._pending.written.done()):
            self._finish()

    def last(self, progress: Progress) -> Path:
        """Save and wait until it is committed.

        Raises:
            OSError: it could not be written.
            DamagedError: what was read back is not what was written.
        """
        self._begin(progress)
        error = self._finish()
        if error is not None:
            raise error
        return checkpoint_folder(self.output, progress.step)

    def _finish(self) -> Exception | None:
        """Wait for the save that is being written and commit it, or remove it and tell why."""
        if self._pending is None:
            return None
        pending, self._pending = self._pending, None
        error = pending.written.exception()
        if not self.topology.any(error is not None):
            error = self._commit(pending)
        if not self.topology.any(error is not None):
            return None
        self.failed += 1
        return self._drop(pending, error)

    def _commit(self, pending: Pending) -> Exception | None:
        if not self.topology.is_writer:
            return None
        try:
            StoredTensors.open(pending.folder / WEIGHTS)
            describe(pending.folder, self.run, self.feed, pending.progress)
        except (OSError, DamagedError) as error:
            return error
        prune(self.output, self.run.checkpoint.keep)
        logger.info("saved %s", pending.folder)
        return None

    def _drop(self, pending: Pending, error: BaseException | None) -> Exception:
        """Remove what a failed save has left; returns the reason, this rank's own where it has one."""
        if error is not None:
            logger.error("%s could not be saved, the run goes on without it: %s", pending.folder, error)
        if self.topology.is_writer:
            shutil.rmtree(pending.folder, ignore_errors=True)
        self.topology.barrier()
        if isinstance(error, Exception):
            return error
        return OSError(f"{pending.folder} could not be saved: another rank failed, and says why")


def describe(folder: Path, run: TrainRun, feed: Feed, progress: Progress) -> None:
    """Write all that stands beside the weights, the commit marker last."""
    feed.recipe.save(folder / RECIPE)
    write_config(run, folder / CONFIG)
    write_durably(folder / PROGRESS, json.dumps(asdict(progress), indent=2))
    manifests = [str(path.relative_to(folder)) for path in sorted((folder / WEIGHTS).glob("*.json"))]
    metadata = Metadata(
        format=FORMAT,
        step=progress.step,
        model=flat_settings(run.model),
        parallel=flat_settings(run.parallel),
        special_tokens=asdict(feed.recipe.vocabulary),
        samples=samples_digest(feed),
        digests=file_digests(folder, [RECIPE, CONFIG, PROGRESS, *manifests]),
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
    """Remove all but the newest `keep` checkpoints, each of which was verified before it was committed."""
    for folder in committed(output)[:-keep]:
        (folder / METADATA).unlink()
        shutil.rmtree(folder)
