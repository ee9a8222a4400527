"""What the README tells people to type exists."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from flagscale_vla.config.checks import ConfigError
from flagscale_vla.config.runs import Verb
from tests.settings import load

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text().replace("\\\n", " ")
COMMANDS = sorted(set(re.findall(r"^ *\$? *python run\.py --config-name ([^`\n]+)", TEXT, flags=re.M)))
VERBS = {f"action={verb.value}": f"verb={verb.value}" for verb in Verb}


REFUSED = "train_tiny_action parallel.tensor=4"
"""What it shows an error with."""


def load_command(command: str) -> None:
    name, *overrides = shlex.split(command)
    load(name, *(VERBS.get(override, override) for override in overrides))


@pytest.mark.parametrize("command", [command for command in COMMANDS if "..." not in command and command != REFUSED])
def test_its_settings_hold(command: str) -> None:
    load_command(command)


def test_its_error_is_ours() -> None:
    with pytest.raises(ConfigError) as refused:
        load_command(REFUSED)
    assert f"ConfigError: {refused.value}\n" in TEXT


def test_its_commands_are_found() -> None:
    assert len(COMMANDS) > 5


def test_its_files_exist() -> None:
    names = re.findall(r"\b((?:launch|docker|tools|docs|tests)/[\w/]+\.\w+)", TEXT)
    assert names
    assert [name for name in names if not (ROOT / name).exists()] == []
