"""EO-1's YAML: every field read, every trap of its own reader mended or refused by name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from flagscale_vla.config.checks import ConfigError
from flagscale_vla.config.convert_lerobot import Instruction
from flagscale_vla.data.convert.eo1_mixture import Eo1Mixture, load_mixture

DEMO = """
mm_datasets:
  - json_path: demo_data/refcoco/refcoco.jsonl             # jsonl file
    vision_base_path: demo_data/refcoco                    # base path for vision data files referenced in the JSONL
    sampling_strategy: random:100%                         # sampling strategy

  - json_path: demo_data/interleaved_demo.jsonl            # interleaved data jsonl

# @robot control config
lerobot_datasets:
  - repo_id: demo25
    root: ./demo_data
    # Optional fields:
    # episodes: [1, 2, 3]                                  # specific episodes to load (None = all)
    train_subtask: mix:0.9                                 # mix sub-task instructions and overall instructions
    delta_action: false                                    # train with delta actions
    state_mode: "MEAN_STD"                                 # state normalization mode
    # which camera streams to load
    select_video_keys: [observation.images.head, observation.images.hand_left, observation.images.hand_right]
    # proprioceptive states
    select_state_keys: [observation.states.joint.position, observation.states.effector.position]
    # action targets
    select_action_keys: [actions.joint.position, actions.effector.position]
    effector_indices: [14, 15]                             # indices of effector channels in the flattened action vector
    weight: 1.0                                            # dataset weight for sampling
"""
"""The demo of EO-1's repository, `experiments/1_demo/data-demo.yaml`, word for word."""


def load_text(folder: Path, text: str, home: str | None = None) -> Eo1Mixture:
    path = folder / "mixture.yaml"
    path.write_text(text)
    return load_mixture(path, Path("base"), Path(home) if home else None)


def test_eo1s_own_demo_is_read(tmp_path: Path) -> None:
    mixture = load_text(tmp_path, DEMO)
    boxes, interleaved = mixture.rows
    (robot,) = mixture.robots
    assert (boxes.name, str(boxes.path)) == ("refcoco", "base/demo_data/refcoco/refcoco.jsonl")
    assert str(boxes.vision) == "base/demo_data/refcoco"
    assert (boxes.sampling.kind, boxes.sampling.number, boxes.sampling.percent) == ("random", 100.0, True)
    assert str(interleaved.vision) == "base/demo_data"
    assert interleaved.sampling.kind == "all"
    assert (robot.name, robot.repo_id, str(robot.path)) == ("demo25", "demo25", "base/demo_data/demo25")
    assert (robot.instruction, robot.subtask_share) == (Instruction.mixture, 0.9)
    assert robot.video_keys[0] == "observation.images.head"
    assert robot.action_keys == ("actions.joint.position", "actions.effector.position")
    assert robot.effector_indices == (14, 15)
    assert (robot.weight, robot.episodes, robot.delta_action) == (1.0, (), False)


@pytest.mark.parametrize(
    ("spelling", "instruction", "share"),
    [
        ("", Instruction.task, 0),
        ("false", Instruction.task, 0),
        ("true", Instruction.subtask, 0),
        ("'true'", Instruction.subtask, 0),
        ("cumulate", Instruction.cumulate, 0),
        ("mixture:0.5", Instruction.mixture, 0.5),
        ("mix:0.9", Instruction.mixture, 0.9),
        ("mixture:1", Instruction.mixture, 1),
    ],
)
def test_every_spelling_of_train_subtask(tmp_path: Path, spelling: str, instruction: Instruction, share: float) -> None:
    text = f"lerobot_datasets:\n  - {{repo_id: a, root: b, train_subtask: {spelling}}}\n"
    (robot,) = load_text(tmp_path, text).robots
    assert (robot.instruction, robot.subtask_share) == (instruction, share)


def test_a_root_that_is_left_out_is_lerobots_home(tmp_path: Path) -> None:
    text = "mm_datasets:\nlerobot_datasets:\n  - repo_id: org/a\n  - {repo_id: org/a, root: HF_LEROBOT_HOME}\n"
    mixture = load_text(tmp_path, text, home="home")
    assert [str(robot.path) for robot in mixture.robots] == ["home/org/a"] * 2
    assert [robot.name for robot in mixture.robots] == ["org-a", "org-a-2"]
    with pytest.raises(ConfigError, match=r"lerobot_datasets\[0\]\.root=None.*lerobot_home"):
        load_text(tmp_path, text)


BAD_ENTRIES = """
repo_id: a
repo_id: [a]
repo_id: a, root: 3
repo_id: a, wieght: 1
repo_id: a, weight: 0
repo_id: a, weight: heavy
repo_id: a, weight: true
repo_id: a, episodes: 3
repo_id: a, episodes: [1, 1]
repo_id: a, episodes: [one]
repo_id: a, delta_action: 1
repo_id: a, state_mode: MIN_MAX
repo_id: a, state_mode: NONE
repo_id: a, train_subtask: mix
repo_id: a, train_subtask: mixture:2
repo_id: a, train_subtask: mixture:x
repo_id: a, train_subtask: 0.9
repo_id: a, select_video_keys: front
repo_id: a, effector_indices: [true]
"""


@pytest.mark.parametrize("entry", BAD_ENTRIES.strip().splitlines())
def test_a_bad_field_is_refused_by_name(tmp_path: Path, entry: str) -> None:
    key = entry.rpartition(", ")[2].partition(":")[0]
    root = "" if entry == "repo_id: a" or "root" in entry else ", root: b"
    name = "root" if entry == "repo_id: a" else key
    with pytest.raises(ConfigError, match=rf"mixture\.yaml: lerobot_datasets\[1\].*{name}"):
        load_text(tmp_path, f"lerobot_datasets:\n  - {{repo_id: good, root: b}}\n  - {{{entry}{root}}}\n")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("mm_datasets:\n  - {vision_base_path: a}\n", "mm_datasets[0].json_path=None"),
        ("mm_datasets:\n  - {json_path: a.jsonl, sampling: all}\n", "mm_datasets[0]: unknown key 'sampling'"),
        ("mm_datasets:\n  - {json_path: a.jsonl, sampling_strategy: half}\n", "sampling_strategy=half"),
        ("mm_datasets:\n  - a.jsonl\n", "mm_datasets[0]=a.jsonl: must be a mapping"),
        ("mm_datasets: a.jsonl\n", "mm_datasets=a.jsonl: must be a list"),
        ("datasets: []\n", "unknown key 'datasets'"),
        ("mm_datasets:\nlerobot_datasets:\n", "names no datasets"),
        ("- a\n", "must hold mm_datasets and lerobot_datasets"),
        ("a: [\n", "cannot be read"),
    ],
)
def test_a_bad_file_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(reason)):
        load_text(tmp_path, text)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_mixture(tmp_path / "none.yaml", Path(), None)
