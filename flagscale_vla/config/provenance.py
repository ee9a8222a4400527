"""What produced a result: versions of the libraries that matter, and the commit of this code."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = (
    "flagscale_vla",
    "torch",
    "megatron-core",
    "transformer-engine",
    "transformers",
    "numpy",
    "mujoco",
    "metaworld",
)
"""Packages whose version is worth a line beside a result; those not installed are left out."""


def package_versions() -> dict[str, str]:
    """Version by package, with Python's own first."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def git_hash() -> str:
    """The commit this code was checked out from, `-dirty` where it was changed since; `unknown` outside of git."""
    folder = Path(__file__).resolve().parent
    command = ["git", "-C", str(folder), "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
