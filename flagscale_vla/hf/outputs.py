"""A job's output folder, all or nothing: it is made under another name and appears when it is complete."""

from __future__ import annotations

import json
import logging
import os
import resource
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from omegaconf import OmegaConf

from flagscale_vla.config.checks import ConfigError
from flagscale_vla.config.exchange import ExportRun, ImportRun
from flagscale_vla.hf.report import Moved, write_page
from flagscale_vla.reports.outputs import CONFIG, SUMMARY, replace_text, settings_yaml, write_summary
from flagscale_vla.reports.pages import REPORT

logger = logging.getLogger(__name__)


def is_finished(output: Path, run: ImportRun | ExportRun, origin: Mapping[str, str]) -> bool:
    """Whether `output` holds what this very job has made already; it then says so.

    Args:
        output: the job's folder.
        run: its settings.
        origin: what it was made from, as `finish` was given it.

    Raises:
        ConfigError: it holds something else.
    """
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return False
    if not (output / SUMMARY).is_file() or not (output / CONFIG).is_file():
        raise ConfigError(f"output={output}: holds other files. This would pass: a folder that does not exist yet")
    made = json.loads((output / SUMMARY).read_text(encoding="utf-8"))
    saved = OmegaConf.to_container(OmegaConf.load(output / CONFIG))
    now = OmegaConf.to_container(OmegaConf.create(settings_yaml(run)))
    if saved != now or any(made.get(key) != value for key, value in origin.items()):
        raise ConfigError(
            f"output={output}: holds what was made with other settings or from something else; see {CONFIG} and "
            f"{SUMMARY} there. This would pass: another folder"
        )
    logger.info("%s is finished already: %s tensors, verified", output, made["tensors"])
    return True


def begin(output: Path) -> Path:
    """An empty folder beside `output` to work in; what an unfinished run left there is removed.

    Raises:
        ConfigError: where it cannot be made.
    """
    scratch = output.with_name(f"{output.name}.partial")
    try:
        if scratch.exists():
            logger.info("beginning anew: %s was never finished", output)
            shutil.rmtree(scratch)
        scratch.mkdir(parents=True)
    except OSError as error:
        raise ConfigError(
            f"output={output}: cannot be written to ({error.strerror}). This would pass: a folder of your own"
        ) from error
    return scratch


def finish(
    scratch: Path, output: Path, run: ImportRun | ExportRun, figures: Mapping[str, object], moved: Sequence[Moved]
) -> None:
    """Write settings, figures and page, and give the folder its name."""
    replace_text(scratch / CONFIG, settings_yaml(run))
    write_summary(scratch, figures, device="cpu")
    title = f"Import of {run.source}" if isinstance(run, ImportRun) else f"Export of {run.checkpoint}"
    write_page(scratch, title, figures, moved, settings_yaml(run))
    if output.exists():
        output.rmdir()
    os.replace(scratch, output)
    logger.info("%s: %s tensors, %s parameters, verified", output, figures["tensors"], figures["parameters"])
    logger.info("report: %s", (output / REPORT).resolve())


def peak_memory_bytes() -> int:
    """Most memory this process has ever held, pages of files it had mapped among it."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
