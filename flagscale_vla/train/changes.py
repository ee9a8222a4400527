"""Which settings may change between the runs that share an output folder, and which may not."""

from __future__ import annotations

from pathlib import Path

from omegaconf import OmegaConf

from flagscale_vla.config.checks import ConfigError
from flagscale_vla.config.runs import TrainRun
from flagscale_vla.config.stored import Settings, flat_settings, flatten

EXACT = ("model", "data", "action", "seed", "global_packs")
"""Top-level keys that fix what is trained and on what; another value would break the run's exactness."""

CACHE = ("data.cache.folder", "data.cache.max_bytes")
FREE = ("data.workers", "data.max_bad_share", "data.max_bad_shard_share", "data.shards", *CACHE, "action.tokenizer")
"""Exceptions to `EXACT`. Shards and an action tokenizer may be moved: what they hold is compared instead."""

ORDER = "data.era"
"""A setting that every checkpoint has whose samples come in today's order."""

PARTS = ("vision", "merger", "language", "head")


def write_config(run: TrainRun, path: Path) -> None:
    """Write the resolved settings as YAML."""
    path.write_text(OmegaConf.to_yaml(OmegaConf.structured(run)))


def read_settings(path: Path) -> Settings:
    """The settings in a YAML that `write_config` wrote."""
    return flatten(OmegaConf.to_container(OmegaConf.load(path)))


def differing(saved: Settings, now: Settings) -> list[str]:
    """One line per key that differs: key, saved value, value now."""
    keys = sorted(saved.keys() | now.keys())
    missing = "(absent)"
    return [
        f"{key}: saved with {saved.get(key, missing)}, asked for {now.get(key, missing)}"
        for key in keys
        if saved.get(key, missing) != now.get(key, missing)
    ]


def check_resumable(saved: Settings, run: TrainRun, checkpoint: Path) -> None:
    """Refuse to go on from a checkpoint under settings with which the run would no longer be the same run.

    Layout, platform, rates, number of steps, report and checkpoint settings may change.

    Raises:
        ConfigError: naming every key that must not change, or that samples came in another version's order.
    """
    if ORDER not in saved:
        raise ConfigError(
            f"output={run.output} holds {checkpoint.name} of a version that gave samples in another order, which this "
            f"one cannot go on with. This would pass: another output= with init={checkpoint} to train its weights"
        )
    lines = differing(fixed(saved), fixed(flat_settings(run)))
    if lines:
        raise ConfigError(
            f"output={run.output} holds {checkpoint.name} of another run:\n  "
            + "\n  ".join(lines)
            + "\nGive the saved values to resume it, or another output= to start afresh"
            f" (from its weights with init={checkpoint})"
        )


def fixed(settings: Settings) -> Settings:
    """Those settings that must stay as they are when a run is resumed."""
    frozen = {f"optim.{part}.frozen" for part in PARTS}
    return {
        key: value
        for key, value in settings.items()
        if key in frozen or (key.split(".")[0] in EXACT and not is_free(key))
    }


def is_free(key: str) -> bool:
    """Whether a setting under a key of `EXACT` may change nevertheless."""
    return key in FREE or (key.startswith("data.mixture.") and key.endswith(".shards"))
