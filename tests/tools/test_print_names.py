"""The printed name map: every name of a model once, in aligned columns."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from flagscale_vla.hf.head import head_table
from flagscale_vla.hf.spelling import old_name
from flagscale_vla.hf.table import name_table
from tests.model.rows import public_model

ROOT = Path(__file__).parents[2]


def printed(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "tools/print_names.py", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=environment)


@pytest.mark.parametrize(("name", "older"), [("qwen2_vl_2b", False), ("internvl3_1b", True)])
def test_every_name_is_printed_once_in_aligned_columns(name: str, older: bool) -> None:
    model = public_model(name)
    done = printed(name, *(["--old"] if older else []))
    assert done.returncode == 0, done.stderr
    header, *lines = done.stdout.splitlines()
    backbone, head = name_table(model), head_table(model)
    theirs = [old_name(model, each) if older else each for row in backbone for each in row.theirs]
    theirs += [each for row in head for each in row.theirs]
    column = header.index("theirs")
    assert [line[column:].split("  ")[0] for line in lines] == theirs
    assert [line.split("  ")[0] for line in lines if line[0] != " "] == [row.ours for row in backbone + head]
    assert all(line[column - 2 : column] == "  " for line in lines)


def test_one_layer_is_printed_with_form_and_shapes() -> None:
    done = printed("3b", "--layer", "35")
    lines = [line.split() for line in done.stdout.splitlines()]
    qkv = lines.index(next(line for line in lines if line[0].endswith("layers.35.self_attention.linear_qkv.weight")))
    theirs = "model.language_model.layers.35.self_attn"
    assert lines[qkv][1:] == [
        "2560",
        "x",
        "2048",
        "2",
        "groups",
        "of",
        "heads",
        f"{theirs}.q_proj.weight",
        "2048",
        "x",
        "2048",
    ]
    assert lines[qkv + 1 : qkv + 3] == [[f"{theirs}.{part}_proj.weight", "256", "x", "2048"] for part in "kv"]
    assert not any(".layers.34." in word for line in lines for word in line)


def test_a_model_or_layer_that_is_none_is_refused() -> None:
    assert "invalid choice: '13b'" in printed("13b").stderr
    assert "--layer=36: 3b has layers 0 to 35" in printed("3b", "--layer", "36").stderr
