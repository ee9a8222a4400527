"""The words that a frame of a LeRobot dataset is instructed with."""

from __future__ import annotations

from bisect import bisect_right

from flagscale_vla.config.convert_lerobot import Instruction
from flagscale_vla.data.convert.plan import hash_share
from flagscale_vla.data.lerobot.episodes import EpisodeInfo


def subtask_at(episode: EpisodeInfo, frame: int) -> str:
    """The words of the part that a frame lies in, the last one's past its end; empty without parts.

    `end_frame` is the first frame of the next part (EO-1, `eo/data/lerobot_dataset.py`, `__getitem__`).
    """
    if not episode.subtasks:
        return ""
    place = bisect_right([subtask.end for subtask in episode.subtasks], frame)
    return episode.subtasks[min(place, len(episode.subtasks) - 1)].text


def instruction_at(
    episode: EpisodeInfo, frame: int, task: str, mode: Instruction, subtask_share: float, key: str
) -> str:
    """What a frame is instructed with; an episode without parts keeps its task's words.

    Args:
        task: words of the frame's `task_index`.
        subtask_share: how often `mixture` takes the part's words.
        key: of the sample; decides what `mixture` draws, so that a frame always gets the same words.
    """
    if mode is Instruction.task or not episode.subtasks:
        return task
    if mode is Instruction.cumulate:
        return " ".join(subtask.text for subtask in episode.subtasks)
    if mode is Instruction.mixture and hash_share(key) >= subtask_share:
        return task
    return subtask_at(episode, frame)
